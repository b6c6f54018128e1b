package measure

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"

	"assay.dev/assay/observe/tree"
)

// spool copies the blob into a file without a name and checks its digest. Only
// that copy is read again, so what is extracted is what was checked.
func spool(ctx context.Context, r io.Reader, want string, o UnpackOptions) (*os.File, error) {
	f, err := os.CreateTemp(o.TempDir, "assay-blob-")
	if err != nil {
		return nil, fmt.Errorf("making a temporary file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("unlinking a temporary file: %w", err)
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(ctxReader{ctx, r}, o.BlobBytes+1))
	got := "sha256:" + hex.EncodeToString(h.Sum(nil))
	switch {
	case err != nil:
		err = fmt.Errorf("reading it: %w", err)
	case n > o.BlobBytes:
		err = fmt.Errorf("it has more than %d bytes: %w", o.BlobBytes, tree.ErrLimit)
	case got != want:
		err = fmt.Errorf("%w: it is %s (%d bytes); nothing was extracted", ErrDigest, got, n)
	default:
		if _, err = f.Seek(0, io.SeekStart); err == nil {
			return f, nil
		}
	}
	f.Close()
	return nil, err
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(b []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(b)
}

// decompress tells the two formats apart by their first bytes.
func decompress(blob io.Reader) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(blob, 1<<20)
	magic, err := br.Peek(4)
	switch {
	case err == nil && string(magic) == "\x28\xb5\x2f\xfd":
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(64<<20), zstd.WithDecoderMaxMemory(1<<30))
		if err != nil {
			return nil, nil, fmt.Errorf("starting decompression: %w", err)
		}
		return z, z.Close, nil
	case len(magic) >= 2 && string(magic[:2]) == "\x1f\x8b":
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, fmt.Errorf("starting decompression: %w", err)
		}
		return z, func() { z.Close() }, nil
	}
	return nil, nil, errors.New("it is neither zstd nor gzip; artifacts are tar archives compressed with one of them")
}

type limitedReader struct {
	r    io.Reader
	left int64
}

func (l *limitedReader) Read(b []byte) (int, error) {
	if l.left <= 0 {
		return 0, fmt.Errorf("decompressing: %w", tree.ErrLimit)
	}
	n, err := l.r.Read(b[:min(int64(len(b)), l.left)])
	l.left -= int64(n)
	return n, err
}
