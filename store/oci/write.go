package oci

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/store"
)

// piece is one piece of evidence on its way into the registry.
type piece struct {
	store.Evidence
	predicateType string
	payload       string // digest of the DSSE payload

	bundle  []byte
	suffix  string // of the tag it belongs into; empty: none
	layer   descriptor
	content []byte // of the layer

	referrer   []byte // manifest; nil while it is not known, or was there before
	descriptor descriptor
	stored     store.Stored
}

// Put implements store.Writer.
func (s *Store) Put(ctx context.Context, subject store.Subject, evidence ...store.Evidence) ([]store.Stored, error) {
	stored, err := s.put(ctx, subject, evidence)
	if err != nil {
		return nil, fmt.Errorf("storing evidence for %s: %w", subject.Ref(), err)
	}
	return stored, nil
}

func (s *Store) put(ctx context.Context, subject store.Subject, evidence []store.Evidence) ([]store.Stored, error) {
	if err := s.checkSubject(subject); err != nil {
		return nil, err
	}
	if len(evidence) == 0 {
		return nil, errors.New("no evidence given")
	}
	var (
		pieces []*piece // without repetitions
		which  []int    // evidence → piece
	)
	for i, e := range evidence {
		p, err := prepare(subject, e)
		if err != nil {
			return nil, fmt.Errorf("checking evidence %d: %w", i, err)
		}
		k := slices.IndexFunc(pieces, func(o *piece) bool {
			return o.payload == p.payload && o.Key.Fingerprint() == p.Key.Fingerprint()
		})
		if k < 0 {
			k = len(pieces)
			pieces = append(pieces, p)
		} else if pieces[k].unlogged() {
			pieces[k] = p
		}
		which = append(which, k)
	}

	refs, _, err := s.referrers(ctx, subject.Digest)
	if err != nil {
		return nil, err
	}
	if err := s.findExisting(ctx, subject.Digest, pieces, refs); err != nil {
		return nil, err
	}
	if err := s.upload(ctx, subject, pieces); err != nil {
		return nil, err
	}
	if err := s.settle(ctx, subject.Digest, pieces, refs); err != nil {
		return nil, err
	}
	out := make([]store.Stored, 0, len(which))
	for _, k := range which {
		out = append(out, pieces[k].stored)
	}
	return out, nil
}

// prepare checks a piece and makes its bytes, so that nothing can fail later
// but the registry.
func prepare(subject store.Subject, e store.Evidence) (*piece, error) {
	statement, err := e.Check(subject)
	if err != nil {
		return nil, err
	}
	p := &piece{Evidence: e, predicateType: statement.PredicateType, payload: digestOf(e.Envelope.Payload)}
	p.stored.PredicateType = p.predicateType
	with, err := p.rekor()
	if err != nil {
		return nil, err
	}
	if p.bundle, err = bundle.Encode(e.Envelope, e.Key, with); err != nil {
		return nil, err
	}
	switch {
	case p.predicateType == intoto.PredicateImageSignature:
		p.suffix, p.content = suffixSig, e.Simple.Payload
		p.layer = signatureLayer(e.Simple.Payload, e.Simple.Sig)
		err = annotateLog(p.layer.Annotations, e.Log, encode(e.Simple.Sig))
	case store.ReferrerOnly(p.predicateType):
	default:
		p.suffix = suffixAtt
		if p.content, err = e.Envelope.MarshalJSON(); err != nil {
			return nil, err
		}
		p.layer = attestationLayer(p.content, p.predicateType)
		err = annotateLog(p.layer.Annotations, e.Log, "")
	}
	return p, err
}

// upload brings the blobs of all pieces that are not there yet into the
// registry, where nothing points at them so far, and makes their referrers.
func (s *Store) upload(ctx context.Context, subject store.Subject, pieces []*piece) error {
	empty := []byte("{}")
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(s.opts.Parallel)
	for i, p := range pieces {
		if p.stored.Existing {
			continue
		}
		annotations, err := s.annotations(p)
		if err != nil {
			return err
		}
		p.referrer, err = marshal(referrer{
			SchemaVersion: 2,
			MediaType:     mediaTypeManifest,
			ArtifactType:  bundle.MediaType,
			Config:        blobDescriptor(mediaTypeEmpty, empty, nil),
			Layers:        []descriptor{blobDescriptor(bundle.MediaType, p.bundle, nil)},
			Subject:       descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
			Annotations:   annotations,
		})
		if err != nil {
			return err
		}
		p.descriptor = blobDescriptor(mediaTypeManifest, p.referrer, annotations)
		p.descriptor.ArtifactType = bundle.MediaType
		p.stored.Referrer = p.descriptor.Digest
		g.Go(func() error { return s.client.putBlob(gctx, p.bundle) })
		if p.suffix != "" {
			// Before the referrer that records it: what the journal names is there.
			g.Go(func() error { return s.client.putBlob(gctx, p.content) })
		}
		if i == slices.IndexFunc(pieces, func(p *piece) bool { return !p.stored.Existing }) {
			g.Go(func() error { return s.client.putBlob(gctx, empty) })
		}
	}
	return g.Wait()
}

// settle writes referrers and tags until a look at the registry, after the
// last write, shows all pieces there.
func (s *Store) settle(ctx context.Context, digest string, pieces []*piece, refs []descriptor) error {
	for round := range s.opts.Rounds {
		if err := pause(ctx, round); err != nil {
			return err
		}
		missing := slices.DeleteFunc(slices.Clone(pieces), func(p *piece) bool { return isListed(refs, p.stored.Referrer) })
		if err := s.putReferrers(ctx, digest, missing); err != nil {
			return err
		}
		var seen []descriptor // listed after the last write
		for _, suffix := range []string{suffixSig, suffixAtt} {
			mine := slices.DeleteFunc(slices.Clone(pieces), func(p *piece) bool { return p.suffix != suffix })
			if len(mine) == 0 {
				continue
			}
			listed, err := s.putTag(ctx, digest, suffix, mine, refs)
			if err != nil {
				return err
			}
			if listed != nil {
				seen = listed
			}
		}
		switch {
		case seen != nil:
			refs = seen
		case len(missing) > 0:
			var err error
			if refs, _, err = s.referrers(ctx, digest); err != nil {
				return err
			}
		}
		if !slices.ContainsFunc(pieces, func(p *piece) bool { return !isListed(refs, p.stored.Referrer) }) {
			return nil
		}
	}
	return fmt.Errorf("adding referrers: %w", store.ErrConflict)
}

func isListed(refs []descriptor, digest string) bool {
	return slices.ContainsFunc(refs, func(d descriptor) bool { return d.Digest == digest })
}

// putReferrers hangs pieces on the subject, one after the other: registries
// exist that lose one of two referrers written at once.
func (s *Store) putReferrers(ctx context.Context, digest string, pieces []*piece) error {
	var unlisted []descriptor
	for _, p := range pieces {
		if p.referrer == nil {
			return fmt.Errorf("referrer %s was there and is gone; somebody deletes evidence here", p.stored.Referrer)
		}
		listed, err := s.client.putManifest(ctx, p.descriptor.Digest, mediaTypeManifest, p.referrer, condition{none: true})
		if err != nil {
			return err
		}
		if !listed {
			unlisted = append(unlisted, p.descriptor)
		}
	}
	if len(unlisted) == 0 {
		return nil
	}
	_, err := s.putReferrersTag(ctx, digest, unlisted, nil)
	return err
}

func (s *Store) annotations(p *piece) (map[string]string, error) {
	a := map[string]string{
		annotationContent:    "dsse-envelope",
		annotationBundleType: p.predicateType,
		annotationCreated:    s.opts.Now().UTC().Format(time.RFC3339),
		AnnotationPayload:    p.payload,
	}
	if proofs := tlog.FormatProofs(p.Log); proofs != "" {
		a[AnnotationLogProof] = proofs
	}
	if p.suffix != "" {
		if err := record(a, p.suffix, p.layer); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// findExisting looks for pieces that hang on the subject already: the same
// payload, signed by the same key, and logged if the piece was. The annotation only
// says where to look; what counts is the bundle behind it, checked.
func (s *Store) findExisting(ctx context.Context, subject string, pieces []*piece, refs []descriptor) error {
	for _, p := range pieces {
		for _, d := range refs {
			if d.Annotations[AnnotationPayload] != p.payload || !isBundle(d) {
				continue
			}
			it := store.Item{Digest: d.Digest}
			err := s.readBundle(ctx, &it, subject, &budget{left: s.opts.MaxItemBytes * 2, max: s.opts.MaxItemBytes})
			var bad *badItem
			if errors.As(err, &bad) || err != nil && permanent(err) {
				continue
			}
			if err != nil {
				return fmt.Errorf("reading referrer %s: %w", d.Digest, err)
			}
			if !p.isIn(it.Content, it.Annotations) {
				continue
			}
			if p.suffix != "" {
				layer, ok, err := s.recordedLayer(ctx, p, it.Annotations)
				if err != nil {
					return err
				}
				if !ok {
					continue
				}
				p.layer = layer
			}
			p.stored.Existing, p.stored.Referrer = true, d.Digest
			break
		}
	}
	return nil
}

// recordedLayer is the layer that a referrer records for the tag, if it is in
// the registry and really this piece.
func (s *Store) recordedLayer(ctx context.Context, p *piece, annotations map[string]string) (descriptor, bool, error) {
	l, err := recorded(annotations, p.suffix)
	if err != nil {
		return descriptor{}, false, nil
	}
	if p.suffix == suffixSig {
		if !p.sameSignature(l) {
			return descriptor{}, false, nil
		}
		ok, err := s.client.hasBlob(ctx, l.Digest, l.Size)
		return l, ok, err
	}
	b, err := s.client.getBlob(ctx, l.Digest, s.opts.MaxItemBytes)
	if err != nil {
		if permanent(err) {
			err = nil
		}
		return descriptor{}, false, err
	}
	e, err := dsse.Parse(b)
	return l, err == nil && int64(len(b)) == l.Size && p.sameEnvelope(e, l.Annotations), nil
}

// putReferrersTag adds to the referrers tag, for registries without the API, and
// returns what the tag holds then. It has no journal: what other writers add between
// reading and writing is kept where the registry honours conditional writes, which
// is the specification's own limit, and by looking again after settle, which may be
// nil: then others who do the same lose nothing either.
func (s *Store) putReferrersTag(ctx context.Context, digest string, add []descriptor, settle func(context.Context, time.Duration) error) ([]descriptor, error) {
	tag := tagFor(digest, suffixReferrers)
	var (
		cond     condition
		refused  bool
		previous string
	)
	for round := range s.opts.Rounds {
		if err := pause(ctx, round); err != nil {
			return nil, err
		}
		x := &index{mediaType: mediaTypeIndex}
		began := time.Now()
		b, _, err := s.client.getManifest(ctx, tag, maxManifest)
		switch {
		case errors.Is(err, store.ErrNotFound):
		case err != nil:
			return nil, fmt.Errorf("reading referrers tag: %w", err)
		default:
			if x, err = parseIndex(b); err != nil {
				return nil, fmt.Errorf("reading referrers tag: %w", err)
			}
		}
		if refused && previous == x.digest {
			cond.none = true
		}
		n := len(x.manifests)
		for _, d := range add {
			if err := x.add(d); err != nil {
				return nil, err
			}
		}
		if len(x.manifests) == n {
			return x.manifests, nil
		}
		m, err := x.bytes()
		if err != nil {
			return nil, err
		}
		cond.digest, previous = x.digest, x.digest
		_, err = s.client.putManifest(ctx, tag, mediaTypeIndex, m, cond)
		if refused = errors.Is(err, errChanged); err != nil && !refused {
			return nil, err
		}
		if !refused && settle != nil {
			if err := settle(ctx, time.Since(began)); err != nil {
				return nil, err
			}
		}
	}
	return nil, fmt.Errorf("adding to referrers tag %s: %w", tag, store.ErrConflict)
}

// pause waits before every round but the first, longer each time and never
// equally long for two writers.
func pause(ctx context.Context, round int) error {
	if round < 2 {
		return ctx.Err()
	}
	t := time.NewTimer(time.Duration(rand.Int64N(int64(20*time.Millisecond) << min(round, 6))))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
