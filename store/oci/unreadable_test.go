package oci_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
)

// TestListUnreadable: a piece that the registry lists and does not give is listed with
// the reason, and is no reason to keep the others back. Where the registry itself is not
// to be asked, nothing is returned.
func TestListUnreadable(t *testing.T) {
	var (
		victim atomic.Value // end of a path
		answer atomic.Pointer[http.HandlerFunc]
	)
	victim.Store("none")
	tr := storetest.Transport(handler(storetest.Registry(t, true), func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, victim.Load().(string)) {
			return false
		}
		(*answer.Load())(w, r)
		return true
	}))
	subject := storetest.PushImage(t, tr, registry, "staging/run", "image")
	key := storetest.NewKey(t)
	if _, err := open(t, subject, tr, oci.Options{}).Put(t.Context(), subject, storetest.Provenance(t, key, subject, "one"), storetest.Signature(t, key, subject)); err != nil {
		t.Fatal(err)
	}
	whole, err := open(t, subject, tr, oci.Options{}).List(t.Context(), subject.Digest)
	if err != nil {
		t.Fatal(err)
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		one    bool // the failure is of one piece
	}{
		"gone":                       {status(http.StatusNotFound), true},
		"gone for good":              {status(http.StatusGone), true},
		"forbidden":                  {status(http.StatusForbidden), true},
		"withheld":                   {status(http.StatusUnavailableForLegalReasons), true},
		"other bytes":                {func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("{}")) }, true},        //nolint:errcheck // the client will notice
		"too large":                  {func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 9<<20)) }, true}, //nolint:errcheck // the client will notice
		"unauthorized":               {status(http.StatusUnauthorized), false},
		"overloaded":                 {status(http.StatusTooManyRequests), false},
		"broken":                     {status(http.StatusInternalServerError), false},
		"gateway without a registry": {status(http.StatusBadGateway), false},
	} {
		for i, it := range whole {
			if it.MediaType == "application/vnd.dev.cosign.simplesigning.v1+json" {
				continue // known by its digest, and not asked for
			}
			t.Run(name+"/"+string(it.Format)+" "+it.MediaType, func(t *testing.T) {
				answer.Store(&tt.answer)
				victim.Store("/" + it.Digest)
				defer victim.Store("none")
				items, err := open(t, subject, tr, oci.Options{Attempts: 1, MaxItemBytes: 8 << 20}).List(t.Context(), subject.Digest)
				if !tt.one {
					if err == nil || items != nil {
						t.Fatalf("%d items, %v; want an error and nothing", len(items), err)
					}
					return
				}
				if err != nil || len(items) != len(whole) {
					t.Fatalf("%d items of %d, %v", len(items), len(whole), err)
				}
				for k, got := range items {
					if (got.Err != nil) != (k == i) || (got.Content == nil) != (k == i) || got.Digest != whole[k].Digest {
						t.Errorf("item %d: %d bytes, %v; item %d is the one that cannot be read", k, len(got.Content), got.Err, i)
					}
				}
			})
		}
	}
}
