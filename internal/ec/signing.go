package ec

import (
	"context"
	"fmt"
	"net/http"
	"os"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/spf13/cobra"

	"assay.dev/assay/internal/keyref"
	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/policy/conforma"
)

// newVerifier makes what verifies signatures for a run. Registries are asked through
// a transport of their own, logs through the other.
func (g *globals) newVerifier(registries, others http.RoundTripper, keychain authn.Keychain) *verifier {
	return &verifier{
		known:     newRecent(maxRemembered, (*evidence).size),
		items:     newRecent(maxRemembered, (*found).size),
		transport: registries, keychain: keychain,
		roots:  &roots{getenv: os.Getenv, transport: fileTransport(), warn: g.warn},
		search: &searches{transport: others},
		readKey: func(ctx context.Context, name string) ([]byte, error) {
			return keyref.Public(ctx, name, keyref.Options{Kubeconfig: g.kubeconfig})
		},
	}
}

// signingFlags say who must have signed. What they say counts before what the policy
// says.
type signingFlags struct {
	key, rekor                                     string
	identity, identityRegexp, issuer, issuerRegexp string
	ignoreRekor                                    bool
}

func (s *signingFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVarP(&s.key, "public-key", "k", "", "key that images and attestations are signed with: a file, PEM, k8s://NAMESPACE/SECRET, or the address of a key service; counts before the policy's publicKey")
	f.StringVarP(&s.rekor, "rekor-url", "r", "", "Rekor log to ask for entries that do not come with signatures; counts before the policy's rekorUrl")
	f.BoolVar(&s.ignoreRekor, "ignore-rekor", false, "ask for no entries in a transparency log")
	f.StringVar(&s.identity, "certificate-identity", "", "identity that certificates of signers must name, where no key is named")
	f.StringVar(&s.identityRegexp, "certificate-identity-regexp", "", "regular expression that a part of that identity must match")
	f.StringVar(&s.issuer, "certificate-oidc-issuer", "", "issuer of that identity")
	f.StringVar(&s.issuerRegexp, "certificate-oidc-issuer-regexp", "", "regular expression that a part of the issuer must match")
}

// apply puts the flags over a policy and says what is demanded of signatures. A key
// counts before an identity of the same place, and an identity in flags before a key
// in the policy; of identities only one place's count, as a whole.
func (s *signingFlags) apply(spec *conforma.Spec) builtin.SigstoreOptions {
	given := s.identity+s.identityRegexp+s.issuer+s.issuerRegexp != ""
	switch {
	case s.key != "":
		spec.PublicKey = s.key
	case given:
		spec.PublicKey = ""
	}
	if s.rekor != "" {
		spec.RekorURL = s.rekor
	}
	o := builtin.SigstoreOptions{IgnoreRekor: s.ignoreRekor, PublicKey: spec.PublicKey, RekorURL: spec.RekorURL}
	switch id := spec.Identity; {
	case o.PublicKey != "":
	case given:
		o.CertificateIdentity, o.CertificateIdentityRegexp = s.identity, s.identityRegexp
		o.CertificateOIDCIssuer, o.CertificateOIDCIssuerRegexp = s.issuer, s.issuerRegexp
	case id != nil:
		o.CertificateIdentity, o.CertificateIdentityRegexp = id.Subject, id.SubjectRegExp
		o.CertificateOIDCIssuer, o.CertificateOIDCIssuerRegexp = id.Issuer, id.IssuerRegExp
	}
	return o
}

// signerOf is what a report says of a demand.
type signerOf struct {
	PublicKey string         `json:"publicKey,omitempty"`
	Identity  *identityNames `json:"identity,omitempty"`
	// IgnoredRekor says that no entry in a log was asked for.
	IgnoredRekor bool   `json:"ignoredRekor,omitempty"`
	RekorURL     string `json:"rekorUrl,omitempty"`
}

type identityNames struct {
	Subject       string `json:"subject,omitempty"`
	SubjectRegExp string `json:"subjectRegExp,omitempty"`
	Issuer        string `json:"issuer,omitempty"`
	IssuerRegExp  string `json:"issuerRegExp,omitempty"`
}

func (d *demand) signer() *signerOf {
	s := &signerOf{PublicKey: d.PublicKey, IgnoredRekor: d.IgnoreRekor, RekorURL: d.RekorURL}
	if d.keyless() {
		s.Identity = &identityNames{d.CertificateIdentity, d.CertificateIdentityRegexp, d.CertificateOIDCIssuer, d.CertificateOIDCIssuerRegexp}
	}
	return s
}

// couldNot words why something was not found out.
func couldNot(what string, err error) string { return fmt.Sprintf("%s: %v", what, err) }
