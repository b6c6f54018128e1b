package attached

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	rekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
)

// MaxDocuments is how many envelopes or bundles a file may hold.
const MaxDocuments = 256

// ErrForm says that a piece cannot have the other form without being signed again.
var ErrForm = errors.New("it would have to be signed again")

// Documents takes a file apart: one JSON document, or one a line.
func Documents(data []byte) ([]json.RawMessage, error) {
	if len(data) > dsse.MaxEnvelope {
		return nil, fmt.Errorf("%d bytes, at most %d are read", len(data), dsse.MaxEnvelope)
	}
	if json.Valid(data) {
		return []json.RawMessage{bytes.TrimSpace(data)}, nil
	}
	var out []json.RawMessage
	for i, line := range bytes.Split(data, []byte("\n")) {
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		if len(out) == MaxDocuments {
			return nil, fmt.Errorf("more than %d documents", MaxDocuments)
		}
		if !json.Valid(line) {
			return nil, fmt.Errorf("line %d is no JSON; want one document, or one a line", i+1)
		}
		out = append(out, line)
	}
	if len(out) == 0 {
		return nil, errors.New("it is empty")
	}
	return out, nil
}

// AttestationLayer is an envelope as a layer of .att. It fails if the envelope is no
// statement about the image, and, where a signer is given, if none of its signatures
// is by that.
func AttestationLayer(data []byte, digest string, by Signer) (oci.Layer, *dsse.Envelope, error) {
	env, err := dsse.Parse(data)
	if err != nil {
		return oci.Layer{}, nil, err
	}
	s, err := about(env, digest)
	if err != nil {
		return oci.Layer{}, nil, err
	}
	if s.PredicateType == intoto.PredicateImageSignature {
		return oci.Layer{}, nil, fmt.Errorf("it is an image signature as cosign 3 makes them, which no tool looks for in .att: attach its bundle")
	}
	if by.none() && len(env.Signatures) == 0 {
		return oci.Layer{}, nil, errors.New("the envelope has no signature")
	}
	if !by.none() {
		key, err := by.public()
		if err != nil {
			return oci.Layer{}, nil, err
		}
		if _, err := env.Verify(1, key); err != nil {
			return oci.Layer{}, nil, err
		}
	}
	return oci.Layer{MediaType: api.MediaTypeDSSE, Content: data, Annotations: layerAnnotations(s.PredicateType, by)}, env, nil
}

func layerAnnotations(predicateType string, by Signer) map[string]string {
	a := map[string]string{annotationSignature: "", annotationPredicateType: predicateType}
	if by.Leaf != nil {
		a[annotationCertificate] = encodeCertificates(by.Leaf)
		if len(by.Chain) > 0 {
			a[annotationChain] = encodeCertificates(by.Chain...)
		}
	}
	return a
}

// BundleReferrer is a Sigstore bundle as a referrer. It fails if the bundle is not
// about the image, by its subjects or the digest that it signs.
func BundleReferrer(data []byte, digest string) (oci.Referrer, *bundle.Bundle, error) {
	b, err := bundle.Parse(data)
	if err != nil {
		return oci.Referrer{}, nil, err
	}
	r := oci.Referrer{ArtifactType: b.MediaType, MediaType: b.MediaType, Content: data}
	if b.Message != nil {
		if claimed := fmt.Sprintf("%s:%x", b.Message.Algorithm, b.Message.Digest); claimed != digest {
			return oci.Referrer{}, nil, &OtherImageError{What: "bundle", Names: []string{claimed}, Digest: digest}
		}
		r.Annotations = map[string]string{annotationContent: "message-signature"}
		return r, b, nil
	}
	s, err := about(b.Envelope, digest)
	if err != nil {
		return oci.Referrer{}, nil, err
	}
	r.Annotations = map[string]string{
		annotationContent: "dsse-envelope", annotationBundleType: s.PredicateType,
		oci.AnnotationPayload: digestOf(b.Envelope.Payload),
	}
	return r, b, nil
}

// Bundles makes referrers of a layer of .att, one for each of its signatures that
// one of the keys, or the layer's own certificate, verifies; log entries and
// timestamps come along. It is ErrForm for other layers. A layer none of whose
// signatures verifies is an error; what is known to be missing from the result is
// said in notes.
func Bundles(it store.Item, digest string, keys []dsse.PublicKey) (out []oci.Referrer, notes []string, err error) {
	if it.Err != nil {
		return nil, nil, it.Err
	}
	if it.MediaType == simplesigning.MediaType {
		return nil, nil, fmt.Errorf("%w: a layer of .sig signs a simple signing payload, a bundle the image's statement or its bytes", ErrForm)
	}
	if it.Format != store.FormatTag || it.MediaType != api.MediaTypeDSSE {
		return nil, nil, fmt.Errorf("media type %q is no attestation", it.MediaType)
	}
	env, err := dsse.Parse(it.Content)
	if err != nil {
		return nil, nil, err
	}
	if _, err := about(env, digest); err != nil {
		return nil, nil, err
	}
	leaf, err := leafOf(it.Annotations, env)
	if err != nil {
		return nil, nil, err
	}
	with, notes, err := materialOf(it.Annotations)
	if err != nil {
		return nil, nil, err
	}
	for i, sig := range env.Signatures {
		one := &dsse.Envelope{PayloadType: env.PayloadType, Payload: env.Payload, Signatures: []dsse.Signature{sig}}
		m := material{}
		key, ok := dsse.PublicKey{}, false
		if leaf != nil {
			public, err := dsse.NewPublicKey(leaf.PublicKey)
			if err != nil {
				return nil, nil, fmt.Errorf("reading the certificate's key: %w", err)
			}
			if key, ok = verifies(one, []dsse.PublicKey{public}); ok {
				m.leaf = leaf.Raw
			}
		}
		if !ok {
			key, ok = verifies(one, keys)
		}
		if !ok {
			notes = append(notes, fmt.Sprintf("signature %d is by none of the keys that were given, and by no certificate that is there: give its key with --key", i))
			continue
		}
		dropped := m.take(with, sig.Sig, len(env.Signatures) == 1 || m.leaf != nil)
		if dropped > 0 {
			notes = append(notes, fmt.Sprintf("%d log entries are not about signature %d and are left out", dropped, i))
		}
		content, err := m.encode(one, key)
		if err != nil {
			return nil, nil, err
		}
		r, _, err := BundleReferrer(content, digest)
		if err != nil {
			return nil, nil, err
		}
		if proof := it.Annotations[oci.AnnotationLogProof]; proof != "" {
			r.Annotations[oci.AnnotationLogProof] = proof
		}
		out = append(out, r)
	}
	if len(out) == 0 {
		return nil, nil, errors.New(strings.Join(notes, "; "))
	}
	return out, notes, nil
}

func verifies(env *dsse.Envelope, keys []dsse.PublicKey) (dsse.PublicKey, bool) {
	if len(keys) == 0 {
		return dsse.PublicKey{}, false
	}
	by, err := env.Verify(1, keys...)
	if err != nil {
		return dsse.PublicKey{}, false
	}
	return by[0].Key, true
}

// Layer makes a layer of .att of a bundle that was found as a referrer. It is
// ErrForm for image signatures. Notes say what tools that read tags will miss.
func Layer(it store.Item, digest string) (l oci.Layer, notes []string, err error) {
	if it.Err != nil {
		return oci.Layer{}, nil, it.Err
	}
	b, err := bundle.Parse(it.Content)
	if err != nil {
		return oci.Layer{}, nil, err
	}
	if b.Envelope == nil {
		return oci.Layer{}, nil, fmt.Errorf("%w: the bundle signs the image's own bytes, and a layer of .sig a simple signing payload", ErrForm)
	}
	s, err := about(b.Envelope, digest)
	if err != nil {
		return oci.Layer{}, nil, err
	}
	if s.PredicateType == intoto.PredicateImageSignature {
		return oci.Layer{}, nil, fmt.Errorf("%w: the bundle signs a statement, and a layer of .sig a simple signing payload", ErrForm)
	}
	content, err := b.Envelope.MarshalJSON()
	if err != nil {
		return oci.Layer{}, nil, err
	}
	m, err := readMaterial(it.Content)
	if err != nil {
		return oci.Layer{}, nil, err
	}
	if m.signer.Leaf != nil {
		key, err := m.signer.public()
		if err != nil {
			return oci.Layer{}, nil, fmt.Errorf("reading the certificate's key: %w", err)
		}
		if _, err := b.Envelope.Verify(1, key); err != nil {
			return oci.Layer{}, nil, err
		}
	}
	l = oci.Layer{MediaType: api.MediaTypeDSSE, Content: content, Annotations: layerAnnotations(s.PredicateType, m.signer)}
	notes, err = m.annotate(l.Annotations)
	if err != nil {
		return oci.Layer{}, nil, err
	}
	if proof := it.Annotations[oci.AnnotationLogProof]; proof != "" {
		l.Annotations[oci.AnnotationLogProof] = proof
	}
	return l, notes, nil
}

// entryOf reads a log entry in the form of bundles.
func entryOf(raw []byte) (*rekor.TransparencyLogEntry, error) {
	if err := strictjson.Check(raw, tlog.MaxRekorEntry); err != nil {
		return nil, fmt.Errorf("reading log entry: %w", err)
	}
	e := new(rekor.TransparencyLogEntry)
	if err := protojson.Unmarshal(raw, e); err != nil {
		return nil, fmt.Errorf("reading log entry: %w", err)
	}
	return e, nil
}

// entryJSON is an entry as bundles carry it, always the same bytes.
func entryJSON(e *rekor.TransparencyLogEntry) (json.RawMessage, error) {
	loose, err := protojson.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("writing log entry: %w", err)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, loose); err != nil {
		return nil, fmt.Errorf("writing log entry: %w", err)
	}
	return b.Bytes(), nil
}

// cosignBundle is an entry with a signed entry timestamp in cosign's own form.
func cosignBundle(e *rekor.TransparencyLogEntry) (string, error) {
	type payload struct {
		Body           string `json:"body"`
		IntegratedTime int64  `json:"integratedTime"`
		LogIndex       int64  `json:"logIndex"`
		LogID          string `json:"logID"`
	}
	b, err := json.Marshal(struct {
		SignedEntryTimestamp []byte
		Payload              payload
	}{e.GetInclusionPromise().GetSignedEntryTimestamp(), payload{
		Body:           base64.StdEncoding.EncodeToString(e.GetCanonicalizedBody()),
		IntegratedTime: e.GetIntegratedTime(),
		LogIndex:       e.GetLogIndex(),
		LogID:          fmt.Sprintf("%x", e.GetLogId().GetKeyId()),
	}})
	return string(b), err
}
