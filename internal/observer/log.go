package observer

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/store"
)

// Logbook is a transparency log as the observer needs it: tlog.Tile.
type Logbook interface {
	// Add puts a leaf into the log and returns once it can be proved. It verifies
	// the proof that it returns.
	Add(ctx context.Context, leaf *tlog.Leaf) (store.LogEntry, error)
}

// openLog is the log that a home's configuration names; nil if it names none. It
// fails for keys and addresses that are none; the log itself is not asked.
func openLog(h *home.Home, l *home.Log) (Logbook, error) {
	if l == nil {
		return nil, nil
	}
	t, err := tlog.NewTile(tlog.TileOptions{
		URL: h.LogURL(l), LogKey: l.Key, Witnesses: l.Witnesses, Quorum: l.Quorum, TokenFile: l.TokenFile,
	})
	if err != nil {
		return nil, fmt.Errorf("%s: log: %w", h.Path("config.json"), err)
	}
	return t, nil
}

// maxAdding is how many entries are added at once.
const maxAdding = 32

// logAll puts every signature of the evidence into the log, all at once: what comes
// together comes under one checkpoint. Pieces that several images share are logged
// once. On an error no piece counts as logged.
func logAll(ctx context.Context, log Logbook, list []evidence) error {
	if log == nil {
		return nil
	}
	type addition struct {
		to    *store.Evidence
		leaf  *tlog.Leaf
		entry store.LogEntry
	}
	var all []addition
	for _, e := range list {
		for _, p := range e.pieces {
			if slices.ContainsFunc(all, func(a addition) bool { return a.to == p }) {
				continue
			}
			leaves, err := tlog.EvidenceLeaves(*p)
			if err != nil {
				return err
			}
			for _, l := range leaves {
				all = append(all, addition{to: p, leaf: l})
			}
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxAdding)
	for i := range all {
		g.Go(func() (err error) {
			all[i].entry, err = log.Add(gctx, all[i].leaf)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("logging the evidence, before which nothing is stored: %w", err)
	}
	for _, a := range all {
		a.to.Log = append(a.to.Log, a.entry)
	}
	return nil
}
