package tlog

import (
	"crypto"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"

	"assay.dev/assay/attest/dsse"
)

// Trust says which logs and witnesses the caller believes. The zero value believes
// none, so nothing verifies with it.
type Trust struct {
	Logs      []LogKey
	Rekor     []RekorKey
	Witnesses []WitnessKey
	// Quorum is how many different witnesses must have cosigned; 0 means one if
	// there are witnesses. More than there are is an error.
	Quorum int
}

// Check returns an error unless the trust makes sense: no key twice, no witness
// with a log's own key, a quorum that can be reached.
func (t Trust) Check() error {
	if t.Quorum < 0 || t.Quorum > len(t.Witnesses) {
		return fmt.Errorf("%d witnesses are required and %d are known; name their keys", t.Quorum, len(t.Witnesses))
	}
	seen := map[string]string{}
	use := func(key []byte, what string) error {
		if other := seen[string(key)]; other != "" {
			return fmt.Errorf("%s and %s have the same key; a witness is somebody else, and counts once", other, what)
		}
		seen[string(key)] = what
		return nil
	}
	for _, l := range t.Logs {
		if l.verifier == nil {
			return errors.New("a log without a key; make it with ParseLogKey")
		}
		if err := use(l.key, fmt.Sprintf("log %q", l.Name)); err != nil {
			return err
		}
	}
	for _, w := range t.Witnesses {
		if w.verifier == nil {
			return errors.New("a witness without a key; make it with ParseWitnessKey")
		}
		if err := use(w.key, fmt.Sprintf("witness %q", w.Name)); err != nil {
			return err
		}
	}
	for _, r := range t.Rekor {
		if r.public.Crypto() == nil {
			return errors.New("a Rekor log without a key; make it with NewRekorKey")
		}
		key := []byte(r.public.Fingerprint())
		if k, ok := r.public.Crypto().(ed25519.PublicKey); ok {
			key = k
		}
		if err := use(key, fmt.Sprintf("Rekor log %q", r.Name)); err != nil {
			return err
		}
	}
	return nil
}

func (t Trust) logNames() string {
	if len(t.Logs) == 0 {
		return "logs: none is given"
	}
	var names []string
	for _, l := range t.Logs {
		names = append(names, fmt.Sprintf("%q", l.verifier.Name()))
	}
	return "logs " + strings.Join(names, ", ")
}

// LogKey is the key of a tile log. Make one with ParseLogKey.
type LogKey struct {
	// Name is how reports call it; the log's origin if nothing else is said.
	Name     string
	verifier note.Verifier
	vkey     string
	key      []byte
}

// ParseLogKey reads a verifier key as C2SP's signed notes spell it,
// ORIGIN+HASH+BASE64, of an Ed25519 key. Its name is the log's origin.
func ParseLogKey(vkey string) (LogKey, error) {
	vkey = strings.TrimSpace(vkey)
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return LogKey{}, fmt.Errorf("reading log key %.80q: %w; want NAME+HASH+BASE64 as `assay log init` prints it", vkey, err)
	}
	key, err := rawKey(vkey, algEd25519)
	if err != nil {
		return LogKey{}, fmt.Errorf("reading log key %.80q: %w", vkey, err)
	}
	return LogKey{Name: v.Name(), verifier: v, vkey: vkey, key: key}, nil
}

// Origin is the log's own name, the first line of its checkpoints.
func (k LogKey) Origin() string {
	if k.verifier == nil {
		return ""
	}
	return k.verifier.Name()
}

// Verifier verifies the log's signatures on checkpoints; nil for the zero value.
func (k LogKey) Verifier() note.Verifier { return k.verifier }

// String is the key as ParseLogKey reads it.
func (k LogKey) String() string { return k.vkey }

// WitnessKey is the key of a witness. Make one with ParseWitnessKey.
type WitnessKey struct {
	Name     string
	verifier note.Verifier
	vkey     string
	key      []byte
}

// ParseWitnessKey reads the verifier key of a witness that makes cosignature/v1:
// NAME+HASH+BASE64 with key type 4, or an Ed25519 key of type 1, which is taken as
// the same key's cosigning half.
func ParseWitnessKey(text string) (WitnessKey, error) {
	text = strings.TrimSpace(text)
	f := strings.SplitN(text, "+", 3)
	if len(f) != 3 || f[0] == "" || strings.ContainsFunc(f[0], unicode.IsSpace) || !utf8.ValidString(f[0]) {
		return WitnessKey{}, fmt.Errorf("reading witness key %.80q: want NAME+HASH+BASE64 as `assay log init --witness` prints it", text)
	}
	for _, algorithm := range []byte{algCosignature, algEd25519} {
		key, err := rawKey(text, algorithm)
		if err != nil {
			continue
		}
		if f[1] != fmt.Sprintf("%08x", noteKeyHash(f[0], algorithm, key)) {
			return WitnessKey{}, fmt.Errorf("reading witness key %.80q: the hash in it is not the key's", text)
		}
		v := cosigner{name: f[0], hash: noteKeyHash(f[0], algCosignature, key), key: key}
		return WitnessKey{Name: f[0], verifier: v, vkey: vkey(f[0], algCosignature, key), key: key}, nil
	}
	return WitnessKey{}, fmt.Errorf("reading witness key %.80q: not an Ed25519 key", text)
}

// String is the key as ParseWitnessKey reads it.
func (k WitnessKey) String() string { return k.vkey }

// Verifier verifies the witness' cosignatures; nil for the zero value.
func (k WitnessKey) Verifier() note.Verifier { return k.verifier }

// rawKey is the public key in a verifier key.
func rawKey(vkey string, algorithm byte) ([]byte, error) {
	f := strings.SplitN(vkey, "+", 3)
	raw, err := base64.StdEncoding.Strict().DecodeString(f[len(f)-1])
	if err != nil {
		return nil, err
	}
	if len(raw) != 1+ed25519.PublicKeySize || raw[0] != algorithm {
		return nil, errors.New("not an Ed25519 key of this kind")
	}
	return raw[1:], nil
}

// RekorKey is the key of a Rekor log, v1 or v2. Make one with NewRekorKey.
type RekorKey struct {
	// Name is how reports call it.
	Name string
	// Witnessed demands the witnesses' quorum on this log's checkpoints too. Rekor
	// v1 hands out no cosigned checkpoints, so it is not demanded otherwise.
	Witnessed bool
	// From and Until bound the times that the log may sign with this key; zero: no
	// bound.
	From, Until time.Time
	public      dsse.PublicKey
}

// NewRekorKey makes a trusted key of a Rekor log of its public key: ECDSA, Ed25519
// or RSA.
func NewRekorKey(name string, key crypto.PublicKey) (RekorKey, error) {
	public, err := dsse.NewPublicKey(key)
	if err != nil {
		return RekorKey{}, fmt.Errorf("reading Rekor key %q: %w", name, err)
	}
	if name == "" {
		name = "rekor:" + public.Fingerprint()[:12]
	}
	return RekorKey{Name: name, public: public}, nil
}

// ParseRekorKey is NewRekorKey for PEM (PUBLIC KEY), as Rekor's /publicKey gives it.
func ParseRekorKey(name string, pem []byte) (RekorKey, error) {
	public, err := dsse.ParsePublicKey(pem)
	if err != nil {
		return RekorKey{}, fmt.Errorf("reading Rekor key %q: %w", name, err)
	}
	return NewRekorKey(name, public.Crypto())
}

// PEM is the key as a PUBLIC KEY block.
func (k RekorKey) PEM() []byte { return k.public.PEM() }

// Names are the trusted logs' names, for messages.
func (t Trust) Names() []string {
	var out []string
	for _, l := range t.Logs {
		out = append(out, l.Name)
	}
	for _, r := range t.Rekor {
		out = append(out, r.Name)
	}
	slices.Sort(out)
	return out
}
