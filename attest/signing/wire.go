package signing

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/store"
)

// The wire protocol is HTTP/1.1 over a Unix socket. Messages travel as they are,
// since JSON would double their cost; everything else is JSON.
//
//	POST /v1/sign      the message; header Assay-Settings: digest of the settings
//	                   200 signatures, 428 settings not known here
//	PUT  /v1/settings  settings, once each; 204
//	GET  /v1/keys      the keys that signed, now and before
//	GET  /healthz      how the signer is
//
// Whatever fails is answered with a status of 400 or above and a Failure.
const (
	PathSign     = "/v1/sign"
	PathSettings = "/v1/settings"
	PathKeys     = "/v1/keys"
	PathHealth   = "/healthz"
	// HeaderSettings names the settings to sign with: Settings.Encode's digest.
	HeaderSettings = "Assay-Settings"
	// MaxSettings is the size in bytes of the largest settings that are read.
	MaxSettings = 64 << 10
	// maxAnswer bounds what a client reads: eight signatures with chains.
	maxAnswer = 4 << 20
	maxKinds  = 8
)

// Check returns an error, of class store.Configuration, unless the settings name
// kinds of keys, each known and once, and what each kind needs.
func (s Settings) Check() error {
	if err := s.check(); err != nil {
		return store.As(store.Configuration, fmt.Errorf("reading signing settings: %w", err))
	}
	return nil
}

func (s Settings) check() error {
	if len(s.Kinds) == 0 {
		return errors.New("no kind of key; set x509, kms or pkcs11")
	}
	for i, k := range s.Kinds {
		if slices.Contains(s.Kinds[:i], k) {
			return fmt.Errorf("kind %q is named twice", k)
		}
		switch k {
		case X509:
			if s.Fulcio.Enabled && s.Fulcio.Address == "" {
				return errors.New("keyless signing needs the address of Fulcio (signers.x509.fulcio.address)")
			}
		case KMS:
			if s.KMS.Ref == "" {
				return errors.New("kind kms needs a key (signers.kms.kmsref: gcpkms://, awskms://, azurekms:// or hashivault://)")
			}
		case PKCS11:
			if s.PKCS11.URI == "" {
				return errors.New("kind pkcs11 needs a key (assay.signers.pkcs11.uri: pkcs11:token=…;object=…)")
			}
		default:
			return fmt.Errorf("kind %q is not known; known are %s, %s and %s", k, X509, KMS, PKCS11)
		}
	}
	return nil
}

// Encode is the settings as they travel, and the digest by which later requests
// name them. The same settings always give the same bytes.
func (s Settings) Encode() (data []byte, digest string, err error) {
	if data, err = json.Marshal(s); err != nil {
		return nil, "", fmt.Errorf("encoding signing settings: %w", err)
	}
	sum := sha256.Sum256(data)
	return data, hex.EncodeToString(sum[:]), nil
}

// DecodeSettings reads what Encode wrote and returns the digest with it. Unknown
// members, which a newer client might send, are refused: a setting that is not
// understood must not be dropped where keys are chosen.
func DecodeSettings(data []byte) (Settings, string, error) {
	var s Settings
	if err := decode(data, MaxSettings, &s); err != nil {
		return Settings{}, "", store.As(store.Configuration, fmt.Errorf("reading signing settings: %w", err))
	}
	if err := s.Check(); err != nil {
		return Settings{}, "", err
	}
	sum := sha256.Sum256(data)
	return s, hex.EncodeToString(sum[:]), nil
}

// decode reads one JSON document into v, strictly.
func decode(data []byte, max int, v any) error {
	if err := strictjson.Check(data, max); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the document")
	}
	return nil
}

// signatureJSON is a store.Signature on the wire.
type signatureJSON struct {
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"`
	Key   string `json:"key"` // PEM
	Cert  string `json:"cert,omitempty"`
	Chain string `json:"chain,omitempty"`
}

type signaturesJSON struct {
	Signatures []signatureJSON `json:"signatures"`
}

// EncodeSignatures is an answer to POST /v1/sign.
func EncodeSignatures(sigs []store.Signature) ([]byte, error) {
	out := signaturesJSON{Signatures: make([]signatureJSON, 0, len(sigs))}
	for _, s := range sigs {
		out.Signatures = append(out.Signatures, signatureJSON{s.KeyID, s.Sig, string(s.Key.PEM()), string(s.Cert), string(s.Chain)})
	}
	b, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("encoding signatures: %w", err)
	}
	return b, nil
}

// decodeSignatures reads what EncodeSignatures wrote. parse reads a public key.
func decodeSignatures(data []byte, parse func(pem string) (dsse.PublicKey, error)) ([]store.Signature, error) {
	var in signaturesJSON
	if err := decode(data, maxAnswer, &in); err != nil {
		return nil, fmt.Errorf("reading signatures: %w", err)
	}
	if len(in.Signatures) == 0 || len(in.Signatures) > maxKinds {
		return nil, fmt.Errorf("reading signatures: %d of them", len(in.Signatures))
	}
	out := make([]store.Signature, 0, len(in.Signatures))
	for i, s := range in.Signatures {
		key, err := parse(s.Key)
		if err != nil {
			return nil, fmt.Errorf("reading signature %d: %w", i, err)
		}
		if s.KeyID == "" || len(s.Sig) == 0 {
			return nil, fmt.Errorf("reading signature %d: no key id or no signature", i)
		}
		out = append(out, store.Signature{
			KeyID: s.KeyID, Sig: s.Sig, Key: key, Cert: optional(s.Cert), Chain: optional(s.Chain),
		})
	}
	return out, nil
}

func optional(s string) []byte {
	if s == "" {
		return nil
	}
	return []byte(s)
}

// Failure is how errors travel.
type Failure struct {
	Class   string `json:"class"` // store.Class in one word
	Message string `json:"message"`
	// RetryAfter is what store.Fault.RetryAfter says, in milliseconds.
	RetryAfter int64 `json:"retryAfterMillis,omitempty"`
}

// NewFailure is an error as it travels: its class and words, not its chain.
func NewFailure(err error) Failure {
	f := Failure{Class: store.ClassOf(err).String(), Message: err.Error()}
	var fault *store.Fault
	if errors.As(err, &fault) {
		f.RetryAfter = fault.RetryAfter.Milliseconds()
	}
	return f
}

// decodeFailure is the error that NewFailure was made of, as far as it travelled.
// What is none is an error too, of class store.Transient.
func decodeFailure(data []byte) error {
	var f Failure
	if err := decode(data, maxAnswer, &f); err != nil {
		return fmt.Errorf("reading the signer's refusal: %w", err)
	}
	for _, c := range []store.Class{store.Transient, store.Configuration, store.Permanent} {
		if f.Class == c.String() {
			return &store.Fault{Class: c, Err: errors.New(f.Message), RetryAfter: time.Duration(f.RetryAfter) * time.Millisecond}
		}
	}
	return fmt.Errorf("reading the signer's refusal: class %q is not known; it says: %s", f.Class, f.Message)
}

// Key is a public key that signs or has signed, for those who publish keys to
// verifiers.
type Key struct {
	Kind  Kind   `json:"kind"`
	KeyID string `json:"keyid"`
	PEM   string `json:"pem"`
	// Since is when the signer first used the key. Until is when another took its
	// place; nil: it still signs.
	Since time.Time  `json:"since"`
	Until *time.Time `json:"until,omitempty"`
}

type keysJSON struct {
	Keys []Key `json:"keys"`
}

// EncodeKeys is an answer to GET /v1/keys.
func EncodeKeys(keys []Key) ([]byte, error) {
	b, err := json.Marshal(keysJSON{Keys: slices.Concat([]Key{}, keys)})
	if err != nil {
		return nil, fmt.Errorf("encoding keys: %w", err)
	}
	return b, nil
}

func decodeKeys(data []byte) ([]Key, error) {
	var in keysJSON
	if err := decode(data, maxAnswer, &in); err != nil {
		return nil, fmt.Errorf("reading keys: %w", err)
	}
	for i, k := range in.Keys {
		if _, err := dsse.ParsePublicKey([]byte(k.PEM)); err != nil {
			return nil, fmt.Errorf("reading key %d: %w", i, err)
		}
	}
	return in.Keys, nil
}

// Health is how a signer is.
type Health struct {
	Started time.Time `json:"started"`
	Signed  uint64    `json:"signed"` // signatures made
	Refused uint64    `json:"refused"`
	// Faults are what keeps keys from signing now, one for each, for people;
	// empty: nothing that is known.
	Faults []string `json:"faults,omitempty"`
}
