package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"assay.dev/assay/internal/home"
	"assay.dev/assay/ledger"
	"assay.dev/assay/observe"
)

// earlierRuns is how many runs the ledger of an old home holds.
const earlierRuns = 1000

// history compares a run in a home that has seen many with the same in one that
// has seen few: what the ledger's age costs.
func history(ctx context.Context, b *bench) error {
	file, err := b.write("steps-1.yaml", taskRun(1))
	if err != nil {
		return err
	}
	young, err := b.alternate(ctx, b.runs(file))
	if err != nil {
		return err
	}
	if err := b.age(ctx); err != nil {
		return fmt.Errorf("filling the ledger: %w", err)
	}
	old, err := b.alternate(ctx, b.runs(file))
	if err != nil {
		return err
	}
	what := fmt.Sprintf("a TaskRun of one empty step after %d runs", earlierRuns)
	b.compare(what+", wall", seconds, old[0].wall, "after few runs", young[0].wall, "")
	b.compare(what+", CPU", seconds, old[0].cpu, "after few runs", young[0].cpu, "")
	return nil
}

// age writes earlierRuns runs into the home's ledger, each with the facts of
// the last one there.
func (b *bench) age(ctx context.Context) error {
	dir := filepath.Join(b.home, "ledger")
	runs, err := ledger.List(dir)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(runs, func(s ledger.Summary) bool { return s.Outcome == ledger.Succeeded })
	if i < 0 {
		return fmt.Errorf("there is no run to copy")
	}
	rec, err := ledger.Read(dir, runs[i].Run)
	if err != nil {
		return err
	}
	led, err := ledger.Open(dir, time.Now)
	if err != nil {
		return err
	}
	defer led.Close()
	for n := range earlierRuns {
		if err := ctx.Err(); err != nil {
			return err
		}
		id := fmt.Sprintf("earlier-%d", n)
		r, err := led.Admit(ledger.Admission{Run: id, Nonce: "bench"})
		if err != nil {
			return err
		}
		for _, e := range rec.Entries {
			switch e.Type {
			case "admitted", "ended", "signed":
				continue
			}
			if _, err := r.Append(observe.Fact{Type: e.Type, Body: e.Body}); err != nil {
				return err
			}
		}
		if err := r.End(ledger.Succeeded, ""); err != nil {
			return err
		}
		// The observer has to be able to open it.
		if err := os.Chown(filepath.Join(dir, "runs", id+".jsonl"), home.UIDObserver, home.UIDObserver); err != nil {
			return err
		}
	}
	return nil
}
