package logserver

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/store"
)

func TestAdmission(t *testing.T) {
	r := newRig(t, false)
	s := newSigner(t)
	leaf, err := tlog.NewLeaf(tlog.SignedOf(s.record(t, "one"))...)
	if err != nil {
		t.Fatal(err)
	}
	post := func(url, token string, body []byte) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/add", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var b bytes.Buffer
		b.ReadFrom(res.Body)
		return res.StatusCode, b.String()
	}
	secret, err := os.ReadFile(r.token)
	if err != nil {
		t.Fatal(err)
	}
	token := strings.TrimSpace(string(secret))
	for _, tc := range []struct {
		name, token string
		body        []byte
		status      int
	}{
		{"no token", "", leaf.Bytes(), http.StatusUnauthorized},
		{"wrong token", token + "x", leaf.Bytes(), http.StatusUnauthorized},
		{"no leaf", token, []byte("hello\n"), http.StatusUnprocessableEntity},
		{"too large", token, make([]byte, tlog.MaxLeaf+1), http.StatusRequestEntityTooLarge},
		{"good", token, leaf.Bytes(), http.StatusOK},
	} {
		if status, body := post(r.url, tc.token, tc.body); status != tc.status {
			t.Errorf("%s: %d %s; want %d", tc.name, status, body, tc.status)
		}
	}
	if status, _ := post(r.url, "", nil); status != http.StatusUnauthorized {
		t.Errorf("nothing at all: %d", status)
	}
	// The zero value admits nobody.
	closed := httptest.NewServer(r.log.Handler(Admission{}))
	defer closed.Close()
	if status, _ := post(closed.URL, token, leaf.Bytes()); status != http.StatusUnauthorized {
		t.Errorf("admission without token: %d", status)
	}
	// The client's words for it are for who has to mend it.
	c, err := tlog.NewTile(tlog.TileOptions{URL: closed.URL, LogKey: r.key.String()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Upload(t.Context(), s.record(t, "two")); store.ClassOf(err) != store.Configuration {
		t.Errorf("refused upload: %v (%v)", err, store.ClassOf(err))
	}
}

func TestUnixPeer(t *testing.T) {
	r := newRig(t, false)
	socket := filepath.Join(t.TempDir(), "log.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	uid := uint32(os.Getuid())
	var admitted Admission
	srv := &http.Server{ConnContext: PeerContext, Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.log.Handler(admitted).ServeHTTP(w, q)
	})}
	go srv.Serve(ln)
	defer srv.Close()
	c, err := tlog.NewTile(tlog.TileOptions{URL: "unix://" + socket, LogKey: r.key.String()})
	if err != nil {
		t.Fatal(err)
	}
	rec := newSigner(t).record(t, "one")
	admitted = Admission{UIDs: []uint32{uid + 1}}
	if _, err := c.Upload(t.Context(), rec); store.ClassOf(err) != store.Configuration {
		t.Errorf("another user: %v", err)
	}
	admitted = Admission{UIDs: []uint32{uid}}
	if _, err := c.Upload(t.Context(), rec); err != nil {
		t.Errorf("this user: %v", err)
	}
}
