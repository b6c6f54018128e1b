//go:build cgo

package pkcs11

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"

	p11 "github.com/miekg/pkcs11"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/signing"
	"assay.dev/assay/store"
)

// PublicKey reads the public half of a key without its private one: from the public
// object that the URI names, or the certificate. Tokens show those to everybody, so
// there is no login; only where nothing is shown, and a PIN's file is named, is the
// private key opened as Open does. Errors are those of Open.
func PublicKey(set signing.PKCS11Settings, modules []string, read ReadToken) (dsse.PublicKey, error) {
	key, err := publicKey(set, modules, read)
	if err != nil {
		return dsse.PublicKey{}, classify(fmt.Errorf("reading a PKCS #11 key: %w", err))
	}
	return key, nil
}

func publicKey(set signing.PKCS11Settings, modules []string, read ReadToken) (key dsse.PublicKey, err error) {
	u, err := parsePublicURI(set.URI)
	if err != nil {
		return key, store.As(store.Configuration, err)
	}
	library, err := u.module(modules)
	if err != nil {
		return key, err
	}
	d := &Driver{}
	if err := d.load(library); err != nil {
		return key, err
	}
	slot, _, err := d.slot(u)
	if err != nil {
		return key, err
	}
	s, err := d.ctx.OpenSession(slot, p11.CKF_SERIAL_SESSION)
	if err != nil {
		return key, fmt.Errorf("opening a session: %w", err)
	}
	defer func() { err = errors.Join(err, d.ctx.CloseSession(s)) }()
	raw, err := d.shown(s, u)
	if err != nil {
		return key, err
	}
	if raw == nil {
		if set.PINFile == "" && u.PINSource == "" {
			return key, refuse(fmt.Sprintf("token %q shows no public key and no certificate by that object and id; name a file with its PIN (pin-source=) if they are hidden", u.Token))
		}
		return logged(set, u, modules, read)
	}
	if key, err = dsse.NewPublicKey(raw); err != nil {
		return key, store.As(store.Configuration, err)
	}
	return key, nil
}

// logged opens the private key for its public half.
func logged(set signing.PKCS11Settings, u URI, modules []string, read ReadToken) (dsse.PublicKey, error) {
	if set.PINFile == "" {
		set.PINFile = u.PINSource
	}
	set.URI = withoutType(set.URI)
	d, err := open(set, modules, read)
	if err != nil {
		return dsse.PublicKey{}, err
	}
	return d.public, d.Close()
}

// shown is what everybody sees of a key; nil where that is nothing.
func (d *Driver) shown(s p11.SessionHandle, u URI) (crypto.PublicKey, error) {
	keys, err := d.find(s, p11.CKO_PUBLIC_KEY, u.Object, u.ID)
	if err != nil {
		return nil, err
	}
	certs, err := d.find(s, p11.CKO_CERTIFICATE, u.Object, u.ID)
	if err != nil {
		return nil, err
	}
	switch {
	case len(keys) == 1:
		return d.object(s, keys[0])
	case len(keys) > 1:
		return nil, refuse(fmt.Sprintf("%d public keys fit the URI, want one; say which with id", len(keys)))
	case len(certs) > 1:
		return nil, refuse(fmt.Sprintf("%d certificates fit the URI, want one; say which with id", len(certs)))
	case len(certs) == 0:
		return nil, nil
	}
	value, err := d.attributes(s, certs[0], p11.CKA_VALUE)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(value[0])
	if err != nil {
		return nil, store.As(store.Configuration, fmt.Errorf("reading the certificate: %w", err))
	}
	return cert.PublicKey, nil
}

// object reads a public object.
func (d *Driver) object(s p11.SessionHandle, o p11.ObjectHandle) (crypto.PublicKey, error) {
	kind, err := d.attributes(s, o, p11.CKA_KEY_TYPE)
	if err != nil {
		return nil, fmt.Errorf("reading the public key: %w", err)
	}
	switch n := number(kind[0]); n {
	case p11.CKK_RSA:
		v, err := d.attributes(s, o, p11.CKA_MODULUS, p11.CKA_PUBLIC_EXPONENT)
		if err != nil {
			return nil, fmt.Errorf("reading the public key: %w", err)
		}
		if len(v[1]) >= 8 {
			return nil, refuse("the RSA key's exponent is too large")
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(v[0]), E: int(new(big.Int).SetBytes(v[1]).Int64())}, nil
	case p11.CKK_EC, edwards:
		v, err := d.attributes(s, o, p11.CKA_EC_PARAMS, p11.CKA_EC_POINT)
		if err != nil {
			return nil, fmt.Errorf("reading the public key: %w", err)
		}
		return curveKey(v[0], v[1])
	default:
		return nil, refuse(fmt.Sprintf("the key is of kind %#x; want EC, Edwards or RSA", n))
	}
}
