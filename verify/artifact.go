package verify

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
)

// maxMessage is the size of the largest artifact that is held in memory, for
// signatures that sign whole messages and no digest.
const maxMessage = 64 << 20

// hashes are the digests by which evidence may name an artifact.
var hashes = [...]struct {
	name string
	hash crypto.Hash
}{{"sha256", crypto.SHA256}, {"sha384", crypto.SHA384}, {"sha512", crypto.SHA512}}

// Artifact is what evidence must be about. Make one with FileArtifact or
// DigestArtifact; the zero value is about nothing and refused.
type Artifact struct {
	name    string
	primary string // algorithm of Digest
	digests map[string]string
	open    func() (io.ReadCloser, error) // nil where only a digest is known
}

// FileArtifact is a file, whatever its size. It is read once now and, where
// evidence asks for another digest than SHA-256, once more; that it was changed
// between the two is an error.
func FileArtifact(path string) (*Artifact, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading the artifact: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("reading the artifact: %s is no regular file", path)
	}
	a := &Artifact{name: path, primary: "sha256", digests: map[string]string{}, open: func() (io.ReadCloser, error) { return os.Open(path) }}
	if _, err := a.sum(crypto.SHA256); err != nil {
		return nil, err
	}
	return a, nil
}

// DigestArtifact is an artifact of which only the digest is known: sha256:HEX,
// sha384:HEX or sha512:HEX. Evidence that names it by another algorithm is then
// about something else, as far as anybody can tell.
func DigestArtifact(digest string) (*Artifact, error) {
	algorithm, value, ok := strings.Cut(digest, ":")
	for _, h := range hashes {
		if !ok || h.name != algorithm {
			continue
		}
		raw, err := hex.DecodeString(value)
		if err != nil || len(raw) != h.hash.Size() || strings.ToLower(value) != value {
			return nil, fmt.Errorf("digest %.200q: want %d lower-case hex digits after %s:", digest, 2*h.hash.Size(), algorithm)
		}
		return &Artifact{name: digest, primary: algorithm, digests: map[string]string{algorithm: value}}, nil
	}
	return nil, fmt.Errorf("digest %.200q: want sha256:HEX, sha384:HEX or sha512:HEX", digest)
}

// manifestArtifact is an image, which its manifest's SHA-256 names.
func manifestArtifact(ref string, manifest []byte) *Artifact {
	a := &Artifact{name: ref, primary: "sha256", digests: map[string]string{}, open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(manifest)), nil }}
	a.digests["sha256"] = strings.TrimPrefix(digestOf(manifest), "sha256:")
	return a
}

// Digest names the artifact: sha256:…, or what DigestArtifact was given.
func (a *Artifact) Digest() string { return a.primary + ":" + a.digests[a.primary] }

// digest is the artifact's digest by one algorithm; empty where it is not known.
func (a *Artifact) digest(algorithm string) (string, error) {
	if d := a.digests[algorithm]; d != "" || a.open == nil {
		return d, nil
	}
	for _, h := range hashes {
		if h.name == algorithm {
			return a.sum(h.hash)
		}
	}
	return "", nil
}

// sum reads the artifact. What it finds must be what was found before.
func (a *Artifact) sum(more crypto.Hash) (string, error) {
	f, err := a.open()
	if err != nil {
		return "", fmt.Errorf("reading the artifact: %w", err)
	}
	defer f.Close()
	want, first := more.New(), crypto.SHA256.New()
	if more == crypto.SHA256 {
		want = first
	}
	w := io.Writer(first)
	if want != first {
		w = io.MultiWriter(first, want)
	}
	if _, err := io.Copy(w, f); err != nil {
		return "", fmt.Errorf("reading the artifact: %w", err)
	}
	if err := a.same(first.Sum(nil)); err != nil {
		return "", err
	}
	for _, h := range hashes {
		if h.hash == more {
			a.digests[h.name] = hex.EncodeToString(want.Sum(nil))
			return a.digests[h.name], nil
		}
	}
	return "", fmt.Errorf("hash %s is not known", more)
}

func (a *Artifact) same(sha256 []byte) error {
	have := hex.EncodeToString(sha256)
	if before := a.digests["sha256"]; before != "" && before != have {
		return fmt.Errorf("reading the artifact: %s changed while it was verified", a.name)
	}
	a.digests["sha256"] = have
	return nil
}

// bytes are the artifact itself, for the few signatures that need it.
func (a *Artifact) bytes() ([]byte, error) {
	if a.open == nil {
		return nil, errors.New("the signature is over the whole artifact, and only its digest is given")
	}
	f, err := a.open()
	if err != nil {
		return nil, fmt.Errorf("reading the artifact: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxMessage+1))
	if err != nil {
		return nil, fmt.Errorf("reading the artifact: %w", err)
	}
	if len(data) > maxMessage {
		return nil, fmt.Errorf("the signature is over the whole artifact, which is larger than %d bytes; sign with an ECDSA or RSA key", maxMessage)
	}
	h := crypto.SHA256.New()
	h.Write(data)
	return data, a.same(h.Sum(nil))
}

// subject says whether a statement names the artifact. Every digest of a subject by
// an algorithm that is known here must be the artifact's, so that no subject is two
// things at once; and one of them must be the artifact's own, or computed from it.
func (a *Artifact) subject(s *intoto.Statement) (bool, error) {
	for _, sub := range s.Subjects {
		named, other := false, false
		for _, h := range hashes {
			value, ok := sub.Digest[h.name]
			if !ok {
				continue
			}
			have, err := a.digest(h.name)
			if err != nil {
				return false, err
			}
			switch {
			case have == "":
			case have == value:
				named = true
			default:
				other = true
			}
		}
		if named && !other {
			return true, nil
		}
	}
	return false, nil
}

// messageDigest is the artifact's digest by the algorithm of a message signature; an
// error where the signature claims another artifact.
func (a *Artifact) messageDigest(m *bundle.Message) ([]byte, error) {
	have, err := a.digest(m.Algorithm)
	if err != nil {
		return nil, err
	}
	if have == "" {
		return nil, fmt.Errorf("it signs the artifact by %s, and of the artifact only %s is known", m.Algorithm, a.Digest())
	}
	if hex.EncodeToString(m.Digest) != have {
		return nil, kindf(KindOtherArtifact, "it signs %s:%x, not this artifact", m.Algorithm, m.Digest)
	}
	return m.Digest, nil
}

// signedBy says whether a key signed the artifact, by digest or, for keys that sign
// whole messages, whole.
func (a *Artifact) signedBy(k dsse.PublicKey, algorithm string, digest, sig []byte) error {
	for _, h := range hashes {
		if h.name == algorithm && k.VerifyDigest(h.hash, digest, sig) == nil {
			return nil
		}
	}
	if _, ok := k.Crypto().(ed25519.PublicKey); !ok {
		return kindf(KindInvalidSignature, "not a signature by key %s of this artifact", k.KeyID())
	}
	if full, err := a.digest("sha512"); err == nil && full != "" {
		if raw, err := hex.DecodeString(full); err == nil && k.VerifyDigest(crypto.SHA512, raw, sig) == nil {
			return nil
		}
	}
	data, err := a.bytes()
	if err != nil {
		return err
	}
	return k.Verify(data, sig)
}
