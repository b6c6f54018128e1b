//go:build cgo

package pkcs11

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	p11 "github.com/miekg/pkcs11"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/store"
)

// publicKey finds the public half of the key and how the token signs with it.
func (d *Driver) publicKey(s p11.SessionHandle) error {
	raw, err := d.halves(s)
	if err != nil {
		return err
	}
	if d.public, err = dsse.NewPublicKey(raw); err != nil {
		return store.As(store.Configuration, err)
	}
	switch raw.(type) {
	case *ecdsa.PublicKey:
		d.mech = p11.CKM_ECDSA
	case ed25519.PublicKey:
		d.mech = eddsa
	case *rsa.PublicKey:
		d.mech = p11.CKM_RSA_PKCS
	}
	return nil
}

func (d *Driver) halves(s p11.SessionHandle) (crypto.PublicKey, error) {
	own, err := d.attributes(s, d.handle, p11.CKA_KEY_TYPE, p11.CKA_ID, p11.CKA_LABEL)
	if err != nil {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	kind := number(own[0])
	if kind == p11.CKK_RSA {
		// The private object knows the public numbers.
		if n, err := d.attributes(s, d.handle, p11.CKA_MODULUS, p11.CKA_PUBLIC_EXPONENT); err == nil && len(n[1]) < 8 {
			return &rsa.PublicKey{N: new(big.Int).SetBytes(n[0]), E: int(new(big.Int).SetBytes(n[1]).Int64())}, nil
		}
	}
	objects, err := d.half(s, p11.CKO_PUBLIC_KEY, own[1], own[2])
	if err != nil {
		return nil, err
	}
	if len(objects) == 1 && (kind == p11.CKK_EC || kind == edwards) {
		ec, err := d.attributes(s, objects[0], p11.CKA_EC_PARAMS, p11.CKA_EC_POINT)
		if err != nil {
			return nil, fmt.Errorf("reading the public key: %w", err)
		}
		return curveKey(ec[0], ec[1])
	}
	certs, err := d.half(s, p11.CKO_CERTIFICATE, own[1], own[2])
	if err != nil {
		return nil, err
	}
	if len(certs) == 1 {
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
	return nil, refuse("the token has no public key and no certificate of the key's id or label (or several); put one there")
}

// half finds what belongs to the key: by id, else by label.
func (d *Driver) half(s p11.SessionHandle, class uint, id, label []byte) ([]p11.ObjectHandle, error) {
	if len(id) > 0 {
		if list, err := d.find(s, class, "", string(id)); err != nil || len(list) > 0 {
			return list, err
		}
	}
	if len(label) == 0 {
		return nil, nil
	}
	return d.find(s, class, string(label), "")
}

func (d *Driver) attributes(s p11.SessionHandle, o p11.ObjectHandle, types ...uint) ([][]byte, error) {
	template := make([]*p11.Attribute, 0, len(types))
	for _, t := range types {
		template = append(template, p11.NewAttribute(t, nil))
	}
	got, err := d.ctx.GetAttributeValue(s, o, template)
	if err != nil {
		return nil, err
	}
	if len(got) != len(types) {
		return nil, errors.New("the token leaves out attributes")
	}
	out := make([][]byte, 0, len(got))
	for _, a := range got {
		out = append(out, a.Value)
	}
	return out, nil
}

// number is a CK_ULONG as this machine's library writes it.
func number(b []byte) uint {
	var n uint
	for i := len(b) - 1; i >= 0; i-- {
		n = n<<8 | uint(b[i])
	}
	return n
}

// curveKey reads an EC or Edwards key as tokens keep them: the curve by its object
// identifier or name, the point in an OCTET STRING, by some bare.
func curveKey(params, point []byte) (crypto.PublicKey, error) {
	var inner []byte
	if rest, err := asn1.Unmarshal(point, &inner); err != nil || len(rest) > 0 {
		inner = point
	}
	var oid asn1.ObjectIdentifier
	var name string
	if _, err := asn1.Unmarshal(params, &oid); err != nil {
		if _, err := asn1.Unmarshal(params, &name); err != nil {
			return nil, refuse("the key's curve cannot be read")
		}
	}
	var curve elliptic.Curve
	switch {
	case oid.Equal(asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}):
		curve = elliptic.P256()
	case oid.Equal(asn1.ObjectIdentifier{1, 3, 132, 0, 34}):
		curve = elliptic.P384()
	case oid.Equal(asn1.ObjectIdentifier{1, 3, 101, 112}), name == "edwards25519":
		if len(inner) != ed25519.PublicKeySize {
			return nil, refuse(fmt.Sprintf("the Ed25519 key has %d bytes", len(inner)))
		}
		return ed25519.PublicKey(bytes.Clone(inner)), nil
	default:
		return nil, refuse(fmt.Sprintf("the key's curve %v%s is not supported; use P-256, P-384 or Ed25519", oid, name))
	}
	key, err := ecdsa.ParseUncompressedPublicKey(curve, inner)
	if err != nil {
		return nil, store.As(store.Configuration, fmt.Errorf("reading the public key: %w", err))
	}
	return key, nil
}
