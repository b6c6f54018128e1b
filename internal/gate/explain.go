package gate

import (
	"context"

	"assay.dev/assay/policy"
)

// Explained is how a rule came to what it says of one image, or why that is not known.
type Explained struct {
	Image, Component string
	Explanation      *policy.Explanation
	Err              error
}

// Explain asks one rule about every image of a snapshot, which must be Complete, and
// hands what it did to emit, in order. It fails only where emit does or the context
// ends.
func (g *Gate) Explain(ctx context.Context, s *policy.Snapshot, code string, emit func(Explained) error) error {
	images, err := g.images(ctx, s)
	if err != nil {
		return err
	}
	whole := &policy.Snapshot{Application: s.Application, Artifacts: s.Artifacts}
	for i := range images {
		whole.Components = append(whole.Components, images[i].component)
	}
	for i := range images {
		m := &images[i]
		out := Explained{Image: m.ref, Component: m.component.Name, Err: m.err}
		if m.err == nil {
			out.Explanation, out.Err = g.explain(ctx, m, whole, code)
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := emit(out); err != nil {
			return err
		}
	}
	return nil
}

func (g *Gate) explain(ctx context.Context, m *image, whole *policy.Snapshot, code string) (*policy.Explanation, error) {
	f, err := g.found(ctx, m.ref)
	if err != nil {
		return nil, err
	}
	defer g.release(m.ref)
	c, err := g.context(m, f, whole)
	if err != nil {
		return nil, err
	}
	return g.Policy.Explain(ctx, f.Evidence, c, code)
}
