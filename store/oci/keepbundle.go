package oci

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/store"
)

// hanger is a bundle on its way to hang on an image: one signature of a record.
type hanger struct {
	record        store.Record // with that signature only
	envelope      *dsse.Envelope
	predicateType string
	payload       string // digest of the envelope's payload
	content       []byte
	proof         string // of a log of ours; see AnnotationLogProof

	manifest []byte // nil until it is made, or where it was there before
	descriptor
	kept
}

// hangersOf are a record's bundles, one for each signature: a bundle holds one.
func hangersOf(r store.Record) ([]*hanger, error) {
	payload, predicateType := r.Payload, intoto.PredicateImageSignature
	if r.Statement != nil {
		predicateType = r.Statement.PredicateType
	} else {
		_, digest, _ := strings.Cut(r.Image, "@")
		var err error
		if payload, err = intoto.ImageSignature(digest); err != nil {
			return nil, err
		}
	}
	var out []*hanger
	for _, s := range r.Signatures {
		sig := s.Sig
		if r.Image != "" {
			if sig = s.Statement; sig == nil {
				return nil, errors.New("a Sigstore bundle needs the image signed as a statement (store.Signature.Statement); " +
					"a simple signing signature cannot be checked in one: sign that too, or set storage.oci.encoding-format to dsse")
			}
		}
		log := r.Log
		if r.Image != "" {
			// What a log says of a simple signing signature it does not say of this one.
			log = tlog.Covering(log, tlog.Signed{PayloadType: store.PayloadType, Payload: payload, Sig: sig, Key: s.Key})
		}
		annotations := map[string]string{}
		if err := annotateLog(annotations, log, ""); err != nil {
			return nil, err
		}
		h := &hanger{record: r, predicateType: predicateType, payload: digestOf(payload), proof: annotations[AnnotationLogProof]}
		h.record.Signatures = []store.Signature{s}
		h.envelope = &dsse.Envelope{PayloadType: store.PayloadType, Payload: payload, Signatures: []dsse.Signature{{KeyID: s.KeyID, Sig: sig}}}
		var with bundle.Material
		if block, _ := pem.Decode(s.Cert); block != nil {
			with.Leaf = block.Bytes
		}
		for _, e := range log {
			if e.Rekor == nil || !logs(e.Rekor, encode(sig)) {
				continue
			}
			b, err := entryJSON(e.Rekor)
			if err != nil {
				return nil, err
			}
			with.LogEntries = append(with.LogEntries, json.RawMessage(b))
		}
		var err error
		if h.content, err = bundle.Encode(h.envelope, s.Key, with); err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return out, nil
}

// is says whether a bundle that was found is this one, signed at whatever time.
func (h *hanger) is(content []byte) bool {
	b, err := bundle.Parse(content)
	if err != nil || b.Envelope == nil || b.Envelope.PayloadType != store.PayloadType || digestOf(b.Envelope.Payload) != h.payload {
		return false
	}
	var cert []byte
	if b.Leaf != nil {
		cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.Leaf})
	}
	pae := b.Envelope.PAE()
	return slices.ContainsFunc(b.Envelope.Signatures, func(s dsse.Signature) bool { return h.record.SignedBy(pae, s.Sig, cert) })
}

// hang hangs a job's bundles on its image and returns once the registry lists them.
func (k *Keeper) hang(ctx context.Context, c *client, ups *uploads, j *job) error {
	unlock, err := k.locks.lock(ctx, j.image.Name())
	if err != nil {
		return err
	}
	defer unlock()
	// The store knows referrers; its client here is one that authorises.
	s := &Store{repo: j.repo, client: c, opts: Options{Attempts: k.opts.Attempts, Rounds: k.opts.Rounds, Now: k.opts.Now}.withDefaults()}
	if err := k.hangAll(ctx, s, ups, j); err != nil {
		return fmt.Errorf("hanging a bundle on %s: %w", j.image, err)
	}
	var where []string
	for _, h := range j.bundles {
		if h.err != nil {
			continue
		}
		where = append(where, c.repo.Name()+"@"+h.Digest)
	}
	j.where = strings.Join(where, " ")
	return nil
}

func (k *Keeper) hangAll(ctx context.Context, s *Store, ups *uploads, j *job) error {
	subject, err := s.describe(ctx, j.digest())
	if err != nil {
		return err
	}
	refs, _, err := s.referrers(ctx, j.digest())
	if err != nil {
		return err
	}
	for _, h := range j.bundles {
		if err := k.known(ctx, s, subject.Digest, h, refs); err != nil {
			return err
		}
	}
	lost := 0
	for round := range s.opts.Rounds {
		if err := pause(ctx, round); err != nil {
			return err
		}
		missing := slices.DeleteFunc(slices.Clone(j.bundles), func(h *hanger) bool { return h.existing || h.err != nil || isListed(refs, h.Digest) })
		if len(missing) == 0 {
			return nil
		}
		if lost++; lost > 1+maxLost {
			return errLost
		}
		var listed bool
		if refs, listed, err = k.hangThese(ctx, s, ups, subject, missing); err != nil {
			return err
		}
		if listed {
			continue // as read back from the tag
		}
		if refs, _, err = s.referrers(ctx, j.digest()); err != nil {
			return err
		}
	}
	return store.ErrConflict
}

// describe is the descriptor of an image, which referrers must carry.
func (s *Store) describe(ctx context.Context, digest string) (descriptor, error) {
	res, err := s.client.do(ctx, request{
		method: http.MethodHead, url: s.client.url("manifests", digest), header: http.Header{"Accept": {acceptManifests}}, accept: []int{http.StatusOK},
	})
	if errors.Is(err, store.ErrNotFound) {
		return descriptor{}, store.As(store.Configuration, fmt.Errorf("the image is not in the registry: %w", err))
	}
	if err != nil {
		return descriptor{}, err
	}
	mediaType, _, _ := strings.Cut(res.header.Get("Content-Type"), ";")
	size, err := strconv.ParseInt(res.header.Get("Content-Length"), 10, 64)
	if err == nil && size > 0 && mediaType != "" {
		return descriptor{MediaType: mediaType, Digest: digest, Size: size}, nil
	}
	found, _, err := s.Resolve(ctx, digest)
	if err != nil {
		return descriptor{}, err
	}
	return descriptor{MediaType: found.MediaType, Digest: digest, Size: found.Size}, nil
}

// known looks for the bundle among the image's referrers. Annotations only say
// where to look; what counts is the bundle behind them.
func (k *Keeper) known(ctx context.Context, s *Store, subject string, h *hanger, refs []descriptor) error {
	fetched := 0
	for _, d := range refs {
		payload, predicate := d.Annotations[AnnotationPayload], d.Annotations[annotationBundleType]
		if !isBundle(d) || payload != "" && payload != h.payload || predicate != "" && predicate != h.predicateType || fetched == maxCompare {
			continue
		}
		fetched++
		it := store.Item{Digest: d.Digest}
		err := s.readBundle(ctx, &it, subject, &budget{left: 2 * s.opts.MaxItemBytes, max: s.opts.MaxItemBytes})
		var bad *badItem
		switch {
		case errors.As(err, &bad) || err != nil && permanent(err):
			continue
		case err != nil:
			return fmt.Errorf("reading referrer %s: %w", d.Digest, err)
		}
		if h.is(it.Content) {
			h.existing, h.descriptor = true, d
			return nil
		}
	}
	return nil
}

// hangThese writes bundles and their manifests, one manifest after the other:
// registries exist that lose one of two referrers written at once. Where they had to
// be listed in the referrers tag it returns that list, as it was read back.
func (k *Keeper) hangThese(ctx context.Context, s *Store, ups *uploads, subject descriptor, missing []*hanger) (refs []descriptor, read bool, err error) {
	if err := s.client.shared(ctx, ups, "{}"); err != nil {
		return nil, false, err
	}
	var unlisted []descriptor
	for _, h := range missing {
		if err := ups.once(s.repo.Name(), digestOf(h.content), func() error { return s.client.putBlob(ctx, h.content) }); err != nil {
			if h.err = classify(err); store.ClassOf(h.err) == store.Permanent {
				continue // it costs only itself
			}
			return nil, false, err
		}
		if h.manifest == nil {
			if err := h.make(subject, k.opts.Now()); err != nil {
				return nil, false, err
			}
		}
		listed, err := s.client.putManifest(ctx, h.Digest, mediaTypeManifest, h.manifest, condition{none: true})
		if blobUnknown(err) {
			s.client.access.host.note(s.repo.RepositoryStr(), digestOf([]byte("{}")), false)
		}
		if err != nil {
			return nil, false, err
		}
		if listed {
			s.client.access.host.noReferrers.Store(0) // it says that it has the API after all
		} else {
			unlisted = append(unlisted, h.descriptor)
		}
	}
	if len(unlisted) == 0 {
		return nil, false, nil
	}
	h := s.client.access.host
	refs, err = s.putReferrersTag(ctx, subject.Digest, unlisted, func(ctx context.Context, took time.Duration) error {
		h.took(took)
		return k.settle(ctx, h)
	})
	return refs, err == nil && len(unlisted) == len(missing), err
}

// make writes the manifest as cosign 3 does, with our hints for writers.
func (h *hanger) make(subject descriptor, now time.Time) (err error) {
	annotations := map[string]string{
		annotationContent:    "dsse-envelope",
		annotationBundleType: h.predicateType,
		annotationCreated:    now.UTC().Format(time.RFC3339),
		AnnotationPayload:    h.payload,
		AnnotationRecord:     h.record.Key,
	}
	if h.proof != "" {
		annotations[AnnotationLogProof] = h.proof
	}
	h.manifest, err = marshal(referrer{
		SchemaVersion: 2,
		MediaType:     mediaTypeManifest,
		ArtifactType:  bundle.MediaType,
		Config:        blobDescriptor(mediaTypeEmpty, []byte("{}"), nil),
		Layers:        []descriptor{blobDescriptor(bundle.MediaType, h.content, nil)},
		Subject:       subject,
		Annotations:   annotations,
	})
	h.descriptor = blobDescriptor(mediaTypeManifest, h.manifest, annotations)
	h.ArtifactType = bundle.MediaType
	return err
}
