package gateserver

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"assay.dev/assay/internal/ec/input"
	ecserver "assay.dev/assay/internal/ec/server"
	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/policy/conforma"
)

// maxAge is how long ago now may be for rules about inputs.
const maxAge = time.Minute

// inputs is a standing's policy for plain documents. It knows its time from when it is
// loaded, so that it is loaded again as time goes by, when somebody asks.
type inputs struct {
	mu     sync.Mutex // guards the below
	policy *conforma.Policy
	spec   *conforma.Spec
	when   time.Time
}

func (s *serving) inputs(ctx context.Context, now time.Time) (*conforma.Policy, *conforma.Spec, time.Time, error) {
	if s.Input == nil {
		return nil, nil, now, &ecserver.Error{Message: "this server judges images only", Status: http.StatusNotFound}
	}
	i := &s.input
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.policy == nil || now.Sub(i.when) > maxAge {
		p, spec, err := s.Input(ctx, now)
		if err != nil {
			return nil, nil, now, fmt.Errorf("loading the policy for inputs as of now: %w", err)
		}
		i.policy, i.spec, i.when = p, spec, now
	}
	return i.policy, i.spec, i.when, nil
}

// inputReport is Conforma's, with what it leaves out under assay.
type inputReport struct {
	Success       bool           `json:"success"`
	FilePaths     []input.Entry  `json:"filepaths"`
	Policy        *conforma.Spec `json:"policy"`
	Version       string         `json:"ec-version"`
	EffectiveTime time.Time      `json:"effective-time"`
	Assay         *inputNotes    `json:"assay,omitempty"`
}

type inputNotes struct {
	Failures []builtin.Failure `json:"builtinFailures,omitempty"`
	Hosts    []string          `json:"foreignRegistries,omitempty"`
	Nested   bool              `json:"nestedViolations,omitempty"`
}

// judgeInput is /v1/validate/input.
func (s *Server) judgeInput(ctx context.Context, r ecserver.Request) (ecserver.Verdict, error) {
	values, err := input.FromRequest(r)
	if err != nil {
		return ecserver.Verdict{}, err
	}
	st, err := s.serving()
	if err != nil {
		return ecserver.Verdict{}, &ecserver.Error{Message: err.Error(), Status: http.StatusServiceUnavailable}
	}
	p, spec, when, err := st.inputs(ctx, s.now().UTC())
	if err != nil {
		return ecserver.Verdict{}, err
	}
	e, err := p.Evaluate(ctx, []conforma.Document{{Name: "input", Values: values}}, conforma.Target{})
	if err != nil {
		return ecserver.Verdict{}, fmt.Errorf("evaluating policy: %w", err)
	}
	out := inputReport{Policy: spec, Version: s.o.Version, EffectiveTime: when, Assay: &inputNotes{Failures: e.Failures, Hosts: e.Hosts}}
	out.FilePaths, out.Success, out.Assay.Nested = input.Entries([]string{"input"}, []*conforma.Evaluation{e}, input.Options{Warnings: true})
	if len(e.Failures)+len(e.Hosts) == 0 && !out.Assay.Nested {
		out.Assay = nil
	}
	b, err := json.Marshal(out)
	return ecserver.Verdict{Report: b, Pass: out.Success}, err
}
