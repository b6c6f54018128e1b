package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"assay.dev/assay/image"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/internal/registry"
	"assay.dev/assay/observe/tree"
)

// images measures an image store of its own with the Go toolchain's image, the
// largest of the catalog: from nothing, when all is there, and the check of its
// layers that each run makes. The yardstick of unpacking is tar with zstd, which
// neither fetches nor checks nor measures what it unpacks.
func images(ctx context.Context, b *bench) error {
	ref := b.catalog.Images["go"]
	if ref == "" {
		return errors.New("the catalog has no image of the Go toolchain")
	}
	handler, err := registry.OpenReadOnly(filepath.Join(b.home, "registry"))
	if err != nil {
		return err
	}
	in := registry.InProcess(handler)
	dir := filepath.Join(b.dir, "store")
	open := func() (*image.Store, error) {
		return image.Open(image.Options{Dir: dir, IDShift: home.UIDSteps, Remote: image.RemoteOptions{
			Transport: func(string) http.RoundTripper { return in },
		}})
	}
	var img *image.Image
	ensure := func(ctx context.Context) (sample, error) {
		s, err := open()
		if err != nil {
			return sample{}, err
		}
		defer s.Close()
		return timed(func() (err error) {
			img, err = s.Ensure(ctx, ref, image.HostPlatform())
			return err
		})
	}
	sides := []side{
		func(ctx context.Context, _ int) (sample, error) {
			if err := os.RemoveAll(dir); err != nil {
				return sample{}, err
			}
			return ensure(ctx)
		},
		func(ctx context.Context, _ int) (sample, error) { return ensure(ctx) },
		func(ctx context.Context, _ int) (sample, error) {
			return timed(func() error {
				for _, l := range img.Layers {
					if err := image.VerifyLayer(ctx, l); err != nil {
						return err
					}
				}
				return nil
			})
		},
		func(context.Context, int) (sample, error) {
			var files, size int64
			for _, l := range img.Layers {
				files, size = files+l.Files, size+l.Bytes
			}
			return timed(func() error { hashMemory(size, int(size/files)); return nil })
		},
		func(context.Context, int) (sample, error) {
			var paths []string
			for _, l := range img.Layers {
				p, err := regularFiles(l.Dir)
				if err != nil {
					return sample{}, err
				}
				paths = append(paths, p...)
			}
			return timed(func() error { return hashFiles(paths) })
		},
	}
	untar := hasTar()
	if untar {
		sides = append(sides, func(ctx context.Context, _ int) (sample, error) { return b.untar(ctx, dir) })
	} else {
		b.note("install tar and zstd to measure unpacking beside them")
	}
	m, err := b.alternate(ctx, sides...)
	if err != nil {
		return err
	}
	var size int64
	for _, l := range img.Layers {
		size += l.Bytes
	}
	what := fmt.Sprintf("the Go toolchain's image (%s unpacked)", bytesUnit.format(float64(size)))
	if untar {
		b.compare("ensure "+what+", nothing cached, wall", seconds, m[0].wall, "tar --zstd -x of its layers", m[5].wall, "")
		b.compare("ensure "+what+", nothing cached, CPU", seconds, m[0].cpu, "tar --zstd -x of its layers", m[5].cpu, "")
	} else {
		b.record("ensure "+what+", nothing cached, wall", seconds, m[0].wall, "")
	}
	b.compare("ensure it, all cached", seconds, m[1].wall, "nothing cached", m[0].wall, "")
	const verify = "verify its layers, as each run does that uses it"
	b.compare(verify, seconds, m[2].wall, "SHA-256 of as many bytes in memory, all cores", m[3].wall, "")
	b.compare(verify, seconds, m[2].wall, "open, read, SHA-256, close of each file, all cores", m[4].wall, "")
	return os.RemoveAll(dir)
}

func hasTar() bool {
	for _, p := range []string{"tar", "zstd"} {
		if _, err := exec.LookPath(p); err != nil {
			return false
		}
	}
	return true
}

// untar unpacks every compressed layer that the store has.
func (b *bench) untar(ctx context.Context, store string) (sample, error) {
	blobs, err := filepath.Glob(filepath.Join(store, "blobs", "*"))
	if err != nil {
		return sample{}, err
	}
	to := filepath.Join(b.dir, "untar")
	if err := errors.Join(os.RemoveAll(to), os.Mkdir(to, 0o755)); err != nil {
		return sample{}, err
	}
	defer os.RemoveAll(to)
	var total sample
	for _, p := range blobs {
		if zstd, err := isZstd(p); err != nil || !zstd {
			if err != nil {
				return sample{}, err
			}
			continue
		}
		_, s, err := b.command(ctx, "tar", "--zstd", "-xf", p, "-C", to)
		if err != nil {
			return sample{}, err
		}
		total.wall, total.cpu = total.wall+s.wall, total.cpu+s.cpu
	}
	return total, nil
}

func isZstd(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var magic [4]byte
	if _, err := io.ReadFull(f, magic[:]); err != nil {
		return false, nil // too short to be a layer
	}
	return bytes.Equal(magic[:], []byte{0x28, 0xb5, 0x2f, 0xfd}), nil
}

// trees compares the tree digest with SHA-256 over as many bytes in memory, on
// as many cores: what this machine could do if files cost nothing. What they do
// cost, whoever hashes them, is the second yardstick: the same files, their
// names known, opened, read, hashed and closed on all cores.
func trees(ctx context.Context, b *bench) error {
	const files, size = 32, 16 << 20
	big := filepath.Join(b.dir, "tree")
	if err := os.Mkdir(big, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(big)
	content := bytes.Repeat([]byte("assay bench 0123"), size/16)
	for i := range files {
		if err := os.WriteFile(filepath.Join(big, fmt.Sprint(i)), content, 0o644); err != nil {
			return err
		}
	}
	goroot, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("finding the Go distribution: %w", err)
	}
	for _, t := range []struct{ name, dir, target string }{
		{"tree digest of 32 files of 16 MiB", big, "> 0.80"},
		{"tree digest of the Go distribution", strings.TrimSpace(string(goroot)), "> 0.80"},
	} {
		paths, err := regularFiles(t.dir)
		if err != nil {
			return err
		}
		var sum tree.Sum
		m, err := b.alternate(ctx,
			func(ctx context.Context, _ int) (sample, error) {
				return timed(func() (err error) {
					sum, err = tree.Digest(ctx, t.dir, tree.Options{})
					return err
				})
			},
			func(context.Context, int) (sample, error) {
				return timed(func() error { hashMemory(sum.Bytes, int(sum.Bytes/sum.Files)); return nil })
			},
			func(context.Context, int) (sample, error) {
				return timed(func() error { return hashFiles(paths) })
			})
		if err != nil {
			return err
		}
		n := float64(sum.Bytes)
		b.compare(t.name, speed, n/m[0].wall, "SHA-256 of as many bytes in memory, all cores", n/m[1].wall, t.target)
		b.compare(t.name, speed, n/m[0].wall, "open, read, SHA-256, close of each file, all cores", n/m[2].wall, "")
	}
	return nil
}

// hashMemory hashes total bytes in pieces of a file's size on all cores.
func hashMemory(total int64, piece int) {
	workers := int64(runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			buf, h := make([]byte, min(piece, 256<<10)), sha256.New()
			for done := int64(0); done < total/workers; {
				h.Reset()
				for n := 0; n < piece; n += len(buf) {
					h.Write(buf)
					done += int64(len(buf))
				}
				h.Sum(nil)
			}
		})
	}
	wg.Wait()
}

// regularFiles lists the files below dir.
func regularFiles(dir string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			out = append(out, p)
		}
		return err
	})
	return out, err
}

// hashFiles hashes files on all cores, with as few system calls as there can be.
func hashFiles(paths []string) error {
	var next atomic.Int64
	var g errgroup.Group
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			buf, h := make([]byte, 128<<10), sha256.New()
			for {
				i := next.Add(1) - 1
				if i >= int64(len(paths)) {
					return nil
				}
				if err := hashFile(paths[i], h, buf); err != nil {
					return fmt.Errorf("hashing %s: %w", paths[i], err)
				}
			}
		})
	}
	return g.Wait()
}

func hashFile(path string, h hash.Hash, buf []byte) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	h.Reset()
	for {
		n, err := unix.Read(fd, buf)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		h.Write(buf[:max(n, 0)])
		// A short read is the end of a file, as far as this yardstick goes.
		if err == nil && n < len(buf) {
			h.Sum(nil)
			return nil
		}
	}
}
