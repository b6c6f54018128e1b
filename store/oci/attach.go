package oci

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/store"
)

// Layer is one layer of a tag sha256-<hex>.sig, .att or .sbom, as it is to be
// stored.
type Layer struct {
	MediaType   string
	Content     []byte
	Annotations map[string]string
}

// Referrer is one document that is to be hung on an artifact as a manifest of its
// own.
type Referrer struct {
	ArtifactType string
	MediaType    string // of Content
	Content      []byte
	// Annotations of the manifest. They should not say when it was made: without,
	// the same document is the same manifest, and cannot be hung there twice.
	Annotations map[string]string
}

// Attached says where something is now.
type Attached struct {
	// Digest is that of the layer's content or of the referrer's manifest.
	Digest string
	Tag    string // empty for a referrer
	// Existing: it was there before, and nothing was written.
	Existing bool
}

// settle is how long a writer waits before it looks whether a tag still has what it
// wrote, where the registry lets everybody overwrite everything.
const settle = 400 * time.Millisecond

// AttachLayers adds layers to an artifact's tag .sig or .att and returns once it
// has seen them there after its own last write. What the tag holds stays, and what
// referrers say was lost from it is added again. A layer that holds the same
// envelope, with the same signatures and certificate, is not added twice.
//
// Nothing is verified: callers have to have done so. Errors are those of
// store.Writer.
func (s *Store) AttachLayers(ctx context.Context, subject store.Subject, suffix string, layers ...Layer) ([]Attached, error) {
	out, err := s.attachLayers(ctx, subject, suffix, layers)
	if err != nil {
		return nil, fmt.Errorf("attaching to %s as %s: %w", subject.Ref(), suffix, err)
	}
	return out, nil
}

func (s *Store) attachLayers(ctx context.Context, subject store.Subject, suffix string, layers []Layer) ([]Attached, error) {
	if err := s.checkSubject(subject); err != nil {
		return nil, err
	}
	want := map[string]string{suffixSig: simplesigning.MediaType, suffixAtt: mediaTypeDSSE}[suffix]
	if want == "" {
		return nil, errors.New("layers are added to .sig and .att only")
	}
	if len(layers) == 0 {
		return nil, errors.New("nothing given")
	}
	out := make([]Attached, len(layers))
	ds := make([]descriptor, len(layers))
	for i, l := range layers {
		if l.MediaType != want {
			return nil, fmt.Errorf("layer %d is a %q; want %s", i, l.MediaType, want)
		}
		ds[i] = blobDescriptor(l.MediaType, l.Content, maps.Clone(l.Annotations))
		out[i] = Attached{Digest: ds[i].Digest, Tag: tagFor(subject.Digest, suffix)}
		if err := s.client.putBlob(ctx, l.Content); err != nil {
			return nil, err
		}
	}
	w := looseTag{store: s, tag: tagFor(subject.Digest, suffix), suffix: suffix, digest: subject.Digest, layers: layers, ds: ds}
	return out, w.write(ctx, out)
}

// looseTag is one writing of one tag, of layers whose keys are not known.
type looseTag struct {
	store       *Store
	tag, suffix string
	digest      string
	layers      []Layer
	ds          []descriptor

	others map[string]*dsse.Envelope // envelopes of foreign layers, by digest; nil: none
	honest *bool                     // the registry honours conditions; nil: not known
}

func (w *looseTag) write(ctx context.Context, out []Attached) error {
	w.others = map[string]*dsse.Envelope{}
	var (
		cond     condition
		refused  bool
		previous string
		written  = map[int]bool{}
	)
	for round := range w.store.opts.Rounds {
		if err := pause(ctx, round); err != nil {
			return err
		}
		// Referrers before the tag, as in putTag.
		refs, _, err := w.store.referrers(ctx, w.digest)
		if err != nil {
			return err
		}
		t, err := w.store.readTag(ctx, w.tag)
		if err != nil {
			return err
		}
		if refused && previous == t.digest {
			cond.none = true
		}
		for i, d := range w.ds {
			in, err := w.in(ctx, t, i)
			if err != nil {
				return err
			}
			if in {
				out[i].Existing = !written[i]
				continue
			}
			if err := t.add(d); err != nil {
				return err
			}
			written[i] = true
		}
		if err := w.store.addRecorded(ctx, t, w.suffix, refs); err != nil {
			return err
		}
		if !t.changed {
			return nil
		}
		config, manifest, err := t.bytes()
		if err != nil {
			return fmt.Errorf("writing tag %s: %w", w.tag, err)
		}
		if err := w.store.client.putBlob(ctx, config); err != nil {
			return err
		}
		cond.digest, previous = t.digest, t.digest
		_, err = w.store.client.putManifest(ctx, w.tag, t.mediaType, manifest, cond)
		if refused = errors.Is(err, errChanged); refused {
			continue
		}
		if err != nil {
			return err
		}
		if err := w.settle(ctx, t.mediaType, manifest); err != nil {
			return err
		}
	}
	return fmt.Errorf("adding to tag %s: %w", w.tag, store.ErrConflict)
}

// settle waits where others that read the tag before we wrote it can still
// overwrite it. These layers have no journal that would bring them back.
func (w *looseTag) settle(ctx context.Context, mediaType string, manifest []byte) error {
	if w.honest == nil {
		// What is there already, on condition that it is not: nothing comes of it.
		_, err := w.store.client.putManifest(ctx, digestOf(manifest), mediaType, manifest, condition{})
		honest := errors.Is(err, errChanged)
		w.honest = &honest
	}
	if *w.honest {
		return nil
	}
	timer := time.NewTimer(settle)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// in says whether the tag holds a layer already.
func (w *looseTag) in(ctx context.Context, t *tagManifest, i int) (bool, error) {
	d := w.ds[i]
	if t.has(d) {
		return true, w.complete(t, d)
	}
	if w.suffix != suffixAtt {
		return false, nil
	}
	env, err := dsse.Parse(w.layers[i].Content)
	if err != nil {
		return false, err
	}
	fetched := 0
	for k := len(t.layers) - 1; k >= 0 && fetched < maxCompare; k-- {
		l := t.layers[k]
		if l.MediaType != mediaTypeDSSE || d.Annotations[annotationCert] != "" && l.Annotations[annotationCert] != d.Annotations[annotationCert] {
			continue
		}
		if pt := l.Annotations[annotationPredicateType]; pt != "" && pt != d.Annotations[annotationPredicateType] {
			continue
		}
		other, known := w.others[l.Digest]
		if !known {
			fetched++
			b, err := w.store.client.getBlob(ctx, l.Digest, w.store.opts.MaxItemBytes)
			if err != nil && !permanent(err) {
				return false, err
			}
			if err == nil {
				if other, err = dsse.Parse(b); err != nil {
					other = nil
				}
			}
			w.others[l.Digest] = other
		}
		if other != nil && holds(other, env) {
			return true, nil
		}
	}
	return false, nil
}

// holds says whether an envelope has the payload and all the signatures of another.
func holds(have, want *dsse.Envelope) bool {
	if have.PayloadType != want.PayloadType || string(have.Payload) != string(want.Payload) {
		return false
	}
	return !slices.ContainsFunc(want.Signatures, func(s dsse.Signature) bool {
		return !slices.ContainsFunc(have.Signatures, func(o dsse.Signature) bool { return string(o.Sig) == string(s.Sig) })
	})
}

// complete adds to a layer that is there what it has none of: certificate, log
// entries, timestamps.
func (w *looseTag) complete(t *tagManifest, d descriptor) error {
	for i, l := range t.layers {
		if !l.same(d) {
			continue
		}
		add := map[string]string{}
		for k, v := range d.Annotations {
			if v != "" && l.Annotations[k] == "" {
				add[k] = v
			}
		}
		// A chain or an entry belongs to its certificate, not to another.
		if c := l.Annotations[annotationCert]; len(add) == 0 || c != "" && c != d.Annotations[annotationCert] {
			continue
		}
		raw, annotations, err := annotated(t.raw[i], add)
		if err != nil {
			return err
		}
		t.raw[i], t.layers[i].Annotations, t.changed = raw, annotations, true
	}
	return nil
}

// AttachReferrer hangs a document on an artifact. A referrer of the same type that
// holds the same document, or for a bundle the same signature over the same
// payload, is not written again.
//
// Nothing is verified: callers have to have done so. Errors are those of
// store.Writer.
func (s *Store) AttachReferrer(ctx context.Context, subject store.Subject, r Referrer) (Attached, error) {
	out, err := s.attachReferrer(ctx, subject, r)
	if err != nil {
		return Attached{}, fmt.Errorf("attaching to %s as a referrer: %w", subject.Ref(), err)
	}
	return out, nil
}

func (s *Store) attachReferrer(ctx context.Context, subject store.Subject, r Referrer) (Attached, error) {
	if err := s.checkSubject(subject); err != nil {
		return Attached{}, err
	}
	if r.ArtifactType == "" || r.MediaType == "" || len(r.Content) == 0 {
		return Attached{}, errors.New("a referrer needs a type, a media type and content")
	}
	empty := []byte("{}")
	manifest, err := marshal(referrer{
		SchemaVersion: 2,
		MediaType:     mediaTypeManifest,
		ArtifactType:  r.ArtifactType,
		Config:        blobDescriptor(mediaTypeEmpty, empty, nil),
		Layers:        []descriptor{blobDescriptor(r.MediaType, r.Content, nil)},
		Subject:       descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
		Annotations:   r.Annotations,
	})
	if err != nil {
		return Attached{}, err
	}
	d := blobDescriptor(mediaTypeManifest, manifest, r.Annotations)
	d.ArtifactType = r.ArtifactType
	refs, _, err := s.referrers(ctx, subject.Digest)
	if err != nil {
		return Attached{}, err
	}
	there, err := s.hung(ctx, subject.Digest, r, d, refs)
	if err != nil || there != "" {
		return Attached{Digest: there, Existing: true}, err
	}
	for _, b := range [][]byte{empty, r.Content} {
		if err := s.client.putBlob(ctx, b); err != nil {
			return Attached{}, err
		}
	}
	for round := range s.opts.Rounds {
		if err := pause(ctx, round); err != nil {
			return Attached{}, err
		}
		listed, err := s.client.putManifest(ctx, d.Digest, mediaTypeManifest, manifest, condition{none: true})
		if err != nil {
			return Attached{}, err
		}
		if !listed {
			if _, err := s.putReferrersTag(ctx, subject.Digest, []descriptor{d}, nil); err != nil {
				return Attached{}, err
			}
		}
		if refs, _, err = s.referrers(ctx, subject.Digest); err != nil {
			return Attached{}, err
		}
		if isListed(refs, d.Digest) {
			return Attached{Digest: d.Digest}, nil
		}
	}
	return Attached{}, fmt.Errorf("adding a referrer: %w", store.ErrConflict)
}

// hung is the digest of a referrer that holds the same; empty if there is none.
func (s *Store) hung(ctx context.Context, subject string, r Referrer, d descriptor, refs []descriptor) (string, error) {
	if isListed(refs, d.Digest) {
		return d.Digest, nil
	}
	var mine *bundle.Bundle
	if bundle.IsMediaType(r.MediaType) {
		var err error
		if mine, err = bundle.Parse(r.Content); err != nil {
			return "", err
		}
	}
	fetched := 0
	for _, o := range refs {
		alike := o.ArtifactType == r.ArtifactType || mine != nil && isBundle(o)
		if pt := o.Annotations[annotationBundleType]; pt != "" && pt != r.Annotations[annotationBundleType] {
			alike = false
		}
		if !alike || fetched == maxCompare {
			continue
		}
		fetched++
		it := store.Item{Digest: o.Digest}
		err := s.readBundle(ctx, &it, subject, &budget{left: s.opts.MaxItemBytes * 2, max: s.opts.MaxItemBytes})
		var bad *badItem
		if errors.As(err, &bad) || err != nil && permanent(err) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("reading referrer %s: %w", o.Digest, err)
		}
		if string(it.Content) == string(r.Content) || mine != nil && sameBundle(mine, it.Content) {
			return o.Digest, nil
		}
	}
	return "", nil
}

// sameBundle says whether another bundle holds the same signature over the same,
// made by the same kind of signer, with no less beside it.
func sameBundle(b *bundle.Bundle, other []byte) bool {
	o, err := bundle.Parse(other)
	if err != nil || o.Certificate != b.Certificate || o.LogEntries < b.LogEntries || b.Timestamps && !o.Timestamps {
		return false
	}
	if b.Envelope != nil {
		return o.Envelope != nil && holds(o.Envelope, b.Envelope)
	}
	return o.Message != nil && string(o.Message.Sig) == string(b.Message.Sig) && string(o.Message.Digest) == string(b.Message.Digest)
}

// ErrOccupied says that a tag that holds one document holds another one.
var ErrOccupied = errors.New("another one is there")

// AttachSBOM puts a bill of materials behind the tag .sbom, which holds one. Where
// there is another one it is ErrOccupied, unless replace says that it may go.
// Errors are otherwise those of store.Writer.
func (s *Store) AttachSBOM(ctx context.Context, subject store.Subject, l Layer, replace bool) (Attached, error) {
	out, err := s.attachSBOM(ctx, subject, l, replace)
	if err != nil {
		return Attached{}, fmt.Errorf("attaching to %s as %s: %w", subject.Ref(), suffixSBOM, err)
	}
	return out, nil
}

func (s *Store) attachSBOM(ctx context.Context, subject store.Subject, l Layer, replace bool) (Attached, error) {
	if err := s.checkSubject(subject); err != nil {
		return Attached{}, err
	}
	tag := tagFor(subject.Digest, suffixSBOM)
	d := blobDescriptor(l.MediaType, l.Content, l.Annotations)
	if err := s.client.putBlob(ctx, l.Content); err != nil {
		return Attached{}, err
	}
	wrote := false
	var cond condition
	previous, refused := "", false
	for round := range s.opts.Rounds {
		if err := pause(ctx, round); err != nil {
			return Attached{}, err
		}
		t, err := s.readTag(ctx, tag)
		if err != nil {
			return Attached{}, err
		}
		if refused && previous == t.digest {
			cond.none = true
		}
		if len(t.layers) == 1 && t.layers[0].Digest == d.Digest {
			return Attached{Digest: d.Digest, Tag: tag, Existing: !wrote}, nil
		}
		if len(t.layers) > 0 && !replace {
			return Attached{}, fmt.Errorf("%w (%s)", ErrOccupied, t.layers[0].Digest)
		}
		cond.digest, previous = t.digest, t.digest
		fresh := &tagManifest{mediaType: mediaTypeManifest}
		if err := fresh.add(d); err != nil {
			return Attached{}, err
		}
		config, manifest, err := fresh.bytes()
		if err != nil {
			return Attached{}, err
		}
		if err := s.client.putBlob(ctx, config); err != nil {
			return Attached{}, err
		}
		_, err = s.client.putManifest(ctx, tag, mediaTypeManifest, manifest, cond)
		if refused = errors.Is(err, errChanged); err != nil && !refused {
			return Attached{}, err
		}
		wrote = wrote || err == nil
	}
	return Attached{}, fmt.Errorf("writing tag %s: %w", tag, store.ErrConflict)
}
