// Package folder keeps records in a local folder, in the layout that Tekton
// Chains' back end gcs has in a bucket:
//
//	<folder>/taskrun-<namespace>-<name>/<key>.payload
//	<folder>/taskrun-<namespace>-<name>/<key>.signature
//	<folder>/taskrun-<namespace>-<name>/<key>.cert         where a certificate names the signer
//	<folder>/taskrun-<namespace>-<name>/<key>.chain        likewise
//	<folder>/pipelinerun-<namespace>-<name>/…
//
// so that a folder can be copied into a bucket and the other way round.
//
// # What holds
//
// Every file is written beside its place, synced and renamed, and then its folder
// is synced: after Keep has returned, a power cut loses nothing, and nobody ever
// reads half a file. A record is up to four files; the payload comes last, and a
// record counts as there only if its signature fits its payload, so that a crash
// between two files is a record that is not there, and keeping it again completes
// it. Writers and readers, of other processes too, take turns by a lock on the
// run's folder (flock, which network file systems may not have between machines).
//
// Names are checked before they become paths, and all paths are opened below the
// folder (os.Root): no name and no symbolic link leads out of it.
//
// As upstream's, the layout joins namespace and name with a dash, so the runs b-c
// of namespace a and c of a-b share a folder. Statements have the run's uid in
// their key and do not meet there; signatures of one image may, and the later one
// stays. Of several signatures of an image the first is kept.
package folder

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/store"
)

// Keeper keeps records below one folder. It is safe for concurrent use.
type Keeper struct {
	path string
	root *os.Root
}

var _ store.Keeper = (*Keeper)(nil)

// New opens a folder and makes it if it is not there. It fails, as a matter of
// configuration, if that cannot be done.
func New(dir string) (*Keeper, error) {
	if dir == "" {
		return nil, store.As(store.Configuration, errors.New("no folder given: set assay.storage.folder.path"))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, store.As(store.Configuration, fmt.Errorf("making folder for records: %w", err))
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, store.As(store.Configuration, fmt.Errorf("opening folder for records: %w", err))
	}
	return &Keeper{dir, root}, nil
}

// Name implements store.Keeper.
func (*Keeper) Name() string { return "folder" }

// Close implements store.Keeper.
func (k *Keeper) Close() error { return k.root.Close() }

// suffixes in the order in which they are written.
var suffixes = [...]string{".chain", ".cert", ".signature", ".payload"}

// maxFile bounds what is read back.
const maxFile = dsse.MaxEnvelope

// Keep implements store.Keeper.
func (k *Keeper) Keep(ctx context.Context, records []store.Record) []store.Outcome {
	out := make([]store.Outcome, len(records))
	if len(records) == 0 {
		return out
	}
	run := records[0].Run
	fail := func(i int, err error) {
		out[i] = store.Outcome{Err: fmt.Errorf("keeping %s of %s in folder %s: %w", records[i].Key, records[i].Run, k.path, err)}
	}
	name, err := runFolder(run)
	var dir *locked
	if err == nil {
		dir, err = k.lock(ctx, name, true)
	}
	if err != nil {
		for i := range records {
			fail(i, err)
		}
		return out
	}
	defer dir.close()
	var written []int
	for i, r := range records {
		if err := ctx.Err(); err != nil {
			fail(i, err)
			continue
		}
		if r.Run != run {
			fail(i, store.As(store.Permanent, fmt.Errorf("it is about another run than the first record, %s", run)))
			continue
		}
		out[i], err = dir.keep(r)
		if err != nil {
			fail(i, classify(err))
			continue
		}
		out[i].Where = []string{path.Join(k.path, name, r.Key)}
		written = append(written, i)
	}
	// Existing records too: the process that wrote them may have died before this.
	if err := dir.sync(); err != nil {
		for _, i := range written {
			fail(i, classify(err))
		}
	}
	return out
}

// Find implements store.Keeper. A record with a file missing is not there: it was
// never kept to the end.
func (k *Keeper) Find(ctx context.Context, run store.Run, key string) ([]store.Kept, error) {
	kept, err := k.find(ctx, run, key)
	if err != nil {
		return nil, fmt.Errorf("finding %s of %s in folder %s: %w", key, run, k.path, err)
	}
	return kept, nil
}

func (k *Keeper) find(ctx context.Context, run store.Run, key string) ([]store.Kept, error) {
	name, err := runFolder(run)
	if err == nil {
		err = checkName("key", key, 255-len(".signature"))
	}
	if err != nil {
		return nil, err
	}
	dir, err := k.lock(ctx, name, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.close()
	kept, ok, err := dir.read(key)
	if err != nil || !ok {
		return nil, classify(err)
	}
	kept.Where = path.Join(k.path, name, key)
	return []store.Kept{kept}, nil
}

// runFolder is upstream's name for a run's folder.
func runFolder(run store.Run) (string, error) {
	kind := strings.ToLower(run.Kind)
	if run.Kind != "TaskRun" && run.Kind != "PipelineRun" {
		return "", store.As(store.Permanent, fmt.Errorf("kind %q has no place in this layout; it knows TaskRun and PipelineRun", run.Kind))
	}
	if err := checkName("namespace", run.Namespace, 63); err != nil {
		return "", err
	}
	if err := checkName("name", run.Name, 253); err != nil {
		return "", err
	}
	name := kind + "-" + run.Namespace + "-" + run.Name
	if len(name) > 255 {
		return "", store.As(store.Permanent, fmt.Errorf("folder name %s has %d bytes, file systems take 255", name, len(name)))
	}
	return name, nil
}

// nameForm leaves no room for a path, a hidden file or a temporary one.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

func checkName(what, name string, most int) error {
	if !nameForm.MatchString(name) || len(name) > most {
		return store.As(store.Permanent, fmt.Errorf("%s %.300q makes no file name (letters, digits and .-_, %d at most)", what, name, most))
	}
	return nil
}

// locked is a run's folder while it is ours.
type locked struct {
	root *os.Root
	file *os.File // of the folder; holds the lock
	up   *os.Root // where a new folder's name must become durable
}

// lock opens a run's folder and waits until it is free. To write it is made if it
// is not there.
func (k *Keeper) lock(ctx context.Context, name string, write bool) (_ *locked, err error) {
	if write {
		if err := k.root.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, classify(err)
		}
	}
	root, err := k.root.OpenRoot(name)
	if err != nil {
		if fi, e := k.root.Lstat(name); e == nil && !fi.IsDir() {
			return nil, store.As(store.Configuration, fmt.Errorf("%w: something that is no folder has the run's place; take it away", err))
		}
		return nil, classify(err)
	}
	file, err := root.Open(".")
	if err != nil {
		_ = root.Close()
		return nil, classify(err)
	}
	l := &locked{root, file, k.root}
	how := unix.LOCK_SH
	if write {
		how = unix.LOCK_EX
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if err = ctx.Err(); err == nil {
			err = unix.Flock(int(file.Fd()), how|unix.LOCK_NB)
		}
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			l.close()
			return nil, classify(err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

func (l *locked) close() {
	_ = l.file.Close() // and with it the lock
	_ = l.root.Close()
}

func (l *locked) keep(r store.Record) (store.Outcome, error) {
	if err := r.Check(); err != nil {
		return store.Outcome{}, store.As(store.Permanent, err)
	}
	if err := checkName("key", r.Key, 255-len(".signature")); err != nil {
		return store.Outcome{}, err
	}
	sig, err := r.SignatureBytes()
	if err != nil {
		return store.Outcome{}, store.As(store.Permanent, err)
	}
	if max(len(sig), len(r.Payload)) > maxFile {
		return store.Outcome{}, store.As(store.Permanent, fmt.Errorf("it has %d bytes; %d are read back at most", max(len(sig), len(r.Payload)), maxFile))
	}
	kept, ok, err := l.read(r.Key)
	if err != nil {
		return store.Outcome{}, err
	}
	if ok && r.Same(kept) {
		return store.Outcome{Existing: true}, nil
	}
	// Without its payload the old record is gone before the first file of the new
	// one comes, so that no crash pairs one's payload with the other's signature.
	if err := l.root.Remove(r.Key + ".payload"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return store.Outcome{}, err
	}
	for i, b := range [][]byte{r.Signatures[0].Chain, r.Signatures[0].Cert, sig, r.Payload} {
		if err := l.write(r.Key+suffixes[i], b); err != nil {
			return store.Outcome{}, err
		}
	}
	return store.Outcome{}, nil
}

// write puts a file in its place, or takes it away where there is nothing to say.
func (l *locked) write(name string, b []byte) (err error) {
	if len(b) == 0 {
		if err := l.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	tmp := ".tmp-" + rand.Text()
	f, err := l.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = l.root.Remove(tmp)
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return l.root.Rename(tmp, name)
}

// sync makes names durable, and sweeps up what crashed writers left.
func (l *locked) sync() error {
	names, err := l.file.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if strings.HasPrefix(n, ".tmp-") {
			_ = l.root.Remove(n)
		}
	}
	if err := l.file.Sync(); err != nil {
		return err
	}
	up, err := l.up.Open(".")
	if err != nil {
		return err
	}
	defer up.Close()
	return up.Sync()
}

func (l *locked) read(key string) (store.Kept, bool, error) {
	var k store.Kept
	for i, to := range []*[]byte{&k.Chain, &k.Cert, &k.Signature, &k.Payload} {
		b, err := l.readFile(key + suffixes[i])
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return store.Kept{}, false, err
		}
		*to = b
	}
	return k, len(k.Payload) > 0 && len(k.Signature) > 0, nil
}

func (l *locked) readFile(name string) ([]byte, error) {
	f, err := l.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	n, err := io.Copy(&b, io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if n > maxFile {
		return nil, fmt.Errorf("file %s has more than %d bytes", name, maxFile)
	}
	return b.Bytes(), nil
}

// classify leaves classes that are known, and tells what a person must mend from
// what passes.
func classify(err error) error {
	var f *store.Fault
	if err == nil || errors.As(err, &f) {
		return err
	}
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ELOOP):
		return store.As(store.Configuration, err)
	case errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EFBIG):
		return store.As(store.Permanent, err)
	}
	return store.As(store.Transient, err)
}
