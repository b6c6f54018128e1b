package blob

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"sort"
	"strings"
	"syscall"

	"assay.dev/assay/store"
)

// folder is a bucket of files. gocloud.dev's fileblob has the same names, but its
// condition holds within one process only, and it syncs nothing to the disk.
//
// The path is opened anew for each operation, so that what is mounted or moved
// there later is what counts.
type folder struct{ dir string }

// fileParams reads file:///path?create_dir=true.
func fileParams(u *url.URL) (create bool, err error) {
	if u.Host != "" && u.Host != "localhost" || !strings.HasPrefix(u.Path, "/") || u.Opaque != "" {
		return false, fmt.Errorf("%s is no absolute path; write file:///path", u)
	}
	for param, values := range u.Query() {
		switch {
		case param == "create_dir":
			create = values[0] != "" // fileblob takes any value for yes
		case param == "no_tmp_dir", param == "metadata" && values[0] == "skip":
			// What is done anyway.
		default:
			return false, fmt.Errorf("unknown parameter %s=%s of file://; accepted: create_dir=true", param, values[0])
		}
	}
	return create, nil
}

func openFolder(dir string, create bool) (*folder, error) {
	if create {
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return nil, err
		}
	}
	f := &folder{dir}
	root, err := f.open("opening the folder")
	if err != nil {
		return nil, err
	}
	return f, root.Close()
}

func (f *folder) open(doing string) (*os.Root, error) {
	root, err := os.OpenRoot(f.dir)
	if err == nil {
		return root, nil
	}
	class := store.Configuration // missing, no folder, no rights
	for _, passing := range []error{syscall.EIO, syscall.EMFILE, syscall.ENFILE, syscall.ESTALE, syscall.ENOMEM} {
		if errors.Is(err, passing) {
			class = store.Transient
		}
	}
	return nil, store.As(class, fmt.Errorf("%s: %w", doing, err))
}

func (f *folder) close() error { return nil }

// fail gives an error of the file system its class: a full disk and a broken one
// go away, rights and missing folders are somebody's to change.
func (f *folder) fail(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return store.As(store.Configuration, fmt.Errorf("%s: %w: %w", doing, ErrDenied, err))
	case errors.Is(err, fs.ErrNotExist):
		return store.As(store.Configuration, fmt.Errorf("%s: %w: %w", doing, errAbsent, err))
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENOTSUP):
		return store.As(store.Configuration, fmt.Errorf("%s: %w", doing, err))
	}
	return store.As(store.Transient, fmt.Errorf("%s: %w", doing, err))
}

func (f *folder) get(ctx context.Context, name string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	root, err := f.open("reading " + name)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	// Never through a link, nor from a device that would not end.
	file, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, f.fail("reading "+name, err)
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, store.As(store.Configuration, fmt.Errorf("reading %s: no regular file", name))
	}
	data, err := io.ReadAll(io.LimitReader(file, maxObject+1))
	if err == nil && len(data) > maxObject {
		return nil, store.As(store.Permanent, fmt.Errorf("reading %s: more than %d bytes: %w", name, maxObject, store.ErrTooMuch))
	}
	return data, f.fail("reading "+name, err)
}

func (f *folder) create(ctx context.Context, name string, data []byte) (bool, error) {
	return f.write(ctx, name, data, (*os.Root).Link)
}

func (f *folder) put(ctx context.Context, name string, data []byte) error {
	_, err := f.write(ctx, name, data, (*os.Root).Rename)
	return err
}

// write makes a synced file and then gives it its name by link, which fails where
// the name is taken, or by rename. Both are one step for every process, and the
// folder is synced before write says that it is done.
func (f *folder) write(ctx context.Context, name string, data []byte, as func(root *os.Root, from, to string) error) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	doing := "writing " + name
	root, err := f.open(doing)
	if err != nil {
		return false, err
	}
	defer root.Close()
	dir := path.Dir(name)
	if err := root.Mkdir(dir, 0o777); err == nil {
		if err := syncDir(root, "."); err != nil {
			return false, f.fail(doing, err)
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return false, f.fail(doing, err)
	}
	temp := dir + "/.new-" + rand.Text()
	file, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return false, f.fail(doing, err)
	}
	defer root.Remove(temp)
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return false, f.fail(doing, err)
	}
	if err := as(root, temp, name); errors.Is(err, fs.ErrExist) {
		return false, nil
	} else if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.ENOSYS) {
		return false, store.As(store.Configuration, fmt.Errorf("%s: the file system has no hard links, which keep two writers apart; use another: %w", doing, err))
	} else if err != nil {
		return false, f.fail(doing, err)
	}
	return true, f.fail(doing, syncDir(root, dir))
}

func syncDir(root *os.Root, dir string) error {
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (f *folder) holds(ctx context.Context, name string, data []byte) (bool, error) {
	now, err := f.get(ctx, name)
	return err == nil && bytes.Equal(now, data), ignore(err, errAbsent)
}

func (f *folder) list(ctx context.Context, prefix string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	root, err := f.open("listing")
	if err != nil {
		return nil, err
	}
	defer root.Close()
	dir, err := root.Open(path.Dir(prefix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, f.fail("listing", err)
	}
	defer dir.Close()
	var names []string
	for {
		entries, err := dir.ReadDir(1000)
		for _, e := range entries {
			if name := path.Dir(prefix) + "/" + e.Name(); strings.HasPrefix(name, prefix) {
				names = append(names, name)
			}
		}
		switch {
		case len(names) > maxNames:
			return nil, store.As(store.Permanent, store.ErrTooMuch)
		case errors.Is(err, io.EOF):
			sort.Strings(names)
			return names, nil
		case err != nil:
			return nil, f.fail("listing", err)
		}
	}
}
