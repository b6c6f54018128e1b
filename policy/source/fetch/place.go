package fetch

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// place writes the files of one source into a folder and nowhere else, within bounds.
type place struct {
	root   *os.Root
	limits Limits
	files  int
	bytes  int64
}

// checkName refuses names that do not lead to a file below the folder.
func checkName(name string) error {
	switch {
	case !fs.ValidPath(name) || name == ".":
		return fmt.Errorf("a file is called %.200q, which leads out of its folder or is no name", name)
	case strings.ContainsAny(name, "\\\x00"):
		return fmt.Errorf("a file is called %.200q, with a character that does not belong into a name", name)
	case len(name) > 4096:
		return fmt.Errorf("a file's name has %d bytes", len(name))
	}
	return nil
}

// file writes a file. Two of one name are an error.
func (p *place) file(name string, r io.Reader) error {
	if err := checkName(name); err != nil {
		return err
	}
	if p.files++; p.files > p.limits.Files {
		return fmt.Errorf("it has more than %d files", p.limits.Files)
	}
	if dir := path.Dir(name); dir != "." {
		if err := p.root.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	f, err := p.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("it has two files by the name %s", name)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	n, err := io.Copy(f, io.LimitReader(r, p.limits.File+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if n > p.limits.File {
		return fmt.Errorf("%s is larger than %d MiB", name, p.limits.File>>20)
	}
	if p.bytes += n; p.bytes > p.limits.Bytes {
		return fmt.Errorf("its files have more than %d MiB", p.limits.Bytes>>20)
	}
	return nil
}

// tarGzip unpacks a compressed archive whose entries are below folder, as ORAS packs
// them. Links and devices are refused: policies have none.
func (p *place) tarGzip(folder string, r io.Reader) error {
	z, err := gzip.NewReader(r)
	if err != nil {
		return fmt.Errorf("unpacking %s: %w", folder, err)
	}
	// A little above all files is for the archive's own headers and padding.
	bounded := &bound{r: z, left: p.limits.Bytes + int64(p.limits.Files)*2048 + 1<<20, what: "the archive, unpacked,"}
	t := tar.NewReader(bounded)
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("unpacking %s: %w", folder, err)
		}
		if n > 2*p.limits.Files {
			return fmt.Errorf("unpacking %s: it has more than %d entries", folder, 2*p.limits.Files)
		}
		name := strings.TrimSuffix(strings.TrimPrefix(h.Name, "./"), "/")
		switch h.Typeflag {
		case tar.TypeXGlobalHeader:
			continue
		case tar.TypeDir:
			if name == "" || name == "." {
				continue
			}
			if err := checkName(name); err != nil {
				return fmt.Errorf("unpacking %s: %w", folder, err)
			}
			continue // folders come with their files
		case tar.TypeReg:
		default:
			return fmt.Errorf("unpacking %s: %.200q is a link or a device, and only files are taken", folder, h.Name)
		}
		if name != folder && !strings.HasPrefix(name, folder+"/") {
			return fmt.Errorf("unpacking %s: %.200q is not in that folder", folder, h.Name)
		}
		if err := p.file(name, t); err != nil {
			return fmt.Errorf("unpacking %s: %w", folder, err)
		}
	}
	// The checksum at the end of the compressed bytes is read, too.
	if _, err := io.Copy(io.Discard, bounded); err != nil {
		return fmt.Errorf("unpacking %s: %w", folder, err)
	}
	return nil
}

// bound is a reader that fails beyond a number of bytes.
type bound struct {
	r    io.Reader
	left int64
	what string
}

func (b *bound) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, fmt.Errorf("%s is larger than is read", b.what)
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("%s is larger than is read", b.what)
	}
	return n, err
}
