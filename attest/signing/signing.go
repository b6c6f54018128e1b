// Package signing is the contract between who states and who signs: what is to
// be signed goes one way, signatures come back, and no key ever crosses. The
// side with the keys is the program assay-observer (its subcommand signer), which
// links the key drivers; the side without is whoever holds a Client. The two talk
// over a Unix socket, so that a process which parses strangers' objects shares no
// memory with a key.
//
//	assayd observer ──message──▶ socket ──▶ assay-observer signer ──▶ file, KMS, PKCS#11, Fulcio
//	                ◀─signatures─
package signing

import (
	"context"

	"assay.dev/assay/store"
)

// Kind says where a key is.
type Kind string

// Kinds of keys. x509 and kms are chains-config's words.
const (
	X509   Kind = "x509"   // a file among the signing secrets; keyless where Fulcio is enabled
	KMS    Kind = "kms"    // a key management service
	PKCS11 Kind = "pkcs11" // a token or module
)

// Settings say which keys to sign with and how to reach them. They hold paths and
// addresses as the signer's process sees them.
type Settings struct {
	// Kinds to sign with, each once, in order; one signature each.
	Kinds  []Kind         `json:"kinds"`
	Fulcio Fulcio         `json:"fulcio"`
	KMS    KMSSettings    `json:"kms"`
	PKCS11 PKCS11Settings `json:"pkcs11"`
}

// Fulcio are the settings of keyless signing, under chains-config's
// signers.x509.*. It stands in for the file key of kind x509.
type Fulcio struct {
	Enabled   bool   `json:"enabled,omitempty"`
	Address   string `json:"address,omitempty"`
	Issuer    string `json:"issuer,omitempty"`
	Provider  string `json:"provider,omitempty"` // empty: try all
	TokenFile string `json:"tokenFile,omitempty"`
	TUFMirror string `json:"tufMirror,omitempty"`
}

// KMSSettings are chains-config's signers.kms.*.
type KMSSettings struct {
	Ref           string `json:"ref,omitempty"` // gcpkms://, awskms://, azurekms://, hashivault://
	Address       string `json:"address,omitempty"`
	Token         string `json:"token,omitempty"` // a credential
	TokenPath     string `json:"tokenPath,omitempty"`
	OIDCPath      string `json:"oidcPath,omitempty"`
	OIDCRole      string `json:"oidcRole,omitempty"`
	OIDCTokenPath string `json:"oidcTokenPath,omitempty"`
	SpireSock     string `json:"spireSock,omitempty"`
	SpireAudience string `json:"spireAudience,omitempty"`
}

// PKCS11Settings name a key in a token (RFC 7512) and the file with its PIN.
type PKCS11Settings struct {
	URI     string `json:"uri,omitempty"`
	PINFile string `json:"pinFile,omitempty"`
}

// Service signs.
type Service interface {
	// Sign signs a message, which is a DSSE PAE or a simple signing document and
	// nothing else, with every key that the settings name: all signatures or an
	// error. Errors carry their class (store.ClassOf): no key, a wrong password or
	// a refused token is store.Configuration, a key service that does not answer
	// store.Transient.
	Sign(ctx context.Context, set Settings, message []byte) ([]store.Signature, error)
}
