package tlog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
	// maxBundle bounds one bundle of entries: as many as fit, each as large as may be.
	maxBundle = tileWidth * (2 + 1<<16)
)

// Fetch reads one resource of a log by its path, as C2SP's tlog-tiles names them:
// checkpoint, tile/0/000, tile/entries/000. A resource that is not there is
// fs.ErrNotExist. It returns no more than limit bytes; more is an error.
type Fetch func(ctx context.Context, path string, limit int64) ([]byte, error)

// Tiles makes proofs from a log's tiles. What it reads is checked against the tree
// that it is asked about, so a bad tile is an error and never a bad proof.
type Tiles struct{ Fetch Fetch }

// Inclusion proves that the entry is in the tree.
func (t Tiles) Inclusion(ctx context.Context, tree Tree, index int64) ([]tlog.Hash, error) {
	if index < 0 || index >= tree.Size {
		return nil, fmt.Errorf("proving inclusion: there is no entry %d in a tree of %d", index, tree.Size)
	}
	p, err := tlog.ProveRecord(tree.Size, index, t.reader(ctx, tree))
	if err != nil {
		return nil, fmt.Errorf("proving inclusion of entry %d: %w", index, err)
	}
	return p, nil
}

// Consistency proves that the tree continues its first old entries.
func (t Tiles) Consistency(ctx context.Context, tree Tree, old int64) ([]tlog.Hash, error) {
	if old < 0 || old > tree.Size {
		return nil, fmt.Errorf("proving consistency: a tree of %d continues none of %d", tree.Size, old)
	}
	if old == 0 || old == tree.Size {
		return nil, nil
	}
	p, err := tlog.ProveTree(tree.Size, old, t.reader(ctx, tree))
	if err != nil {
		return nil, fmt.Errorf("proving consistency with size %d: %w", old, err)
	}
	return p, nil
}

// LeafHash is the hash of an entry in the tree.
func (t Tiles) LeafHash(ctx context.Context, tree Tree, index int64) (tlog.Hash, error) {
	if index < 0 || index >= tree.Size {
		return tlog.Hash{}, fmt.Errorf("reading entry %d: the tree has %d", index, tree.Size)
	}
	h, err := t.reader(ctx, tree).ReadHashes([]int64{tlog.StoredHashIndex(0, index)})
	if err != nil {
		return tlog.Hash{}, fmt.Errorf("reading entry %d: %w", index, err)
	}
	return h[0], nil
}

// Entry reads an entry, checked against the tree.
func (t Tiles) Entry(ctx context.Context, tree Tree, index int64) ([]byte, error) {
	h, err := t.LeafHash(ctx, tree, index)
	if err != nil {
		return nil, err
	}
	entries, err := t.Bundle(ctx, tree.Size, index/tileWidth)
	if err != nil {
		return nil, err
	}
	e := entries[index%tileWidth]
	if tlog.RecordHash(e) != h {
		return nil, fmt.Errorf("reading entry %d: its bytes are not those in the tree", index)
	}
	return e, nil
}

// Bundle reads the n-th bundle of entries of a tree of this size, not checked.
func (t Tiles) Bundle(ctx context.Context, size, n int64) ([][]byte, error) {
	width := int(min(size-n*tileWidth, tileWidth))
	if n < 0 || width <= 0 {
		return nil, fmt.Errorf("reading entries: a tree of %d has no bundle %d", size, n)
	}
	data, err := t.fetch(ctx, "tile/entries/"+tilePath(n), width, maxBundle)
	if err != nil {
		return nil, fmt.Errorf("reading entries: %w", err)
	}
	entries, err := splitBundle(data, width)
	if err != nil {
		return nil, fmt.Errorf("reading entries of bundle %d: %w", n, err)
	}
	return entries, nil
}

// Hashes reads the first width hashes of a tile of hashes, not checked.
func (t Tiles) Hashes(ctx context.Context, level int, n int64, width int) ([]tlog.Hash, error) {
	data, err := t.fetch(ctx, fmt.Sprintf("tile/%d/%s", level, tilePath(n)), width, tileWidth*tlog.HashSize)
	if err != nil {
		return nil, fmt.Errorf("reading tile: %w", err)
	}
	if len(data) < width*tlog.HashSize || len(data)%tlog.HashSize != 0 {
		return nil, fmt.Errorf("reading tile: level %d, tile %d has %d bytes; want %d hashes", level, n, len(data), width)
	}
	out := make([]tlog.Hash, width)
	for i := range out {
		out[i] = tlog.Hash(data[i*tlog.HashSize : (i+1)*tlog.HashSize])
	}
	return out, nil
}

// fetch reads a tile of this width; a full one serves where the partial one is gone.
func (t Tiles) fetch(ctx context.Context, path string, width int, limit int64) ([]byte, error) {
	if t.Fetch == nil {
		return nil, errors.New("no log to read")
	}
	if width == tileWidth {
		return t.Fetch(ctx, path, limit)
	}
	data, err := t.Fetch(ctx, path+".p/"+strconv.Itoa(width), limit)
	if errors.Is(err, fs.ErrNotExist) {
		data, err = t.Fetch(ctx, path, limit)
	}
	return data, err
}

func (t Tiles) reader(ctx context.Context, tree Tree) tlog.HashReader {
	return tlog.TileHashReader(tlog.Tree{N: tree.Size, Hash: tree.Root}, tileReader{ctx, t})
}

// tileReader is Tiles as the proof code wants it.
type tileReader struct {
	ctx   context.Context
	tiles Tiles
}

func (tileReader) Height() int { return tileHeight }

func (tileReader) SaveTiles([]tlog.Tile, [][]byte) {}

func (r tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(tiles))
	for i, tile := range tiles {
		hashes, err := r.tiles.Hashes(r.ctx, tile.L, tile.N, tile.W)
		if err != nil {
			return nil, err
		}
		for _, h := range hashes {
			out[i] = append(out[i], h[:]...)
		}
	}
	return out, nil
}

// tilePath is N as tlog-tiles spells it: groups of three digits, all but the last
// with an x before them.
func tilePath(n int64) string {
	s := fmt.Sprintf("%03d", n%1000)
	for n >= 1000 {
		n /= 1000
		s = fmt.Sprintf("x%03d/%s", n%1000, s)
	}
	return s
}

// splitBundle takes a bundle of entries apart: each with its length in two bytes
// before it. A bundle may hold more than the width asked for.
func splitBundle(data []byte, width int) ([][]byte, error) {
	var out [][]byte
	for len(data) > 0 && len(out) < tileWidth {
		if len(data) < 2 || len(data)-2 < int(binary.BigEndian.Uint16(data)) {
			return nil, fmt.Errorf("entry %d is cut short", len(out))
		}
		n := int(binary.BigEndian.Uint16(data))
		out = append(out, data[2:2+n])
		data = data[2+n:]
	}
	if len(data) > 0 || len(out) < width {
		return nil, fmt.Errorf("%d entries and %d bytes; want %d entries", len(out), len(data), width)
	}
	return out[:width], nil
}

// CheckConsistency returns nil if the proof shows that the tree continues an older
// one of the same log. The empty tree is continued by every tree, a tree by itself.
// Two trees of one size with different roots are ErrFork; a proof that does not hold
// may be just a bad proof.
func CheckConsistency(proof []tlog.Hash, old, tree Tree) error {
	switch {
	case old.Origin != tree.Origin:
		return fmt.Errorf("checking consistency: %q and %q are two logs", old.Origin, tree.Origin)
	case old.Size > tree.Size:
		return fmt.Errorf("checking consistency: the log shrank from %d to %d entries", old.Size, tree.Size)
	case old.Size == tree.Size && old.Root != tree.Root:
		return fmt.Errorf("checking consistency: %w: two trees of %d entries with different roots", ErrFork, tree.Size)
	case old.Size == 0 || old.Size == tree.Size:
		if len(proof) != 0 {
			return errors.New("checking consistency: a proof where none is needed")
		}
		return nil
	}
	if err := tlog.CheckTree(proof, tree.Size, tree.Root, old.Size, old.Root); err != nil {
		return fmt.Errorf("checking consistency: the proof does not show that the tree of %d continues that of %d: %w", tree.Size, old.Size, err)
	}
	return nil
}

// ErrFork says that a log shows different trees: its operator cheats, or its storage
// was rolled back.
var ErrFork = errors.New("the log is forked")

// ParseConsistency reads hashes of a consistency proof, one in base64 a line.
func ParseConsistency(lines []string) ([]tlog.Hash, error) {
	if len(lines) > maxHashes {
		return nil, fmt.Errorf("reading consistency proof: %d hashes; no tree is that high", len(lines))
	}
	var out []tlog.Hash
	for i, line := range lines {
		h, err := parseHash(line)
		if err != nil {
			return nil, fmt.Errorf("reading consistency proof: hash %d: %w", i, err)
		}
		out = append(out, h)
	}
	return out, nil
}

// FormatConsistency writes what ParseConsistency reads.
func FormatConsistency(proof []tlog.Hash) string {
	var b strings.Builder
	for _, h := range proof {
		b.WriteString(h.String() + "\n")
	}
	return b.String()
}
