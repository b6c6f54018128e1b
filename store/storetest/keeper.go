package storetest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/store"
)

// Keepers is one place in which records can be kept, empty at first, and what is
// special about it.
type Keepers struct {
	// Open returns a keeper that shares nothing with the ones opened before but
	// the place, as another process's would. The suite closes it.
	Open func(t testing.TB) store.Keeper
	// Image returns the reference, repository@sha256:…, of an image that records
	// may be about; nil: they are made up.
	Image func(t testing.TB, say string) string
	// Apply does what whoever marks a run does with Outcome.Annotations. Only for
	// the back end that returns any.
	Apply func(t testing.TB, run store.Run, annotations map[string]string)
	// Arrived is what came out at the other end of a back end that cannot be read
	// (Find is store.ErrWriteOnly), for any run and key; nil: nobody can tell.
	Arrived func(t testing.TB) []store.Kept

	// ImagesOnly: a subject that is no image is named in Outcome.Skipped.
	ImagesOnly bool
	// NoImages: image signatures are refused as store.Permanent; SkipsImages too:
	// they are named in Outcome.Skipped instead.
	NoImages, SkipsImages bool
	// ImageStatements: an image's signature is found as a statement in an
	// envelope, as Sigstore bundles have it.
	ImageStatements bool
	// NoCerts: certificates and chains are not kept; NoChains: chains are not.
	NoCerts, NoChains bool
	// OneImageSignature: of several signatures of an image the first is kept.
	OneImageSignature bool
	// Repeats: the place cannot tell that it has a record already.
	Repeats bool
	// OneWriter: the place cannot keep concurrent writers apart, and the back end
	// says so in its documentation.
	OneWriter bool

	// Down makes the place answer nothing or with 5xx, Deny makes it refuse with
	// 401 or 403, until called with false. Nil: the place cannot do that.
	Down, Deny func(on bool)
	// TooLarge is a size in bytes of a payload that the place refuses; 0: none is.
	TooLarge int
}

// RunKeeper tests a back end. Each call of open gives an empty place.
func RunKeeper(t *testing.T, open func(t *testing.T) Keepers) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, k place)
	}{
		{"what was kept is found byte for byte", keepAndFind},
		{"several signatures", severalSignatures},
		{"certificates and chains", certificates},
		{"keeping again adds nothing", keepAgain},
		{"a crash half-way is completed", keepHalf},
		{"concurrent keepers lose nothing", concurrentKeepers},
		{"concurrent keepers of one record", concurrentRepeats},
		{"a bad record costs only itself", badRecord},
		{"subjects that are no images", noImage},
		{"nothing is found where nothing is", findNothing},
		{"a cancelled context", cancelled},
		{"a place that is down delays", down},
		{"a place that refuses is a matter of configuration", denied},
		{"too large is permanent", tooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := place{open(t)}
			if k.Image == nil {
				k.Image = madeUpImage
			}
			c.test(t, k)
		})
	}
}

type place struct{ Keepers }

func (k place) open(t testing.TB) store.Keeper {
	t.Helper()
	keeper := k.Open(t)
	t.Cleanup(func() {
		if err := keeper.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	if keeper.Name() == "" {
		t.Error("keeper without name")
	}
	return keeper
}

// keep keeps records and does what follows from their outcomes.
func (k place) keep(t testing.TB, keeper store.Keeper, records ...store.Record) []store.Outcome {
	t.Helper()
	out := keeper.Keep(context.WithoutCancel(t.Context()), records)
	if len(out) != len(records) {
		t.Fatalf("Keep of %d records gave %d outcomes", len(records), len(out))
	}
	for i, o := range out {
		switch {
		case o.Err != nil && len(o.Annotations) > 0:
			t.Errorf("record %d: annotations beside error %v", i, o.Err)
		case len(o.Annotations) > 0 && k.Apply == nil:
			t.Errorf("record %d: annotations that nobody applies: %v", i, o.Annotations)
		case len(o.Annotations) > 0:
			k.Apply(t, records[i].Run, o.Annotations)
		}
	}
	return out
}

func (k place) mustKeep(t testing.TB, keeper store.Keeper, records ...store.Record) []store.Outcome {
	t.Helper()
	out := k.keep(t, keeper, records...)
	for i, o := range out {
		if o.Err != nil {
			t.Fatalf("keeping record %d (%s): %s: %v", i, records[i].Key, store.ClassOf(o.Err), o.Err)
		}
		if len(o.Where) == 0 {
			t.Errorf("record %d (%s) is kept nowhere", i, records[i].Key)
		}
	}
	return out
}

// records are a statement about an image and, where the place takes them, the
// image's signature.
func (k place) records(t testing.TB, run store.Run, say string, image string, signers ...*RecordSigner) []store.Record {
	t.Helper()
	out := []store.Record{StatementRecord(t, run, say, []intoto.Subject{ImageSubject(image)}, signers...)}
	if !k.NoImages {
		out = append(out, ImageRecord(t, run, image, signers...))
	}
	return out
}

// find returns what is kept of a record, and false where nobody can tell.
func (k place) find(t testing.TB, r store.Record) ([]store.Kept, bool) {
	t.Helper()
	keeper := k.open(t)
	kept, err := keeper.Find(context.WithoutCancel(t.Context()), r.Run, r.Key)
	if errors.Is(err, store.ErrWriteOnly) {
		if k.Arrived == nil {
			return nil, false
		}
		want, err := k.payload(r)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range k.Arrived(t) {
			if bytes.Equal(a.Payload, want) {
				kept = append(kept, a)
			}
		}
		return kept, true
	}
	if err != nil {
		t.Fatalf("finding %s: %v", r.Key, err)
	}
	return kept, true
}

// payload is what the place keeps of a record.
func (k place) payload(r store.Record) ([]byte, error) {
	if r.Image == "" || !k.ImageStatements {
		return r.Payload, nil
	}
	_, digest, _ := strings.Cut(r.Image, "@")
	return intoto.ImageSignature(digest)
}

// check looks for every signature of the records in the place, once each at
// least and often at most, whole, and beside its own certificate.
func (k place) check(t testing.TB, often int, records ...store.Record) {
	t.Helper()
	for _, r := range records {
		kept, ok := k.find(t, r)
		if !ok {
			continue
		}
		want, err := k.payload(r)
		if err != nil {
			t.Fatal(err)
		}
		count := make([]int, len(r.Signatures))
		for _, f := range kept {
			if !bytes.Equal(f.Payload, want) {
				continue // another record of this key, such as an image's by another signer
			}
			for _, i := range k.match(t, r, f) {
				count[i]++
				k.checkCert(t, r, i, f)
			}
		}
		for i, n := range count {
			if i > 0 && k.OneImageSignature && r.Image != "" {
				continue
			}
			if n < 1 || n > often {
				t.Errorf("%s (%s): signature %d found %d times; want 1 to %d, among %d kept", r.Key, r.Format, i, n, often, len(kept))
			}
		}
	}
}

// match says which of the record's signatures a kept one holds.
func (k place) match(t testing.TB, r store.Record, f store.Kept) []int {
	t.Helper()
	var out []int
	if r.Image != "" && !k.ImageStatements {
		for i, s := range r.Signatures {
			if bytes.Equal(s.Sig, f.Signature) {
				out = append(out, i)
			}
		}
		return out
	}
	env, err := dsse.Parse(f.Signature)
	if err != nil {
		t.Errorf("%s: what is kept as signature is no envelope: %v", f.Where, err)
		return nil
	}
	if !bytes.Equal(env.Payload, f.Payload) || env.PayloadType != store.PayloadType {
		t.Errorf("%s: the envelope holds another payload", f.Where)
	}
	for i, s := range r.Signatures {
		sig := s.Sig
		if r.Image != "" {
			sig = s.Statement
		}
		if slices.ContainsFunc(env.Signatures, func(e dsse.Signature) bool { return bytes.Equal(e.Sig, sig) }) {
			out = append(out, i)
		}
	}
	if len(env.Signatures) == len(r.Signatures) && len(out) == len(r.Signatures) && r.Image == "" {
		if want, err := r.SignatureBytes(); err != nil || !bytes.Equal(want, f.Signature) {
			t.Errorf("%s: the envelope is not the record's, byte for byte (%v)", f.Where, err)
		}
	}
	return out
}

func (k place) checkCert(t testing.TB, r store.Record, i int, f store.Kept) {
	t.Helper()
	if i > 0 {
		return // Chains' forms have one place for certificates, which the first takes
	}
	s := r.Signatures[i]
	if !k.NoCerts && !bytes.Equal(f.Cert, s.Cert) {
		t.Errorf("%s: certificate kept as %q; want %q", f.Where, f.Cert, s.Cert)
	}
	if !k.NoCerts && !k.NoChains && !bytes.Equal(f.Chain, s.Chain) {
		t.Errorf("%s: chain kept as %q; want %q", f.Where, f.Chain, s.Chain)
	}
}

func keepAndFind(t *testing.T, k place) {
	for _, kind := range []string{"TaskRun", "PipelineRun"} {
		records := k.records(t, NewRun(kind), "one", k.Image(t, kind), NewRecordSigner(t))
		for i, o := range k.mustKeep(t, k.open(t), records...) {
			if o.Existing || len(o.Skipped) > 0 {
				t.Errorf("%s, record %d: %+v; want it new and whole", kind, i, o)
			}
		}
		k.check(t, 1, records...)
	}
	if out := k.open(t).Keep(t.Context(), nil); len(out) != 0 {
		t.Errorf("keeping nothing gave %v", out)
	}
}

func severalSignatures(t *testing.T, k place) {
	records := k.records(t, NewRun("PipelineRun"), "two keys", k.Image(t, "two keys"), NewRecordSigner(t), NewRecordSigner(t))
	k.mustKeep(t, k.open(t), records...)
	k.check(t, 1, records...)
}

func certificates(t *testing.T, k place) {
	s := NewCertSigner(t)
	run, image := NewRun("TaskRun"), k.Image(t, "certificate")
	records := k.records(t, run, "certificate", image, s)
	k.mustKeep(t, k.open(t), records...)
	k.check(t, 1, records...)
	if k.Repeats {
		return
	}
	// A retry has another key and certificate for the same identity.
	for i, o := range k.mustKeep(t, k.open(t), k.records(t, run, "certificate", image, s.Again(t))...) {
		if !o.Existing {
			t.Errorf("record %d, signed again by the same identity: %+v; want it existing", i, o)
		}
	}
	k.check(t, 1, records...)
}

func keepAgain(t *testing.T, k place) {
	s := NewRecordSigner(t)
	run, image := NewRun("PipelineRun"), k.Image(t, "again")
	records := k.records(t, run, "again", image, s)
	keeper := k.open(t)
	k.mustKeep(t, keeper, records...)
	for range 2 {
		for _, again := range []store.Keeper{keeper, k.open(t)} {
			// Signed anew: ECDSA signatures of one payload differ.
			for i, o := range k.mustKeep(t, again, k.records(t, run, "again", image, s)...) {
				if o.Existing == k.Repeats {
					t.Errorf("record %d again: %+v; want existing %t", i, o, !k.Repeats)
				}
			}
		}
	}
	if !k.Repeats {
		k.check(t, 1, records...)
		for _, r := range records {
			if kept, ok := k.find(t, r); ok && len(kept) != 1 {
				t.Errorf("%s: %d kept after keeping again; want 1", r.Key, len(kept))
			}
		}
	}
}

func keepHalf(t *testing.T, k place) {
	s := NewRecordSigner(t)
	run, image := NewRun("PipelineRun"), k.Image(t, "half")
	records := k.records(t, run, "half", image, s)
	k.mustKeep(t, k.open(t), records[0])
	again := k.records(t, run, "half", image, s)
	for i, o := range k.mustKeep(t, k.open(t), again...) {
		if o.Existing != (i == 0 && !k.Repeats) {
			t.Errorf("record %d: %+v; only the first was there", i, o)
		}
	}
	if !k.Repeats {
		k.check(t, 1, records[0])
	}
	k.check(t, 1, again[1:]...)
}

func badRecord(t *testing.T, k place) {
	s := NewRecordSigner(t)
	image := k.Image(t, "bad")
	good := k.records(t, NewRun("PipelineRun"), "good", image, s)
	tampered := StatementRecord(t, good[0].Run, "tampered", []intoto.Subject{ImageSubject(image)}, s)
	tampered.Key += "-tampered"
	tampered.Payload = bytes.Replace(tampered.Payload, []byte("tampered"), []byte("tempered"), 1)
	unsigned := StatementRecord(t, good[0].Run, "unsigned", []intoto.Subject{ImageSubject(image)}, s)
	unsigned.Key += "-unsigned"
	unsigned.Signatures = nil
	records := append([]store.Record{tampered, unsigned}, good...)
	out := k.keep(t, k.open(t), records...)
	for i, o := range out {
		if i < 2 {
			if o.Err == nil || store.ClassOf(o.Err) != store.Permanent || len(o.Where) > 0 {
				t.Errorf("bad record %d: %+v; want a permanent error", i, o)
			}
			continue
		}
		if o.Err != nil {
			t.Errorf("good record %d: %v", i, o.Err)
		}
	}
	k.check(t, 1, good...)
	if k.NoImages {
		r := ImageRecord(t, NewRun("TaskRun"), image, s)
		o := k.keep(t, k.open(t), r)[0]
		if k.SkipsImages {
			if o.Err != nil || len(o.Where) != 0 || len(o.Skipped) != 1 || !strings.Contains(o.Skipped[0], image) {
				t.Errorf("image signature: %+v; want it skipped, by name", o)
			}
		} else if o.Err == nil || store.ClassOf(o.Err) != store.Permanent {
			t.Errorf("image signature: %+v; want a permanent error", o)
		}
	}
}

func noImage(t *testing.T, k place) {
	image := k.Image(t, "beside others")
	sum := strings.TrimPrefix(Digest([]byte("file")), "sha256:")
	subjects := []intoto.Subject{
		{Name: "pkg:generic/report@1.0", Digest: map[string]string{"sha256": sum}},
		ImageSubject(image),
		{Name: "git+https://example.com/repo", Digest: map[string]string{"sha1": "da39a3ee5e6b4b0d3255bfef95601890afd80709"}},
	}
	r := StatementRecord(t, NewRun("PipelineRun"), "mixed", subjects, NewRecordSigner(t))
	o := k.mustKeep(t, k.open(t), r)[0]
	if !k.ImagesOnly {
		if len(o.Skipped) > 0 {
			t.Errorf("skipped %q; this place keeps statements whatever they speak of", o.Skipped)
		}
		k.check(t, 1, r)
		return
	}
	if len(o.Skipped) != 2 || !strings.Contains(o.Skipped[0], subjects[0].Name) || !strings.Contains(o.Skipped[1], subjects[2].Name) {
		t.Errorf("skipped %q; want both subjects that are no images, by name", o.Skipped)
	}
	k.check(t, 1, r)
	// With none at all there is nothing to keep, and nothing wrong.
	none := StatementRecord(t, NewRun("PipelineRun"), "none", subjects[:1], NewRecordSigner(t))
	if o := k.keep(t, k.open(t), none)[0]; o.Err != nil || len(o.Skipped) != 1 || len(o.Where) != 0 {
		t.Errorf("no image among the subjects: %+v; want it skipped without error", o)
	}
}

func findNothing(t *testing.T, k place) {
	s := NewRecordSigner(t)
	image := k.Image(t, "there")
	k.mustKeep(t, k.open(t), k.records(t, NewRun("TaskRun"), "there", image, s)...)
	absent := StatementRecord(t, NewRun("TaskRun"), "absent", []intoto.Subject{ImageSubject(image)}, s)
	if kept, ok := k.find(t, absent); ok && len(kept) != 0 {
		t.Errorf("%d kept of a run that nothing was kept of", len(kept))
	}
}
