package tree

import (
	"errors"
	"fmt"
	"math"
)

// Scheme is the name and version of the digest, and the first bytes that are
// hashed for every folder.
const Scheme = "assay-tree/v1"

var (
	// ErrLimit is wrapped by errors about a tree that exceeds its Limits.
	ErrLimit = errors.New("tree exceeds a limit")
	// ErrSpecial is wrapped by errors about a device, fifo or socket where
	// Options.Special is not set.
	ErrSpecial = errors.New("not a file, folder or symbolic link")
	// ErrChanged is wrapped when an entry changed while it was measured:
	// something that writes was still alive.
	ErrChanged = errors.New("changed while it was measured")
)

// Sum is what a tree measures.
type Sum struct {
	// Digest is sha256:… of the tree in the scheme assay-tree/v1.
	Digest string
	// GitTree is the git tree id, 40 hexadecimal digits. It is empty if it was
	// not asked for, or if git cannot hold this tree.
	GitTree string
	// GitTreeReason says why GitTree is empty although it was asked for: git
	// could not hold this tree.
	GitTreeReason string
	// Files counts the regular files, Bytes their contents together.
	Files, Bytes int64
}

// Options for a measurement. The zero value refuses devices, fifos and
// sockets, computes no git tree and uses the default limits.
type Options struct {
	// GitTree asks for the git tree id as well.
	GitTree bool
	// Special digests devices, fifos and sockets by kind and device number
	// instead of refusing them, as an image's layers need it. They are not
	// opened in either case.
	Special bool
	// Limits bound the walk.
	Limits Limits
	// Workers is how many files are read at once. Default: GOMAXPROCS.
	Workers int
}

// Limits bound a tree. A zero field means the default, a negative one is an
// error: there is no way to ask for no bound.
type Limits struct {
	Entries   int64 // of all kinds, folders included; default 4,000,000
	Bytes     int64 // content of all regular files; default 256 GiB
	Depth     int   // of nested folders; default 512
	PathBytes int   // of a path below the root; default 4096
}

// WithDefaults fills in the defaults. It fails for a negative field.
func (l Limits) WithDefaults() (Limits, error) {
	if l.Entries < 0 || l.Bytes < 0 || l.Depth < 0 || l.PathBytes < 0 {
		return Limits{}, fmt.Errorf("checking tree limits: a limit is negative (%+v); 0 means the default", l)
	}
	if l.Entries == 0 {
		l.Entries = 4_000_000
	}
	if l.Bytes == 0 {
		l.Bytes = 256 << 30
	}
	if l.Depth == 0 {
		l.Depth = 512
	}
	if l.PathBytes == 0 {
		l.PathBytes = 4096
	}
	// A folder's entry count is encoded in 32 bits.
	l.Entries = min(l.Entries, math.MaxUint32)
	return l, nil
}

// Kind is the type of an entry, as the byte that is hashed for it.
type Kind byte

// Kinds of entries.
const (
	File        Kind = 'f'
	Dir         Kind = 'd'
	Symlink     Kind = 'l'
	CharDevice  Kind = 'c'
	BlockDevice Kind = 'b'
	FIFO        Kind = 'p'
	Socket      Kind = 's'
)

// String is the kind in words, for messages.
func (k Kind) String() string {
	switch k {
	case File:
		return "file"
	case Dir:
		return "folder"
	case Symlink:
		return "symbolic link"
	case CharDevice:
		return "character device"
	case BlockDevice:
		return "block device"
	case FIFO:
		return "fifo"
	case Socket:
		return "socket"
	}
	return fmt.Sprintf("unknown kind %#x", byte(k))
}

// Special tells devices, fifos and sockets from the kinds that have content.
func (k Kind) Special() bool {
	return k == CharDevice || k == BlockDevice || k == FIFO || k == Socket
}

// special is the one message about them.
func special(path string, k Kind) error {
	return fmt.Errorf("measuring %q: it is a %s, %w; have the task remove it before it ends", path, k, ErrSpecial)
}

func limit(path, what string, bound int64) error {
	return fmt.Errorf("measuring %q: more than %d %s: %w", path, bound, what, ErrLimit)
}
