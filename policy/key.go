package policy

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"assay.dev/assay/api"
	"assay.dev/assay/policy/source"
	"assay.dev/assay/policy/spec"
	"assay.dev/assay/verify"
)

// who is one that may have signed: a key or an identity.
type who struct {
	key string // SHA-256 of the PKIX form, hex, as verify.Identity.Key has it
	pem string

	subject, issuer             string
	subjectPattern, issuerMatch *regexp.Regexp
}

// is says whether a verified signer is this one.
func (w *who) is(id verify.Identity) bool {
	if w.key != "" {
		return id.Certificate == nil && id.Key == w.key
	}
	c := id.Certificate
	if c == nil || c.SAN == "" || c.Issuer == "" {
		return false
	}
	return matches(c.SAN, w.subject, w.subjectPattern) && matches(c.Issuer, w.issuer, w.issuerMatch)
}

// matches is as cosign has it: an expression that is found anywhere is enough.
func matches(s, exact string, pattern *regexp.Regexp) bool {
	if pattern != nil {
		return pattern.MatchString(s)
	}
	return exact != "" && s == exact
}

func (w *who) String() string {
	if w.key != "" {
		return w.key
	}
	or := func(exact string, p *regexp.Regexp) string {
		if p != nil {
			return "/" + p.String() + "/"
		}
		return exact
	}
	return or(w.subject, w.subjectPattern) + " of " + or(w.issuer, w.issuerMatch)
}

// signers are those whose evidence a policy counts, by what they sign.
type signers struct{ image, provenance, sbom []who }

// provenanceType stands for all types of what says how something was built.
const provenanceType = "https://slsa.dev/provenance/"

// of are those who may sign a statement with a predicate of this type.
func (s *signers) of(predicateType string) []who {
	switch {
	case strings.HasPrefix(predicateType, provenanceType) || predicateType == api.PredicateObservation:
		return s.provenance
	case strings.HasPrefix(predicateType, "https://spdx.dev/") || strings.HasPrefix(predicateType, "https://cyclonedx.org/"):
		return s.sbom
	}
	return s.image
}

// wanted says whether a signer is one of a list.
func wanted(list []who, id verify.Identity) bool {
	return slices.ContainsFunc(list, func(w who) bool { return w.is(id) })
}

// digest is what a policy's digest has of its signers.
func (s *signers) digest() string {
	if s.same() {
		return names(s.image)
	}
	return names(s.image) + "\n" + names(s.provenance) + "\n" + names(s.sbom)
}

func (s *signers) same() bool {
	return names(s.image) == names(s.provenance) && names(s.image) == names(s.sbom)
}

func names(list []who) string {
	var out []string
	for i := range list {
		out = append(out, list[i].String())
	}
	return strings.Join(out, ", ")
}

// keyReader reads keys that a policy names.
type keyReader struct {
	base   string
	remote func(ctx context.Context, address string) ([]byte, error)
}

// signersOf reads whom a policy asks for, and the one public key that rules see. A
// policy that names a signer means it: evidence by any other does not count.
func signersOf(ctx context.Context, s *spec.Spec, r keyReader) (*signers, string, error) {
	if a := s.Assay; a != nil && a.Signers != nil {
		if s.PublicKey != "" || s.Identity != nil {
			return nil, "", errors.New("publicKey and identity stand beside assay.signers, which takes their place; keep one")
		}
		out := &signers{}
		for _, l := range []struct {
			what string
			from []spec.Signer
			to   *[]who
		}{{"image", a.Signers.Image, &out.image}, {"provenance", a.Signers.Provenance, &out.provenance}, {"sbom", a.Signers.SBOM, &out.sbom}} {
			for i, x := range l.from {
				w, err := r.signer(ctx, x.PublicKey, x.Identity)
				if err != nil {
					return nil, "", fmt.Errorf("reading assay.signers.%s[%d]: %w", l.what, i, err)
				}
				*l.to = append(*l.to, *w)
			}
		}
		if out.provenance == nil {
			out.provenance = out.image
		}
		if out.sbom == nil {
			out.sbom = out.image
		}
		return out, out.image[0].pem, nil
	}
	id := s.Identity
	if id != nil && *id == (spec.Identity{}) {
		id = nil
	}
	if s.PublicKey == "" && id == nil {
		return nil, "", nil
	}
	if s.PublicKey != "" {
		// As Conforma has it: with a key, the identity is not looked at.
		id = nil
	}
	w, err := r.signer(ctx, s.PublicKey, id)
	if err != nil {
		return nil, "", err
	}
	all := []who{*w}
	return &signers{all, all, all}, w.pem, nil
}

func (r keyReader) signer(ctx context.Context, key string, id *spec.Identity) (*who, error) {
	if key != "" {
		return r.key(ctx, key)
	}
	if err := id.Check(); err != nil {
		return nil, fmt.Errorf("reading identity: %w", err)
	}
	w := &who{subject: id.Subject, issuer: id.Issuer}
	if id.SubjectRegExp != "" {
		w.subjectPattern = regexp.MustCompile(id.SubjectRegExp)
	}
	if id.IssuerRegExp != "" {
		w.issuerMatch = regexp.MustCompile(id.IssuerRegExp)
	}
	return w, nil
}

// key reads a public key: PEM text, a file relative to the policy, or an address
// that somebody else reads.
func (r keyReader) key(ctx context.Context, value string) (*who, error) {
	raw := []byte(value)
	if !strings.Contains(value, "-----BEGIN") {
		var err error
		if i := strings.Index(value, ":"); i > 0 && !strings.HasPrefix(value, "file:") && !strings.ContainsAny(value[:i], "/.") {
			if r.remote == nil {
				return nil, fmt.Errorf("reading publicKey: keys at %s:// are not read here; give the public key as PEM or a file", value[:i])
			}
			raw, err = r.remote(ctx, value)
		} else {
			var p string
			if p, err = localPath(r.base, value); err == nil {
				raw, err = source.ReadFile(p, 1<<20)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("reading publicKey: %w", err)
		}
	}
	block, rest := pem.Decode(raw)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, errors.New("reading publicKey: not a PEM block of type PUBLIC KEY")
	}
	if len(strings.TrimSpace(string(rest))) > 0 {
		return nil, errors.New("reading publicKey: more than one PEM block")
	}
	if _, err := x509.ParsePKIXPublicKey(block.Bytes); err != nil {
		return nil, fmt.Errorf("reading publicKey: %w", err)
	}
	h := sha256.Sum256(block.Bytes)
	return &who{key: hex.EncodeToString(h[:]), pem: string(pem.EncodeToMemory(block))}, nil
}
