package logserver

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	xtlog "golang.org/x/mod/sumdb/tlog"

	"assay.dev/assay/attest/tlog"
)

// TestOperatorForks: who has the log's key makes a second tree, and the witness
// does not cosign it, nor a rolled back one, after a restart either.
func TestOperatorForks(t *testing.T) {
	r := newRig(t, true)
	c, s := r.client(t), newSigner(t)
	for i := range 3 {
		upload(t, c, s.record(t, fmt.Sprint(i)))
	}
	rec := s.record(t, "hidden")
	signed := tlog.SignedOf(rec)[0]
	leaf := leafOf(t, signed)
	check := func(t *testing.T, w *Witness) {
		t.Helper()
		seen, ok := w.Seen("example.com/log")
		if !ok || seen.Size != 3 {
			t.Fatalf("the witness saw %+v", seen)
		}
		fork := tlog.Tree{Origin: "example.com/log", Size: 3, Root: xtlog.RecordHash(leaf)}
		for _, tc := range []struct {
			name   string
			old    int64
			tree   tlog.Tree
			proof  []xtlog.Hash
			status int
			fork   bool
		}{
			{"same size, another root", 3, fork, nil, http.StatusConflict, true},
			{"larger, without proof", 3, tlog.Tree{Origin: fork.Origin, Size: 4, Root: fork.Root}, nil, http.StatusUnprocessableEntity, false},
			{"larger, with a made up proof", 3, tlog.Tree{Origin: fork.Origin, Size: 4, Root: fork.Root}, []xtlog.Hash{fork.Root, seen.Root, fork.Root}, http.StatusUnprocessableEntity, false},
			{"rolled back", 1, tlog.Tree{Origin: fork.Origin, Size: 1, Root: fork.Root}, nil, http.StatusConflict, false},
			{"from the beginning", 0, tlog.Tree{Origin: fork.Origin, Size: 4, Root: fork.Root}, nil, http.StatusConflict, false},
			{"old larger than new", 3, tlog.Tree{Origin: fork.Origin, Size: 2, Root: fork.Root}, nil, http.StatusBadRequest, false},
			{"unknown log", 0, tlog.Tree{Origin: "example.net/log", Size: 1, Root: fork.Root}, nil, http.StatusNotFound, false},
		} {
			_, err := w.AddCheckpoint(tc.old, tc.proof, signTree(t, r.skey, tc.tree))
			if tc.tree.Origin != fork.Origin {
				// Its name is not the key's.
				_, err = w.AddCheckpoint(tc.old, tc.proof, bytes.Replace(signTree(t, r.skey, fork), []byte(fork.Origin), []byte(tc.tree.Origin), 1))
			}
			var no *Refusal
			if !errors.As(err, &no) || no.Status != tc.status || errors.Is(err, tlog.ErrFork) != tc.fork {
				t.Errorf("%s: %v; want status %d", tc.name, err, tc.status)
			}
		}
		other, _, _, err := tlog.GenerateKey("example.com/log")
		if err != nil {
			t.Fatal(err)
		}
		var no *Refusal
		if _, err := w.AddCheckpoint(3, nil, signTree(t, other, fork)); !errors.As(err, &no) || no.Status != http.StatusForbidden {
			t.Errorf("signed by another key: %v", err)
		}
		if now, _ := w.Seen("example.com/log"); now != seen {
			t.Errorf("a refused checkpoint changed what the witness remembers: %+v", now)
		}
	}
	check(t, r.witness)
	if _, err := os.Stat(r.witness.file("example.com/log") + ".fork"); err != nil {
		t.Errorf("the proof of the fork was not kept: %v", err)
	}
	// Without the witness' word the forked tree convinces nobody.
	p := tlog.Proof{Extra: leaf, Checkpoint: signTree(t, r.skey, tlog.Tree{Origin: "example.com/log", Size: 1, Root: xtlog.RecordHash(leaf)})}
	if _, err := tlog.CheckProof(p.Bytes(), signed, r.trust()); err == nil {
		t.Error("a fork without cosignature was accepted")
	}
	// And with no witness in the trust it does: the report has no names then.
	in, err := tlog.CheckProof(p.Bytes(), signed, tlog.Trust{Logs: []tlog.LogKey{r.key}})
	if err != nil || len(in.Witnesses) != 0 {
		t.Errorf("without witnesses: %+v, %v", in, err)
	}
	t.Run("after a restart", func(t *testing.T) {
		state := r.witness.state
		r.witness.Close()
		w, err := NewWitness(WitnessOptions{Key: r.witness.key, Logs: []tlog.LogKey{r.key}, State: state})
		if err != nil {
			t.Fatal(err)
		}
		check(t, w)
		w.Close()
		// What it remembers cannot be edited without its key.
		old, err := os.ReadFile(w.file("example.com/log"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(w.file("example.com/log"), bytes.Replace(old, []byte("\n3\n"), []byte("\n2\n"), 1), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := NewWitness(WitnessOptions{Key: r.witness.key, Logs: []tlog.LogKey{r.key}, State: state}); err == nil {
			t.Error("an edited memory was believed")
		}
	})
}

func TestWitnessOnce(t *testing.T) {
	r := newRig(t, false)
	c, s := r.client(t), newSigner(t)
	w := newTestWitness(t, "example.org/timer", t.TempDir(), r.key)
	fetch, err := tlog.NewFetch(r.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	trust := tlog.Trust{Logs: []tlog.LogKey{r.key}, Witnesses: []tlog.WitnessKey{w.Key()}}
	for i := range 3 {
		for j := range 1 + 3*i {
			upload(t, c, s.record(t, fmt.Sprint(i, j)))
		}
		signed, err := w.Once(t.Context(), fetch)
		if err != nil {
			t.Fatal(err)
		}
		got, err := tlog.VerifyCheckpoint(signed, trust)
		if err != nil {
			t.Fatal(err)
		}
		if now, _ := w.Seen(r.key.Origin()); now != got.Tree {
			t.Errorf("seen %+v, cosigned %+v", now, got.Tree)
		}
	}
	// Another log with the same key: what an operator does who starts anew.
	fork, url := serveLog(t, Options{Dir: t.TempDir(), Key: r.skey}, Admission{TokenFile: r.token})
	_ = fork
	other, err := tlog.NewFetch(url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Once(t.Context(), other); !errors.Is(err, tlog.ErrFork) {
		t.Errorf("a log that started anew: %v", err)
	}
	oc, err := tlog.NewTile(tlog.TileOptions{URL: url, LogKey: r.key.String(), TokenFile: r.token})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		upload(t, oc, s.record(t, fmt.Sprint("fork", i)))
	}
	if _, err := w.Once(t.Context(), other); !errors.Is(err, tlog.ErrFork) {
		t.Errorf("a longer log that does not continue: %v", err)
	}
}

func FuzzAddCheckpoint(f *testing.F) {
	f.Add([]byte("old 0\n\nexample.com/log\n0\nAAAA\n\n— x y\n"))
	f.Add([]byte("old 3\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\nexample.com/log\n4\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n— x y\n"))
	_, key, _, err := tlog.GenerateKey("example.com/log")
	if err != nil {
		f.Fatal(err)
	}
	skey, _, _, err := tlog.GenerateKey("example.org/witness")
	if err != nil {
		f.Fatal(err)
	}
	c, err := tlog.NewCosigner(skey, nil)
	if err != nil {
		f.Fatal(err)
	}
	w, err := NewWitness(WitnessOptions{Key: c, Logs: []tlog.LogKey{key}, State: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	defer w.Close()
	f.Fuzz(func(t *testing.T, body []byte) {
		rec := httptest.NewRecorder()
		w.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/add-checkpoint", bytes.NewReader(body)))
		if rec.Code == http.StatusOK {
			t.Errorf("cosigned what nobody signed: %q", body)
		}
	})
}
