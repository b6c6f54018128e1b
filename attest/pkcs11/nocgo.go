//go:build !cgo

package pkcs11

import (
	"errors"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/signing"
	"assay.dev/assay/store"
)

// Open refuses: PKCS #11 libraries are C, and this program was built without.
func Open(signing.PKCS11Settings, []string, ReadToken) (signing.Driver, error) {
	return nil, store.As(store.Configuration, errors.New("opening a PKCS #11 key: this program was built without cgo; build it with CGO_ENABLED=1 and a C compiler"))
}

// PublicKey refuses, as Open does.
func PublicKey(signing.PKCS11Settings, []string, ReadToken) (dsse.PublicKey, error) {
	_, err := Open(signing.PKCS11Settings{}, nil, nil)
	return dsse.PublicKey{}, err
}
