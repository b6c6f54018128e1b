package tlog_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/internal/testrig/sigstore"
	"assay.dev/assay/store"
	"assay.dev/assay/store/storetest"
)

// TestLookupRekor: what was uploaded to a real Rekor is found again by the signature
// alone, and verifies.
func TestLookupRekor(t *testing.T) {
	url := startRekor1(t)
	pin := filepath.Join(t.TempDir(), "rekor.pub")
	l, err := tlog.NewRekor(tlog.RekorOptions{URL: url, Version: tlog.Rekor1, PinFile: pin})
	if err != nil {
		t.Fatal(err)
	}
	const image = "example.com/image@sha256:"
	for name, rec := range map[string]store.Record{
		"statement":                   storetest.StatementRecord(t, storetest.NewRun("TaskRun"), "x", []intoto.Subject{storetest.ImageSubject(image + strings.Repeat("0", 64))}, storetest.NewRecordSigner(t)),
		"image":                       storetest.ImageRecord(t, storetest.NewRun("TaskRun"), image+strings.Repeat("1", 64), storetest.NewRecordSigner(t)),
		"image, by a certificate":     storetest.ImageRecord(t, storetest.NewRun("TaskRun"), image+strings.Repeat("2", 64), storetest.NewCertSigner(t)),
		"statement, by a certificate": storetest.StatementRecord(t, storetest.NewRun("TaskRun"), "y", []intoto.Subject{storetest.ImageSubject(image + strings.Repeat("3", 64))}, storetest.NewCertSigner(t)),
	} {
		t.Run(name, func(t *testing.T) {
			s := tlog.SignedOf(rec)[0]
			var envelope []byte
			if rec.Statement != nil {
				if envelope, err = rec.Envelope().MarshalJSON(); err != nil {
					t.Fatal(err)
				}
			}
			cert := rec.Signatures[0].Cert
			if _, err := l.Lookup(t.Context(), s, envelope, cert); !errors.Is(err, tlog.ErrNoEntry) {
				t.Fatalf("before it is there: %v", err)
			}
			if _, err := l.Upload(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
			found, err := l.Lookup(t.Context(), s, envelope, cert)
			if err != nil || len(found) != 1 {
				t.Fatalf("%d entries, %v", len(found), err)
			}
			raw, err := os.ReadFile(pin)
			if err != nil {
				t.Fatal(err)
			}
			key, err := tlog.ParseRekorKey("rekor", raw)
			if err != nil {
				t.Fatal(err)
			}
			if in, err := tlog.CheckRekor(found[0], s, tlog.Trust{Rekor: []tlog.RekorKey{key}}); err != nil || in.Promise || in.Time.IsZero() {
				t.Errorf("%+v, %v", in, err)
			}
		})
	}
}

// TestLookupAnswers: what a log may answer, played.
func TestLookupAnswers(t *testing.T) {
	d := sigstore.New(t)
	by := d.Issue(sigstore.Identity{SAN: "a@example.com", Issuer: "https://example.com"})
	key := newKey(t, 1).public
	message := []byte("hello")
	s := tlog.Signed{Payload: message, Sig: by.Sign(t, message), Key: key}
	for name, tt := range map[string]struct {
		code  int
		body  string
		class store.Class
		none  bool
		says  string
	}{
		"nothing":          {200, `[]`, 0, true, "holds no entry"},
		"entry of another": {200, `[{"` + strings.Repeat("a", 64) + `":{"body":"e30=","logID":"` + strings.Repeat("b", 64) + `"}}]`, 0, true, ""},
		"no list":          {200, `{}`, store.Permanent, false, "reading the answer"},
		"duplicate keys":   {200, `[{"a":1,"a":2}]`, store.Permanent, false, "reading the answer"},
		"too many":         {200, "[" + strings.Repeat("{},", 100) + "{}]", store.Permanent, false, "at most 16"},
		"away":             {503, ``, store.Transient, false, "503"},
		"not a log":        {404, ``, store.Configuration, false, "404"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var q map[string]any
				if r.URL.Path != "/api/v1/log/entries/retrieve" || json.NewDecoder(r.Body).Decode(&q) != nil {
					t.Errorf("%s %v", r.URL, q)
				}
				w.WriteHeader(tt.code)
				w.Write([]byte(tt.body)) //nolint:errcheck // the client will notice
			}))
			defer srv.Close()
			l, err := tlog.NewRekor(tlog.RekorOptions{URL: srv.URL, Version: tlog.Rekor1})
			if err != nil {
				t.Fatal(err)
			}
			_, err = l.Lookup(t.Context(), s, nil, by.PEM())
			if err == nil || errors.Is(err, tlog.ErrNoEntry) != tt.none || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v", err)
			}
			if !tt.none && store.ClassOf(err) != tt.class {
				t.Errorf("%v is of class %v", err, store.ClassOf(err))
			}
		})
	}
}
