// Package storetest is the suite that every implementation of store.Store
// passes, and the makers of the evidence that it stores. A new back end is one
// call of Run in its tests.
package storetest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"assay.dev/assay/api"
	"assay.dev/assay/attest"
	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/store"
)

// Back is one place in which evidence can be kept, with one artifact in it.
type Back struct {
	Subject store.Subject
	// Open returns a store that shares nothing with the ones opened before but
	// the place, as another process's would.
	Open func() store.Store
}

// Run tests a back end. Each call of open gives an empty one.
func Run(t *testing.T, open func(t *testing.T) Back) {
	t.Run("empty is no error", func(t *testing.T) {
		b := open(t)
		items, err := b.Open().List(t.Context(), b.Subject.Digest)
		if err != nil || len(items) != 0 {
			t.Fatalf("List = %d items, %v; want none", len(items), err)
		}
	})
	t.Run("what was put is listed", func(t *testing.T) { roundTrip(t, open(t)) })
	t.Run("putting again adds nothing", func(t *testing.T) { idempotent(t, open(t)) })
	t.Run("evidence of two keys is kept apart", func(t *testing.T) { twoKeys(t, open(t)) })
	t.Run("bad evidence is refused before anything is written", func(t *testing.T) { refuses(t, open(t)) })
	t.Run("concurrent writers lose nothing", func(t *testing.T) { concurrent(t, open(t)) })
	t.Run("logged", func(t *testing.T) { logged(t, open) })
}

func roundTrip(t *testing.T, b Back) {
	key := NewKey(t)
	prov, obs, sig := Provenance(t, key, b.Subject, "one"), Observation(t, key, b.Subject, "one"), Signature(t, key, b.Subject)
	stored, err := b.Open().Put(t.Context(), b.Subject, prov, sig, obs)
	if err != nil {
		t.Fatal(err)
	}
	if len(stored) != 3 {
		t.Fatalf("Put returned %d places for 3 pieces", len(stored))
	}
	for i, want := range []struct {
		predicateType string
		tagged        bool
	}{{api.PredicateSLSAv02, true}, {intoto.PredicateImageSignature, true}, {api.PredicateObservation, false}} {
		s := stored[i]
		if s.PredicateType != want.predicateType || s.Referrer == "" || (s.Tag != "") != want.tagged || s.Existing {
			t.Errorf("piece %d: stored as %+v; want %s, tagged %t", i, s, want.predicateType, want.tagged)
		}
	}
	got := Payloads(t, b.Open(), b.Subject.Digest)
	for _, e := range []store.Evidence{prov, sig, obs} {
		if n := got[string(e.Envelope.Payload)].bundles; n != 1 {
			t.Errorf("payload %.60s…: %d bundles; want 1", e.Envelope.Payload, n)
		}
	}
	if n := got[string(prov.Envelope.Payload)].layers; n != 1 {
		t.Errorf("provenance: %d layers; want 1", n)
	}
	if n := got[string(sig.Simple.Payload)].layers; n != 1 {
		t.Errorf("image signature: %d layers; want 1", n)
	}
	if n := got[string(obs.Envelope.Payload)].layers; n != 0 {
		t.Errorf("observation: %d layers; want it as a referrer only", n)
	}
}

func idempotent(t *testing.T, b Back) {
	key := NewKey(t)
	put := func() []store.Stored {
		// Signed anew: ECDSA signatures of one payload differ.
		stored, err := b.Open().Put(t.Context(), b.Subject,
			Provenance(t, key, b.Subject, "one"), Signature(t, key, b.Subject), Observation(t, key, b.Subject, "one"))
		if err != nil {
			t.Fatal(err)
		}
		return stored
	}
	first := put()
	before := Payloads(t, b.Open(), b.Subject.Digest)
	for range 3 {
		for i, s := range put() {
			if !s.Existing || s.Referrer != first[i].Referrer {
				t.Errorf("piece %d again: %+v; want the existing %+v", i, s, first[i])
			}
		}
	}
	after := Payloads(t, b.Open(), b.Subject.Digest)
	if fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("putting again changed what is there:\n%v\n%v", before, after)
	}
	// Twice in one call is once too.
	p := Provenance(t, key, b.Subject, "two")
	if _, err := b.Open().Put(t.Context(), b.Subject, p, p); err != nil {
		t.Fatal(err)
	}
	if got := Payloads(t, b.Open(), b.Subject.Digest)[string(p.Envelope.Payload)]; got != (Count{1, 1}) {
		t.Errorf("the same twice in one call: %+v; want once in each form", got)
	}
}

func twoKeys(t *testing.T, b Back) {
	k1, k2 := NewKey(t), NewKey(t)
	for _, k := range []*attest.Key{k1, k2} {
		if _, err := b.Open().Put(t.Context(), b.Subject, Provenance(t, k, b.Subject, "same"), Signature(t, k, b.Subject)); err != nil {
			t.Fatal(err)
		}
	}
	got := Payloads(t, b.Open(), b.Subject.Digest)
	p := Provenance(t, k1, b.Subject, "same")
	if c := got[string(p.Envelope.Payload)]; c != (Count{2, 2}) {
		t.Errorf("one payload of two keys: %+v; want two in each form", c)
	}
	s := Signature(t, k1, b.Subject)
	if c := got[string(s.Simple.Payload)]; c.layers != 2 {
		t.Errorf("image signatures of two keys: %d layers; want 2", c.layers)
	}
}

func refuses(t *testing.T, b Back) {
	key := NewKey(t)
	good := Provenance(t, key, b.Subject, "good")
	other := b.Subject
	other.Digest = "sha256:" + strings.Repeat("0", 64)
	tampered := Provenance(t, key, b.Subject, "tampered")
	tampered.Envelope.Payload = append([]byte(" "), tampered.Envelope.Payload...)
	wrongKey := Provenance(t, key, b.Subject, "wrong key")
	wrongKey.Key = Public(t, NewKey(t))
	badSimple := Signature(t, key, b.Subject)
	badSimple.Simple.Sig = []byte("no signature")
	halfSignature := Signature(t, key, b.Subject)
	halfSignature.Simple = nil

	for name, e := range map[string]store.Evidence{
		"nothing in it":               {},
		"about another digest":        Provenance(t, key, other, "other"),
		"tampered payload":            tampered,
		"signed by another key":       wrongKey,
		"bad simple signature":        badSimple,
		"image signature in one form": halfSignature,
	} {
		stored, err := b.Open().Put(t.Context(), b.Subject, good, e)
		if err == nil || stored != nil {
			t.Errorf("%s: Put = %v, %v; want an error and nothing", name, stored, err)
		}
	}
	elsewhere := b.Subject
	elsewhere.Repo += "/elsewhere"
	if _, err := b.Open().Put(t.Context(), elsewhere, Provenance(t, key, elsewhere, "x")); err == nil {
		t.Error("subject in another repository: no error")
	}
	if _, err := b.Open().Put(t.Context(), b.Subject); err == nil {
		t.Error("no evidence: no error")
	}
	if got := Payloads(t, b.Open(), b.Subject.Digest); len(got) != 0 {
		t.Errorf("refused evidence left something behind: %v", got)
	}
}

func concurrent(t *testing.T, b Back) {
	const writers = 6
	var (
		wg   sync.WaitGroup
		all  = make([][]store.Evidence, writers)
		errs = make([]error, writers)
	)
	for i := range writers {
		key := NewKey(t)
		all[i] = []store.Evidence{
			Provenance(t, key, b.Subject, fmt.Sprint("writer ", i)),
			Observation(t, key, b.Subject, fmt.Sprint("writer ", i)),
			Signature(t, key, b.Subject),
		}
	}
	for i := range writers {
		wg.Go(func() { _, errs[i] = b.Open().Put(context.WithoutCancel(t.Context()), b.Subject, all[i]...) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("writer %d: %v", i, err)
		}
	}
	got := Payloads(t, b.Open(), b.Subject.Digest)
	for i, es := range all {
		if c := got[string(es[0].Envelope.Payload)]; c != (Count{1, 1}) {
			t.Errorf("provenance of writer %d: %+v; want once in each form", i, c)
		}
		if c := got[string(es[1].Envelope.Payload)]; c != (Count{0, 1}) {
			t.Errorf("observation of writer %d: %+v; want one bundle", i, c)
		}
	}
	sig := all[0][2]
	if c := got[string(sig.Simple.Payload)]; c.layers != writers {
		t.Errorf("image signatures: %d layers; want %d", c.layers, writers)
	}
	if c := got[string(sig.Envelope.Payload)]; c.bundles != writers {
		t.Errorf("image signatures: %d bundles; want %d", c.bundles, writers)
	}
}

// Count says how often a payload was found in which form.
type Count struct{ layers, bundles int }

// Payloads lists a store and counts what it finds by payload.
func Payloads(t *testing.T, s store.Reader, digest string) map[string]Count {
	t.Helper()
	items, err := s.List(t.Context(), digest)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]Count{}
	for _, it := range items {
		if it.Err != nil {
			t.Fatalf("item %s: %v", it.Digest, it.Err)
		}
		var payload []byte
		switch {
		case it.Format == store.FormatBundle:
			b, err := bundle.Parse(it.Content)
			if err != nil {
				t.Fatal(err)
			}
			payload = b.Envelope.Payload
		case it.MediaType == simplesigning.MediaType:
			payload = it.Content
		default:
			e, err := dsse.Parse(it.Content)
			if err != nil {
				t.Fatal(err)
			}
			payload = e.Payload
		}
		c := out[string(payload)]
		if it.Format == store.FormatBundle {
			c.bundles++
		} else {
			c.layers++
		}
		out[string(payload)] = c
	}
	return out
}

// NewKey makes an ECDSA P-256 key.
func NewKey(t testing.TB) *attest.Key {
	t.Helper()
	k, err := attest.GenerateKey(attest.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Public is the public half of a signer.
func Public(t testing.TB, s attest.Signer) dsse.PublicKey {
	t.Helper()
	k, err := dsse.NewPublicKey(s.Public())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Statement signs a statement v0.1 about the subject with any predicate.
func Statement(t testing.TB, s attest.Signer, subject store.Subject, predicateType, predicate string) store.Evidence {
	t.Helper()
	payload := fmt.Sprintf(`{"_type":%q,"predicateType":%q,"subject":[{"name":%q,"digest":{"sha256":%q}}],"predicate":%s}`,
		api.StatementV01, predicateType, subject.Repo, strings.TrimPrefix(subject.Digest, "sha256:"), predicate)
	env, err := attest.Statement(t.Context(), s, []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return store.Evidence{Envelope: env, Key: Public(t, s)}
}

// Provenance is a small SLSA v0.2 statement; say makes its payload its own.
func Provenance(t testing.TB, s attest.Signer, subject store.Subject, say string) store.Evidence {
	return Statement(t, s, subject, api.PredicateSLSAv02, fmt.Sprintf(
		`{"builder":{"id":"https://assay.dev/builder/v1/executed/user/test"},"buildType":"tekton.dev/v1/PipelineRun","metadata":{"buildInvocationID":%q}}`, say))
}

// Observation is a small observation.
func Observation(t testing.TB, s attest.Signer, subject store.Subject, say string) store.Evidence {
	return Statement(t, s, subject, api.PredicateObservation, fmt.Sprintf(`{"run":{"id":%q}}`, say))
}

// Signature is an image signature in both forms.
func Signature(t testing.TB, s attest.Signer, subject store.Subject) store.Evidence {
	t.Helper()
	sig, err := attest.Image(t.Context(), s, subject.Repo, subject.Digest)
	if err != nil {
		t.Fatal(err)
	}
	return store.Evidence{Envelope: sig.Envelope, Simple: &store.Simple{Payload: sig.Payload, Sig: sig.Sig}, Key: Public(t, s)}
}
