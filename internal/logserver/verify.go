package logserver

import (
	"context"
	"fmt"

	xtlog "golang.org/x/mod/sumdb/tlog"

	"assay.dev/assay/attest/tlog"
)

// Report is what Verify found.
type Report struct {
	Origin    string   `json:"origin"`
	Size      int64    `json:"size"`
	Root      string   `json:"root"`
	Witnesses []string `json:"witnesses"`
	// Continues is the size of the older checkpoint that was given; -1: none was.
	Continues int64 `json:"continues"`
	// Payloads counts entries by payload type.
	Payloads map[string]int64 `json:"payloads"`
	// Checkpoint is the one verified, to give as the older one the next time.
	Checkpoint string `json:"checkpoint"`
}

// Verify reads a whole log and computes its tree anew: every entry must be a leaf in
// its one spelling, every tile must hold the hashes of the entries below it, and the
// root must be the checkpoint's. The tree's first entries must be those of the older
// checkpoint, if one is given. An error says what is wrong; where the log shows
// another tree than before, it is tlog.ErrFork.
func Verify(ctx context.Context, tiles tlog.Tiles, trust tlog.Trust, older []byte) (*Report, error) {
	signed, err := tiles.Fetch(ctx, "checkpoint", tlog.MaxCheckpoint)
	if err != nil {
		return nil, fmt.Errorf("reading checkpoint: %w", err)
	}
	c, err := tlog.VerifyCheckpoint(signed, trust)
	if err != nil {
		return nil, err
	}
	r := &Report{
		Origin: c.Origin, Size: c.Size, Root: c.Root.String(), Continues: -1, Checkpoint: string(signed),
		Witnesses: append([]string{}, c.Witnesses...), Payloads: map[string]int64{},
	}
	var old tlog.Tree
	if older != nil {
		// Cosigned or not: it is what was seen then.
		o, err := tlog.VerifyCheckpoint(older, tlog.Trust{Logs: trust.Logs})
		if err != nil {
			return nil, fmt.Errorf("older checkpoint: %w", err)
		}
		if old = o.Tree; old.Origin != c.Origin {
			return nil, fmt.Errorf("older checkpoint: it is of log %q, not %q", old.Origin, c.Origin)
		}
		if old.Size > c.Size {
			return nil, fmt.Errorf("%w: it had %d entries and has %d", tlog.ErrFork, old.Size, c.Size)
		}
		r.Continues = old.Size
	}
	t := &tree{tiles: tiles}
	check := func() error {
		if r.Continues == t.size && t.root() != old.Root {
			return fmt.Errorf("%w: its first %d entries are not those of the older checkpoint", tlog.ErrFork, t.size)
		}
		return nil
	}
	if err := check(); err != nil {
		return nil, err
	}
	for n := int64(0); n*bundleWidth < c.Size; n++ {
		entries, err := tiles.Bundle(ctx, c.Size, n)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			l, err := tlog.ParseLeaf(e)
			if err != nil {
				return nil, fmt.Errorf("entry %d: %w", t.size, err)
			}
			r.Payloads[l.PayloadType]++
			if err := t.add(ctx, xtlog.RecordHash(e)); err != nil {
				return nil, err
			}
			if err := check(); err != nil {
				return nil, err
			}
		}
	}
	if err := t.finish(ctx); err != nil {
		return nil, err
	}
	if got := t.root(); got != c.Root {
		return nil, fmt.Errorf("the entries make another tree than the checkpoint signs: root %v, not %v", got, c.Root)
	}
	return r, nil
}

// tree computes a Merkle tree entry by entry and compares it with the log's tiles.
type tree struct {
	tiles  tlog.Tiles
	size   int64
	levels []level
}

// level is the newest tile of one level of tiles, not yet full.
type level struct {
	n      int64
	hashes []xtlog.Hash
}

func (t *tree) add(ctx context.Context, h xtlog.Hash) error {
	t.size++
	for l := 0; ; l++ {
		if l == len(t.levels) {
			t.levels = append(t.levels, level{})
		}
		at := &t.levels[l]
		at.hashes = append(at.hashes, h)
		if len(at.hashes) < bundleWidth {
			return nil
		}
		if err := t.compare(ctx, l); err != nil {
			return err
		}
		h = perfect(at.hashes)
		at.n, at.hashes = at.n+1, at.hashes[:0]
	}
}

func (t *tree) finish(ctx context.Context) error {
	for l := range t.levels {
		if len(t.levels[l].hashes) > 0 {
			if err := t.compare(ctx, l); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *tree) compare(ctx context.Context, l int) error {
	at := t.levels[l]
	stored, err := t.tiles.Hashes(ctx, l, at.n, len(at.hashes))
	if err != nil {
		return err
	}
	for i, h := range stored {
		if h != at.hashes[i] {
			return fmt.Errorf("tile %d of level %d: hash %d is not that of the entries below it", at.n, l, i)
		}
	}
	return nil
}

// root is the root of the tree so far, as RFC 6962 defines it.
func (t *tree) root() xtlog.Hash {
	var acc *xtlog.Hash
	for _, l := range t.levels {
		rest := l.hashes
		for width := 1; len(rest) > 0; width *= 2 {
			if len(rest)&width == 0 {
				continue
			}
			h := perfect(rest[len(rest)-width:])
			if acc != nil {
				h = xtlog.NodeHash(h, *acc)
			}
			acc, rest = &h, rest[:len(rest)-width]
		}
	}
	if acc == nil {
		h, _ := xtlog.TreeHash(0, nil) // of nothing, which cannot fail
		return h
	}
	return *acc
}

// perfect is the root over a power of two of hashes.
func perfect(hashes []xtlog.Hash) xtlog.Hash {
	if len(hashes) == 1 {
		return hashes[0]
	}
	half := len(hashes) / 2
	return xtlog.NodeHash(perfect(hashes[:half]), perfect(hashes[half:]))
}
