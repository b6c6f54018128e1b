package storetest

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/note"
	xtlog "golang.org/x/mod/sumdb/tlog"

	"assay.dev/assay/attest"
	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/store"
)

// Log gives evidence log entries that hold: of a log whose every entry is the only
// one of a tree. No log could go on so, but what stores keep is the same.
type Log struct {
	Trust  tlog.Trust
	signer note.Signer
}

// NewLog makes a log with a key of its own.
func NewLog(t testing.TB) *Log {
	t.Helper()
	skey, key, _, err := tlog.GenerateKey("storetest.example/log")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	return &Log{Trust: tlog.Trust{Logs: []tlog.LogKey{key}}, signer: signer}
}

// Add returns the evidence with an entry for each of its signatures.
func (l *Log) Add(t testing.TB, e store.Evidence) store.Evidence {
	t.Helper()
	leaves, err := tlog.EvidenceLeaves(e)
	if err != nil {
		t.Fatal(err)
	}
	e.Log = nil
	for _, leaf := range leaves {
		root := xtlog.RecordHash(leaf.Bytes())
		text := fmt.Sprintf("%s\n1\n%s\n", l.signer.Name(), base64.StdEncoding.EncodeToString(root[:]))
		checkpoint, err := note.Sign(&note.Note{Text: text}, l.signer)
		if err != nil {
			t.Fatal(err)
		}
		p := tlog.Proof{Extra: leaf.Bytes(), Checkpoint: checkpoint}
		e.Log = append(e.Log, store.LogEntry{URL: "https://storetest.example/entry/0", Proof: p.Bytes()})
	}
	return e
}

// Tally counts, for one key, in which forms a payload was found, and how many of
// these a log proves to hold.
type Tally struct{ Layers, Bundles, LoggedLayers, LoggedBundles int }

// Tallies lists a store and counts by payload digest (hex of SHA-256).
func (l *Log) Tallies(t *testing.T, s store.Reader, digest string, key dsse.PublicKey) map[string]Tally {
	t.Helper()
	items, err := s.List(t.Context(), digest)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]Tally{}
	for _, it := range items {
		signed := signedOf(t, it, key)
		if key.Verify(signed.Message(), signed.Sig) != nil {
			continue // another key's
		}
		proofs, err := tlog.ParseProofs(it.Annotations[tlog.AnnotationProof])
		if err != nil {
			t.Fatal(err)
		}
		logged := 0
		for _, p := range proofs {
			if _, err := tlog.CheckProof(p, signed, l.Trust); err == nil {
				logged = 1
			}
		}
		id := fmt.Sprintf("%x", sha256.Sum256(signed.Payload))
		c := out[id]
		if it.Format == store.FormatBundle {
			c.Bundles++
			c.LoggedBundles += logged
		} else {
			c.Layers++
			c.LoggedLayers += logged
		}
		out[id] = c
	}
	return out
}

// signedOf is the signature that an item holds.
func signedOf(t *testing.T, it store.Item, key dsse.PublicKey) tlog.Signed {
	t.Helper()
	if it.Err != nil {
		t.Fatalf("item %s: %v", it.Digest, it.Err)
	}
	var env *dsse.Envelope
	switch {
	case it.Format == store.FormatBundle:
		b, err := bundle.Parse(it.Content)
		if err != nil {
			t.Fatal(err)
		}
		env = b.Envelope
	case it.MediaType == simplesigning.MediaType:
		sig, err := dsse.Base64(it.Annotations["dev.cosignproject.cosign/signature"])
		if err != nil {
			t.Fatal(err)
		}
		return tlog.Signed{PayloadType: simplesigning.MediaType, Payload: it.Content, Sig: sig, Key: key}
	default:
		var err error
		if env, err = dsse.Parse(it.Content); err != nil {
			t.Fatal(err)
		}
	}
	return tlog.Signed{PayloadType: env.PayloadType, Payload: env.Payload, Sig: env.Signatures[0].Sig, Key: key}
}

// logged is the part of the suite about evidence that was logged.
func logged(t *testing.T, open func(t *testing.T) Back) {
	// all signs the three kinds anew: ECDSA signatures of one payload differ.
	all := func(t *testing.T, k *attest.Key, s store.Subject) []store.Evidence {
		return []store.Evidence{Provenance(t, k, s, "one"), Signature(t, k, s), Observation(t, k, s, "one")}
	}
	add := func(t *testing.T, l *Log, in []store.Evidence) (out []store.Evidence) {
		for _, e := range in {
			out = append(out, l.Add(t, e))
		}
		return out
	}
	put := func(t *testing.T, b Back, es []store.Evidence) []store.Stored {
		t.Helper()
		stored, err := b.Open().Put(t.Context(), b.Subject, es...)
		if err != nil {
			t.Fatal(err)
		}
		return stored
	}
	existing := func(stored []store.Stored) string {
		var b strings.Builder
		for _, s := range stored {
			fmt.Fprintf(&b, "%t ", s.Existing)
		}
		return strings.TrimSpace(b.String())
	}
	// want compares with a tally for each form of the three kinds: the observation
	// has no layer, and the image signature's forms have payloads of their own.
	want := func(t *testing.T, b Back, l *Log, k *attest.Key, es []store.Evidence, w Tally) {
		t.Helper()
		got := l.Tallies(t, b.Open(), b.Subject.Digest, Public(t, k))
		for name, x := range map[string]struct {
			payload []byte
			want    Tally
		}{
			"provenance":                {es[0].Envelope.Payload, w},
			"signature, simple signing": {es[1].Simple.Payload, Tally{w.Layers, 0, w.LoggedLayers, 0}},
			"signature, statement":      {es[1].Envelope.Payload, Tally{0, w.Bundles, 0, w.LoggedBundles}},
			"observation":               {es[2].Envelope.Payload, Tally{0, w.Bundles, 0, w.LoggedBundles}},
		} {
			if c := got[fmt.Sprintf("%x", sha256.Sum256(x.payload))]; c != x.want {
				t.Errorf("%s: %+v; want %+v", name, c, x.want)
			}
		}
	}

	t.Run("each form has its entry", func(t *testing.T) {
		b, k, l := open(t), NewKey(t), NewLog(t)
		es := add(t, l, all(t, k, b.Subject))
		put(t, b, es)
		want(t, b, l, k, es, Tally{1, 1, 1, 1})
	})
	t.Run("what is there keeps its own", func(t *testing.T) {
		b, k, l := open(t), NewKey(t), NewLog(t)
		es := add(t, l, all(t, k, b.Subject))
		put(t, b, es)
		if got := existing(put(t, b, add(t, l, all(t, k, b.Subject)))); got != "true true true" {
			t.Errorf("signed and logged again: existing %s", got)
		}
		if got := existing(put(t, b, all(t, k, b.Subject))); got != "true true true" {
			t.Errorf("signed again and not logged: existing %s", got)
		}
		want(t, b, l, k, es, Tally{1, 1, 1, 1})
	})
	t.Run("the same signature gets its entry later", func(t *testing.T) {
		b, k, l := open(t), NewKey(t), NewLog(t)
		es := all(t, k, b.Subject)
		put(t, b, es)
		for range 2 {
			put(t, b, add(t, l, es))
		}
		// The tag's layer is the one that was there; a referrer cannot be changed.
		want(t, b, l, k, es, Tally{1, 2, 1, 1})
	})
	t.Run("an entry is not put beside another signature", func(t *testing.T) {
		b, k, l := open(t), NewKey(t), NewLog(t)
		put(t, b, all(t, k, b.Subject))
		es := add(t, l, all(t, k, b.Subject))
		if got := existing(put(t, b, es)); got != "false false false" {
			t.Errorf("logged where it was not before: existing %s", got)
		}
		put(t, b, add(t, l, all(t, k, b.Subject)))
		want(t, b, l, k, es, Tally{2, 2, 1, 1})
	})
	t.Run("writers with and without a log lose nothing", func(t *testing.T) {
		b, k, l := open(t), NewKey(t), NewLog(t)
		es := all(t, k, b.Subject)
		with := add(t, l, es)
		var wg sync.WaitGroup
		errs := make([]error, 4)
		for i := range errs {
			wg.Go(func() {
				mine := es
				if i%2 == 0 {
					mine = with
				}
				_, errs[i] = b.Open().Put(context.WithoutCancel(t.Context()), b.Subject, mine...)
			})
		}
		wg.Wait()
		for i, err := range errs {
			if err != nil {
				t.Errorf("writer %d: %v", i, err)
			}
		}
		got := l.Tallies(t, b.Open(), b.Subject.Digest, Public(t, k))
		c := got[fmt.Sprintf("%x", sha256.Sum256(es[0].Envelope.Payload))]
		if c.Layers != 1 || c.LoggedLayers != 1 || c.LoggedBundles == 0 {
			t.Errorf("provenance: %+v; want one layer, logged, and a logged bundle", c)
		}
	})
}
