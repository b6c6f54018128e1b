package launch

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"assay.dev/assay/sandbox/cgroup"
)

// scratch is the folder of one run's executor, and group its control group.
func (s *Session) scratch(id string) string { return s.Home.Path("run", "x-"+id) }
func group(id string) string                { return "assay-" + id }

// discard removes what an executor leaves. Its confining parent does so too, and
// better, while mounts and processes are its own; but that can be killed.
func (s *Session) discard(id string) {
	if err := cgroup.Discard(group(id)); err != nil {
		fmt.Fprintf(s.Log, "assay: %v\n", err)
	}
	if err := os.RemoveAll(s.scratch(id)); err != nil {
		fmt.Fprintf(s.Log, "assay: removing what run %s left: %v\n", id, err)
	}
}

// sweep removes what sessions left that were killed. The caller holds the home's
// lock, so no run of this home is under way.
func (s *Session) sweep() {
	left, _ := filepath.Glob(s.Home.Path("run", "x-*")) //nolint:errcheck // the pattern is ours
	for _, p := range left {
		s.discard(strings.TrimPrefix(filepath.Base(p), "x-"))
	}
	left, _ = filepath.Glob(s.Home.Path("run", "plan-*")) //nolint:errcheck // the pattern is ours
	for _, p := range left {
		if err := os.RemoveAll(p); err != nil {
			fmt.Fprintf(s.Log, "assay: removing what a killed run left: %v\n", err)
		}
	}
}

// witnessed returns a context that ends when the observer does: what happens
// from then on would count for nothing.
func (s *Session) witnessed(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	for _, sv := range s.services {
		if sv.name == "observer" {
			go func() {
				select {
				case <-sv.done:
					cancel()
				case <-ctx.Done():
				}
			}()
		}
	}
	return ctx, cancel
}
