package logserver

import (
	"context"
	"crypto/rand"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"assay.dev/assay/attest/tlog"
)

// BenchmarkUpload is a client with many records at once, a witness included.
func BenchmarkUpload(b *testing.B) {
	skey, key, _, err := tlog.GenerateKey("example.com/log")
	if err != nil {
		b.Fatal(err)
	}
	wkey, _, wpub, err := tlog.GenerateKey("example.org/witness")
	if err != nil {
		b.Fatal(err)
	}
	cosigner, err := tlog.NewCosigner(wkey, nil)
	if err != nil {
		b.Fatal(err)
	}
	w, err := NewWitness(WitnessOptions{Key: cosigner, Logs: []tlog.LogKey{key}, State: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	wsrv := httptest.NewServer(w.Handler())
	defer wsrv.Close()
	s, err := Open(b.Context(), Options{Dir: b.TempDir(), Key: skey, Witnesses: []WitnessAt{{wsrv.URL, wpub}}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close(context.Background())
	token := filepath.Join(b.TempDir(), "token")
	if err := makeToken(token); err != nil {
		b.Fatal(err)
	}
	srv := httptest.NewServer(s.Handler(Admission{TokenFile: token}))
	defer srv.Close()
	c, err := tlog.NewTile(tlog.TileOptions{URL: srv.URL, LogKey: key.String(), Witnesses: []string{wpub.String()}, TokenFile: token,
		Transport: &http.Transport{MaxIdleConnsPerHost: 128}})
	if err != nil {
		b.Fatal(err)
	}
	k := newSigner(b)
	b.SetParallelism(64)
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if _, err := c.Upload(b.Context(), k.record(b, rand.Text())); err != nil {
				b.Error(err)
			}
		}
	})
}
