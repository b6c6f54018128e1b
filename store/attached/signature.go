package attached

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
)

// SignedPayload is an image signature in the form that `cosign download signature`
// prints, one JSON document a line. Certificates are DER: cosign prints Go's own
// structures, which nothing else reads back.
type SignedPayload struct {
	Base64Signature  string
	Payload          []byte
	Cert             []byte          `json:",omitempty"`
	Chain            [][]byte        `json:",omitempty"`
	Bundle           json.RawMessage `json:",omitempty"`
	RFC3161Timestamp json.RawMessage `json:",omitempty"`
}

// ImageSignature is an image signature and what comes with it, as files.
type ImageSignature struct {
	// Payload is the simple signing document that was signed. Empty: the one that
	// cosign would have made for the image.
	Payload []byte
	// Sig is the signature, as bytes.
	Sig []byte
	// LogBundle and Timestamp are cosign's JSON of a Rekor entry and an RFC 3161
	// timestamp; empty for none.
	LogBundle, Timestamp []byte
}

// SignatureLayer is an image signature as a layer of .sig. It fails if the payload
// does not name the image, and, where a signer is given, if the signature is not by
// that.
func SignatureLayer(s ImageSignature, repository, digest string, by Signer) (oci.Layer, error) {
	var err error
	payload := s.Payload
	if len(payload) == 0 {
		if by.none() {
			return oci.Layer{}, errors.New("without the payload that was signed, its key or certificate is needed to see that the signature is over the payload that cosign makes for this image")
		}
		if payload, err = simplesigning.New(repository, digest); err != nil {
			return oci.Layer{}, err
		}
	}
	p, err := simplesigning.Parse(payload)
	if err != nil {
		return oci.Layer{}, err
	}
	if p.Digest != digest {
		return oci.Layer{}, &OtherImageError{What: "signature", Names: []string{p.Digest}, Digest: digest}
	}
	if len(s.Sig) == 0 {
		return oci.Layer{}, errors.New("the signature is empty")
	}
	if !by.none() {
		key, err := by.public()
		if err != nil {
			return oci.Layer{}, err
		}
		if err := key.Verify(payload, s.Sig); err != nil {
			return oci.Layer{}, err
		}
	}
	a := map[string]string{annotationSignature: base64.StdEncoding.EncodeToString(s.Sig)}
	if by.Leaf != nil {
		a[annotationCertificate] = encodeCertificates(by.Leaf)
		if len(by.Chain) > 0 {
			a[annotationChain] = encodeCertificates(by.Chain...)
		}
	}
	if len(s.LogBundle) > 0 {
		if _, err := tlog.ParseCosignBundle(string(s.LogBundle)); err != nil {
			return oci.Layer{}, err
		}
		a[tlog.AnnotationBundle] = string(s.LogBundle)
	}
	if len(s.Timestamp) > 0 {
		if _, _, err := materialOf(map[string]string{annotationTimestamp: string(s.Timestamp)}); err != nil {
			return oci.Layer{}, err
		}
		a[annotationTimestamp] = string(s.Timestamp)
	}
	return oci.Layer{MediaType: simplesigning.MediaType, Content: payload, Annotations: a}, nil
}

// ParseSignature reads a signature file: what `cosign sign` and `cosign download
// signature` print (JSON), or the signature alone, as base64 or as bytes.
func ParseSignature(data []byte) (ImageSignature, Signer, error) {
	if docs, err := Documents(data); err == nil && len(docs) == 1 && docs[0][0] == '{' {
		var p struct {
			Base64Signature  string
			Payload          []byte
			Cert             json.RawMessage
			Bundle           json.RawMessage
			RFC3161Timestamp json.RawMessage
		}
		if err := json.Unmarshal(docs[0], &p); err != nil {
			return ImageSignature{}, Signer{}, fmt.Errorf("reading the signature: %w", err)
		}
		sig, err := dsse.Base64(p.Base64Signature)
		if err != nil || len(sig) == 0 {
			return ImageSignature{}, Signer{}, errors.New("reading the signature: the document has no Base64Signature; want what `download signature` prints, or the signature alone")
		}
		out := ImageSignature{Payload: p.Payload, Sig: sig, LogBundle: notNull(p.Bundle), Timestamp: notNull(p.RFC3161Timestamp)}
		by, err := certificateIn(p.Cert)
		return out, by, err
	}
	if sig, err := dsse.Base64(string(trim(data))); err == nil && len(sig) > 0 {
		return ImageSignature{Sig: sig}, Signer{}, nil
	}
	if len(data) == 0 || len(data) > 8<<10 {
		return ImageSignature{}, Signer{}, fmt.Errorf("reading the signature: %d bytes; want base64, the bytes of a signature, or what `download signature` prints", len(data))
	}
	return ImageSignature{Sig: data}, Signer{}, nil
}

func notNull(raw json.RawMessage) []byte {
	if string(raw) == "null" {
		return nil
	}
	return raw
}

// certificateIn reads the member Cert: DER as base64, as we print it, or the
// structure that cosign prints, of which Raw is the DER.
func certificateIn(raw json.RawMessage) (Signer, error) {
	var der []byte
	var structure struct{ Raw []byte }
	switch {
	case len(notNull(raw)) == 0:
		return Signer{}, nil
	case json.Unmarshal(raw, &der) == nil:
	case json.Unmarshal(raw, &structure) == nil:
		der = structure.Raw
	}
	certs, err := ParseCertificates(pemOf(der))
	if err != nil {
		return Signer{}, err
	}
	return Signer{Leaf: certs[0]}, nil
}

// Printed is a layer of .sig as SignedPayload.
type Printed struct {
	SignedPayload
	Digest    string `json:"-"` // of the layer
	MediaType string `json:"-"`
}

// Signatures are the layers of .sig among what hangs on an image, as they are
// printed. Nothing is verified. A layer that cannot be read is an error.
func Signatures(items []store.Item) (layers []Printed, err error) {
	for _, it := range items {
		if it.Format != store.FormatTag || it.MediaType != simplesigning.MediaType {
			continue
		}
		if it.Err != nil {
			return nil, fmt.Errorf("reading %s: %w", it.Digest, it.Err)
		}
		p := SignedPayload{Base64Signature: it.Annotations[annotationSignature], Payload: it.Content}
		for i, name := range []string{annotationCertificate, annotationChain} {
			text := it.Annotations[name]
			if text == "" {
				continue
			}
			certs, err := ParseCertificates([]byte(text))
			if err != nil {
				return nil, fmt.Errorf("reading %s: %w", it.Digest, err)
			}
			if i == 0 {
				p.Cert = certs[0].Raw
				continue
			}
			for _, c := range certs {
				p.Chain = append(p.Chain, c.Raw)
			}
		}
		for name, into := range map[string]*json.RawMessage{tlog.AnnotationBundle: &p.Bundle, annotationTimestamp: &p.RFC3161Timestamp} {
			text := it.Annotations[name]
			if text == "" {
				continue
			}
			if !json.Valid([]byte(text)) {
				return nil, fmt.Errorf("reading %s: annotation %s is no JSON", it.Digest, name)
			}
			*into = json.RawMessage(text)
		}
		layers = append(layers, Printed{p, it.Digest, it.MediaType})
	}
	return layers, nil
}
