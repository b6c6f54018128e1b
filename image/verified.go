package image

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
)

// verifiedReader passes content on and, before it hands out the last of it,
// checks size and digest: who reads it to the end without an error has what
// the digest names. With an unknown size (-1) the check comes at the end.
//
// Holding back the end matters for uploads: a request with the announced
// length is whole for the other side, who then keeps what we were to refuse.
type verifiedReader struct {
	r      io.Reader
	h      hash.Hash
	digest string
	size   int64 // -1: unknown, at most max
	max    int64
	n      int64
	err    error
}

func newVerifiedReader(r io.Reader, digest string, size, max int64) *verifiedReader {
	return &verifiedReader{r: r, h: sha256.New(), digest: digest, size: size, max: max}
}

// Read fails with ErrBadImage where content is too long, too short or another.
func (v *verifiedReader) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.r.Read(p)
	v.h.Write(p[:n])
	v.n += int64(n)
	limit := v.max
	if v.size >= 0 {
		limit = v.size
	}
	if v.n > limit {
		v.err = bad("%s has more than %d bytes", v.digest, limit)
		return 0, v.err
	}
	atEnd := errors.Is(err, io.EOF)
	if v.n == v.size && err == nil {
		// Whoever takes only the announced length would not notice more.
		switch m, e := io.ReadFull(v.r, make([]byte, 1)); {
		case m > 0:
			v.err = bad("%s has more than %d bytes", v.digest, limit)
			return 0, v.err
		case !errors.Is(e, io.EOF):
			v.err = e
			return 0, e
		}
		err = io.EOF
	}
	if v.size < 0 && atEnd || v.size >= 0 && v.n == v.size {
		if got := "sha256:" + hex.EncodeToString(v.h.Sum(nil)); got != v.digest {
			v.err = bad("content of %s hashes to %s", v.digest, got)
			return 0, v.err
		}
	} else if atEnd {
		v.err = &truncatedError{digest: v.digest, got: v.n, want: v.size}
		return 0, v.err
	}
	if err != nil {
		v.err = err
	}
	return n, err
}

// truncatedError is content that ended early, which over a network means that
// the connection broke (try again) and on disk that the file is damaged.
type truncatedError struct {
	digest    string
	got, want int64
}

func (e *truncatedError) Error() string {
	return fmt.Sprintf("%s ended after %d of %d bytes", e.digest, e.got, e.want)
}

// digestOf is sha256:… of b.
func digestOf(b []byte) string {
	s := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(s[:])
}
