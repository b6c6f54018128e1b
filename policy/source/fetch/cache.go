package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"assay.dev/assay/policy/source"
)

// How long an entry that nobody asked for is kept, and a folder that somebody wrote
// and never moved into place.
const (
	keepEntry = 60 * 24 * time.Hour
	keepAside = 24 * time.Hour
)

// cache keeps what was fetched:
//
//	<dir>/v1/<sha256 of what it is>/entry.json   what it is, and its files' digests
//	                               /tree/…       the files
type cache struct {
	dir    string
	other  string // where dir cannot be; empty: nowhere
	limits Limits

	once sync.Once
	at   string // guarded by once
	err  error
}

// folder is <dir>/v1, made if it is not there.
func (c *cache) folder() (string, error) {
	c.once.Do(func() {
		if c.dir != "" {
			c.at = filepath.Join(c.dir, "v1")
			if c.err = os.MkdirAll(c.at, 0o700); c.err == nil {
				return
			}
		}
		if c.other == "" {
			return
		}
		// Others can write beside it, so it has to be ours alone.
		if err := os.Mkdir(c.other, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			c.err = errors.Join(c.err, err)
			return
		}
		info, err := os.Lstat(c.other)
		if err == nil && (!info.IsDir() || info.Mode().Perm() != 0o700 || !mine(info)) {
			err = fmt.Errorf("%s is somebody else's", c.other)
		}
		if err != nil {
			c.err = errors.Join(c.err, err)
			return
		}
		c.at = filepath.Join(c.other, "v1")
		c.err = os.MkdirAll(c.at, 0o700)
	})
	if c.err != nil {
		return "", fmt.Errorf("making the cache folder (set XDG_CACHE_HOME to where one can be): %w", c.err)
	}
	return c.at, nil
}

// mine says whether a file belongs to this user.
func mine(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int64(st.Uid) == int64(os.Geteuid())
}

// entry is entry.json.
type entry struct {
	Key   string            `json:"key"`
	Files map[string]string `json:"files"` // sha256:… by path
}

// errMissing says that there is no entry, or none that can be believed.
var errMissing = errors.New("not in the cache")

// place is where an entry lies. folder has to have been called.
func (c *cache) place(key string) string {
	h := sha256.Sum256([]byte(key))
	return filepath.Join(c.at, hex.EncodeToString(h[:]))
}

// get returns an entry whose files are what they were, pinned as its caller calls it.
// One that is not as it was
// written is taken away, and errMissing.
func (c *cache) get(key, pinned string) (*source.Tree, error) {
	if _, err := c.folder(); err != nil {
		return nil, err
	}
	dir := c.place(key)
	t, err := c.read(dir, key)
	if err == nil {
		now := time.Now()
		_ = os.Chtimes(dir, now, now) // it was of use; see clean
		t.Pinned = pinned
		return t, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		c.remove(dir)
	}
	return nil, errMissing
}

func (c *cache) read(dir, key string) (*source.Tree, error) {
	raw, err := source.ReadFile(filepath.Join(dir, "entry.json"), 16<<20)
	if err != nil {
		return nil, err
	}
	var e entry
	if err := json.Unmarshal(raw, &e); err != nil {
		return nil, err
	}
	if e.Key != key {
		return nil, errors.New("it is another entry")
	}
	tree := filepath.Join(dir, "tree")
	t, err := source.Open(tree)
	if err != nil {
		return nil, fmt.Errorf("it is not as it was written: %w", err)
	}
	// The bytes that are checked here are the ones that are evaluated.
	held, err := t.Files(nil)
	if err != nil {
		return nil, err
	}
	have := map[string]string{}
	for _, f := range held {
		have[f.Path] = sum(f.Bytes)
	}
	err = filepath.WalkDir(tree, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(tree, p)
		if err != nil {
			return err
		}
		if rel = filepath.ToSlash(rel); have[rel] != "" {
			return nil
		}
		have[rel], err = sumFile(p, c.limits.File)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(have) != len(e.Files) {
		return nil, errors.New("it has other files than were written")
	}
	for name, digest := range e.Files {
		if have[name] != digest {
			return nil, errors.New("it has other files than were written")
		}
	}
	return t, nil
}

// put makes an entry of what fill writes, and returns it as get does. If another
// process was faster, its entry counts.
func (c *cache) put(ctx context.Context, key, pinned string, fill func(context.Context, *place) error) (*source.Tree, error) {
	v, err := c.folder()
	if err != nil {
		return nil, err
	}
	c.clean()
	aside, err := os.MkdirTemp(v, "tmp-")
	if err != nil {
		return nil, fmt.Errorf("writing into the cache: %w", err)
	}
	defer os.RemoveAll(aside)
	tree := filepath.Join(aside, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return nil, fmt.Errorf("writing into the cache: %w", err)
	}
	root, err := os.OpenRoot(tree)
	if err != nil {
		return nil, fmt.Errorf("writing into the cache: %w", err)
	}
	p := &place{root: root, limits: c.limits}
	if err := errors.Join(fill(ctx, p), root.Close()); err != nil {
		return nil, err
	}
	if p.files == 0 {
		return nil, errNoTree
	}
	e := entry{Key: key, Files: map[string]string{}}
	err = filepath.WalkDir(tree, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(tree, p)
		if err != nil {
			return err
		}
		e.Files[filepath.ToSlash(rel)], err = sumFile(p, c.limits.File)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("writing into the cache: %w", err)
	}
	raw, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("writing into the cache: %w", err)
	}
	if err := os.WriteFile(filepath.Join(aside, "entry.json"), raw, 0o644); err != nil {
		return nil, fmt.Errorf("writing into the cache: %w", err)
	}
	dir := c.place(key)
	for range 3 {
		if err = os.Rename(aside, dir); err == nil {
			break
		}
		// Somebody else's is there: it counts if it is good, and goes if not.
		if t, err := c.read(dir, key); err == nil {
			t.Pinned = pinned
			return t, nil
		}
		c.remove(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("writing into the cache: %w", err)
	}
	t, err := c.read(dir, key)
	if err != nil {
		return nil, fmt.Errorf("reading what was just written into the cache: %w", err)
	}
	t.Pinned = pinned
	return t, nil
}

// remove takes an entry away; it is moved first, so that nobody sees half of it.
func (c *cache) remove(dir string) {
	aside, err := os.MkdirTemp(c.at, "tmp-")
	if err != nil {
		return
	}
	_ = os.Rename(dir, filepath.Join(aside, "old"))
	_ = os.RemoveAll(aside)
}

// clean takes away what nobody wants any more.
func (c *cache) clean() {
	v := c.at
	list, err := os.ReadDir(v)
	if err != nil {
		return
	}
	for _, d := range list {
		info, err := d.Info()
		if err != nil {
			continue
		}
		age := time.Since(info.ModTime())
		switch {
		case strings.HasPrefix(d.Name(), "tmp-") && age > keepAside:
			_ = os.RemoveAll(filepath.Join(v, d.Name()))
		case age > keepEntry:
			c.remove(filepath.Join(v, d.Name()))
		}
	}
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}

func sumFile(p string, limit int64) (string, error) {
	// Nothing but files was written, so nothing but files is read.
	info, err := os.Lstat(p)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a regular file", p)
	}
	f, err := os.Open(p)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if n, err := io.Copy(h, io.LimitReader(f, limit+1)); err != nil {
		return "", err
	} else if n > limit {
		return "", fmt.Errorf("%s is larger than %d MiB", p, limit>>20)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}
