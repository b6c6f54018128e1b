package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// packer writes one layer's archive.
type packer struct {
	tar   *tar.Writer
	epoch time.Time
	dirs  map[string]bool // written already
	buf   []byte
}

// folder writes a folder of this machine. Names are sorted as the whole paths'
// bytes are within each folder; a folder that has nothing to pack after the
// patterns is left out, unless it matched as such.
func (p *packer) folder(ctx context.Context, f Folder) error {
	prefix, err := imagePath(f.Path)
	if err != nil {
		return err
	}
	only, err := parseGlobs(f.Only)
	if err != nil {
		return err
	}
	exclude, err := parseGlobs(f.Exclude)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(f.Host)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := p.parents(path.Join(prefix, "x")); err != nil {
		return err
	}
	n := 0
	var walk func(rel string) error
	walk = func(rel string) error {
		entries, err := readDir(root, rel)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return err
			}
			sub := path.Join(rel, e.Name())
			if exclude.covers(sub) {
				continue
			}
			chosen := len(only) == 0 || only.covers(sub)
			if !chosen && !(e.IsDir() && only.leadsTo(sub)) {
				continue
			}
			if chosen {
				n++
				if err := p.entry(root, sub, path.Join(prefix, sub)); err != nil {
					return fmt.Errorf("%s: %w", filepath.Join(f.Host, sub), err)
				}
			}
			if e.IsDir() {
				if err := walk(sub); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := walk("."); err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("%s: nothing to pack there; is it empty, or do the patterns leave everything out?", f.Host)
	}
	return nil
}

// readDir lists a folder below root in byte order.
func readDir(root *os.Root, rel string) ([]fs.DirEntry, error) {
	d, err := root.Open(filepath.FromSlash(rel))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, nil
}

func (p *packer) entry(root *os.Root, rel, name string) error {
	fi, err := root.Lstat(rel)
	if err != nil {
		return err
	}
	if err := p.parents(name); err != nil {
		return err
	}
	switch {
	case fi.IsDir():
		return p.dir(name)
	case fi.Mode()&fs.ModeSymlink != 0:
		target, err := root.Readlink(rel)
		if err != nil {
			return err
		}
		return p.header(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777})
	case fi.Mode().IsRegular():
		f, err := root.Open(rel)
		if err != nil {
			return err
		}
		defer f.Close()
		if fi, err = f.Stat(); err != nil {
			return err
		}
		return p.file(name, fi.Mode()&0o100 != 0, fi.Size(), f)
	}
	return fmt.Errorf("a %s cannot be packed; exclude it", describe(fi.Mode()))
}

func describe(m fs.FileMode) string {
	switch {
	case m&fs.ModeNamedPipe != 0:
		return "fifo"
	case m&fs.ModeSocket != 0:
		return "socket"
	}
	return "device"
}

// files writes the layer of single files.
func (p *packer) files(files []File) error {
	files = slices.Clone(files)
	slices.SortStableFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	last := ""
	for _, f := range files {
		name, err := imagePath(f.Path)
		if err != nil {
			return err
		}
		if name == "" || name == last {
			return fmt.Errorf("path %q in the image is given twice, or is the root", f.Path)
		}
		last = name
		if err := p.parents(name); err != nil {
			return err
		}
		if err := p.single(name, f); err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return nil
}

func (p *packer) single(name string, f File) error {
	if f.Host == "" {
		return p.file(name, f.Executable, int64(len(f.Content)), bytes.NewReader(f.Content))
	}
	h, err := os.Open(f.Host)
	if err != nil {
		return err
	}
	defer h.Close()
	fi, err := h.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", f.Host)
	}
	return p.file(name, f.Executable || fi.Mode()&0o100 != 0, fi.Size(), h)
}

// parents writes the folders above a name that are not there yet.
func (p *packer) parents(name string) error {
	dir := path.Dir(name)
	if dir == "." || p.dirs[dir] {
		return nil
	}
	if err := p.parents(dir); err != nil {
		return err
	}
	return p.dir(dir)
}

func (p *packer) dir(name string) error {
	if p.dirs[name] {
		return nil
	}
	p.dirs[name] = true
	return p.header(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755})
}

func (p *packer) header(h *tar.Header) error {
	h.ModTime = p.epoch
	h.Format = tar.FormatPAX
	return p.tar.WriteHeader(h)
}

func (p *packer) file(name string, executable bool, size int64, r io.Reader) error {
	mode := int64(0o644)
	if executable {
		mode = 0o755
	}
	if err := p.header(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: size}); err != nil {
		return err
	}
	n, err := io.CopyBuffer(p.tar, struct{ io.Reader }{io.LimitReader(r, size)}, p.buf)
	if err != nil {
		return err
	}
	if n != size {
		return errors.New("it became shorter while it was packed")
	}
	if extra, _ := r.Read(p.buf[:1]); extra != 0 {
		return errors.New("it became longer while it was packed")
	}
	return nil
}
