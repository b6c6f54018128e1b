package ec

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/verify"
)

// demand is who must have signed something, and how that has to be known.
type demand struct {
	builtin.SigstoreOptions            // PublicKey is PEM, and with one there is no identity
	key                     verify.Key // where PublicKey is set
	options                 verify.Options
	logs                    []tlog.RekorKey // that an entry may come from; none where none is needed
}

// id names a demand, for what is remembered.
func (d *demand) id() string {
	raw, err := json.Marshal(d.SigstoreOptions)
	if err != nil { // strings and a flag
		panic(err)
	}
	return string(raw)
}

func (d *demand) keyless() bool { return d.PublicKey == "" }

// demanded makes a demand of options as rules and flags have them. A key may be PEM,
// a file, or what keys are named by elsewhere; without one, the identity in a
// certificate is demanded. It fails where the options do not say whom to believe, and
// where the trust that they need cannot be read.
func (v *verifier) demanded(ctx context.Context, o builtin.SigstoreOptions) (*demand, error) {
	d := &demand{SigstoreOptions: o}
	if o.PublicKey != "" {
		var err error
		if d.key, d.PublicKey, err = v.publicKey(ctx, o.PublicKey); err != nil {
			return nil, err
		}
		d.CertificateIdentity, d.CertificateIdentityRegexp, d.CertificateOIDCIssuer, d.CertificateOIDCIssuerRegexp = "", "", "", ""
	} else if err := checkIdentity(o); err != nil {
		return nil, err
	}
	d.options = verify.Options{WithoutSignature: true, WithoutProvenance: true, At: time.Now()}
	instances, err := v.trusted(ctx, d)
	if err != nil {
		return nil, err
	}
	if !d.keyless() {
		d.options.Keys = []verify.Key{d.key}
		d.options.Log = verify.LogTrust{Trust: tlog.Trust{Rekor: d.logs}, Require: !d.IgnoreRekor}
		return d, nil
	}
	id, err := identityOf(o)
	if err != nil {
		return nil, err
	}
	d.options.Instances, d.options.Identities = instances, []verify.CertificateIdentity{id}
	return d, nil
}

// trusted are the instances that a demand needs, and sets the logs' keys.
func (v *verifier) trusted(ctx context.Context, d *demand) ([]*verify.Instance, error) {
	if d.IgnoreRekor && !d.keyless() {
		return nil, nil // nothing is asked of anybody
	}
	if d.RekorPublicKey != "" && !d.keyless() {
		k, err := tlog.ParseRekorKey("Rekor", []byte(d.RekorPublicKey))
		if err != nil {
			return nil, fmt.Errorf("adding rekor public key: %w", err)
		}
		d.logs = []tlog.RekorKey{k}
		return nil, nil
	}
	instances, err := v.roots.instances(ctx, d.keyless(), d.IgnoreRekor, d.RekorPublicKey)
	if err != nil || d.IgnoreRekor {
		return instances, err
	}
	known := map[string]bool{}
	for _, in := range instances {
		keys, err := in.RekorKeys()
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			if pem := string(k.PEM()); !known[pem] {
				known[pem] = true
				d.logs = append(d.logs, k)
			}
		}
	}
	if len(d.logs) == 0 && !d.keyless() {
		return nil, errors.New("the trusted root names no transparency log in which a signature could be; set SIGSTORE_REKOR_PUBLIC_KEY, or use --ignore-rekor if the key's signature is enough")
	}
	return instances, nil
}

func checkIdentity(o builtin.SigstoreOptions) error {
	var errs []error
	if o.CertificateOIDCIssuer == "" && o.CertificateOIDCIssuerRegexp == "" {
		errs = append(errs, errors.New("certificate OIDC issuer must be provided for keyless workflow"))
	}
	if o.CertificateIdentity == "" && o.CertificateIdentityRegexp == "" {
		errs = append(errs, errors.New("certificate identity must be provided for keyless workflow"))
	}
	return errors.Join(errs...)
}

// identityOf is the identity as package verify takes it. Where both an exact value
// and an expression are given the expression counts, as with cosign.
func identityOf(o builtin.SigstoreOptions) (verify.CertificateIdentity, error) {
	id := verify.CertificateIdentity{Name: strings.TrimSpace(o.CertificateIdentity+o.CertificateIdentityRegexp) + " by " + o.CertificateOIDCIssuer + o.CertificateOIDCIssuerRegexp}
	var err error
	if o.CertificateIdentityRegexp == "" {
		id.SAN = o.CertificateIdentity
	} else if id.SANRegexp, err = anywhere(o.CertificateIdentityRegexp); err != nil {
		return id, fmt.Errorf("malformed subject in identity: %w", err)
	}
	if o.CertificateOIDCIssuerRegexp == "" {
		id.Issuer = o.CertificateOIDCIssuer
	} else if id.IssuerRegexp, err = anywhere(o.CertificateOIDCIssuerRegexp); err != nil {
		return id, fmt.Errorf("malformed issuer in identity: %w", err)
	}
	return id, nil
}

// anywhere makes an expression that matches a whole text wherever the given one
// matches a part of it: cosign's are not anchored, package verify's are.
func anywhere(expression string) (string, error) {
	// First alone, so that an unbalanced parenthesis cannot end the group.
	if _, err := regexp.Compile(expression); err != nil {
		return "", err
	}
	return `(?s:.*)(?:` + expression + `)(?s:.*)`, nil
}

// publicKey reads a key by any of its names, once in a run, and returns it with its
// PEM.
func (v *verifier) publicKey(ctx context.Context, name string) (verify.Key, string, error) {
	raw, ok := v.keys.Load(name)
	if !ok {
		read, err := v.readKey(ctx, name)
		if err != nil {
			return verify.Key{}, "", err
		}
		raw, _ = v.keys.LoadOrStore(name, read)
	}
	key, err := verify.ParsePublicKey(raw.([]byte))
	if err != nil {
		return verify.Key{}, "", fmt.Errorf("reading the public key: %w", err)
	}
	pub, err := dsse.NewPublicKey(key.Public)
	if err != nil {
		return verify.Key{}, "", fmt.Errorf("reading the public key: %w", err)
	}
	return key, string(pub.PEM()), nil
}
