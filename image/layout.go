package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// Layout is an OCI image layout that somebody else wrote, read beneath a held
// descriptor: no name in it is followed through a link, and nothing but
// regular files is opened. What it holds is one image or index, and manifests
// that refer to it.
//
// OpenLayout has read and checked every manifest; blobs are checked as they
// are read.
type Layout struct {
	dir    *os.File
	bounds Bounds
	// main is the one manifest that has no subject.
	main *layoutManifest
	// children of main, deepest first, when it is an index.
	children []*layoutManifest
	// referrers have main or one of its children as subject.
	referrers []*layoutManifest
	known     map[string]*layoutManifest
}

type layoutManifest struct {
	*Manifest
	blobs   []v1.Descriptor // configuration and layers
	subject string
}

// OpenLayout reads the layout in dir, which stays the caller's and must stay
// open. It fails with ErrBadImage for whatever is not a layout with exactly
// one image: other versions, missing or altered manifests, several images,
// referrers of something else, kinds of manifest that we do not know.
func OpenLayout(dir *os.File, b Bounds) (*Layout, error) {
	b, err := b.withDefaults()
	if err != nil {
		return nil, err
	}
	l := &Layout{dir: dir, bounds: b, known: map[string]*layoutManifest{}}
	if err := l.open(); err != nil {
		return nil, fail("reading layout", dir.Name(), badUnlessKinded(err))
	}
	return l, nil
}

// Digest is the image's or index's.
func (l *Layout) Digest() string { return l.main.Descriptor.Digest.String() }

// Manifests are the digests of all manifests: the image itself first, its
// children if it is an index, then its referrers.
func (l *Layout) Manifests() []string {
	out := []string{l.Digest()}
	for _, m := range slices.Concat(l.children, l.referrers) {
		out = append(out, m.Descriptor.Digest.String())
	}
	return out
}

func (l *Layout) open() error {
	raw, err := l.file(64<<10, "oci-layout")
	if err != nil {
		return fmt.Errorf("%w; is this an OCI layout?", err)
	}
	var version struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := json.Unmarshal(raw, &version); err != nil {
		return fmt.Errorf("parsing oci-layout: %w", err)
	}
	if version.Version != "1.0.0" {
		return fmt.Errorf("layout version %q is not supported, only 1.0.0", version.Version)
	}
	if raw, err = l.file(l.bounds.ManifestBytes, "index.json"); err != nil {
		return err
	}
	idx, err := parseIndex(raw)
	if err != nil {
		return fmt.Errorf("index.json: %w", err)
	}
	if len(idx.Manifests) > l.bounds.Manifests {
		return fmt.Errorf("index.json lists %d manifests, more than the bound of %d", len(idx.Manifests), l.bounds.Manifests)
	}
	var mains []*layoutManifest
	for _, d := range idx.Manifests {
		if l.known[d.Digest.String()] != nil {
			continue // one image under two tags
		}
		m, err := l.manifest(d)
		if err != nil {
			return err
		}
		if m.subject == "" {
			mains = append(mains, m)
		} else {
			l.referrers = append(l.referrers, m)
		}
	}
	if len(mains) != 1 {
		return fmt.Errorf("index.json lists %d images, want one: put the images of several platforms into an index, and give what belongs to an image a subject", len(mains))
	}
	l.main = mains[0]
	if err := l.descend(l.main, 0); err != nil {
		return err
	}
	for _, r := range l.referrers {
		if r.subject != l.Digest() && !slices.ContainsFunc(l.children, func(c *layoutManifest) bool { return c.Descriptor.Digest.String() == r.subject }) {
			return fmt.Errorf("%s refers to %s, which is not the image of this layout", r.Descriptor.Digest, r.subject)
		}
	}
	return nil
}

// descend reads what an index lists.
func (l *Layout) descend(m *layoutManifest, depth int) error {
	if !m.IsIndex() {
		return nil
	}
	if depth >= maxIndexDepth {
		return fmt.Errorf("indexes nest deeper than %d", maxIndexDepth)
	}
	idx, err := parseIndex(m.Raw)
	if err != nil {
		return err
	}
	if len(idx.Manifests) == 0 {
		return fmt.Errorf("the index %s lists no images", m.Descriptor.Digest)
	}
	for _, d := range idx.Manifests {
		if len(l.known) > l.bounds.Manifests {
			return fmt.Errorf("more than %d manifests", l.bounds.Manifests)
		}
		if known := l.known[d.Digest.String()]; known != nil {
			if slices.Contains(l.children, known) {
				continue
			}
			if known == l.main || slices.Contains(l.referrers, known) {
				return fmt.Errorf("%s is listed both by index.json and by the index", d.Digest)
			}
			return fmt.Errorf("the indexes list each other")
		}
		child, err := l.manifest(d)
		if err != nil {
			return err
		}
		if err := l.descend(child, depth+1); err != nil {
			return err
		}
		l.children = append(l.children, child)
	}
	return nil
}

// manifest reads and checks the manifest of a descriptor.
func (l *Layout) manifest(d v1.Descriptor) (*layoutManifest, error) {
	digest := d.Digest.String()
	if err := checkDigest(digest); err != nil {
		return nil, err
	}
	raw, err := l.file(l.bounds.ManifestBytes, "blobs", "sha256", hexOf(digest))
	if err != nil {
		return nil, err
	}
	if got := digestOf(raw); got != digest {
		return nil, fmt.Errorf("the content of blobs/sha256/%s hashes to %s", hexOf(digest), got)
	}
	if d.Size != int64(len(raw)) {
		return nil, fmt.Errorf("%s has %d bytes, its descriptor says %d", digest, len(raw), d.Size)
	}
	parsed, err := newManifest(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", digest, err)
	}
	if d.MediaType != parsed.Descriptor.MediaType {
		return nil, fmt.Errorf("%s is a %s, its descriptor says %s", digest, parsed.Descriptor.MediaType, d.MediaType)
	}
	m := &layoutManifest{Manifest: parsed}
	l.known[digest] = m
	if m.IsIndex() {
		idx, err := parseIndex(raw)
		if err != nil {
			return nil, err
		}
		if idx.Subject != nil {
			m.subject = idx.Subject.Digest.String()
		}
		if len(idx.Manifests) > l.bounds.Manifests {
			return nil, fmt.Errorf("%s lists %d manifests, more than the bound of %d", digest, len(idx.Manifests), l.bounds.Manifests)
		}
		if m.subject != "" && len(idx.Manifests) > 0 {
			return nil, fmt.Errorf("%s is an index with a subject, which is not supported", digest)
		}
		return m, nil
	}
	man, err := parseImage(raw)
	if err != nil {
		return nil, err
	}
	if man.Subject != nil {
		m.subject = man.Subject.Digest.String()
	}
	if len(man.Layers) > l.bounds.Layers {
		return nil, fmt.Errorf("%s has %d layers, more than the bound of %d", digest, len(man.Layers), l.bounds.Layers)
	}
	m.blobs = append([]v1.Descriptor{man.Config}, man.Layers...)
	for _, b := range m.blobs {
		if err := checkDigest(b.Digest.String()); err != nil {
			return nil, fmt.Errorf("%s: %w", digest, err)
		}
		if b.Size < 0 || b.Size > l.bounds.BlobBytes {
			return nil, fmt.Errorf("%s lists a blob of %d bytes; the bound is %d", digest, b.Size, l.bounds.BlobBytes)
		}
		if !types.MediaType(b.MediaType).IsDistributable() {
			return nil, fmt.Errorf("%s has a layer that is to be fetched from elsewhere (%s)", digest, b.MediaType)
		}
	}
	return m, nil
}

// blob opens a blob of the announced size. Its content is still to be checked.
func (l *Layout) blob(d v1.Descriptor) (io.ReadCloser, error) {
	f, err := l.openFile("blobs", "sha256", hexOf(d.Digest.String()))
	if errors.Is(err, os.ErrNotExist) && len(d.Data) > 0 && int64(len(d.Data)) == d.Size {
		return io.NopCloser(bytes.NewReader(d.Data)), nil
	}
	if err != nil {
		return nil, badUnlessKinded(err)
	}
	fi, err := f.Stat()
	if err == nil && fi.Size() != d.Size {
		err = fmt.Errorf("blob %s has %d bytes, its descriptor says %d", d.Digest, fi.Size(), d.Size)
	}
	if err != nil {
		f.Close()
		return nil, badUnlessKinded(err)
	}
	return f, nil
}

// file reads a whole file.
func (l *Layout) file(limit int64, names ...string) ([]byte, error) {
	f, err := l.openFile(names...)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := readBounded(f, limit)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.Name(), err)
	}
	return b, nil
}

// openFile opens a regular file, one name at a time and following no link. The
// last is looked at before it is opened: to open a device or a fifo can
// already do something.
func (l *Layout) openFile(names ...string) (*os.File, error) {
	fd, err := unix.FcntlInt(l.dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	at := ""
	for i, name := range names {
		at += "/" + name
		flags := unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
		if i < len(names)-1 {
			flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		}
		next, err := unix.Openat(fd, name, flags, 0)
		unix.Close(fd)
		if err != nil {
			return nil, fmt.Errorf("opening %s: %w", at[1:], err)
		}
		fd = next
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("opening %s: %w", at[1:], err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s is not a regular file", at[1:])
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", at[1:], err)
	}
	return f, nil
}
