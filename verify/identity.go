package verify

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// GitHubIssuer is the issuer of GitHub Actions' identity tokens.
const GitHubIssuer = "https://token.actions.githubusercontent.com"

// CertificateIdentity says who may sign with a certificate. What is set must hold,
// all of it. Name and issuer must both be said, exactly or as a regular expression:
// an issuer alone is everybody who has an account there, and a name alone is whoever
// any issuer gives that name to.
//
// A regular expression must match from the first character to the last, whether or
// not it is written with ^ and $.
type CertificateIdentity struct {
	// Name is how reports call it; empty: what it demands.
	Name string `json:"name,omitempty"`

	SAN          string `json:"san,omitempty"`
	SANRegexp    string `json:"sanRegexp,omitempty"`
	Issuer       string `json:"issuer,omitempty"`
	IssuerRegexp string `json:"issuerRegexp,omitempty"`

	// SourceRepository and SourceOwner are addresses (https://github.com/owner/name,
	// https://github.com/owner) that the certificate must name, without regard to
	// case as GitHub's are; SourceRef and SourceDigest the ref and the commit.
	SourceRepository string `json:"sourceRepository,omitempty"`
	SourceOwner      string `json:"sourceOwner,omitempty"`
	SourceRef        string `json:"sourceRef,omitempty"`
	SourceDigest     string `json:"sourceDigest,omitempty"`
	// Trigger is the event that must have started the workflow.
	Trigger string `json:"trigger,omitempty"`
	// Observer says that this identity is an observer's, as Key.Observer does of a key,
	// for the builders in Builders.
	Observer bool     `json:"observer,omitempty"`
	Builders []string `json:"builders,omitempty"`
	// HostedOnly refuses runners that the repository's owner runs himself.
	HostedOnly bool `json:"hostedOnly,omitempty"`
}

// signer is a CertificateIdentity that was checked.
type signer struct {
	CertificateIdentity
	san, issuer *regexp.Regexp
}

// maxRegexp bounds a caller's regular expression.
const maxRegexp = 8 << 10

func (id CertificateIdentity) compile() (signer, error) {
	s := signer{CertificateIdentity: id}
	if (id.SAN == "") == (id.SANRegexp == "") {
		return s, errors.New("want one of a name (--certificate-identity) and a regular expression for it (--certificate-identity-regexp)")
	}
	if (id.Issuer == "") == (id.IssuerRegexp == "") {
		return s, errors.New("want one of an issuer (--certificate-oidc-issuer) and a regular expression for it (--certificate-oidc-issuer-regexp)")
	}
	if id.Observer != (len(id.Builders) > 0) || slices.Contains(id.Builders, "") || slices.Contains(id.Builders, "/") {
		return s, errors.New("an identity that is bound as an observer needs the builder.id values it speaks for, and no other identity has any")
	}
	var err error
	if s.san, err = anchored(id.SANRegexp); err != nil {
		return s, fmt.Errorf("reading the regular expression for names: %w", err)
	}
	if s.issuer, err = anchored(id.IssuerRegexp); err != nil {
		return s, fmt.Errorf("reading the regular expression for issuers: %w", err)
	}
	if s.Name == "" {
		s.Name = fmt.Sprintf("%s by %s", id.SAN+id.SANRegexp, id.Issuer+id.IssuerRegexp)
	}
	return s, nil
}

// anchored compiles an expression that has to match everything; nil for none.
func anchored(expression string) (*regexp.Regexp, error) {
	if expression == "" {
		return nil, nil
	}
	if len(expression) > maxRegexp {
		return nil, fmt.Errorf("%d bytes, at most %d are read", len(expression), maxRegexp)
	}
	// First alone, so that an unbalanced parenthesis cannot end the group.
	if _, err := regexp.Compile(expression); err != nil {
		return nil, err
	}
	return regexp.Compile(`\A(?:` + expression + `)\z`)
}

// match returns nil if the certificate is this identity's, else what differs.
func (s signer) match(c *Certificate) error {
	differ := func(what, have, want string) error {
		if have == "" {
			return fmt.Errorf("the certificate names no %s; want %q", what, want)
		}
		return fmt.Errorf("%s is %q; want %q", what, have, want)
	}
	switch {
	case s.san == nil && c.SAN != s.SAN, s.san != nil && !s.san.MatchString(c.SAN):
		return differ("identity", c.SAN, s.SAN+s.SANRegexp)
	case s.issuer == nil && c.Issuer != s.Issuer, s.issuer != nil && !s.issuer.MatchString(c.Issuer):
		return differ("issuer", c.Issuer, s.Issuer+s.IssuerRegexp)
	case s.SourceRepository != "" && !strings.EqualFold(c.SourceRepository(), s.SourceRepository):
		return differ("source repository", c.SourceRepository(), s.SourceRepository)
	case s.SourceOwner != "" && !strings.EqualFold(c.sourceOwner(), s.SourceOwner):
		return differ("owner of the source repository", c.sourceOwner(), s.SourceOwner)
	case s.SourceRef != "" && c.SourceRef() != s.SourceRef:
		return differ("source ref", c.SourceRef(), s.SourceRef)
	case s.SourceDigest != "" && c.SourceDigest() != s.SourceDigest:
		return differ("source commit", c.SourceDigest(), s.SourceDigest)
	case s.Trigger != "" && c.Trigger() != s.Trigger:
		return differ("trigger", c.Trigger(), s.Trigger)
	case s.HostedOnly && c.RunnerEnvironment != "github-hosted":
		return differ("runner environment", c.RunnerEnvironment, "github-hosted")
	}
	return nil
}

// SourceRepository is the source repository's address, from the older extension
// where the certificate has that alone. Empty where it names none.
func (c *Certificate) SourceRepository() string {
	if c.SourceRepositoryURI != "" || c.GitHubWorkflowRepository == "" || c.Issuer != GitHubIssuer {
		return c.SourceRepositoryURI
	}
	return "https://github.com/" + c.GitHubWorkflowRepository
}

func (c *Certificate) sourceOwner() string {
	if c.SourceRepositoryOwnerURI != "" {
		return c.SourceRepositoryOwnerURI
	}
	if r := c.SourceRepository(); strings.Count(r, "/") == 4 {
		return r[:strings.LastIndex(r, "/")]
	}
	return ""
}

// SourceRef is the ref that the run was started for.
func (c *Certificate) SourceRef() string { return first(c.SourceRepositoryRef, c.GitHubWorkflowRef) }

// SourceDigest is the commit that the run was started for.
func (c *Certificate) SourceDigest() string {
	return first(c.SourceRepositoryDigest, c.GitHubWorkflowSHA)
}

// Trigger is the event that started the run.
func (c *Certificate) Trigger() string { return first(c.BuildTrigger, c.GitHubWorkflowTrigger) }

// Signer is the workflow that signed, with its ref: what the certificate calls the
// build's signer, or its name in older ones.
func (c *Certificate) Signer() string {
	if c.BuildSignerURI == "" && c.SANType == "uri" {
		return c.SAN
	}
	return c.BuildSignerURI
}

func first(s ...string) string {
	for _, x := range s {
		if x != "" {
			return x
		}
	}
	return ""
}
