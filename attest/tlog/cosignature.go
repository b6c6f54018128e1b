package tlog

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// Key types of signed notes.
const (
	algEd25519     = 1
	algCosignature = 4
)

// cosignatureLen is the length of a cosignature/v1: a time and an Ed25519 signature.
const cosignatureLen = 8 + ed25519.SignatureSize

// cosigned is the message of a cosignature/v1 over a checkpoint's text.
func cosignatureMessage(text []byte, at uint64) []byte {
	return append([]byte("cosignature/v1\ntime "+strconv.FormatUint(at, 10)+"\n"), text...)
}

// cosigner is a witness' key as a note.Verifier.
type cosigner struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

func (c cosigner) Name() string    { return c.name }
func (c cosigner) KeyHash() uint32 { return c.hash }

func (c cosigner) Verify(text, sig []byte) bool {
	if len(sig) != cosignatureLen {
		return false
	}
	return ed25519.Verify(c.key, cosignatureMessage(text, binary.BigEndian.Uint64(sig)), sig[8:])
}

// cosignatureTime is the time in a cosignature that was verified.
func cosignatureTime(s note.Signature) (time.Time, error) {
	raw, err := base64.StdEncoding.DecodeString(s.Base64)
	if err != nil || len(raw) != 4+cosignatureLen {
		return time.Time{}, errors.New("no cosignature/v1")
	}
	at := binary.BigEndian.Uint64(raw[4:])
	if at > 1<<62 {
		return time.Time{}, errors.New("a time out of all bounds")
	}
	return time.Unix(int64(at), 0).UTC(), nil
}

// Cosigner makes cosignatures with a witness' private key, with the time that now
// says. Make one with NewCosigner.
type Cosigner struct {
	cosigner
	private ed25519.PrivateKey
	now     func() time.Time
}

// NewCosigner reads a private key as GenerateKey makes it. It fails for anything
// but an Ed25519 note key. A nil now is time.Now.
func NewCosigner(skey string, now func() time.Time) (*Cosigner, error) {
	s, err := note.NewSigner(skey)
	if err != nil {
		return nil, fmt.Errorf("reading witness' private key: %w", err)
	}
	f := strings.SplitN(skey, "+", 5)
	raw, err := base64.StdEncoding.DecodeString(f[4])
	if err != nil || len(raw) != 1+ed25519.SeedSize {
		return nil, errors.New("reading witness' private key: no Ed25519 seed")
	}
	if now == nil {
		now = time.Now
	}
	private := ed25519.NewKeyFromSeed(raw[1:])
	public := private.Public().(ed25519.PublicKey)
	return &Cosigner{
		cosigner: cosigner{name: s.Name(), hash: noteKeyHash(s.Name(), algCosignature, public), key: public},
		private:  private, now: now,
	}, nil
}

// Sign implements note.Signer: the cosignature of a checkpoint's text.
func (c *Cosigner) Sign(text []byte) ([]byte, error) {
	at := uint64(max(c.now().Unix(), 0))
	return append(binary.BigEndian.AppendUint64(nil, at), ed25519.Sign(c.private, cosignatureMessage(text, at))...), nil
}

// Public is the key that verifiers are given.
func (c *Cosigner) Public() WitnessKey {
	return WitnessKey{Name: c.name, verifier: c.cosigner, vkey: vkey(c.name, algCosignature, c.key), key: c.key}
}

// GenerateKey makes a key for a log or a witness: the private key as signed notes
// spell it, and what verifiers are given, of a log and of a witness. The name, which
// is a log's origin, must be without space and plus sign; a name like a domain with a
// path, example.com/log, is not used by anybody else.
func GenerateKey(name string) (skey string, log LogKey, witness WitnessKey, err error) {
	skey, vk, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		return "", LogKey{}, WitnessKey{}, fmt.Errorf("making key %q: %w", name, err)
	}
	if log, err = ParseLogKey(vk); err != nil {
		return "", LogKey{}, WitnessKey{}, fmt.Errorf("making key %q: %w: a name has neither space nor plus sign", name, err)
	}
	if witness, err = ParseWitnessKey(vk); err != nil {
		return "", LogKey{}, WitnessKey{}, fmt.Errorf("making key %q: %w", name, err)
	}
	return skey, log, witness, nil
}

// noteKeyHash is the key hash of signed notes.
func noteKeyHash(name string, algorithm byte, key []byte) uint32 {
	sum := sha256.Sum256(append([]byte(name+"\n"+string(rune(algorithm))), key...))
	return binary.BigEndian.Uint32(sum[:])
}

func vkey(name string, algorithm byte, key []byte) string {
	return fmt.Sprintf("%s+%08x+%s", name, noteKeyHash(name, algorithm, key),
		base64.StdEncoding.EncodeToString(append([]byte{algorithm}, key...)))
}

// LogKey is what verifiers are given of the log whose checkpoints the same private
// key signs.
func (c *Cosigner) LogKey() (LogKey, error) { return ParseLogKey(vkey(c.name, algEd25519, c.key)) }
