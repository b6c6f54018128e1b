package verify_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"assay.dev/assay/store"
	"assay.dev/assay/store/storetest"
	"assay.dev/assay/verify"
)

// TestUnreadable: a registry keeps back pieces of evidence, or gives other bytes for
// them. What can be read counts, what cannot is said, and where nothing is left there
// is no evidence.
func TestUnreadable(t *testing.T) {
	r := newRig(t)
	key := storetest.NewKey(t)
	r.put(storetest.Provenance(t, key, r.subject, "x"), storetest.Signature(t, key, r.subject))
	all := r.items()
	var provenance []string // digests
	for _, it := range all {
		if strings.Contains(it.MediaType, "dsse") || it.Format == store.FormatBundle {
			provenance = append(provenance, it.Digest)
		}
	}
	answer := func(code int, body string) func(*http.Request) *http.Response {
		return func(req *http.Request) *http.Response {
			return &http.Response{StatusCode: code, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: req}
		}
	}
	for name, tt := range map[string]struct {
		answer func(*http.Request) *http.Response
		kind   verify.Kind
	}{
		"gone":    {answer(http.StatusNotFound, ""), verify.KindUnreadable},
		"refused": {answer(http.StatusForbidden, ""), verify.KindUnreadable},
		"altered": {answer(http.StatusOK, "{}"), verify.KindAltered},
	} {
		t.Run(name, func(t *testing.T) {
			back := roundTripper(func(req *http.Request) (*http.Response, error) {
				if i := strings.LastIndex(req.URL.Path, "/"); slices.Contains(provenance, req.URL.Path[i+1:]) {
					return tt.answer(req), nil
				}
				return r.rt.RoundTrip(req)
			})
			opts := verify.Options{Keys: []verify.Key{bare("k", key)}, Transport: back, WithoutProvenance: true}
			e, err := verify.Image(t.Context(), r.subject.Ref(), opts)
			if err != nil || len(e.Signatures()) == 0 || len(e.Statements()) > 0 {
				t.Fatalf("the signature that can be read: %v", err)
			}
			for _, x := range e.Rejected() {
				if x.Kind != tt.kind || !strings.Contains(x.Reason, "reading it") {
					t.Errorf("rejected as %q: %s; want %q", x.Kind, x.Reason, tt.kind)
				}
			}
			if len(e.Rejected()) != len(provenance) {
				t.Errorf("%d pieces are said not to be read; want %d", len(e.Rejected()), len(provenance))
			}
			opts.WithoutProvenance, opts.WithoutSignature = false, true
			var none *verify.NoEvidenceError
			e, err = verify.Image(t.Context(), r.subject.Ref(), opts)
			if e != nil || !errors.As(err, &none) || !slices.Contains(none.Kinds(), tt.kind) {
				t.Errorf("provenance that cannot be read: %v", err)
			}
		})
	}
	// Whatever piece it is, and whatever is wrong with it, it never counts.
	for i := range all {
		items := slices.Clone(all)
		for k := range items {
			if k != i {
				items[k].Err = fmt.Errorf("kept back: %w", store.ErrNotFound)
			}
		}
		items[i].Err = store.ErrAltered // with its content still there
		if e, err := verify.Items(r.subject.Ref(), r.manifest(), items, verify.Options{Keys: []verify.Key{bare("k", key)}}); err == nil || e != nil {
			t.Errorf("item %d: evidence that was not read verifies", i)
		}
	}
}
