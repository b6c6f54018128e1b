package oci

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"

	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/store"
)

func encode(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// Find implements store.Keeper. It looks at the images that KeeperOptions.Images
// names: for an image's key at all its signatures, for a statement's key at the
// statements that a Keeper has put there under that key. Statements that other
// programs put there do not say whose they are; package verify reads them all.
func (k *Keeper) Find(ctx context.Context, run store.Run, key string) ([]store.Kept, error) {
	if k.opts.Images == nil {
		return nil, store.ErrWriteOnly
	}
	kept, err := k.find(ctx, run, key)
	if err != nil {
		return nil, fmt.Errorf("finding %s of %s in a registry: %w", key, run, classify(err))
	}
	return kept, nil
}

func (k *Keeper) find(ctx context.Context, run store.Run, key string) ([]store.Kept, error) {
	images, err := k.opts.Images(ctx, run)
	if err != nil {
		return nil, err
	}
	var keychain authn.Keychain
	if k.opts.Keychain != nil {
		if keychain, err = k.opts.Keychain(ctx, run); err != nil {
			return nil, err
		}
	}
	var out []store.Kept
	seen := map[string]bool{}
	for _, ref := range images {
		d, err := k.image(ref)
		if err != nil {
			continue // nothing can be kept there
		}
		repo := d.Repository
		if k.repo != nil {
			repo = *k.repo
		}
		a, err := k.hosts.newAccess(ctx, repo, keychain)
		if err != nil {
			return nil, err
		}
		s := &Store{repo: repo, client: k.client(a), opts: Options{Attempts: k.opts.Attempts}.withDefaults()}
		found, err := k.findAt(ctx, s, d.DigestStr(), key)
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			// One statement hangs on each of its images.
			if id := string(f.Payload) + "\x00" + string(f.Signature); !seen[id] {
				seen[id] = true
				out = append(out, f)
			}
		}
	}
	return out, nil
}

func (k *Keeper) findAt(ctx context.Context, s *Store, digest, key string) ([]store.Kept, error) {
	isImage := strings.TrimPrefix(digest, "sha256:")[:12] == key
	budget := &budget{left: s.opts.MaxTotalBytes, max: s.opts.MaxItemBytes}
	if k.opts.Encoding == EncodingBundle {
		return k.findBundles(ctx, s, digest, key, isImage, budget)
	}
	suffix := suffixAtt
	if isImage {
		suffix = suffixSig
	}
	items, err := s.layers(ctx, tagFor(digest, suffix))
	if err != nil {
		return nil, err
	}
	var out []store.Kept
	for _, it := range items {
		if it.Err != nil {
			return nil, it.Err
		}
		want := mediaTypeDSSE
		if isImage {
			want = simplesigning.MediaType
		} else if it.Annotations[AnnotationRecord] != key {
			continue
		}
		if it.MediaType != want {
			continue
		}
		content, err := s.readBlob(ctx, it.Digest, budget)
		if err != nil {
			return nil, err
		}
		f := store.Kept{
			Where: s.repo.Name() + "@" + it.Digest, Payload: content,
			Cert: member(it.Annotations, annotationCert), Chain: member(it.Annotations, annotationChain),
		}
		if isImage {
			f.Signature, err = dsse.Base64(it.Annotations[annotationSignature])
		} else {
			var e *dsse.Envelope
			if e, err = dsse.Parse(content); err == nil {
				f.Payload, f.Signature = e.Payload, content
			}
		}
		if err != nil {
			return nil, fmt.Errorf("reading layer %s: %w", it.Digest, err)
		}
		out = append(out, f)
	}
	return out, nil
}

func member(annotations map[string]string, name string) []byte {
	if annotations[name] == "" {
		return nil
	}
	return []byte(annotations[name])
}

func (k *Keeper) findBundles(ctx context.Context, s *Store, digest, key string, isImage bool, budget *budget) ([]store.Kept, error) {
	refs, _, err := s.referrers(ctx, digest)
	if err != nil {
		return nil, err
	}
	var out []store.Kept
	for _, d := range refs {
		// Lists of some registries leave annotations out; the manifest has them.
		if !isBundle(d) || len(d.Annotations) > 0 && !mine(d.Annotations, key, isImage) {
			continue
		}
		it := store.Item{Digest: d.Digest}
		var bad *badItem
		if err := s.readBundle(ctx, &it, digest, budget); errors.As(err, &bad) {
			continue
		} else if err != nil {
			return nil, err
		}
		if !mine(it.Annotations, key, isImage) {
			continue
		}
		b, err := bundle.Parse(it.Content)
		if err != nil || b.Envelope == nil {
			continue // somebody else's, of a kind that we do not write
		}
		f := store.Kept{Where: s.repo.Name() + "@" + d.Digest, Payload: b.Envelope.Payload}
		if f.Signature, err = b.Envelope.MarshalJSON(); err != nil {
			return nil, err
		}
		if b.Leaf != nil {
			f.Cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.Leaf})
		}
		out = append(out, f)
	}
	return out, nil
}

// mine says whether a bundle's annotations are those of a record.
func mine(annotations map[string]string, key string, isImage bool) bool {
	if isImage {
		return annotations[annotationBundleType] == intoto.PredicateImageSignature
	}
	return annotations[AnnotationRecord] == key
}
