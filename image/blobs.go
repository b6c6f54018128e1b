package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
)

// blobBytes gives a small blob from the cache or the registry.
func (s *Store) blobBytes(ctx context.Context, repo name.Repository, digest string, size, max int64) ([]byte, error) {
	if err := checkDigest(digest); err != nil {
		return nil, err
	}
	if size > max {
		return nil, bad("%s has %d bytes, more than the bound of %d", digest, size, max)
	}
	if b, ok := s.cached(digest, max); ok {
		return b, nil
	}
	b, err := s.remote.BlobBytes(ctx, pinned(repo, digest), max)
	if err != nil {
		return nil, err
	}
	if size >= 0 && int64(len(b)) != size {
		return nil, bad("%s has %d bytes, its manifest says %d", digest, len(b), size)
	}
	return b, s.keep(digest, b)
}

// cached reads a small blob and checks it; a damaged one is dropped.
func (s *Store) cached(digest string, max int64) ([]byte, bool) {
	p := s.path("blobs", digest)
	f, err := os.Open(p)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	b, err := readBounded(f, max)
	if err == nil && digestOf(b) == digest {
		return b, true
	}
	s.dropBlob(digest)
	return nil, false
}

// dropBlob removes a damaged entry and says so.
func (s *Store) dropBlob(digest string) {
	s.opts.Log("cache: blob " + digest + " is damaged; fetching it again")
	_ = os.Remove(s.path("blobs", digest))
}

// keep puts a small blob, already verified, into the cache.
func (s *Store) keep(digest string, b []byte) error {
	tmp, done, err := s.temp()
	if err != nil {
		return err
	}
	defer done()
	p := filepath.Join(tmp, "blob")
	if err := os.WriteFile(p, b, 0o644); err != nil {
		return asLocal(err)
	}
	return asLocal(os.Rename(p, s.path("blobs", digest)))
}

// openBlob opens a big blob in the cache, which is fetched if need be. Its
// content is not checked here: who reads it does.
func (s *Store) openBlob(ctx context.Context, repo name.Repository, digest string, size int64) (*os.File, error) {
	p := s.path("blobs", digest)
	if f, err := openSized(p, size); err == nil {
		return f, nil
	}
	unlock, err := s.lock(ctx, "blob", digest)
	if err != nil {
		return nil, err
	}
	defer unlock()
	f, err := openSized(p, size)
	if err == nil {
		return f, nil // somebody else fetched it while we waited
	}
	if !errors.Is(err, os.ErrNotExist) {
		s.dropBlob(digest)
	}
	tmp, done, err := s.temp()
	if err != nil {
		return nil, err
	}
	defer done()
	f, err = os.OpenFile(filepath.Join(tmp, "blob"), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return nil, asLocal(err)
	}
	s.opts.Log(fmt.Sprintf("fetching %s (%d bytes)", pinned(repo, digest), size))
	if err := s.remote.BlobFile(ctx, pinned(repo, digest), size, s.opts.Bounds.BlobBytes, f); err != nil {
		f.Close()
		return nil, err
	}
	if err := os.Rename(f.Name(), p); err != nil {
		f.Close()
		return nil, asLocal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		f.Close()
		return nil, asLocal(err)
	}
	return f, nil
}

// openSized opens a file that has the size it should have.
func openSized(p string, size int64) (*os.File, error) {
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if fi.Size() != size {
		f.Close()
		return nil, fmt.Errorf("%s has %d bytes instead of %d", p, fi.Size(), size)
	}
	return f, nil
}
