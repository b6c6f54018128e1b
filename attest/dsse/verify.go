package dsse

import (
	"errors"
	"fmt"
	"strings"
)

// ErrNotVerified is in every error of Envelope.Verify that means: the
// signatures do not show what was asked. Errors without it are the caller's
// mistakes.
var ErrNotVerified = errors.New("not verified")

// Accepted is a good signature and the key that made it.
type Accepted struct {
	Signature
	Key PublicKey
}

// Verify returns the good signatures, one for each distinct key that made one,
// if there are threshold of them or more. Otherwise it returns none and an
// error that is ErrNotVerified and says what became of each signature.
//
// A threshold below one, no keys, or a key that is the zero value are errors:
// nothing is ever verified by not asking.
func (e *Envelope) Verify(threshold int, keys ...PublicKey) ([]Accepted, error) {
	if threshold < 1 {
		return nil, fmt.Errorf("verifying DSSE envelope: threshold %d; it must be 1 or more", threshold)
	}
	if len(keys) == 0 {
		return nil, errors.New("verifying DSSE envelope: no keys given")
	}
	for i, k := range keys {
		if k.key == nil {
			return nil, fmt.Errorf("verifying DSSE envelope: key %d is empty", i)
		}
	}
	pae := e.PAE()
	var (
		good    []Accepted
		reasons []string
		counted = map[string]bool{}
	)
	for i, s := range e.Signatures {
		key, ok := match(pae, s, keys)
		if !ok {
			reasons = append(reasons, fmt.Sprintf("signature %d (keyid %q) was made by none of the %d trusted keys, or for another payload", i, s.KeyID, len(keys)))
			continue
		}
		if counted[key.fingerprint] {
			reasons = append(reasons, fmt.Sprintf("signature %d (keyid %q) is a second one by the same key", i, s.KeyID))
			continue
		}
		counted[key.fingerprint] = true
		good = append(good, Accepted{s, key})
	}
	if len(good) >= threshold {
		return good, nil
	}
	if len(e.Signatures) == 0 {
		reasons = append(reasons, "the envelope has no signatures")
	}
	if threshold > 1 {
		reasons = append([]string{fmt.Sprintf("%d of %d required keys signed", len(good), threshold)}, reasons...)
	}
	return nil, fmt.Errorf("verifying DSSE envelope: %w: %s", ErrNotVerified, strings.Join(reasons, "; "))
}

// match finds the key that made s, trying first those that its key id hints at.
func match(pae []byte, s Signature, keys []PublicKey) (PublicKey, bool) {
	for _, hinted := range []bool{true, false} {
		for _, k := range keys {
			if (s.KeyID != "" && k.hinted(s.KeyID)) != hinted {
				continue
			}
			if k.Verify(pae, s.Sig) == nil {
				return k, true
			}
		}
	}
	return PublicKey{}, false
}
