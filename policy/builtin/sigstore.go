package builtin

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/open-policy-agent/opa/v1/ast"
)

// SigstoreOptions are how a rule wants something verified: a key, or the
// identity in a certificate.
type SigstoreOptions struct {
	CertificateIdentity         string
	CertificateIdentityRegexp   string
	CertificateOIDCIssuer       string
	CertificateOIDCIssuerRegexp string
	IgnoreRekor                 bool
	PublicKey                   string
	RekorURL                    string
	RekorPublicKey              string
}

// Signature is one that verified, as rules see it.
type Signature struct {
	KeyID       string
	Sig         string
	Certificate string
	Chain       []string
	Metadata    map[string]string
}

// Attestation is one that verified. Statement is what was signed.
type Attestation struct {
	Statement  []byte
	Signatures []Signature
}

// Verifier verifies what hangs on an image. It returns something only if it
// verified as the options say, and an error if nothing did or if it cannot do
// what the options ask for.
type Verifier interface {
	VerifyImage(ctx context.Context, ref name.Digest, o SigstoreOptions) ([]Signature, error)
	VerifyAttestation(ctx context.Context, ref name.Digest, o SigstoreOptions) ([]Attestation, error)
}

func verifyImage(c *call, args []*ast.Term) (*ast.Term, error) {
	return c.outcome("signatures", "verify image signature", args, func(r name.Digest, o SigstoreOptions) ([]*ast.Term, []string, error) {
		sigs, err := c.opts.Verify.VerifyImage(c.ctx, r, o)
		return signatureTerms(sigs), nil, err
	})
}

func verifyAttestation(c *call, args []*ast.Term) (*ast.Term, error) {
	return c.outcome("attestations", "verify image attestation signature", args, func(r name.Digest, o SigstoreOptions) ([]*ast.Term, []string, error) {
		atts, err := c.opts.Verify.VerifyAttestation(c.ctx, r, o)
		var out []*ast.Term
		var bad []string
		for _, a := range atts {
			st, err := jsonTerm(a.Statement)
			if err != nil {
				bad = append(bad, fmt.Sprintf("unmarshalling statement: %v", err))
				continue
			}
			out = append(out, ast.ObjectTerm(item("statement", st), item("signatures", ast.ArrayTerm(signatureTerms(a.Signatures)...))))
		}
		return out, bad, err
	})
}

// outcome makes a result of what verification came to. It is never undefined: a
// rule reads success and errors. The recorder is told nonetheless.
func (c *call) outcome(member, what string, args []*ast.Term, do func(name.Digest, SigstoreOptions) ([]*ast.Term, []string, error)) (*ast.Term, error) {
	terms, problems, err := c.verified(what, args, do)
	if err != nil {
		c.rec.fail(c.name, subject(args), err)
		problems = append(problems, err.Error())
		terms = nil
	}
	return ast.ObjectTerm(
		item("success", ast.BooleanTerm(len(problems) == 0)),
		item("errors", stringsTerm(problems)),
		item(member, ast.ArrayTerm(terms...)),
	), nil
}

func (c *call) verified(what string, args []*ast.Term, do func(name.Digest, SigstoreOptions) ([]*ast.Term, []string, error)) ([]*ast.Term, []string, error) {
	s, err := text(args[0], "the reference")
	if err != nil {
		return nil, nil, fmt.Errorf("ref parameter: %w", err)
	}
	r, err := name.NewDigest(s)
	if err != nil {
		return nil, nil, fmt.Errorf("new digest: %w", err)
	}
	if err := c.host(r); err != nil {
		return nil, nil, err
	}
	o, err := options(args[1])
	if err != nil {
		return nil, nil, fmt.Errorf("opts parameter: %w", err)
	}
	if c.opts.Verify == nil {
		return nil, nil, fmt.Errorf("%s: %w", what, errNoVerifier)
	}
	terms, problems, err := do(r, o)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", what, err)
	}
	return terms, problems, nil
}

func options(t *ast.Term) (SigstoreOptions, error) {
	obj, ok := t.Value.(ast.Object)
	if !ok {
		return SigstoreOptions{}, errors.New("not an object")
	}
	get := func(key string) string {
		if v := obj.Get(ast.StringTerm(key)); v != nil {
			if s, ok := v.Value.(ast.String); ok {
				return string(s)
			}
		}
		return ""
	}
	o := SigstoreOptions{
		CertificateIdentity: get("certificate_identity"), CertificateIdentityRegexp: get("certificate_identity_regexp"),
		CertificateOIDCIssuer: get("certificate_oidc_issuer"), CertificateOIDCIssuerRegexp: get("certificate_oidc_issuer_regexp"),
		PublicKey: get("public_key"), RekorURL: get("rekor_url"), RekorPublicKey: get("rekor_public_key"),
	}
	if v := obj.Get(ast.StringTerm("ignore_rekor")); v != nil {
		b, ok := v.Value.(ast.Boolean)
		o.IgnoreRekor = ok && bool(b)
	}
	return o, nil
}

func signatureTerms(sigs []Signature) []*ast.Term {
	out := make([]*ast.Term, len(sigs))
	for i, s := range sigs {
		out[i] = ast.ObjectTerm(
			item("keyid", ast.StringTerm(s.KeyID)),
			item("signature", ast.StringTerm(s.Sig)),
			item("certificate", ast.StringTerm(s.Certificate)),
			item("chain", stringsTerm(s.Chain)),
			item("metadata", annotationsTerm(s.Metadata)),
		)
	}
	return out
}
