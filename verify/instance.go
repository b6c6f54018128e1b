package verify

import (
	"crypto/x509"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"

	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/attest/tlog"
)

// Roots that are shipped, so that nothing has to be fetched to verify. Where they
// come from is in roots/README.md, and TestRoots holds them to it.
var (
	//go:embed roots/public-good.json
	publicGood []byte
	//go:embed roots/github.json
	github []byte
)

// Names of the instances whose roots are shipped.
const (
	InstancePublicGood = "public-good"
	InstanceGitHub     = "github"
)

// Thresholds are how many independent parties must have seen a signature by a
// certificate. The zero value asks for nothing and is refused: a certificate lives
// for minutes, so without a time from somebody else nothing is known of it.
type Thresholds struct {
	// SCTs is how many certificate transparency logs must have promised to hold
	// the certificate.
	SCTs int
	// LogEntries is how many transparency logs must hold the signature.
	LogEntries int
	// SignedTimestamps is how many timestamp authorities (RFC 3161) must have
	// signed a time.
	SignedTimestamps int
	// Timestamps is how many times are needed at least, by authorities or signed by
	// logs.
	Timestamps int
	// Current takes the instant of verification, which has to be the present, for the
	// time of signing: a certificate counts only while it is valid. It takes the place
	// of the sources of time and goes with none of them.
	Current bool
}

func (t Thresholds) check() error {
	if t.SCTs < 0 || t.LogEntries < 0 || t.SignedTimestamps < 0 || t.Timestamps < 0 {
		return errors.New("a threshold below zero")
	}
	if t.Current && t.SignedTimestamps+t.Timestamps > 0 {
		return errors.New("Current is asked for together with sources of time; ask for one of them")
	}
	if t.SignedTimestamps+t.Timestamps == 0 && !t.Current {
		return errors.New("no source of time is asked for, so nobody knows whether a certificate was valid when it was used; set Timestamps or SignedTimestamps")
	}
	return nil
}

// Instance is a deployment of Sigstore: certificate authorities, logs and timestamp
// authorities that the caller trusts, and how many of them it takes. Make one with
// NewInstance, PublicGood or GitHub. It is safe for concurrent use.
type Instance struct {
	name string
	root *root.TrustedRoot
	need Thresholds
	json []byte
}

// Name is how reports call the instance.
func (i *Instance) Name() string { return i.name }

// Thresholds are those that the instance was made with.
func (i *Instance) Thresholds() Thresholds { return i.need }

// RekorKeys are the keys of the instance's transparency logs; none is no error.
func (i *Instance) RekorKeys() ([]tlog.RekorKey, error) {
	if len(i.root.RekorLogs()) == 0 {
		return nil, nil
	}
	return tlog.ParseTrustedRoot(i.json)
}

// NewInstance reads a Sigstore trusted root (trusted_root.json). It fails on
// duplicate members, on one that names no certificate authority and no log, and
// where the thresholds ask for what the root cannot verify, or for no time at all.
// DefaultThresholds gives those that fit.
func NewInstance(name string, trustedRoot []byte, need Thresholds) (*Instance, error) {
	i, err := newInstance(name, trustedRoot)
	if err == nil {
		i.need, err = need, need.check()
	}
	if err == nil {
		err = i.reachable()
	}
	if err != nil {
		return nil, fmt.Errorf("reading trusted root %q: %w", name, err)
	}
	return i, nil
}

func newInstance(name string, data []byte) (*Instance, error) {
	if name == "" {
		return nil, errors.New("no name")
	}
	if err := strictjson.Check(data, tlog.MaxTrustedRoot); err != nil {
		return nil, err
	}
	r, err := root.NewTrustedRootFromJSON(data)
	if err != nil {
		return nil, err
	}
	if len(r.FulcioCertificateAuthorities())+len(r.RekorLogs()) == 0 {
		return nil, errors.New("it names neither a certificate authority nor a log")
	}
	return &Instance{name: name, root: r, json: data}, nil
}

// reachable refuses thresholds that nothing could ever meet.
func (i *Instance) reachable() error {
	for _, c := range []struct {
		what       string
		want, have int
	}{
		{"certificate transparency logs", i.need.SCTs, len(i.root.CTLogs())},
		{"transparency logs", i.need.LogEntries, len(i.root.RekorLogs())},
		{"timestamp authorities", i.need.SignedTimestamps, len(i.root.TimestampingAuthorities())},
		{"sources of time", i.need.Timestamps, len(i.root.RekorLogs()) + len(i.root.TimestampingAuthorities())},
	} {
		if c.want > c.have {
			return fmt.Errorf("%d %s are required and the root names %d", c.want, c.what, c.have)
		}
	}
	return nil
}

// DefaultThresholds asks for one of each kind of witness that a trusted root names:
// a certificate transparency log, a transparency log and a time; where there is no
// transparency log, as in GitHub's own instance, a signed timestamp. It fails where
// NewInstance does, and if the root has no source of time.
func DefaultThresholds(trustedRoot []byte) (Thresholds, error) {
	i, err := newInstance("trusted root", trustedRoot)
	if err != nil {
		return Thresholds{}, fmt.Errorf("reading trusted root: %w", err)
	}
	var t Thresholds
	if len(i.root.CTLogs()) > 0 {
		t.SCTs = 1
	}
	switch {
	case len(i.root.RekorLogs()) > 0:
		t.LogEntries, t.Timestamps = 1, 1
	case len(i.root.TimestampingAuthorities()) > 0:
		t.SignedTimestamps = 1
	default:
		return Thresholds{}, errors.New("reading trusted root: it names neither a transparency log nor a timestamp authority, so there is no source of time")
	}
	return t, nil
}

// PublicGood is Sigstore's public instance with the root that is shipped: a
// certificate needs a certificate transparency log's promise, the signature an
// entry in a log, and a time.
func PublicGood() (*Instance, error) {
	return NewInstance(InstancePublicGood, publicGood, Thresholds{SCTs: 1, LogEntries: 1, Timestamps: 1})
}

// GitHub is GitHub's own instance, which signs attestations of private
// repositories: it has no logs, so a signed timestamp is all that is known of when.
func GitHub() (*Instance, error) {
	return NewInstance(InstanceGitHub, github, Thresholds{SignedTimestamps: 1})
}

// issued says whether one of the instance's authorities issued the certificate,
// and that it was valid when it was issued.
func (i *Instance) issued(leaf *x509.Certificate) bool {
	for _, ca := range i.root.FulcioCertificateAuthorities() {
		for _, at := range []time.Time{leaf.NotBefore, leaf.NotAfter} {
			if _, err := ca.Verify(leaf, at); err == nil {
				return true
			}
		}
	}
	return false
}

// JSON is the trusted root that the instance was made of.
func (i *Instance) JSON() []byte { return slices.Clone(i.json) }
