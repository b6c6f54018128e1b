package storetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/olareg/olareg"
	"github.com/olareg/olareg/config"

	"assay.dev/assay/store"
)

// Registry is a real registry in memory. Without referrers it is one from
// before OCI 1.1.
func Registry(t testing.TB, referrers bool) http.Handler {
	t.Helper()
	h := newRegistry(referrers)
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// NewRegistry is Registry for a process that is no test and ends without closing it.
func NewRegistry(referrers bool) http.Handler { return newRegistry(referrers) }

func newRegistry(referrers bool) *olareg.Server {
	return olareg.New(config.Config{
		Storage: config.ConfigStorage{StoreType: config.StoreMem},
		API:     config.ConfigAPI{Referrer: config.ConfigAPIReferrer{Enabled: &referrers}},
		Log:     slog.New(slog.DiscardHandler),
	})
}

// Transport sends requests straight to a handler.
func Transport(h http.Handler) http.RoundTripper { return transport{h} }

type transport struct{ h http.Handler }

func (tr transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	in := req.Clone(req.Context())
	if in.Body == nil {
		in.Body = http.NoBody
	}
	in.RequestURI = in.URL.RequestURI()
	in.Host = in.URL.Host
	w := httptest.NewRecorder()
	tr.h.ServeHTTP(w, in)
	res := w.Result()
	res.Request = req
	return res, nil
}

// PushImage puts a small image into a repository and returns it as a subject.
// Say makes its digest its own.
func PushImage(t testing.TB, rt http.RoundTripper, registry, path, say string) store.Subject {
	t.Helper()
	client := &http.Client{Transport: rt}
	send := func(method, url, contentType string, body []byte) {
		req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", contentType)
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		said, _ := io.ReadAll(res.Body)
		if res.StatusCode != http.StatusCreated {
			t.Fatalf("%s %s: %s %s", method, url, res.Status, said)
		}
	}
	base := "http://" + registry + "/v2/" + path
	cfg := []byte(fmt.Sprintf(`{"architecture":"amd64","os":"linux","author":%q,"config":{},"rootfs":{"type":"layers","diff_ids":[]}}`, say))
	send(http.MethodPost, base+"/blobs/uploads/?digest="+Digest(cfg), "application/octet-stream", cfg)
	manifest := []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[]}`, Digest(cfg), len(cfg)))
	send(http.MethodPut, base+"/manifests/"+strings.ReplaceAll(say, " ", "-"), "application/vnd.oci.image.manifest.v1+json", manifest)
	return store.Subject{
		Repo: registry + "/" + path, Digest: Digest(manifest),
		MediaType: "application/vnd.oci.image.manifest.v1+json", Size: int64(len(manifest)),
	}
}

// Digest is sha256:… of b.
func Digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
