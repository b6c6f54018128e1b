package oci

import (
	"context"
	"errors"
	"fmt"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/store"
)

// maxCompare is how many foreign layers of a tag are fetched to see whether
// they are the evidence at hand. Beyond it the worst that happens is that the
// same payload is listed twice.
const maxCompare = 64

// putTag brings all pieces into the tag, and whatever the journal says was
// lost from it, and returns once it has seen them there after its own last
// write. Refs are the referrers as they were listed before; nil entries of the
// first round are looked up again in the next.
func (s *Store) putTag(ctx context.Context, digest, suffix string, pieces []*piece, refs []descriptor) (listed []descriptor, err error) {
	tag := tagFor(digest, suffix)
	var (
		compared = map[string]bool{} // foreign layers that are none of ours
		cond     condition
		refused  bool // the last conditional write was
		previous string
	)
	for round := range s.opts.Rounds {
		if err := pause(ctx, round); err != nil {
			return nil, err
		}
		if round > 0 {
			// Referrers before the tag: whoever wrote the tag before us had
			// written its referrer before that.
			if listed, _, err = s.referrers(ctx, digest); err != nil {
				return nil, err
			}
			refs = listed
		}
		t, err := s.readTag(ctx, tag)
		if err != nil {
			return nil, err
		}
		if refused && previous == t.digest {
			// Refused, though nobody changed it: this registry means
			// something else by conditions.
			cond.none = true
		}
		if err := s.addPieces(ctx, t, pieces, compared); err != nil {
			return nil, err
		}
		if err := s.addRecorded(ctx, t, suffix, refs); err != nil {
			return nil, err
		}
		if !t.changed {
			for _, p := range pieces {
				p.stored.Tag = tag
			}
			return listed, nil
		}
		config, manifest, err := t.bytes()
		if err != nil {
			return nil, fmt.Errorf("writing tag %s: %w", tag, err)
		}
		if err := s.client.putBlob(ctx, config); err != nil {
			return nil, err
		}
		cond.digest, previous = t.digest, t.digest
		_, err = s.client.putManifest(ctx, tag, t.mediaType, manifest, cond)
		if refused = errors.Is(err, errChanged); err != nil && !refused {
			return nil, err
		}
	}
	return nil, fmt.Errorf("adding to tag %s: %w", tag, store.ErrConflict)
}

func (s *Store) readTag(ctx context.Context, tag string) (*tagManifest, error) {
	b, _, err := s.client.getManifest(ctx, tag, maxManifest)
	if errors.Is(err, store.ErrNotFound) {
		return &tagManifest{mediaType: mediaTypeManifest}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading tag %s: %w", tag, err)
	}
	t, err := parseTagManifest(b)
	if err != nil {
		return nil, fmt.Errorf("reading tag %s, which is not as cosign writes it: %w", tag, err)
	}
	return t, nil
}

// addPieces adds what is not in the tag. A piece is in it when the same payload
// signed by the same key is, with whatever signature; a piece that was logged,
// when that signature was.
func (s *Store) addPieces(ctx context.Context, t *tagManifest, pieces []*piece, compared map[string]bool) error {
	for _, p := range pieces {
		in, err := s.inTag(ctx, t, p, compared)
		if err != nil {
			return err
		}
		if in {
			continue
		}
		if err := t.add(p.layer); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) inTag(ctx context.Context, t *tagManifest, p *piece, compared map[string]bool) (bool, error) {
	if t.has(p.layer) {
		return true, t.amend(p.layer)
	}
	fetched := 0
	for i := len(t.layers) - 1; i >= 0; i-- {
		l := t.layers[i]
		if p.suffix == suffixSig {
			if p.sameSignature(l) {
				return true, nil
			}
			continue
		}
		if !p.unlogged() && !hasEntry(l.Annotations) {
			continue
		}
		if pt := l.Annotations[annotationPredicateType]; l.MediaType != mediaTypeDSSE || pt != "" && pt != p.predicateType {
			continue
		}
		id := p.payload + p.Key.Fingerprint() + l.Digest
		if compared[id] || fetched == maxCompare {
			continue
		}
		fetched++
		b, err := s.client.getBlob(ctx, l.Digest, s.opts.MaxItemBytes)
		if err != nil {
			if permanent(err) {
				compared[id] = true
				continue
			}
			return false, err
		}
		if e, err := dsse.Parse(b); err == nil && p.sameEnvelope(e, l.Annotations) {
			return true, nil
		}
		compared[id] = true
	}
	return false, nil
}

// addRecorded adds the layers that referrers say belong into the tag and that
// are not there: another writer overwrote them. A record whose layer is not in
// the registry is somebody's nonsense and left alone.
func (s *Store) addRecorded(ctx context.Context, t *tagManifest, suffix string, refs []descriptor) error {
	for _, d := range refs {
		l, err := recorded(d.Annotations, suffix)
		if err != nil {
			continue
		}
		if t.has(l) {
			if err := t.amend(l); err != nil {
				return err
			}
			continue
		}
		ok, err := s.client.hasBlob(ctx, l.Digest, l.Size)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if err := t.add(l); err != nil {
			return err
		}
	}
	return nil
}
