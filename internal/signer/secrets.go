package signer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sync/singleflight"

	"assay.dev/assay/attest"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/signing"
	"assay.dev/assay/store"
)

// Names of files in a folder of secrets, as Tekton Chains has them; the first that
// is there counts.
const (
	fileX509     = "x509.pem"
	fileCosign   = "cosign.key"
	filePassword = "cosign.password"
)

// settle is how long a key that was good and is now not is waited for, since its
// files may be being written.
const settle = 2 * time.Second

// maxSecret is the size in bytes of the largest key or password that is read.
const maxSecret = 64 << 10

// fileKey is a key that was read from the folder of secrets.
type fileKey struct {
	private *attest.Key
	public  dsse.PublicKey
	// generation counts the keys that were read, so that a message under way with
	// the one before is not taken for a change back.
	generation uint64
}

func (k *fileKey) sign(ctx context.Context, m signing.Message) (store.Signature, error) {
	raw, err := k.private.SignHashed(ctx, m.Bytes, m.SHA256)
	if err != nil {
		return store.Signature{}, err
	}
	s := store.Signature{KeyID: k.public.KeyID(), Sig: raw, Key: k.public}
	return s, signing.Verify(m, s)
}

// prints tell whether the files changed: every use compares them, so that no
// notification has to arrive.
type prints [3]print

type print struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
	err          string
}

// loaded is what was read while the files were as prints say. Either key or err
// is set.
type loaded struct {
	prints prints
	key    *fileKey
	err    error
}

// fileKeys is the key in a folder of secrets, read again when it changes.
type fileKeys struct {
	dir     string
	log     *slog.Logger
	settle  time.Duration
	state   atomic.Pointer[loaded]
	loading singleflight.Group
	reads   uint64 // counted by load, which runs once at a time
	watcher *fsnotify.Watcher
	done    sync.WaitGroup
}

// watchFiles begins to look after a folder.
func watchFiles(dir string, settle time.Duration, log *slog.Logger) *fileKeys {
	f := &fileKeys{dir: dir, log: log, settle: settle}
	if dir == "" {
		return f
	}
	// Only to have a new key decrypted before it is needed: without notifications
	// the first use does it.
	w, err := fsnotify.NewWatcher()
	if err == nil {
		if err = w.Add(dir); err != nil {
			err = errors.Join(err, w.Close())
		}
	}
	if err != nil {
		log.Warn("watching the secrets; a new key is read at its first use", "folder", dir, "error", err)
	} else {
		f.watcher = w
		f.done.Go(f.watch)
	}
	f.done.Go(func() {
		if _, err := f.key(context.Background()); err != nil {
			log.Warn("no key in files", "error", err)
		}
	})
	return f
}

func (f *fileKeys) watch() {
	for {
		select {
		case _, ok := <-f.watcher.Events:
			if !ok {
				return
			}
			// The outcome is noted where the key is used.
			f.key(context.Background()) //nolint:errcheck // see above
		case err, ok := <-f.watcher.Errors:
			if !ok {
				return
			}
			f.log.Warn("watching the secrets", "error", err)
		}
	}
}

// Close ends watching. Keys that were handed out stay.
func (f *fileKeys) Close() error {
	var err error
	if f.watcher != nil {
		err = f.watcher.Close()
	}
	f.done.Wait()
	return err
}

// key is the key that is in the folder now. While another request reads it the
// caller waits, or gives up with its context.
func (f *fileKeys) key(ctx context.Context) (*fileKey, error) {
	if f.dir == "" {
		return nil, store.As(store.Configuration, errors.New("this signer has no keys in files; start it with --secrets"))
	}
	if s := f.state.Load(); s != nil && s.prints == f.look() {
		return s.key, s.err
	}
	select {
	case r := <-f.loading.DoChan("", func() (any, error) { return f.load(), nil }):
		s := r.Val.(*loaded)
		return s.key, s.err
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the key: %w", ctx.Err())
	}
}

func (f *fileKeys) look() (p prints) {
	for i, name := range []string{fileX509, fileCosign, filePassword} {
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join(f.dir, name), &st); err != nil {
			p[i].err = err.Error()
			continue
		}
		p[i] = print{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
	}
	return p
}

// load reads the folder until it is the same before and after, and, where a good
// key was replaced by none, until the patience with whoever replaces it ends.
func (f *fileKeys) load() *loaded {
	before := f.state.Load()
	if before != nil && before.prints == f.look() {
		return before
	}
	patience := time.Now().Add(f.settle)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		s := &loaded{prints: f.look()}
		s.key, s.err = f.read()
		same := s.prints == f.look()
		wait := !same || s.err != nil && before != nil && before.err == nil
		if wait && time.Now().Before(patience) {
			time.Sleep(pause)
			continue
		}
		if !same {
			s.key, s.err = nil, errors.New("it changes faster than it can be read")
		}
		if s.err != nil {
			s.err = store.As(store.Configuration, fmt.Errorf("loading the key in %s: %w", f.dir, s.err))
		} else if before == nil || before.key == nil || before.key.public.Fingerprint() != s.key.public.Fingerprint() {
			f.log.Info("signing with a new key", "keyid", s.key.public.KeyID())
		}
		if s.key != nil {
			f.reads++
			s.key.generation = f.reads
		}
		f.state.Store(s)
		return s
	}
}

func (f *fileKeys) read() (*fileKey, error) {
	name := fileX509
	data, err := f.file(name)
	var password attest.Password
	if errors.Is(err, fs.ErrNotExist) {
		name = fileCosign
		data, err = f.file(name)
		password = func() ([]byte, error) {
			p, err := f.file(filePassword)
			if errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("%s is encrypted and there is no %s", fileCosign, filePassword)
			}
			if p == nil {
				p = []byte{} // an empty password is one
			}
			return p, err
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is neither %s nor %s; make one with: cosign generate-key-pair k8s://NAMESPACE/signing-secrets, or openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256", fileX509, fileCosign)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	k, err := attest.ParseKeyOrRSA(data, password)
	if errors.Is(err, attest.ErrPassword) {
		// Editors and echo end files with a newline that is not of the password.
		if p, perr := password(); perr == nil && strings.TrimRight(string(p), "\r\n") != string(p) {
			k, err = attest.ParseKeyOrRSA(data, attest.StaticPassword([]byte(strings.TrimRight(string(p), "\r\n"))))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	public, err := dsse.NewPublicKey(k.Public())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &fileKey{private: k, public: public}, nil
}

// file reads one file. In a Secret's volume Kubernetes sets the modes and nobody
// else has a way in; elsewhere a file that is open to others is refused, as
// attest.LoadSigner does.
func (f *fileKeys) file(name string) ([]byte, error) {
	path := filepath.Join(f.dir, name)
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("not a regular file (%s)", info.Mode().Type())
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 && !f.volume() {
		return nil, fmt.Errorf("%w (mode %04o): run chmod 600 %s, and replace the key if others were on this machine", attest.ErrPermissions, perm, path)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxSecret+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxSecret {
		return nil, fmt.Errorf("larger than %d bytes", maxSecret)
	}
	return data, nil
}

// volume says whether the folder is a volume that Kubernetes writes: its files are
// links through ..data, which is swapped as a whole.
func (f *fileKeys) volume() bool {
	info, err := os.Lstat(filepath.Join(f.dir, "..data"))
	return err == nil && info.Mode()&os.ModeSymlink != 0
}
