package verify

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	pbbundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	common "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	pbdsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	rekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	sgbundle "github.com/sigstore/sigstore-go/pkg/bundle"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/store"
)

// maxAnnotation bounds a certificate or timestamp in a layer's annotations.
const maxAnnotation = 64 << 10

// layerVersion is that of the bundles that layers are read as: what has a promise of
// the log and no proof. Timestamps alone, without a log entry, are also fine in it.
const layerVersion = "application/vnd.dev.sigstore.bundle+json;version=0.1"

// layerMessage is a layer of a .sig tag, signed by a certificate, as a bundle: a
// signature over the layer's content. The chain that cosign keeps beside the
// certificate is not read: who verifies knows his authorities.
func layerMessage(it store.Item, sig []byte) (sgverify.SignedEntity, error) {
	b, err := layer(it)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(it.Content)
	b.Content = &pbbundle.Bundle_MessageSignature{MessageSignature: &common.MessageSignature{
		MessageDigest: &common.HashOutput{Algorithm: common.HashAlgorithm_SHA2_256, Digest: digest[:]}, Signature: sig,
	}}
	return sgbundle.NewBundle(b)
}

// layerEnvelope is a layer of an .att tag, signed by a certificate, as a bundle; apart
// from its log entry where that is of the kind that the library does not read.
func layerEnvelope(it store.Item, env *dsse.Envelope) (sgverify.SignedEntity, error) {
	if n := len(env.Signatures); n != 1 {
		return nil, fmt.Errorf("the envelope has %d signatures and one certificate; want one of each", n)
	}
	b, err := layer(it)
	if err != nil {
		return nil, err
	}
	b.Content = &pbbundle.Bundle_DsseEnvelope{DsseEnvelope: &pbdsse.Envelope{
		Payload: env.Payload, PayloadType: env.PayloadType,
		Signatures: []*pbdsse.Signature{{Sig: env.Signatures[0].Sig, Keyid: env.Signatures[0].KeyID}},
	}}
	entries := b.VerificationMaterial.TlogEntries
	if len(entries) != 1 || !isOldEntry(entries[0]) {
		return sgbundle.NewBundle(b)
	}
	b.VerificationMaterial.TlogEntries = nil
	rest, err := sgbundle.NewBundle(b)
	if err != nil {
		return nil, err
	}
	return &apart{SignedEntity: rest, entry: entries[0], message: env.PAE(), signed: func(k dsse.PublicKey) tlog.Signed {
		return inEnvelope(it, env, env.Signatures[0], k)
	}}, nil
}

// layer reads cosign's annotations.
func layer(it store.Item) (*pbbundle.Bundle, error) {
	cert, err := leafPEM(it.Annotations[annotationCertificate])
	if err != nil {
		return nil, fmt.Errorf("reading annotation %s: %w", annotationCertificate, err)
	}
	m := &pbbundle.VerificationMaterial{Content: &pbbundle.VerificationMaterial_Certificate{
		Certificate: &common.X509Certificate{RawBytes: cert},
	}}
	if text := it.Annotations[tlog.AnnotationBundle]; text != "" {
		e, err := tlog.ParseCosignBundle(text)
		if err != nil {
			return nil, err
		}
		if e.KindVersion, err = kindVersion(e.GetCanonicalizedBody()); err != nil {
			return nil, fmt.Errorf("reading annotation %s: %w", tlog.AnnotationBundle, err)
		}
		m.TlogEntries = []*rekor.TransparencyLogEntry{e}
	}
	if text := it.Annotations[annotationTimestamp]; text != "" {
		raw, err := timestamp(text)
		if err != nil {
			return nil, fmt.Errorf("reading annotation %s: %w", annotationTimestamp, err)
		}
		m.TimestampVerificationData = &pbbundle.TimestampVerificationData{Rfc3161Timestamps: []*common.RFC3161SignedTimestamp{{SignedTimestamp: raw}}}
	}
	return &pbbundle.Bundle{MediaType: layerVersion, VerificationMaterial: m}, nil
}

// leafPEM is the one certificate of a PEM text, DER.
func leafPEM(text string) ([]byte, error) {
	if len(text) > maxAnnotation {
		return nil, fmt.Errorf("%d bytes, at most %d are read", len(text), maxAnnotation)
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("want a certificate as PEM")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("something follows the certificate")
	}
	return block.Bytes, nil
}

func kindVersion(body []byte) (*rekor.KindVersion, error) {
	if err := strictjson.Check(body, tlog.MaxRekorEntry); err != nil {
		return nil, err
	}
	m, err := strictjson.Object(body)
	if err != nil {
		return nil, err
	}
	kind, err := strictjson.String(m["kind"])
	if err != nil {
		return nil, fmt.Errorf("reading kind: %w", err)
	}
	version, err := strictjson.String(m["apiVersion"])
	if err != nil {
		return nil, fmt.Errorf("reading apiVersion: %w", err)
	}
	return &rekor.KindVersion{Kind: kind, Version: version}, nil
}

// timestamp reads cosign's form of an RFC 3161 timestamp.
func timestamp(text string) ([]byte, error) {
	if err := strictjson.Check([]byte(text), maxAnnotation); err != nil {
		return nil, err
	}
	m, err := strictjson.Object([]byte(text))
	if err != nil {
		return nil, err
	}
	var raw []byte
	if err := json.Unmarshal(m["SignedRFC3161Timestamp"], &raw); err != nil || len(raw) == 0 {
		return nil, errors.New("no SignedRFC3161Timestamp in it")
	}
	return raw, nil
}
