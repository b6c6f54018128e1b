// Package simplesigning reads and makes the payload that an image signature in
// cosign's .sig tag signs: a small JSON document, once Red Hat's container
// signature, that names a manifest digest and the repository it was signed in.
// The signature is over the payload's bytes as they are, without DSSE.
package simplesigning

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"

	"assay.dev/assay/attest/strictjson"
)

// MediaType is the media type of payload layers in .sig tags.
const MediaType = "application/vnd.dev.cosign.simplesigning.v1+json"

// Max is the size in bytes of the largest payload that Parse reads.
const Max = 1 << 20

// typeCosign is the critical.type that cosign and Tekton Chains write.
const typeCosign = "cosign container image signature"

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// Payload is what a signature says.
type Payload struct {
	// Reference is the repository the signer had in mind. Copies of the image
	// elsewhere keep the signature, so it need not be where it was found.
	Reference string
	Digest    string // sha256:…
	// Optional is what the signer added, JSON; nil for nothing.
	Optional json.RawMessage
}

// New is the payload for an image, byte for byte what cosign signs. It fails
// unless digest is a sha256 digest and reference is not empty.
func New(reference, digest string) ([]byte, error) {
	if reference == "" {
		return nil, errors.New("making simple signing payload: no reference")
	}
	if !digestForm.MatchString(digest) {
		return nil, fmt.Errorf("making simple signing payload: %q is not a sha256 digest", digest)
	}
	var p payloadJSON
	p.Critical.Identity.Reference = reference
	p.Critical.Image.Digest = digest
	p.Critical.Type = typeCosign
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(p); err != nil {
		return nil, fmt.Errorf("making simple signing payload: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

type payloadJSON struct {
	Critical struct {
		Identity struct {
			Reference string `json:"docker-reference"`
		} `json:"identity"`
		Image struct {
			Digest string `json:"docker-manifest-digest"`
		} `json:"image"`
		Type string `json:"type"`
	} `json:"critical"`
	Optional map[string]any `json:"optional"`
}

// Parse reads a payload strictly: what is critical must be understood, so an
// unknown type or an unknown critical member is an error.
func Parse(data []byte) (Payload, error) {
	p, err := parse(data)
	if err != nil {
		return Payload{}, fmt.Errorf("parsing simple signing payload: %w", err)
	}
	return p, nil
}

func parse(data []byte) (Payload, error) {
	if err := strictjson.Check(data, Max); err != nil {
		return Payload{}, err
	}
	m, err := strictjson.Object(data)
	if err != nil {
		return Payload{}, err
	}
	if err := strictjson.Only(m, "critical", "optional"); err != nil {
		return Payload{}, err
	}
	critical, err := members(m["critical"], "identity", "image", "type")
	if err != nil {
		return Payload{}, fmt.Errorf("reading critical: %w", err)
	}
	typ, err := strictjson.String(critical["type"])
	if err != nil {
		return Payload{}, fmt.Errorf("reading critical.type: %w", err)
	}
	if typ != typeCosign {
		return Payload{}, fmt.Errorf("critical.type %q is not known; want %q", typ, typeCosign)
	}
	identity, err := members(critical["identity"], "docker-reference")
	if err != nil {
		return Payload{}, fmt.Errorf("reading critical.identity: %w", err)
	}
	image, err := members(critical["image"], "docker-manifest-digest")
	if err != nil {
		return Payload{}, fmt.Errorf("reading critical.image: %w", err)
	}
	var p Payload
	if p.Reference, err = strictjson.String(identity["docker-reference"]); err != nil {
		return Payload{}, fmt.Errorf("reading docker-reference: %w", err)
	}
	if p.Digest, err = strictjson.String(image["docker-manifest-digest"]); err != nil {
		return Payload{}, fmt.Errorf("reading docker-manifest-digest: %w", err)
	}
	if !digestForm.MatchString(p.Digest) {
		return Payload{}, fmt.Errorf("docker-manifest-digest %q is not a sha256 digest", p.Digest)
	}
	switch strictjson.Kind(m["optional"]) {
	case "nothing", "null":
	case "object":
		p.Optional = m["optional"]
	default:
		return Payload{}, fmt.Errorf("reading optional: want an object or null, have %s", strictjson.Kind(m["optional"]))
	}
	return p, nil
}

func members(data []byte, known ...string) (map[string]json.RawMessage, error) {
	m, err := strictjson.Object(data)
	if err != nil {
		return nil, err
	}
	return m, strictjson.Only(m, known...)
}
