package tlog

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"assay.dev/assay/store"
)

// Bounds on proofs.
const (
	// MaxProof is the size in bytes of the largest proof that is read.
	MaxProof = 96 << 10
	// maxHashes is how many hashes a proof can have: the height of the largest
	// tree, twice for consistency.
	maxHashes = 2 * 63
	// maxProofs is how many proofs one annotation may carry.
	maxProofs = 8
)

const proofHeader = "c2sp.org/tlog-proof@v1"

// Proof is a proof of inclusion as text, in the form of C2SP's tlog-proof:
//
//	c2sp.org/tlog-proof@v1
//	extra BASE64
//	index N
//	HASH
//	…
//
//	CHECKPOINT
//
// The line extra is optional in the form; in proofs that are stored with evidence
// it is the leaf's text. A hash is 32 bytes in base64. CHECKPOINT is a signed
// checkpoint with its signatures and cosignatures.
type Proof struct {
	Extra      []byte // nil: no such line
	Index      int64
	Hashes     []tlog.Hash
	Checkpoint []byte
}

// Bytes is the proof as text.
func (p Proof) Bytes() []byte {
	var b bytes.Buffer
	b.WriteString(proofHeader + "\n")
	if p.Extra != nil {
		fmt.Fprintf(&b, "extra %s\n", base64.StdEncoding.EncodeToString(p.Extra))
	}
	fmt.Fprintf(&b, "index %d\n", p.Index)
	for _, h := range p.Hashes {
		fmt.Fprintf(&b, "%s\n", base64.StdEncoding.EncodeToString(h[:]))
	}
	b.WriteByte('\n')
	b.Write(p.Checkpoint)
	return b.Bytes()
}

// ParseProof reads a proof and verifies nothing. Anything but one spelling of it
// is an error.
func ParseProof(text []byte) (Proof, error) {
	p, err := parseProof(text)
	if err != nil {
		return Proof{}, fmt.Errorf("reading log proof: %w", err)
	}
	return p, nil
}

func parseProof(text []byte) (p Proof, err error) {
	if len(text) > MaxProof {
		return p, fmt.Errorf("%d bytes; at most %d are read", len(text), MaxProof)
	}
	head, checkpoint, ok := bytes.Cut(text, []byte("\n\n"))
	if !ok {
		return p, errors.New("no empty line before the checkpoint")
	}
	if len(checkpoint) == 0 || len(checkpoint) > MaxCheckpoint {
		return p, errors.New("no checkpoint, or too large a one")
	}
	p.Checkpoint = checkpoint
	lines := strings.Split(string(head), "\n")
	if lines[0] != proofHeader {
		return p, fmt.Errorf("the first line is not %q", proofHeader)
	}
	lines = lines[1:]
	if len(lines) > 0 {
		if e, ok := strings.CutPrefix(lines[0], "extra "); ok {
			if p.Extra, err = base64.StdEncoding.Strict().DecodeString(e); err != nil {
				return p, errors.New("the extra line is not base64")
			}
			lines = lines[1:]
		}
	}
	if len(lines) == 0 {
		return p, errors.New("no index")
	}
	n, ok := strings.CutPrefix(lines[0], "index ")
	if p.Index, err = strconv.ParseInt(n, 10, 64); !ok || err != nil || p.Index < 0 || strconv.FormatInt(p.Index, 10) != n {
		return p, errors.New("no index where one should be")
	}
	if len(lines)-1 > maxHashes {
		return p, fmt.Errorf("%d hashes; no tree is that high", len(lines)-1)
	}
	for i, line := range lines[1:] {
		h, err := parseHash(line)
		if err != nil {
			return p, fmt.Errorf("hash %d: %w", i, err)
		}
		p.Hashes = append(p.Hashes, h)
	}
	if !bytes.Equal(p.Bytes(), text) {
		return p, errors.New("not in its one spelling")
	}
	return p, nil
}

func parseHash(s string) (tlog.Hash, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != tlog.HashSize {
		return tlog.Hash{}, errors.New("not 32 bytes in base64")
	}
	return tlog.Hash(b), nil
}

// Inclusion says that a log holds something: what verification found.
type Inclusion struct {
	// Log is the log's name in the trust; Kind is tile or rekor.
	Log  string `json:"log"`
	Kind string `json:"kind"`
	// Index of the entry, and Size of the tree it was proved in; 0 where the log
	// only promised (Promise).
	Index int64 `json:"index"`
	Size  int64 `json:"size,omitempty"`
	// Witnesses are those of the trust whose cosignatures are on the checkpoint.
	// With none, the log's operator alone vouches that everybody sees this tree.
	Witnesses []string `json:"witnesses"`
	// Time by which the entry was in the log: the earliest cosignature's, or what
	// Rekor signed; zero where nobody signed one.
	Time time.Time `json:"time,omitzero"`
	// Promise: there is no proof of inclusion, only the log's signed word.
	Promise bool `json:"promise,omitempty"`
}

// Kinds of logs.
const (
	KindTile  = "tile"
	KindRekor = "rekor"
)

// VerifyProof verifies that a leaf, given as its bytes, is in one of the trust's
// tile logs, under a checkpoint that enough of the trust's witnesses cosigned. It
// is pure. An error says which link of the chain does not hold.
func VerifyProof(proof, leaf []byte, t Trust) (Inclusion, error) {
	p, err := ParseProof(proof)
	if err != nil {
		return Inclusion{}, err
	}
	return p.verify(leaf, t)
}

func (p Proof) verify(leaf []byte, t Trust) (Inclusion, error) {
	c, err := VerifyCheckpoint(p.Checkpoint, t)
	if err != nil {
		return Inclusion{}, fmt.Errorf("verifying log proof: %w", err)
	}
	if p.Index >= c.Size {
		return Inclusion{}, fmt.Errorf("verifying log proof: entry %d cannot be in a tree of %d", p.Index, c.Size)
	}
	if err := tlog.CheckRecord(p.Hashes, c.Size, c.Root, p.Index, tlog.RecordHash(leaf)); err != nil {
		return Inclusion{}, fmt.Errorf("verifying log proof: entry %d of log %q is not this one, or the tree is another: %w", p.Index, c.Log, err)
	}
	return Inclusion{
		Log: c.Log, Kind: KindTile, Index: p.Index, Size: c.Size, Time: c.Time,
		Witnesses: append([]string{}, c.Witnesses...),
	}, nil
}

// CheckProof verifies a proof as it is stored with evidence: that the leaf that it
// carries is about this signature, and is in a log, as VerifyProof says.
func CheckProof(proof []byte, s Signed, t Trust) (Inclusion, error) {
	p, err := ParseProof(proof)
	if err != nil {
		return Inclusion{}, err
	}
	leaf, err := ParseLeaf(p.Extra)
	if err != nil {
		return Inclusion{}, fmt.Errorf("verifying log proof: %w", err)
	}
	if err := leaf.Covers(s); err != nil {
		return Inclusion{}, fmt.Errorf("verifying log proof: %w", err)
	}
	return p.verify(p.Extra, t)
}

// FormatProofs is the value of AnnotationProof for a record's log entries; empty
// if none of them has a proof of ours.
func FormatProofs(entries []store.LogEntry) string {
	var parts []string
	for _, e := range entries {
		if len(e.Proof) > 0 {
			parts = append(parts, base64.StdEncoding.EncodeToString(e.Proof))
		}
	}
	return strings.Join(parts, ",")
}

// ParseProofs reads the value of AnnotationProof and verifies nothing.
func ParseProofs(annotation string) ([][]byte, error) {
	if annotation == "" {
		return nil, nil
	}
	parts := strings.Split(annotation, ",")
	if len(parts) > maxProofs {
		return nil, fmt.Errorf("reading %s: %d proofs; at most %d are read", AnnotationProof, len(parts), maxProofs)
	}
	var out [][]byte
	for _, part := range parts {
		if len(part) > 2*MaxProof {
			return nil, fmt.Errorf("reading %s: a proof larger than %d bytes", AnnotationProof, MaxProof)
		}
		b, err := base64.StdEncoding.Strict().DecodeString(part)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", AnnotationProof, err)
		}
		out = append(out, b)
	}
	return out, nil
}
