package attached

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
)

// Kinds of what is in a tree.
const (
	KindImage       = "image"
	KindIndex       = "index"
	KindTag         = "tag"
	KindReferrer    = "referrer"
	KindSignature   = "signature"
	KindAttestation = "attestation"
	KindSBOM        = "sbom"
	KindOther       = "other"
)

// Node is one thing in a tree: the image, a tag beside it, a layer of that, a
// referrer, or a member of an index, with what hangs on it.
type Node struct {
	Kind         string `json:"kind"`
	Digest       string `json:"digest"`
	MediaType    string `json:"mediaType,omitempty"`
	ArtifactType string `json:"artifactType,omitempty"`
	// Size is that of the manifest or blob itself; Total adds config and layers.
	Size  int64 `json:"size"`
	Total int64 `json:"total,omitempty"`
	// Tag is the tag's name, Platform a member's.
	Tag      string `json:"tag,omitempty"`
	Platform string `json:"platform,omitempty"`
	// PredicateType is what an attestation says that it is.
	PredicateType string `json:"predicateType,omitempty"`
	// By says who signed, one for each signature.
	By []By `json:"by,omitempty"`
	// Problem is why nothing more is known of it.
	Problem string  `json:"problem,omitempty"`
	Kids    []*Node `json:"attached,omitempty"`
}

// By is who made a signature.
type By struct {
	// Key is the name of the key, among those that were given, that verifies it.
	Key string `json:"key,omitempty"`
	// Identity and Issuer are what the certificate beside it says, and nobody has
	// checked here.
	Identity string `json:"identity,omitempty"`
	Issuer   string `json:"issuer,omitempty"`
	// Hint is the key id that the signature names, where nothing else is known.
	Hint string `json:"hint,omitempty"`
	// Verified says that the signature verifies with Key, over what names the artifact
	// it hangs on.
	Verified bool `json:"verified"`
}

// Key is a public key with the name that reports call it by.
type Key struct {
	Name   string
	Public dsse.PublicKey
}

// TreeOptions are what to look for; the zero value works.
type TreeOptions struct {
	// Keys are tried on every signature.
	Keys []Key
	// MaxNodes is how many things a tree may have. Default 2000.
	MaxNodes int
	// MaxBytes bounds each signature and attestation that is read. Default 16 MiB.
	MaxBytes int64
}

// maxDepth is how deep referrers of referrers are followed: a signature of an SBOM
// of a member of an index is at four.
const maxDepth = 5

// Tree finds everything that hangs on an artifact: cosign's tags with their layers,
// referrers of any type and what refers to those, and for an index all of that of
// each member. It verifies signatures with the keys given and nothing else. It fails
// where the registry cannot be read, or on more than the bounds allow
// (store.ErrTooMuch); a piece that is malformed has a Problem.
func Tree(ctx context.Context, s *oci.Store, digest string, o TreeOptions) (*Node, error) {
	if o.MaxNodes <= 0 {
		o.MaxNodes = 2000
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = 16 << 20
	}
	m, err := s.Manifest(ctx, digest)
	if err != nil {
		return nil, err
	}
	t := &tree{store: s, opts: o, seen: map[string]bool{digest: true}}
	n := &Node{Kind: KindImage}
	t.describe(n, m)
	if len(m.Members) > 0 {
		n.Kind = KindIndex
	}
	return n, t.grow(ctx, n, m, true, 0)
}

type tree struct {
	store *oci.Store
	opts  TreeOptions
	count int
	seen  map[string]bool // digests on which it was looked what hangs
}

func (t *tree) describe(n *Node, m *oci.Manifest) {
	n.Digest, n.MediaType, n.ArtifactType, n.Size, n.Tag = m.Digest, m.MediaType, m.ArtifactType, m.Size, m.Tag
	n.Total = m.Size
	if m.Config != nil {
		n.Total += m.Config.Size
	}
	for _, l := range m.Layers {
		n.Total += l.Size
	}
}

func (t *tree) add(n *Node, kid *Node) error {
	if t.count++; t.count > t.opts.MaxNodes {
		return fmt.Errorf("%w: more than %d things hang here", store.ErrTooMuch, t.opts.MaxNodes)
	}
	n.Kids = append(n.Kids, kid)
	return nil
}

// grow finds what hangs on a manifest. Tags belong to images, not to referrers.
func (t *tree) grow(ctx context.Context, n *Node, m *oci.Manifest, tags bool, depth int) error {
	if depth >= maxDepth {
		return nil
	}
	if tags {
		for _, suffix := range oci.Suffixes() {
			if err := t.tag(ctx, n, m.Digest, suffix); err != nil {
				return err
			}
		}
	}
	refs, err := t.store.Referrers(ctx, m.Digest)
	if err != nil {
		return err
	}
	for _, d := range refs {
		if err := t.referrer(ctx, n, m.Digest, d, depth); err != nil {
			return err
		}
	}
	for _, d := range m.Members {
		kid := &Node{Kind: KindImage, Digest: d.Digest, MediaType: d.MediaType, ArtifactType: d.ArtifactType, Size: d.Size, Platform: d.Platform}
		if err := t.add(n, kid); err != nil {
			return err
		}
		member, err := t.store.Manifest(ctx, d.Digest)
		if err != nil {
			if !errors.Is(err, store.ErrNotFound) {
				return err
			}
			kid.Problem = "the index lists it and the registry does not have it"
			continue
		}
		if t.seen[d.Digest] {
			continue
		}
		t.seen[d.Digest] = true
		t.describe(kid, member)
		if len(member.Members) > 0 {
			kid.Kind = KindIndex
		}
		if err := t.grow(ctx, kid, member, true, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) tag(ctx context.Context, n *Node, digest, suffix string) error {
	m, err := t.store.Tagged(ctx, digest, suffix)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	kid := &Node{Kind: KindTag, Tag: strings.Replace(digest, ":", "-", 1) + suffix}
	var status *oci.StatusError
	switch {
	case errors.As(err, &status), ctx.Err() != nil:
		return err
	case err != nil:
		kid.Problem = err.Error()
		return t.add(n, kid)
	}
	t.describe(kid, m)
	if err := t.add(n, kid); err != nil {
		return err
	}
	for _, l := range m.Layers {
		leaf := &Node{Kind: KindOther, Digest: l.Digest, MediaType: l.MediaType, Size: l.Size}
		if err := t.add(kid, leaf); err != nil {
			return err
		}
		if err := t.layer(ctx, leaf, digest, l); err != nil {
			return err
		}
	}
	return nil
}

// layer reads a layer of .sig, .att or .sbom.
func (t *tree) layer(ctx context.Context, n *Node, digest string, l oci.Descriptor) error {
	switch {
	case IsSBOM(l.MediaType):
		n.Kind = KindSBOM
		return nil
	case l.MediaType != simplesigning.MediaType && l.MediaType != api.MediaTypeDSSE:
		return nil
	}
	n.Kind = KindSignature
	if l.MediaType == api.MediaTypeDSSE {
		n.Kind = KindAttestation
	}
	b, err := t.blob(ctx, n, l.Digest)
	if b == nil {
		return err
	}
	if l.MediaType == api.MediaTypeDSSE {
		env, err := dsse.Parse(b)
		if err != nil {
			n.Problem = err.Error()
			return nil
		}
		leaf, err := leafOf(l.Annotations, env)
		if err != nil {
			n.Problem = err.Error()
		}
		t.envelope(n, env, leaf, digest)
		return nil
	}
	p, err := simplesigning.Parse(b)
	if err == nil && p.Digest != digest {
		err = &OtherImageError{What: "signature", Names: []string{p.Digest}, Digest: digest}
	}
	if err != nil {
		n.Problem = err.Error()
		return nil
	}
	sig, err := dsse.Base64(l.Annotations[annotationSignature])
	if err != nil {
		n.Problem = fmt.Sprintf("reading annotation %s: %v", annotationSignature, err)
		return nil
	}
	by := By{}
	if text := l.Annotations[annotationCertificate]; text != "" {
		if certs, err := ParseCertificates([]byte(text)); err == nil {
			by = named(certs[0])
		}
	}
	for _, k := range t.opts.Keys {
		if k.Public.Verify(b, sig) == nil {
			by = By{Key: k.Name, Verified: true}
		}
	}
	n.By = []By{by}
	return nil
}

// blob reads a small one. It is nil where the node says why, or with an error.
func (t *tree) blob(ctx context.Context, n *Node, digest string) ([]byte, error) {
	b, err := t.store.Blob(ctx, digest, t.opts.MaxBytes)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, oci.ErrTooLarge) {
		n.Problem = err.Error()
		return nil, nil
	}
	return b, err
}

func (t *tree) referrer(ctx context.Context, n *Node, subject string, d oci.Descriptor, depth int) error {
	kid := &Node{Kind: KindReferrer, Digest: d.Digest, MediaType: d.MediaType, ArtifactType: d.ArtifactType, Size: d.Size}
	if err := t.add(n, kid); err != nil {
		return err
	}
	m, err := t.store.Manifest(ctx, d.Digest)
	var status *oci.StatusError
	switch {
	case errors.Is(err, store.ErrNotFound):
		kid.Problem = "it is listed and the registry does not have it"
		return nil
	case errors.As(err, &status), ctx.Err() != nil:
		return err
	case err != nil:
		kid.Problem = err.Error()
		return nil
	}
	t.describe(kid, m)
	if kid.ArtifactType == "" {
		kid.ArtifactType = d.ArtifactType
	}
	if m.Subject != subject {
		kid.Problem = fmt.Sprintf("it refers to %q, not to what it is listed for", m.Subject)
		return nil
	}
	switch {
	case len(m.Layers) == 1 && (bundle.IsMediaType(m.Layers[0].MediaType) || bundle.IsMediaType(kid.ArtifactType)):
		if err := t.bundle(ctx, kid, subject, m.Layers[0].Digest); err != nil {
			return err
		}
	case IsSBOM(kid.ArtifactType) || len(m.Layers) == 1 && IsSBOM(m.Layers[0].MediaType):
		kid.Kind = KindSBOM
	}
	if t.seen[d.Digest] {
		return nil
	}
	t.seen[d.Digest] = true
	return t.grow(ctx, kid, m, false, depth+1)
}

func (t *tree) bundle(ctx context.Context, n *Node, subject, digest string) error {
	data, err := t.blob(ctx, n, digest)
	if data == nil {
		return err
	}
	b, err := bundle.Parse(data)
	if err != nil {
		n.Problem = err.Error()
		return nil
	}
	m, err := readMaterial(data)
	if err != nil {
		n.Problem = err.Error()
		return nil
	}
	if b.Envelope != nil {
		n.Kind = KindAttestation
		t.envelope(n, b.Envelope, m.signer.Leaf, subject)
		return nil
	}
	n.Kind = KindSignature
	if claimed := fmt.Sprintf("%s:%x", b.Message.Algorithm, b.Message.Digest); claimed != subject {
		n.Problem = (&OtherImageError{What: "bundle", Names: []string{claimed}, Digest: subject}).Error()
		return nil
	}
	by := By{Hint: b.Hint}
	if m.signer.Leaf != nil {
		by = named(m.signer.Leaf)
	}
	n.By = []By{by}
	return nil
}

// envelope says what an envelope holds and who signed it.
func (t *tree) envelope(n *Node, env *dsse.Envelope, leaf *x509.Certificate, digest string) {
	s, err := about(env, digest)
	if err != nil {
		n.Problem = err.Error()
		return
	}
	n.PredicateType = s.PredicateType
	if s.PredicateType == intoto.PredicateImageSignature {
		n.Kind = KindSignature
	}
	for _, sig := range env.Signatures {
		one := &dsse.Envelope{PayloadType: env.PayloadType, Payload: env.Payload, Signatures: []dsse.Signature{sig}}
		by := By{Hint: sig.KeyID}
		if leaf != nil {
			by = named(leaf)
		}
		if i := slices.IndexFunc(t.opts.Keys, func(k Key) bool { _, ok := verifies(one, []dsse.PublicKey{k.Public}); return ok }); i >= 0 {
			by = By{Key: t.opts.Keys[i].Name, Verified: true}
		}
		n.By = append(n.By, by)
	}
}

// named is what a certificate says of its owner.
func named(c *x509.Certificate) By {
	var by By
	switch {
	case len(c.URIs) > 0:
		by.Identity = c.URIs[0].String()
	case len(c.EmailAddresses) > 0:
		by.Identity = c.EmailAddresses[0]
	case len(c.DNSNames) > 0:
		by.Identity = c.DNSNames[0]
	default:
		by.Identity = c.Subject.String()
	}
	for _, e := range c.Extensions {
		switch e.Id.String() {
		case "1.3.6.1.4.1.57264.1.1":
			if by.Issuer == "" {
				by.Issuer = string(e.Value)
			}
		case "1.3.6.1.4.1.57264.1.8":
			var s string
			if rest, err := asn1.Unmarshal(e.Value, &s); err == nil && len(rest) == 0 {
				by.Issuer = s
			}
		}
	}
	return by
}
