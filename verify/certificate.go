package verify

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

// Certificate is what a certificate authority says of a signer: the names of
// Fulcio's extensions, as the authority read them from the signer's identity token.
// Members are empty where the certificate says nothing.
//
// None of it is the signer's own word, and all of it is only as good as the
// authority and the issuer.
type Certificate struct {
	// Instance is the trusted instance whose authority issued it.
	Instance string `json:"instance"`
	// SAN is the identity: a workflow's address, an e-mail address or a user name.
	SAN string `json:"san"`
	// SANType is uri, email or other.
	SANType string `json:"sanType"`
	// Issuer is who vouched for the identity to the authority (OIDC).
	Issuer string `json:"issuer"`
	// Authority is the issuing certificate's name.
	Authority string `json:"authority"`
	// Fingerprint is the hex SHA-256 of the certificate.
	Fingerprint string    `json:"fingerprint"`
	NotBefore   time.Time `json:"notBefore"`
	NotAfter    time.Time `json:"notAfter"`

	// BuildSignerURI is the workflow that signed, with its ref: a reusable one if
	// the job that signed is in one. BuildSignerDigest is its commit.
	BuildSignerURI    string `json:"buildSignerURI,omitempty"`
	BuildSignerDigest string `json:"buildSignerDigest,omitempty"`
	// BuildConfigURI is the workflow that was started, with its ref, and
	// BuildConfigDigest its commit.
	BuildConfigURI    string `json:"buildConfigURI,omitempty"`
	BuildConfigDigest string `json:"buildConfigDigest,omitempty"`
	// BuildTrigger is the event, such as push or pull_request.
	BuildTrigger string `json:"buildTrigger,omitempty"`
	// RunInvocationURI is the run, with its attempt.
	RunInvocationURI string `json:"runInvocationURI,omitempty"`
	// RunnerEnvironment is github-hosted or self-hosted.
	RunnerEnvironment string `json:"runnerEnvironment,omitempty"`

	SourceRepositoryURI             string `json:"sourceRepositoryURI,omitempty"`
	SourceRepositoryDigest          string `json:"sourceRepositoryDigest,omitempty"`
	SourceRepositoryRef             string `json:"sourceRepositoryRef,omitempty"`
	SourceRepositoryIdentifier      string `json:"sourceRepositoryIdentifier,omitempty"`
	SourceRepositoryOwnerURI        string `json:"sourceRepositoryOwnerURI,omitempty"`
	SourceRepositoryOwnerIdentifier string `json:"sourceRepositoryOwnerIdentifier,omitempty"`
	SourceRepositoryVisibility      string `json:"sourceRepositoryVisibility,omitempty"`

	// The older extensions, which old certificates have alone.
	GitHubWorkflowTrigger    string `json:"githubWorkflowTrigger,omitempty"`
	GitHubWorkflowSHA        string `json:"githubWorkflowSHA,omitempty"`
	GitHubWorkflowName       string `json:"githubWorkflowName,omitempty"`
	GitHubWorkflowRepository string `json:"githubWorkflowRepository,omitempty"`
	GitHubWorkflowRef        string `json:"githubWorkflowRef,omitempty"`
}

// maxName is the length of the longest name that is read from a certificate.
const maxName = 4096

// extensions of Fulcio below 1.3.6.1.4.1.57264.1, by their last number. Those up to
// 6 hold bare text, the later ones a DER string.
func (c *Certificate) extensions() map[int]*string {
	return map[int]*string{
		1: &c.Issuer, 2: &c.GitHubWorkflowTrigger, 3: &c.GitHubWorkflowSHA, 4: &c.GitHubWorkflowName,
		5: &c.GitHubWorkflowRepository, 6: &c.GitHubWorkflowRef,
		8: &c.Issuer, 9: &c.BuildSignerURI, 10: &c.BuildSignerDigest, 11: &c.RunnerEnvironment,
		12: &c.SourceRepositoryURI, 13: &c.SourceRepositoryDigest, 14: &c.SourceRepositoryRef,
		15: &c.SourceRepositoryIdentifier, 16: &c.SourceRepositoryOwnerURI, 17: &c.SourceRepositoryOwnerIdentifier,
		18: &c.BuildConfigURI, 19: &c.BuildConfigDigest, 20: &c.BuildTrigger, 21: &c.RunInvocationURI,
		22: &c.SourceRepositoryVisibility,
	}
}

// readCertificate reads names and checks no signature. Whatever two readers could
// read differently is refused: several names, an extension in another encoding,
// two issuers, characters that do not print.
func readCertificate(leaf *x509.Certificate) (*Certificate, error) {
	sum := sha256.Sum256(leaf.Raw)
	c := &Certificate{
		Authority: leaf.Issuer.String(), Fingerprint: hex.EncodeToString(sum[:]),
		NotBefore: leaf.NotBefore.UTC(), NotAfter: leaf.NotAfter.UTC(),
	}
	if err := c.name(leaf); err != nil {
		return nil, fmt.Errorf("reading the certificate's name: %w", err)
	}
	fields := c.extensions()
	prefix := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1}
	issuers := map[int]string{}
	for _, e := range leaf.Extensions {
		if len(e.Id) != len(prefix)+1 || !e.Id[:len(prefix)].Equal(prefix) {
			continue
		}
		number := e.Id[len(prefix)]
		field := fields[number]
		if field == nil {
			continue
		}
		text := string(e.Value)
		if number >= 8 {
			var raw asn1.RawValue
			rest, err := asn1.Unmarshal(e.Value, &raw)
			if err == nil && len(rest) > 0 {
				err = errors.New("bytes follow the text")
			}
			if err == nil {
				_, err = asn1.Unmarshal(e.Value, &text)
			}
			if err != nil {
				return nil, fmt.Errorf("reading the certificate's extension %s: %w", e.Id, err)
			}
		}
		if err := printable(text); err != nil {
			return nil, fmt.Errorf("reading the certificate's extension %s: %w", e.Id, err)
		}
		if field == &c.Issuer {
			issuers[number] = text
		}
		*field = text
	}
	if a, ok := issuers[1]; ok {
		if b, ok := issuers[8]; ok && a != b {
			return nil, fmt.Errorf("reading the certificate: it names two issuers, %q and %q", a, b)
		}
	}
	return c, nil
}

func (c *Certificate) name(leaf *x509.Certificate) error {
	n, err := names(leaf)
	if err != nil {
		return err
	}
	if n != 1 {
		return fmt.Errorf("%d subject alternative names; want one", n)
	}
	other, err := cryptoutils.UnmarshalOtherNameSAN(leaf.Extensions)
	switch {
	case err == nil && other != "":
		c.SAN, c.SANType = other, "other"
	case len(leaf.URIs) == 1:
		c.SAN, c.SANType = leaf.URIs[0].String(), "uri"
	case len(leaf.EmailAddresses) == 1:
		c.SAN, c.SANType = leaf.EmailAddresses[0], "email"
	default:
		return errors.New("neither a URI nor an e-mail address nor a user name")
	}
	return printable(c.SAN)
}

// names counts the subject alternative names, those that x509 does not know too.
func names(leaf *x509.Certificate) (n int, err error) {
	for _, e := range leaf.Extensions {
		if !e.Id.Equal(oidSAN) {
			continue
		}
		var list []asn1.RawValue
		rest, err := asn1.Unmarshal(e.Value, &list)
		if err != nil || len(rest) > 0 {
			return 0, errors.New("subject alternative names that are no list")
		}
		n += len(list)
	}
	return n, nil
}

// printable refuses what would look like another name, or break a line of a report.
func printable(s string) error {
	if len(s) > maxName {
		return fmt.Errorf("%d bytes, at most %d are read", len(s), maxName)
	}
	if !utf8.ValidString(s) {
		return errors.New("invalid UTF-8")
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("character %U, which does not print", r)
		}
	}
	return nil
}
