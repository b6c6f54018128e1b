package oci

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"

	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/attest/strictjson"
)

// Annotations of cosign and Sigstore.
const (
	annotationSignature     = "dev.cosignproject.cosign/signature"
	annotationPredicateType = "predicateType"
	annotationContent       = "dev.sigstore.bundle.content"
	annotationBundleType    = "dev.sigstore.bundle.predicateType"
	annotationCreated       = "org.opencontainers.image.created"
)

// Annotations of ours, on referrer manifests only. They are hints for writers:
// nobody's trust rests on them.
const (
	// AnnotationPayload is the digest of the DSSE payload in the bundle.
	AnnotationPayload = "assay.dev/payload-digest"
	// AnnotationLayer is the descriptor, as JSON, of the layer that stands for
	// the same evidence in the tag that AnnotationTag names, .att or .sig.
	AnnotationLayer = "assay.dev/tag-layer"
	AnnotationTag   = "assay.dev/tag"
)

const mediaTypeDSSE = "application/vnd.dsse.envelope.v1+json"

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// descriptor is an OCI content descriptor.
type descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

func (d descriptor) check() error {
	if !digestForm.MatchString(d.Digest) {
		return fmt.Errorf("descriptor's digest %q is not a sha256 digest", d.Digest)
	}
	if d.Size < 0 {
		return fmt.Errorf("descriptor of %s has size %d", d.Digest, d.Size)
	}
	return nil
}

// same says that two layers of a tag are the same piece of evidence: the same
// bytes and, since simple signing payloads are alike whoever signs, the same
// signature.
func (d descriptor) same(o descriptor) bool {
	return d.Digest == o.Digest && d.Annotations[annotationSignature] == o.Annotations[annotationSignature]
}

func blobDescriptor(mediaType string, b []byte, annotations map[string]string) descriptor {
	return descriptor{MediaType: mediaType, Digest: digestOf(b), Size: int64(len(b)), Annotations: annotations}
}

func signatureLayer(payload, sig []byte) descriptor {
	return blobDescriptor(simplesigning.MediaType, payload, map[string]string{
		annotationSignature: base64.StdEncoding.EncodeToString(sig),
	})
}

// attestationLayer is as cosign writes it: the signature is in the envelope,
// its annotation is there and empty.
func attestationLayer(envelope []byte, predicateType string) descriptor {
	return blobDescriptor(mediaTypeDSSE, envelope, map[string]string{
		annotationSignature:     "",
		annotationPredicateType: predicateType,
	})
}

// referrer is the manifest that hangs a bundle on its subject.
type referrer struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        descriptor        `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Subject       descriptor        `json:"subject"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// tagManifest is the manifest behind a .sig or .att tag. What another writer
// put into it beyond config and layers is kept as it is.
type tagManifest struct {
	digest    string // of the bytes in the registry; empty: there is none
	mediaType string
	members   map[string]json.RawMessage
	raw       []json.RawMessage // layers as found
	layers    []descriptor
	changed   bool // by add or amend
}

func parseTagManifest(b []byte) (*tagManifest, error) {
	if err := strictjson.Check(b, maxManifest); err != nil {
		return nil, err
	}
	m, err := strictjson.Object(b)
	if err != nil {
		return nil, err
	}
	t := &tagManifest{digest: digestOf(b), mediaType: mediaTypeIn(b), members: m}
	if t.mediaType == "" {
		t.mediaType = mediaTypeManifest
	}
	if t.mediaType != mediaTypeManifest && t.mediaType != mediaTypeDocker {
		return nil, fmt.Errorf("it is a %s; want an image manifest", t.mediaType)
	}
	if t.raw, err = strictjson.Array(m["layers"]); err != nil {
		return nil, fmt.Errorf("reading layers: %w", err)
	}
	for i, raw := range t.raw {
		var d descriptor
		if err := json.Unmarshal(raw, &d); err != nil {
			return nil, fmt.Errorf("reading layer %d: %w", i, err)
		}
		if err := d.check(); err != nil {
			return nil, fmt.Errorf("reading layer %d: %w", i, err)
		}
		t.layers = append(t.layers, d)
	}
	return t, nil
}

func (t *tagManifest) has(d descriptor) bool {
	for _, l := range t.layers {
		if l.same(d) {
			return true
		}
	}
	return false
}

func (t *tagManifest) add(d descriptor) error {
	raw, err := json.Marshal(d)
	if err != nil {
		return err
	}
	t.raw = append(t.raw, raw)
	t.layers = append(t.layers, d)
	t.changed = true
	return nil
}

// bytes are the image config and the manifest for the layers as they are now.
// The config is what cosign writes: layers are not compressed, so their diff
// ids are their digests, and nothing in it depends on time.
func (t *tagManifest) bytes() (config, manifest []byte, err error) {
	const never = "0001-01-01T00:00:00Z"
	type history struct {
		Created string `json:"created"`
	}
	type rootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	}
	c := struct {
		Architecture string    `json:"architecture"`
		Created      string    `json:"created"`
		History      []history `json:"history"`
		OS           string    `json:"os"`
		RootFS       rootFS    `json:"rootfs"`
		Config       struct{}  `json:"config"`
	}{Created: never, RootFS: rootFS{Type: "layers"}}
	for _, l := range t.layers {
		c.History = append(c.History, history{never})
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, l.Digest)
	}
	if config, err = json.Marshal(c); err != nil {
		return nil, nil, err
	}
	configType := mediaTypeConfig
	if t.mediaType == mediaTypeDocker {
		configType = "application/vnd.docker.container.image.v1+json"
	}
	if t.members == nil {
		manifest, err = json.Marshal(struct {
			SchemaVersion int               `json:"schemaVersion"`
			MediaType     string            `json:"mediaType"`
			Config        descriptor        `json:"config"`
			Layers        []json.RawMessage `json:"layers"`
		}{2, t.mediaType, blobDescriptor(configType, config, nil), t.raw})
		return config, manifest, err
	}
	if t.members["config"], err = json.Marshal(blobDescriptor(configType, config, nil)); err != nil {
		return nil, nil, err
	}
	if t.members["layers"], err = json.Marshal(t.raw); err != nil {
		return nil, nil, err
	}
	manifest, err = json.Marshal(t.members)
	return config, manifest, err
}

// mediaTypeIn is the mediaType member of a manifest, empty where it has none.
func mediaTypeIn(manifest []byte) string {
	var m struct {
		MediaType string `json:"mediaType"`
	}
	if json.Unmarshal(manifest, &m) != nil {
		return ""
	}
	return m.MediaType
}

// index is a list of referrers. What another writer put into it is kept.
type index struct {
	digest    string // of the bytes in the registry; empty: there is none
	mediaType string
	members   map[string]json.RawMessage
	raw       []json.RawMessage
	manifests []descriptor
}

func parseIndex(b []byte) (*index, error) {
	if err := strictjson.Check(b, maxManifest); err != nil {
		return nil, err
	}
	m, err := strictjson.Object(b)
	if err != nil {
		return nil, err
	}
	x := &index{digest: digestOf(b), mediaType: mediaTypeIn(b), members: m}
	if x.mediaType != "" && x.mediaType != mediaTypeIndex {
		return nil, fmt.Errorf("it is a %s; want an image index", x.mediaType)
	}
	// Some registries write null for none.
	if k := strictjson.Kind(m["manifests"]); k == "nothing" || k == "null" {
		return x, nil
	}
	if x.raw, err = strictjson.Array(m["manifests"]); err != nil {
		return nil, fmt.Errorf("reading manifests: %w", err)
	}
	for i, raw := range x.raw {
		var d descriptor
		if err := json.Unmarshal(raw, &d); err != nil {
			return nil, fmt.Errorf("reading descriptor %d: %w", i, err)
		}
		// A referrer that cannot be named cannot be evidence, and must not
		// keep us from reading the others.
		if d.check() == nil {
			x.manifests = append(x.manifests, d)
		}
	}
	return x, nil
}

// add adds a descriptor unless its digest is listed.
func (x *index) add(d descriptor) error {
	for _, o := range x.manifests {
		if o.Digest == d.Digest {
			return nil
		}
	}
	raw, err := json.Marshal(d)
	if err != nil {
		return err
	}
	x.raw = append(x.raw, raw)
	x.manifests = append(x.manifests, d)
	return nil
}

func (x *index) bytes() ([]byte, error) {
	if x.members == nil {
		return json.Marshal(struct {
			SchemaVersion int               `json:"schemaVersion"`
			MediaType     string            `json:"mediaType"`
			Manifests     []json.RawMessage `json:"manifests"`
		}{2, mediaTypeIndex, x.raw})
	}
	var err error
	if x.members["manifests"], err = json.Marshal(x.raw); err != nil {
		return nil, err
	}
	return json.Marshal(x.members)
}

// parseReferrer reads the manifest of a bundle and checks that it hangs on the
// subject.
func parseReferrer(b []byte, subject string) (descriptor, map[string]string, error) {
	if err := strictjson.Check(b, maxManifest); err != nil {
		return descriptor{}, nil, err
	}
	var r referrer
	if err := json.Unmarshal(b, &r); err != nil {
		return descriptor{}, nil, err
	}
	if r.Subject.Digest != subject {
		return descriptor{}, nil, fmt.Errorf("its subject is %q, not %s", r.Subject.Digest, subject)
	}
	if len(r.Layers) != 1 {
		return descriptor{}, nil, fmt.Errorf("it has %d layers; a bundle is one", len(r.Layers))
	}
	if err := r.Layers[0].check(); err != nil {
		return descriptor{}, nil, err
	}
	return r.Layers[0], r.Annotations, nil
}

var errNoLayer = errors.New("no layer recorded")

// maxRecorded is the size in bytes of the largest layer descriptor that is read
// from a referrer's annotation.
const maxRecorded = 64 << 10

// record writes a layer into a referrer's annotations, as recorded reads it. The
// proofs of logs are the same for all forms of a piece of evidence and stand
// beside it already.
func record(annotations map[string]string, suffix string, layer descriptor) error {
	layer.Annotations = maps.Clone(layer.Annotations)
	delete(layer.Annotations, AnnotationLogProof)
	b, err := marshal(layer)
	if err != nil {
		return err
	}
	if len(b) > maxRecorded {
		return fmt.Errorf("the layer's descriptor has %d bytes, mostly of log entries; at most %d can be kept", len(b), maxRecorded)
	}
	annotations[AnnotationTag], annotations[AnnotationLayer] = suffix, string(b)
	return nil
}

// recorded is the tag layer that a referrer's annotations record, for one tag.
func recorded(annotations map[string]string, suffix string) (descriptor, error) {
	if annotations[AnnotationTag] != suffix || annotations[AnnotationLayer] == "" {
		return descriptor{}, errNoLayer
	}
	b := []byte(annotations[AnnotationLayer])
	if err := strictjson.Check(b, maxRecorded); err != nil {
		return descriptor{}, err
	}
	var d descriptor
	if err := json.Unmarshal(b, &d); err != nil {
		return descriptor{}, err
	}
	if err := d.check(); err != nil {
		return descriptor{}, err
	}
	want := mediaTypeDSSE
	if suffix == suffixSig {
		want = simplesigning.MediaType
	}
	if d.MediaType != want {
		return descriptor{}, fmt.Errorf("layer of type %q in %s", d.MediaType, suffix)
	}
	if proofs := annotations[AnnotationLogProof]; proofs != "" {
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations[AnnotationLogProof] = proofs
	}
	return d, nil
}
