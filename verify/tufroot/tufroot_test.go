package tufroot_test

// The TUF repository in these tests is made here with go-tuf's own metadata package
// and served over HTTP on loopback.

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"assay.dev/assay/verify/tufroot"
)

// repository serves trusted_root.json with the content given.
func repository(t *testing.T, content []byte) (url string, root []byte, asked *atomic.Int32, up *atomic.Bool) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	must(err)
	signer, err := signature.LoadSigner(private, 0)
	must(err)
	key, err := metadata.KeyFromPublicKey(private.Public())
	must(err)
	end := time.Now().Add(time.Hour).UTC()
	roles := metadata.Root(end)
	for _, role := range []string{metadata.ROOT, metadata.TARGETS, metadata.SNAPSHOT, metadata.TIMESTAMP} {
		must(roles.Signed.AddKey(key, role))
	}
	targets := metadata.Targets(end)
	file, err := metadata.TargetFile().FromBytes("trusted_root.json", content, "sha256")
	must(err)
	targets.Signed.Targets["trusted_root.json"] = file
	files := map[string][]byte{}
	write := func(name string, b []byte, err error) {
		must(err)
		files["/"+name] = b
	}
	snapshot, timestamp := metadata.Snapshot(end), metadata.Timestamp(end)
	for _, m := range []interface {
		Sign(signature.Signer) (*metadata.Signature, error)
	}{roles, targets, snapshot, timestamp} {
		_, err := m.Sign(signer)
		must(err)
	}
	rootJSON, err := roles.ToBytes(false)
	write("1.root.json", rootJSON, err)
	b, err := targets.ToBytes(false)
	write("1.targets.json", b, err)
	b, err = snapshot.ToBytes(false)
	write("1.snapshot.json", b, err)
	b, err = timestamp.ToBytes(false)
	write("timestamp.json", b, err)
	sum := sha256.Sum256(content)
	files["/targets/"+hex.EncodeToString(sum[:])+".trusted_root.json"] = content
	asked, up = new(atomic.Int32), new(atomic.Bool)
	up.Store(true)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		b, ok := files[r.URL.Path]
		switch {
		case !up.Load():
			http.Error(w, "down", http.StatusServiceUnavailable)
		case !ok:
			http.NotFound(w, r)
		default:
			w.Write(b)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL, rootJSON, asked, up
}

func TestGet(t *testing.T) {
	want := []byte(`{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`)
	url, root, asked, up := repository(t, want)
	dir := t.TempDir()
	o := tufroot.Options{Dir: dir, Mirror: url, Root: root, Timeout: time.Minute}
	get := func() ([]byte, error) { return tufroot.Get(t.Context(), o) }
	if got, err := get(); err != nil || string(got) != string(want) {
		t.Fatalf("%s, %v", got, err)
	}
	// What is kept is good for a day, with a network and without.
	before := asked.Load()
	up.Store(false)
	if got, err := get(); err != nil || string(got) != string(want) || asked.Load() != before {
		t.Errorf("kept: %s, %v, %d requests", got, err, asked.Load()-before)
	}
	// Nothing kept and no network: an error once, then no try for a while.
	o.Dir = t.TempDir()
	if _, err := get(); err == nil || errors.Is(err, tufroot.ErrLater) {
		t.Errorf("without a network: %v", err)
	}
	before = asked.Load()
	if _, err := get(); !errors.Is(err, tufroot.ErrLater) || asked.Load() != before {
		t.Errorf("at once again: %v, %d requests", err, asked.Load()-before)
	}
	up.Store(true)
	if err := os.Remove(filepath.Join(o.Dir, "failed")); err != nil {
		t.Fatal(err)
	}
	if _, err := get(); err != nil {
		t.Errorf("with a network again: %v", err)
	}
	// Another root's word is worth nothing.
	_, other, _, _ := repository(t, want)
	o.Dir, o.Root = t.TempDir(), other
	if _, err := get(); err == nil {
		t.Error("a repository that the root does not vouch for was believed")
	}
	o.Dir = ""
	if _, err := get(); err == nil || !strings.Contains(err.Error(), "no folder") {
		t.Errorf("without a folder: %v", err)
	}
}

// TestGitHub: the root.json that is compiled in for GitHub's repository is signed by its
// own key holders, and a repository of others is not believed under it.
func TestGitHub(t *testing.T) {
	o := tufroot.GitHub(t.TempDir())
	if o.Mirror != tufroot.GitHubMirror || o.Dir == "" {
		t.Errorf("%+v", o)
	}
	root, err := metadata.Root().FromBytes(o.Root)
	if err != nil {
		t.Fatal(err)
	}
	if err := root.VerifyDelegate(metadata.ROOT, root); err != nil {
		t.Errorf("it is not signed by itself: %v", err)
	}
	if n := root.Signed.Roles[metadata.ROOT].Threshold; n < 2 {
		t.Errorf("%d of its keys are enough", n)
	}
	url, _, asked, _ := repository(t, []byte(`{}`))
	o.Mirror, o.Timeout = url, time.Minute
	if data, err := tufroot.Get(t.Context(), o); err == nil || data != nil || asked.Load() == 0 {
		t.Errorf("another's repository: %s, %v, %d requests", data, err, asked.Load())
	}
	o.Root[0] = 'x'
	if tufroot.GitHub("d").Root[0] == 'x' {
		t.Error("callers share one root.json")
	}
}
