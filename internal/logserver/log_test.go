package logserver

// These tests run the real log (tessera on a folder) and the real witness over HTTP
// on loopback, and the real client; nothing is stood in for.

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/note"
	xtlog "golang.org/x/mod/sumdb/tlog"

	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/store"
)

func TestUploadAndCheck(t *testing.T) {
	r := newRig(t, true)
	c, s := r.client(t), newSigner(t)
	rec := s.record(t, "image")
	e := upload(t, c, rec)
	in, err := tlog.CheckProof(e.Proof, tlog.SignedOf(rec)[0], r.trust())
	if err != nil {
		t.Fatal(err)
	}
	if in.Log != "example.com/log" || in.Kind != tlog.KindTile || len(in.Witnesses) != 1 || in.Time.IsZero() || in.Size != in.Index+1 {
		t.Errorf("inclusion %+v", in)
	}
	if e.URL != r.url+"/entry/0" {
		t.Errorf("URL %s", e.URL)
	}
	// The entry's address gives the same leaf with a proof.
	res, err := http.Get(e.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var b bytes.Buffer
	b.ReadFrom(res.Body)
	if _, err := tlog.CheckProof(b.Bytes(), tlog.SignedOf(rec)[0], r.trust()); err != nil {
		t.Errorf("proof at %s: %v", e.URL, err)
	}
	// Again: the same entry.
	if again := upload(t, c, rec); again.URL != e.URL {
		t.Errorf("the same record again became %s", again.URL)
	}
}

// TestThiefOffline: whoever has the signing key but not the log's cannot make
// evidence that demands inclusion.
func TestThiefOffline(t *testing.T) {
	r := newRig(t, true)
	s := newSigner(t)
	honest := s.record(t, "honest")
	e := upload(t, r.client(t), honest)
	stolen := s.record(t, "stolen") // same key, never logged
	signed := tlog.SignedOf(stolen)[0]
	for _, tc := range []struct {
		name, want string
		proof      []byte
	}{
		{"proof of another record", "is about payload", e.Proof},
		{"own leaf, another's proof", "is not this one", forge(t, e.Proof, func(p *tlog.Proof) { p.Extra = leafOf(t, signed) })},
		{"own log under the same name", "not signed by the trusted key", forgedLog(t, signed, "example.com/log")},
		{"own log", "none of the trusted", forgedLog(t, signed, "example.net/mine")},
		{"nothing", "no empty line", nil},
	} {
		if _, err := tlog.CheckProof(tc.proof, signed, r.trust()); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v; want an error with %q", tc.name, err, tc.want)
		}
	}
	// A second signature by the stolen key over a payload that was logged.
	again := s.record(t, "honest")
	if _, err := tlog.CheckProof(e.Proof, tlog.SignedOf(again)[0], r.trust()); err == nil || !strings.Contains(err.Error(), "made without the log") {
		t.Errorf("signed again offline: %v", err)
	}
}

func TestForgedProofs(t *testing.T) {
	r := newRig(t, true)
	c, s := r.client(t), newSigner(t)
	for i := range 5 {
		upload(t, c, s.record(t, fmt.Sprint("before ", i)))
	}
	rec := s.record(t, "image")
	e := upload(t, c, rec)
	signed := tlog.SignedOf(rec)[0]
	stranger := newTestWitness(t, "example.org/stranger", t.TempDir(), r.key)
	unknown := r.trust()
	unknown.Witnesses = []tlog.WitnessKey{stranger.Key()}
	two := r.trust()
	two.Witnesses, two.Quorum = append(two.Witnesses, stranger.Key()), 2
	selfmade, err := tlog.ParseWitnessKey(r.key.String())
	if err != nil {
		t.Fatal(err)
	}
	own := r.trust()
	own.Witnesses = []tlog.WitnessKey{selfmade}
	for _, tc := range []struct {
		name, want string
		trust      tlog.Trust
		change     func(*tlog.Proof)
	}{
		{"witness unknown", "cosigned by 0 of the trusted witnesses", unknown, nil},
		{"quorum not reached", "2 needed", two, nil},
		{"the log is its own witness", "somebody else", own, nil},
		{"no log trusted", "none is given", tlog.Trust{}, nil},
		{"another index", "is not this one", r.trust(), func(p *tlog.Proof) { p.Index-- }},
		{"index beyond the tree", "cannot be in a tree", r.trust(), func(p *tlog.Proof) { p.Index = 1 << 40 }},
		{"a hash changed", "is not this one", r.trust(), func(p *tlog.Proof) { p.Hashes[0][0] ^= 1 }},
		{"a hash missing", "is not this one", r.trust(), func(p *tlog.Proof) { p.Hashes = p.Hashes[1:] }},
		{"size changed", "not signed by the trusted key", r.trust(), func(p *tlog.Proof) {
			p.Checkpoint = bytes.Replace(p.Checkpoint, []byte("\n6\n"), []byte("\n7\n"), 1)
		}},
		{"signature cut off", "", r.trust(), func(p *tlog.Proof) {
			head, _, _ := bytes.Cut(p.Checkpoint, []byte("\n\n"))
			p.Checkpoint = append(head, '\n', '\n')
		}},
		{"cosignature cut off", "cosigned by 0", r.trust(), func(p *tlog.Proof) {
			lines := bytes.SplitAfter(p.Checkpoint, []byte("\n"))
			p.Checkpoint = bytes.Join(lines[:len(lines)-2], nil)
		}},
	} {
		proof := e.Proof
		if tc.change != nil {
			proof = forge(t, proof, tc.change)
		}
		if _, err := tlog.CheckProof(proof, signed, tc.trust); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v; want an error with %q", tc.name, err, tc.want)
		}
	}
}

func forge(t *testing.T, proof []byte, change func(*tlog.Proof)) []byte {
	t.Helper()
	p, err := tlog.ParseProof(proof)
	if err != nil {
		t.Fatal(err)
	}
	change(&p)
	return p.Bytes()
}

func leafOf(t *testing.T, s tlog.Signed) []byte {
	t.Helper()
	l, err := tlog.NewLeaf(s)
	if err != nil {
		t.Fatal(err)
	}
	return l.Bytes()
}

// signTree signs a checkpoint, as whoever has the log's key can.
func signTree(t *testing.T, skey string, tree tlog.Tree) []byte {
	t.Helper()
	s, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Sign(&note.Note{Text: fmt.Sprintf("%s\n%d\n%s\n", tree.Origin, tree.Size, base64.StdEncoding.EncodeToString(tree.Root[:]))}, s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// forgedLog is a proof from a log that the thief runs himself.
func forgedLog(t *testing.T, s tlog.Signed, origin string) []byte {
	t.Helper()
	skey, _, _, err := tlog.GenerateKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	leaf := leafOf(t, s)
	return tlog.Proof{Extra: leaf, Checkpoint: signTree(t, skey, tlog.Tree{Origin: origin, Size: 1, Root: xtlog.RecordHash(leaf)})}.Bytes()
}

// TestVerifyWholeLog: many entries, across tiles; then each kind of damage.
func TestVerifyWholeLog(t *testing.T) {
	r := newRig(t, true)
	c, s := r.client(t), newSigner(t)
	var wg sync.WaitGroup
	fetch, err := tlog.NewFetch(r.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	tiles := tlog.Tiles{Fetch: fetch}
	first := func() []byte {
		rep, err := Verify(t.Context(), tiles, r.trust(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return []byte(rep.Checkpoint)
	}()
	var middle []byte
	for round, n := range []int{100, 500} {
		for i := range n {
			rec := s.record(t, fmt.Sprint(round, "-", i))
			wg.Go(func() {
				if _, err := c.Upload(t.Context(), rec); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		rep, err := Verify(t.Context(), tiles, r.trust(), middle)
		if err != nil {
			t.Fatal(err)
		}
		if round == 0 {
			middle = []byte(rep.Checkpoint)
			if rep.Size != 100 {
				t.Errorf("size %d", rep.Size)
			}
			continue
		}
		if rep.Size != 600 || rep.Continues != 100 || len(rep.Witnesses) != 1 || rep.Payloads[store.PayloadType] != 600 {
			t.Errorf("report %+v", rep)
		}
	}
	if _, err := Verify(t.Context(), tiles, r.trust(), first); err != nil {
		t.Errorf("continuing the empty log: %v", err)
	}
	dir, err := os.OpenRoot(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if _, err := Verify(t.Context(), tlog.Tiles{Fetch: DirFetch(dir)}, r.trust(), middle); err != nil {
		t.Errorf("from the folder: %v", err)
	}
	forked := signTree(t, r.skey, tlog.Tree{Origin: "example.com/log", Size: 50})
	if _, err := Verify(t.Context(), tiles, r.trust(), forked); !errors.Is(err, tlog.ErrFork) {
		t.Errorf("another tree of 50: %v", err)
	}
	longer := signTree(t, r.skey, tlog.Tree{Origin: "example.com/log", Size: 601})
	if _, err := Verify(t.Context(), tiles, r.trust(), longer); !errors.Is(err, tlog.ErrFork) {
		t.Errorf("a log that shrank: %v", err)
	}
	for _, path := range []string{"tile/entries/000", "tile/0/000", "tile/0/002.p/88", "tile/1/000.p/2", "tile/entries/002.p/88"} {
		damaged := func(ctx context.Context, p string, limit int64) ([]byte, error) {
			data, err := fetch(ctx, p, limit)
			if p == path {
				data[len(data)/2] ^= 1
			}
			return data, err
		}
		if _, err := Verify(t.Context(), tlog.Tiles{Fetch: damaged}, r.trust(), nil); err == nil {
			t.Errorf("%s damaged: nothing noticed", path)
		}
	}
}

// TestReopen: a log goes on where it was, knows its newest entries, and is not opened
// with another key or twice.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	skey, key, _, err := tlog.GenerateKey("example.com/log")
	if err != nil {
		t.Fatal(err)
	}
	s := newSigner(t)
	leaf, err := tlog.NewLeaf(tlog.SignedOf(s.record(t, "one"))...)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		l, err := Open(t.Context(), Options{Dir: dir, Key: skey})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), Options{Dir: dir, Key: skey}); err == nil || !strings.Contains(err.Error(), "another process") {
			t.Errorf("opened twice: %v", err)
		}
		p, err := l.Add(t.Context(), leaf)
		if err != nil {
			t.Fatal(err)
		}
		if in, err := tlog.VerifyProof(p.Bytes(), leaf.Bytes(), tlog.Trust{Logs: []tlog.LogKey{key}}); err != nil || in.Index != 0 || in.Size != 1 {
			t.Errorf("%+v, %v; want the one entry", in, err)
		}
		if err := l.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	other, _, _, err := tlog.GenerateKey("example.com/log")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Options{Dir: dir, Key: other}); err == nil || !strings.Contains(err.Error(), "not one of this log") {
		t.Errorf("opened with another key: %v", err)
	}
}

// TestWitnessDown: without the witness nothing is published, whoever waits is asked
// to come again, and what came in is there when the witness is back.
func TestWitnessDown(t *testing.T) {
	skey, key, _, err := tlog.GenerateKey("example.com/log")
	if err != nil {
		t.Fatal(err)
	}
	w := newTestWitness(t, "example.org/witness", t.TempDir(), key)
	var mu sync.Mutex
	down := false
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		gone := down
		mu.Unlock()
		if gone {
			http.Error(rw, "gone", http.StatusServiceUnavailable)
			return
		}
		w.Handler().ServeHTTP(rw, r)
	}))
	defer srv.Close()
	set := func(d bool) {
		mu.Lock()
		down = d
		mu.Unlock()
	}
	s, err := Open(t.Context(), Options{Dir: t.TempDir(), Key: skey, Witnesses: []WitnessAt{{srv.URL, w.Key()}}})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := tlog.NewLeaf(tlog.SignedOf(newSigner(t).record(t, "one"))...)
	if err != nil {
		t.Fatal(err)
	}
	set(true)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.Add(ctx, leaf)
		done <- err
	}()
	// Cancelled while it waits: nobody cosigns, so it cannot have ended by itself.
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("added without a witness: %v", err)
	}
	set(false)
	p, err := s.Add(t.Context(), leaf)
	if err != nil {
		t.Fatal(err)
	}
	in, err := tlog.VerifyProof(p.Bytes(), leaf.Bytes(), tlog.Trust{Logs: []tlog.LogKey{key}, Witnesses: []tlog.WitnessKey{w.Key()}})
	if err != nil || in.Index != 0 || in.Size != 1 {
		t.Errorf("%+v, %v", in, err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
