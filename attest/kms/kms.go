// Package kms signs with keys in key management services, by sigstore's drivers
// and with the settings of chains-config (signers.kms.*):
//
//	gcpkms://projects/…/cryptoKeys/…       credentials from the environment
//	awskms://[HOST]/ID, alias or ARN       credentials from the environment
//	azurekms://VAULT_HOST/KEY[/VERSION]    credentials from the environment
//	hashivault://KEY                       HashiCorp Vault and OpenBao, engine transit
//
// For Vault there are three ways in, looked at in this order: a JWT-SVID from a
// SPIRE agent or a token in a file with which to log in by Vault's JWT method, where
// a role is set; a Vault token in a file; a Vault token in the settings or VAULT_TOKEN.
//
// A Driver keeps one client. What ends it is for the caller: Stale says that a
// token's file changed; a credential that ran out is an error of class
// store.Configuration; after a rotation in the service the signature is by another
// key than the one named, since the drivers remember public keys for five minutes.
// In each case a driver opened anew knows better, and package internal/signer opens
// one.
//
// Tests run against OpenBao itself for Vault, against the published gRPC service of
// Google's, and against the wire protocols of AWS and Azure over TLS.
package kms

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/kms/aws"
	"github.com/sigstore/sigstore/pkg/signature/kms/azure"
	"github.com/sigstore/sigstore/pkg/signature/kms/gcp"
	"github.com/sigstore/sigstore/pkg/signature/kms/hashivault"
	"github.com/sigstore/sigstore/pkg/signature/options"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/signing"
	"assay.dev/assay/store"
)

// serviceAccountToken is what a pod has without being told anything.
const serviceAccountToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// keyAge is for how long a public key is believed before the driver is asked
// again; the driver has a memory of its own.
const keyAge = time.Minute

// ReadToken reads a file that settings name as a token or PIN. Who implements it
// decides which files may be read.
type ReadToken func(path string) (string, error)

// Driver signs with one key of a service.
type Driver struct {
	key   remote
	file  string // whose change makes it stale; empty: none
	print print

	mu     sync.Mutex // guards what follows
	public dsse.PublicKey
	asked  time.Time
}

var _ signing.Driver = (*Driver)(nil)

// remote is what sigstore's drivers have in common.
type remote interface {
	SignMessage(message io.Reader, opts ...signature.SignOption) ([]byte, error)
	PublicKey(opts ...signature.PublicKeyOption) (crypto.PublicKey, error)
}

// Open connects to a service and asks for the public key, so that wrong settings
// show at once. Errors carry their class: a service that does not answer is
// store.Transient, one that refuses store.Configuration.
func Open(ctx context.Context, set signing.KMSSettings, read ReadToken) (*Driver, error) {
	d, err := open(ctx, set, read)
	if err != nil {
		return nil, classify(fmt.Errorf("opening key %s: %w", set.Ref, err))
	}
	return d, nil
}

func open(ctx context.Context, set signing.KMSSettings, read ReadToken) (*Driver, error) {
	d := new(Driver)
	// The drivers keep the context they are opened with.
	keep := context.WithoutCancel(ctx)
	var err error
	switch scheme, _, _ := strings.Cut(set.Ref, "://"); scheme + "://" {
	case gcp.ReferenceScheme:
		if err = gcp.ValidReference(set.Ref); err == nil {
			d.key, err = within(ctx, func() (remote, error) { return gcp.LoadSignerVerifier(keep, set.Ref) })
		}
	case aws.ReferenceScheme:
		if err = aws.ValidReference(set.Ref); err == nil {
			d.key, err = within(ctx, func() (remote, error) { return aws.LoadSignerVerifier(keep, set.Ref) })
		}
	case azure.ReferenceScheme:
		if err = azure.ValidReference(set.Ref); err == nil {
			d.key, err = within(ctx, func() (remote, error) { return azure.LoadSignerVerifier(keep, set.Ref) })
		}
	case hashivault.ReferenceScheme:
		if err = hashivault.ValidReference(set.Ref); err == nil {
			return d, d.vault(ctx, set, read)
		}
	default:
		return nil, refuse("unknown scheme; want gcpkms://, awskms://, azurekms:// or hashivault://")
	}
	if err != nil {
		return nil, err
	}
	_, err = d.publicKey(ctx)
	return d, err
}

func refuse(text string) error { return store.As(store.Configuration, errors.New(text)) }

// vault opens a key of Vault or OpenBao.
func (d *Driver) vault(ctx context.Context, set signing.KMSSettings, read ReadToken) error {
	if set.Address == "" && os.Getenv("VAULT_ADDR") == "" {
		return refuse("no address; set signers.kms.auth.address")
	}
	auth := options.RPCAuth{Address: set.Address}
	var err error
	switch {
	case set.SpireSock != "":
		if set.OIDCRole == "" {
			return refuse("a token of SPIRE needs a role to log in with; set signers.kms.auth.oidc.role")
		}
		auth.OIDC, err = options.RPCAuthOIDC{Path: set.OIDCPath, Role: set.OIDCRole}, nil
		if auth.OIDC.Token, err = svid(ctx, set.SpireSock, set.SpireAudience); err != nil {
			return err
		}
	case set.OIDCRole != "":
		d.file = set.OIDCTokenPath
		if d.file == "" {
			d.file = serviceAccountToken
		}
		auth.OIDC = options.RPCAuthOIDC{Path: set.OIDCPath, Role: set.OIDCRole}
		d.print = look(d.file)
		if auth.OIDC.Token, err = read(d.file); err != nil {
			return err
		}
	case set.TokenPath != "":
		d.file = set.TokenPath
		d.print = look(d.file)
		if auth.Token, err = read(d.file); err != nil {
			return err
		}
	case set.Token != "":
		auth.Token = set.Token
	default:
		if auth.Token = os.Getenv("VAULT_TOKEN"); auth.Token == "" {
			return refuse("no token; set signers.kms.auth.token-path, or signers.kms.auth.oidc.role")
		}
	}
	load := func(hash crypto.Hash) error {
		d.key, err = within(ctx, func() (remote, error) {
			return hashivault.LoadSignerVerifier(set.Ref, hash, options.WithRPCAuthOpts(auth))
		})
		return err
	}
	if err := load(crypto.SHA256); err != nil {
		return err
	}
	public, err := d.publicKey(ctx)
	if err != nil {
		return err
	}
	// This kind signs messages, not digests, and the driver wants to be told.
	if _, ok := public.Crypto().(ed25519.PublicKey); ok {
		return load(crypto.Hash(0))
	}
	return nil
}

// svid asks a SPIRE agent for a token about this process.
func svid(ctx context.Context, socket, audience string) (string, error) {
	if audience == "" {
		return "", refuse("a token of SPIRE needs an audience; set signers.kms.auth.spire.audience")
	}
	if !strings.Contains(socket, "://") {
		socket = "unix://" + socket
	}
	// The client tries for ever; an agent on this machine answers at once.
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience}, workloadapi.WithAddr(socket))
	if err != nil {
		return "", fmt.Errorf("asking the SPIRE agent at %s for a token: %w", socket, err)
	}
	return s.Marshal(), nil
}

// within runs a call that does not know of contexts.
func within[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	c := make(chan result, 1)
	go func() {
		v, err := f()
		c <- result{v, err}
	}()
	select {
	case r := <-c:
		return r.v, r.err
	case <-ctx.Done():
		var zero T
		return zero, fmt.Errorf("waiting for the key service: %w", ctx.Err())
	}
}

func (d *Driver) publicKey(ctx context.Context) (dsse.PublicKey, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.asked) < keyAge {
		return d.public, nil
	}
	raw, err := within(ctx, func() (crypto.PublicKey, error) { return d.key.PublicKey(options.WithContext(ctx)) })
	if err != nil {
		return dsse.PublicKey{}, fmt.Errorf("asking for the public key: %w", err)
	}
	if k, ok := raw.(*rsa.PublicKey); ok && k == nil || raw == nil {
		return dsse.PublicKey{}, refuse("the service has no public key")
	}
	if d.public, err = dsse.NewPublicKey(raw); err != nil {
		return dsse.PublicKey{}, store.As(store.Configuration, err)
	}
	d.asked = time.Now()
	return d.public, nil
}

// Sign implements signing.Driver.
func (d *Driver) Sign(ctx context.Context, m signing.Message) (store.Signature, error) {
	s, err := d.sign(ctx, m)
	if err != nil {
		return store.Signature{}, classify(err)
	}
	return s, nil
}

func (d *Driver) sign(ctx context.Context, m signing.Message) (store.Signature, error) {
	public, err := d.publicKey(ctx)
	if err != nil {
		return store.Signature{}, err
	}
	raw, err := within(ctx, func() ([]byte, error) {
		return d.key.SignMessage(bytes.NewReader(m.Bytes), options.WithContext(ctx))
	})
	if err != nil {
		return store.Signature{}, fmt.Errorf("asking for a signature: %w", err)
	}
	return store.Signature{KeyID: public.KeyID(), Sig: raw, Key: public}, nil
}

// Stale implements signing.Driver: the file with the token changed.
func (d *Driver) Stale() bool { return d.file != "" && look(d.file) != d.print }

// Close implements signing.Driver. The drivers hold connections only, which end
// with being idle.
func (d *Driver) Close() error { return nil }
