package tlog

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// MaxCheckpoint is the size in bytes of the largest signed checkpoint that is read.
const MaxCheckpoint = 16 << 10

// Tree is a checkpoint's content: a log's name, and the size and root of its tree.
type Tree struct {
	Origin string
	Size   int64
	Root   tlog.Hash
}

// ParseTree reads the text of a checkpoint, or of a signed one, and verifies
// nothing: origin, size in decimal, root in base64, one a line; further lines are
// extensions, which are not read.
func ParseTree(text []byte) (Tree, error) {
	if len(text) > MaxCheckpoint {
		return Tree{}, fmt.Errorf("reading checkpoint: %d bytes; at most %d are read", len(text), MaxCheckpoint)
	}
	lines := strings.SplitN(string(text), "\n", 4)
	if len(lines) < 4 || lines[0] == "" {
		return Tree{}, errors.New("reading checkpoint: want the lines origin, size and root")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != lines[1] {
		return Tree{}, fmt.Errorf("reading checkpoint: size %.40q is no number", lines[1])
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		return Tree{}, errors.New("reading checkpoint: the root is no hash in base64")
	}
	return Tree{Origin: lines[0], Size: size, Root: tlog.Hash(root)}, nil
}

// Checkpoint is a signed checkpoint that was verified.
type Checkpoint struct {
	Tree
	Note []byte // as signed and cosigned
	Log  string // the log's name in the trust
	// Witnesses are the names of those whose cosignatures are on it, and Time the
	// earliest time that one of them gives; none and zero without witnesses.
	Witnesses []string
	Time      time.Time
}

// VerifyCheckpoint verifies a signed checkpoint: that one of the trust's logs signed
// it under its own name, and which witnesses cosigned it. A quorum that is not
// reached is an error here, as in everything else that takes a Trust. Signatures by
// unknown keys are ignored, as the format asks.
func VerifyCheckpoint(signed []byte, t Trust) (Checkpoint, error) {
	c, err := t.checkpoint(signed)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("verifying checkpoint: %w", err)
	}
	if err := t.quorum(c.Witnesses); err != nil {
		return Checkpoint{}, fmt.Errorf("verifying checkpoint: %w", err)
	}
	return c, nil
}

// checkpoint is VerifyCheckpoint without the quorum.
func (t Trust) checkpoint(signed []byte) (Checkpoint, error) {
	if err := t.Check(); err != nil {
		return Checkpoint{}, err
	}
	tree, err := ParseTree(signed)
	if err != nil {
		return Checkpoint{}, err
	}
	i := slices.IndexFunc(t.Logs, func(k LogKey) bool { return k.verifier.Name() == tree.Origin })
	if i < 0 {
		return Checkpoint{}, fmt.Errorf("log %q is none of the trusted %s", tree.Origin, t.logNames())
	}
	// A log has one key a name; several under one name are tried in turn.
	var n *note.Note
	for _, k := range t.Logs[i:] {
		if k.verifier.Name() != tree.Origin {
			continue
		}
		if n, err = note.Open(signed, note.VerifierList(k.verifier)); err == nil {
			i = slices.IndexFunc(t.Logs, func(o LogKey) bool { return o.vkey == k.vkey })
			break
		}
	}
	if n == nil {
		return Checkpoint{}, fmt.Errorf("it is not signed by the trusted key of log %q: %w", tree.Origin, err)
	}
	// What was signed, not what surrounds it.
	if tree, err = ParseTree([]byte(n.Text)); err != nil {
		return Checkpoint{}, err
	}
	c := Checkpoint{Tree: tree, Note: signed, Log: t.Logs[i].Name}
	c.Witnesses, c.Time = t.cosigned(signed)
	return c, nil
}

// cosigned lists the witnesses whose cosignatures are on a note, and the earliest
// time that they give.
func (t Trust) cosigned(signed []byte) (names []string, first time.Time) {
	for _, w := range t.Witnesses {
		n, err := note.Open(signed, note.VerifierList(w.verifier))
		if err != nil || len(n.Sigs) == 0 {
			continue
		}
		at, err := cosignatureTime(n.Sigs[0])
		if err != nil {
			continue
		}
		names = append(names, w.Name)
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	return names, first
}

// quorum is nil if enough witnesses cosigned.
func (t Trust) quorum(names []string) error {
	need := t.Quorum
	if need == 0 && len(t.Witnesses) > 0 {
		need = 1
	}
	if len(names) >= need {
		return nil
	}
	known := make([]string, len(t.Witnesses))
	for i, w := range t.Witnesses {
		known[i] = w.Name
	}
	return fmt.Errorf("the checkpoint is cosigned by %d of the trusted witnesses %q; %d needed", len(names), known, need)
}

// keyHash is the first four bytes of a key's id, as notes have them.
func keyHash(id []byte) uint32 { return binary.BigEndian.Uint32(id) }
