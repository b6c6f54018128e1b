package gate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"

	"assay.dev/assay/verify"
)

// maxHeld bounds the evidence in bytes that waits for another component with the
// same image; beyond it the image is verified again when its turn comes.
const maxHeld = 64 << 20

// memory holds the evidence of images that several components have, from the
// first that asks until the last has.
type memory struct {
	left  map[string]int // how often each will be asked for
	kept  map[string]*found
	order []string // of kept, the oldest first
	size  int
}

// found is an image's evidence, or why there is none.
type found struct {
	ready chan struct{}
	users int
	size  int

	*verify.Evidence
	config json.RawMessage // what a container of it is started with
	files  json.RawMessage // of an operator bundle
	err    error
}

func (m *memory) expect(ref string) { m.left[ref]++ }

// found is the evidence of repo@sha256:…, verified by whoever asks first. Without
// an error the caller has to release it.
func (g *Gate) found(ctx context.Context, ref string) (*found, error) {
	g.mu.Lock()
	f := g.evidence.kept[ref]
	if f == nil {
		f = &found{ready: make(chan struct{}), users: 1}
		g.evidence.kept[ref] = f
		g.evidence.order = append(g.evidence.order, ref)
		g.mu.Unlock()
		f.err = g.find(ctx, ref, f)
		close(f.ready)
		g.mu.Lock()
		g.evidence.size += f.size
		g.mu.Unlock()
	} else {
		f.users++
		g.mu.Unlock()
		<-f.ready
	}
	if f.err != nil {
		g.release(ref)
		return nil, f.err
	}
	return f, nil
}

func (g *Gate) find(ctx context.Context, ref string, f *found) error {
	m, err := g.resolve(ctx, ref)
	if err != nil {
		return err
	}
	if f.Evidence, err = g.verify(ctx, m); err != nil {
		return err
	}
	if err := g.held(f.Evidence); err != nil {
		return err
	}
	if f.config, err = g.config(ctx, m); err != nil {
		return err
	}
	if f.files, err = g.bundled(ctx, m, f.config); err != nil {
		return err
	}
	f.size = len(m.bytes) + len(f.config) + len(f.files)
	for _, s := range f.Statements() {
		// The payload, its predicate and the typed value.
		f.size += 3 * len(s.Payload)
	}
	return nil
}

// release says that the caller is done with an image's evidence.
func (g *Gate) release(ref string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := &g.evidence
	if m.left[ref]--; m.left[ref] <= 0 {
		delete(m.left, ref)
	}
	if f := m.kept[ref]; f != nil {
		f.users--
	}
	for i := 0; i < len(m.order); {
		f := m.kept[m.order[i]]
		if f.users > 0 || m.left[m.order[i]] > 0 && m.size <= maxHeld {
			i++
			continue
		}
		m.size -= f.size
		delete(m.kept, m.order[i])
		m.order = slices.Delete(m.order, i, i+1)
	}
}

func digestOf(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}
