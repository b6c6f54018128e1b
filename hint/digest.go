package hint

import (
	"fmt"
	"strings"
)

// Digest is a digest as a statement's digest set carries it.
type Digest struct {
	Algorithm string
	Hex       string
}

// String is algorithm:hex.
func (d Digest) String() string { return d.Algorithm + ":" + d.Hex }

// ParseDigest reads algorithm:hex: exactly one colon, blanks around either
// half dropped, the algorithm in any case, the hex in lower case and of the
// algorithm's length. It fails, naming the accepted algorithms, for anything
// but sha1, sha256, sha384 and sha512.
func ParseDigest(s string) (Digest, error) {
	alg, hex, found := strings.Cut(s, ":")
	if !found || strings.Contains(hex, ":") {
		return Digest{}, fmt.Errorf("parsing digest %q: want algorithm:hex", s)
	}
	d := Digest{Algorithm: strings.ToLower(strings.TrimSpace(alg)), Hex: strings.TrimSpace(hex)}
	size := 0
	switch d.Algorithm {
	case "sha1":
		size = 40
	case "sha256":
		size = 64
	case "sha384":
		size = 96
	case "sha512":
		size = 128
	default:
		return Digest{}, fmt.Errorf("parsing digest %q: unknown algorithm; accepted: sha1, sha256, sha384, sha512", s)
	}
	if len(d.Hex) != size || !lowerHex(d.Hex) {
		return Digest{}, fmt.Errorf("parsing digest %q: want %d lower-case hex characters after %s:", s, size, d.Algorithm)
	}
	return d, nil
}

// rawDigest splits without correcting anything. Upstream checks output digests
// with ParseDigest's leniency and then copies them raw, so "SHA256" becomes a
// key of the digest set; a reader of both must find the same key.
func rawDigest(s string) Digest {
	alg, hex, _ := strings.Cut(s, ":")
	return Digest{Algorithm: alg, Hex: hex}
}

func lowerHex(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
