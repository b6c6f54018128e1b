package policy

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// progress notes how far an evaluation is, so that one that is stopped can say where.
// OPA looks every rule up in its cache of results before it evaluates it, which is
// the cheapest place to watch: a tracer would double the time that rules take. It
// belongs to the goroutine that evaluates.
type progress struct {
	decision atomic.Pointer[named] // also read from outside
	inner    named
}

// named is the beginning of a reference: enough for its name.
type named struct {
	terms [8]*ast.Term
	n     int
}

func (n *named) set(ref ast.Ref) { n.n = copy(n.terms[:], ref) }

// String is the reference without data and without what is no name.
func (n *named) String() string {
	ref := n.terms[:n.n]
	if n.n > 0 {
		// A function's key is its reference, and then its arguments.
		if r, ok := ref[0].Value.(ast.Ref); ok {
			ref = r
		}
	}
	var out []string
	for _, t := range ref {
		s, ok := t.Value.(ast.String)
		if !ok {
			if len(out) > 0 {
				break
			}
			continue
		}
		out = append(out, string(s))
	}
	return strings.Join(out, ".")
}

// rule is the deny, warn or note rule being evaluated.
func (p *progress) rule() string {
	if at := p.decision.Load(); at != nil {
		return at.String()
	}
	return ""
}

// at is blame for somebody who does not evaluate.
func (p *progress) at(cause error) error {
	if at := p.rule(); at != "" {
		return fmt.Errorf("%w; they were at the rule %s", cause, at)
	}
	return cause
}

// cache is OPA's own, watched.
func (p *progress) cache() topdown.VirtualCache {
	return &watched{VirtualCache: topdown.NewVirtualCache(), progress: p}
}

type watched struct {
	topdown.VirtualCache
	progress *progress
}

func (w *watched) Get(ref ast.Ref) (*ast.Term, bool) {
	t, undefined := w.VirtualCache.Get(ref)
	if t == nil && !undefined {
		w.progress.inner.set(ref)
		if len(ref) > 2 && len(ref) <= len(w.progress.inner.terms) {
			if s, ok := ref[len(ref)-1].Value.(ast.String); ok {
				if _, ok := kindOf(string(s)); ok {
					at := w.progress.inner
					w.progress.decision.Store(&at)
				}
			}
		}
	}
	return t, undefined
}

// blame says of an error why an evaluation was stopped, if it was, and where.
func (p *progress) blame(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if cause == nil {
		return err
	}
	at, in := p.rule(), p.inner.String()
	if at == "" || in == "" || in == at {
		return p.at(cause)
	}
	return fmt.Errorf("%w; they were at the rule %s, in %s", cause, at, in)
}
