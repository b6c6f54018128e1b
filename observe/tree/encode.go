package tree

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
)

// record is one entry of a folder, with its content already reduced to hashes.
type record struct {
	name   string
	kind   Kind
	mode   uint32 // permission bits, 0o7777
	size   int64  // File
	sum    [sha256.Size]byte
	blob   [sha1.Size]byte // git id of a File's or Dir's content
	target string          // Symlink
	major  uint32          // devices
	minor  uint32
	// noGit: a Dir that git does not list, because it holds nothing that git lists.
	noGit bool
}

// linkMode is hashed as the mode of every symbolic link. Linux has no other.
const linkMode = 0o777

// encoder turns folders into hashes. Its buffer is reused; one goroutine at a time.
type encoder struct {
	buf []byte
}

// dir hashes one folder's records, which it sorts by name as bytes. SPEC.md,
// "Folders", is the description of these lines.
func (e *encoder) dir(records []record) [sha256.Size]byte {
	slices.SortFunc(records, func(a, b record) int { return strings.Compare(a.name, b.name) })
	b := append(e.buf[:0], Scheme...)
	b = append(b, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(records)))
	for i := range records {
		r := &records[i]
		b = append(b, byte(r.kind))
		b = binary.BigEndian.AppendUint32(b, r.mode)
		b = binary.BigEndian.AppendUint32(b, uint32(len(r.name)))
		b = append(b, r.name...)
		switch r.kind {
		case File:
			b = binary.BigEndian.AppendUint64(b, uint64(r.size))
			b = append(b, r.sum[:]...)
		case Dir:
			b = append(b, r.sum[:]...)
		case Symlink:
			b = binary.BigEndian.AppendUint32(b, uint32(len(r.target)))
			b = append(b, r.target...)
		case CharDevice, BlockDevice:
			b = binary.BigEndian.AppendUint32(b, r.major)
			b = binary.BigEndian.AppendUint32(b, r.minor)
		}
	}
	e.buf = b
	return sha256.Sum256(b)
}

// gitDir hashes the same folder as git does. top is the tree's root, whose
// .git is left out. empty says that git would not list this folder; reason,
// that git cannot hold it, in words that follow its path.
func (e *encoder) gitDir(records []record, top bool) (id [sha1.Size]byte, empty bool, reason string) {
	listed := make([]*record, 0, len(records))
	for i := range records {
		r := &records[i]
		switch {
		case top && r.name == ".git":
			continue
		case strings.EqualFold(r.name, ".git"):
			return id, false, "holds " + strconv.Quote(r.name) + ", a repository or submodule of its own"
		case r.kind.Special():
			return id, false, "holds a " + r.kind.String() + ", " + strconv.Quote(r.name)
		case r.kind == Dir && r.noGit:
			continue
		}
		listed = append(listed, r)
	}
	// Git compares names as if a folder's ended in a slash.
	slices.SortFunc(listed, func(a, b *record) int { return compareGit(a, b) })
	body := e.buf[:0]
	for _, r := range listed {
		mode, blob := "100644", r.blob
		switch {
		case r.kind == Dir:
			mode = "40000"
		case r.kind == Symlink:
			mode, blob = "120000", gitBlob(r.target)
		case r.mode&0o100 != 0:
			mode = "100755"
		}
		body = append(body, mode...)
		body = append(body, ' ')
		body = append(body, r.name...)
		body = append(body, 0)
		body = append(body, blob[:]...)
	}
	e.buf = body
	h := sha1.New()
	h.Write(gitHeader("tree", int64(len(body))))
	h.Write(body)
	h.Sum(id[:0])
	return id, len(listed) == 0, ""
}

func compareGit(a, b *record) int {
	an, bn := a.name, b.name
	n := min(len(an), len(bn))
	if c := strings.Compare(an[:n], bn[:n]); c != 0 {
		return c
	}
	return int(gitByte(a, n)) - int(gitByte(b, n))
}

// gitByte is the byte at i of a name that is followed by a slash for folders
// and by a NUL for everything else.
func gitByte(r *record, i int) byte {
	switch {
	case i < len(r.name):
		return r.name[i]
	case r.kind == Dir:
		return '/'
	}
	return 0
}

func gitHeader(kind string, size int64) []byte {
	b := append(make([]byte, 0, 32), kind...)
	b = append(b, ' ')
	b = strconv.AppendInt(b, size, 10)
	return append(b, 0)
}

func gitBlob(content string) (id [sha1.Size]byte) {
	h := sha1.New()
	h.Write(gitHeader("blob", int64(len(content))))
	h.Write([]byte(content))
	h.Sum(id[:0])
	return id
}

func digestString(sum [sha256.Size]byte) string {
	return "sha256:" + hex.EncodeToString(sum[:])
}
