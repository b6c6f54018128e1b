package fetch

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/policy/spec"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/verify"
)

// SignedOptions are what SignedBy needs beside the signers.
type SignedOptions struct {
	// Instances are the Sigstore instances whose certificates are believed; needed for
	// signers that are identities.
	Instances []*verify.Instance
	// PublicKey reads a key that is not written out, as PEM. Default: none, and such
	// keys are refused.
	PublicKey func(ctx context.Context, address string) ([]byte, error)
	// Transport and Keychain are as in Options.
	Transport http.RoundTripper
	Keychain  authn.Keychain
}

// SignedBy makes what Options.Signed asks: whether one of the signers has signed an
// artifact as an image is signed (cosign sign), wherever such signatures lie. It fails
// on signers that cannot be believed in any case: none, no key, an identity without an
// instance.
func SignedBy(ctx context.Context, signers []spec.Signer, o SignedOptions) (func(context.Context, name.Digest) error, error) {
	if len(signers) == 0 {
		return nil, errors.New("reading who signs policy sources: nobody is named")
	}
	if o.Transport == nil {
		o.Transport = http.DefaultTransport
	}
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	opts := verify.Options{WithoutProvenance: true}
	for i, s := range signers {
		switch {
		case (s.PublicKey == "") == (s.Identity == nil):
			return nil, fmt.Errorf("reading who signs policy sources: signer %d has to have a public key or an identity, and not both", i+1)
		case s.PublicKey != "":
			pem := []byte(s.PublicKey)
			k, err := verify.ParsePublicKey(pem)
			if err != nil && o.PublicKey != nil {
				if pem, err = o.PublicKey(ctx, s.PublicKey); err == nil {
					k, err = verify.ParsePublicKey(pem)
				}
			}
			if err != nil {
				return nil, fmt.Errorf("reading who signs policy sources: signer %d: %w", i+1, err)
			}
			opts.Keys = append(opts.Keys, k)
		default:
			if len(o.Instances) == 0 {
				return nil, fmt.Errorf("reading who signs policy sources: signer %d is an identity, and no Sigstore instance is trusted", i+1)
			}
			opts.Identities = append(opts.Identities, verify.CertificateIdentity{
				SAN: s.Identity.Subject, SANRegexp: s.Identity.SubjectRegExp, Issuer: s.Identity.Issuer, IssuerRegexp: s.Identity.IssuerRegExp,
			})
		}
	}
	if len(opts.Identities) > 0 {
		opts.Instances = o.Instances
	}
	return func(ctx context.Context, artifact name.Digest) error {
		rt, err := oci.Authorize(ctx, artifact.Context(), o.Transport, o.Keychain, false)
		if err != nil {
			return err
		}
		use := opts
		use.Transport, use.At = rt, time.Now()
		_, err = verify.Image(ctx, artifact.String(), use)
		return err
	}, nil
}
