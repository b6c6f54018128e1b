package attest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// maxKeyFile is the size in bytes of the largest key file that is read.
const maxKeyFile = 64 << 10

// LoadSigner reads a private key from a file: see ParseKey for the formats.
// The file must be a regular one that belongs to this user or root and that
// group and others can neither read nor write, else the error is
// ErrPermissions: a key that others could read may already have signed for
// them. Password may be nil for keys in the clear.
func LoadSigner(path string, password Password) (*Key, error) {
	data, err := readKeyFile(path)
	if err != nil {
		return nil, fmt.Errorf("loading key %s: %w", path, err)
	}
	k, err := ParseKey(data, password)
	if err != nil {
		return nil, fmt.Errorf("loading key %s: %w", path, err)
	}
	return k, nil
}

func readKeyFile(path string) ([]byte, error) {
	// O_NONBLOCK: a FIFO must not hang us before fstat can refuse it. Links
	// are followed, since Kubernetes mounts secrets as such; what is checked is
	// the file that is read.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("not a regular file (%s)", info.Mode().Type())
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("%w (mode %04o): run chmod 600 %s, and replace the key if others were on this machine", ErrPermissions, perm, path)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("%w: it belongs to uid %d, not to uid %d or root", ErrPermissions, st.Uid, os.Geteuid())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxKeyFile {
		return nil, fmt.Errorf("larger than %d bytes; this is no key", maxKeyFile)
	}
	return data, nil
}

// WriteFiles writes the private key to path (mode 0600, see PrivatePEM) and the
// public half to publicPath (mode 0644). It never overwrites: an existing file
// is an error and stays as it is. On any error neither file is left behind
// half-written; when it returns nil both are on disk.
func (k *Key) WriteFiles(path, publicPath string, password []byte) error {
	private, err := k.PrivatePEM(password)
	if err != nil {
		return err
	}
	if err := writeNew(path, private, 0o600); err != nil {
		return fmt.Errorf("writing private key: %w", err)
	}
	if err := writeNew(publicPath, k.PublicPEM(), 0o644); err != nil {
		return errors.Join(fmt.Errorf("writing public key: %w", err), os.Remove(path))
	}
	return nil
}

// writeNew creates a file with its content, durably, or leaves nothing.
func writeNew(path string, data []byte, perm os.FileMode) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s exists; keys are never overwritten, choose another name or move it away: %w", path, os.ErrExist)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close() // again where Close failed; harmless
			err = errors.Join(err, os.Remove(path))
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	// The umask may have taken bits away; it must not decide who can verify.
	if err = f.Chmod(perm); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	// The name is durable once its directory is.
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
