package gateserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"assay.dev/assay/attest/strictjson"
	ecserver "assay.dev/assay/internal/ec/server"
	"assay.dev/assay/internal/gate"
	"assay.dev/assay/policy"
	"assay.dev/assay/report"
)

// ParseImages reads {"images": [reference, …]}, or whatever names images elsewhere (see
// gate.ParseSnapshot). It fails on other members beside images, and as ParseSnapshot does.
func ParseImages(raw []byte) (*policy.Snapshot, error) {
	if err := strictjson.Check(raw, gate.MaxSnapshot); err == nil {
		if m, err := strictjson.Object(raw); err == nil && m["images"] != nil {
			if err := strictjson.Only(m, "images"); err != nil {
				return nil, err
			}
			list, err := strictjson.Array(m["images"])
			if err != nil {
				return nil, errors.New("images is no list")
			}
			var refs []string
			for i, item := range list {
				ref, err := strictjson.String(item)
				if err != nil || ref == "" {
					return nil, fmt.Errorf("image %d is no reference", i+1)
				}
				refs = append(refs, ref)
			}
			return gate.References(refs)
		}
	}
	return gate.ParseSnapshot(raw)
}

// bad is what the client did wrong.
func bad(err error) error {
	return &ecserver.Error{Message: err.Error(), Status: http.StatusBadRequest}
}

// judging is a gate for one request, and what it judges by.
func (s *Server) judging() (*serving, *gate.Gate, error) {
	st, err := s.serving()
	if err != nil {
		return nil, nil, &ecserver.Error{Message: err.Error(), Status: http.StatusServiceUnavailable}
	}
	g, err := st.New(s.now().UTC().Round(time.Second))
	return st, g, err
}

// judgeImages is /v1/validate/image.
func (s *Server) judgeImages(ctx context.Context, r ecserver.Request) (ecserver.Verdict, error) {
	snapshot, err := ParseImages(r.Body)
	if err != nil {
		return ecserver.Verdict{}, bad(err)
	}
	if n := len(snapshot.Components); n > s.o.MaxImages {
		return ecserver.Verdict{}, &ecserver.Error{Message: fmt.Sprintf("%d images; a request may have %d", n, s.o.MaxImages), Status: http.StatusRequestEntityTooLarge}
	}
	_, g, err := s.judging()
	if err != nil {
		return ecserver.Verdict{}, err
	}
	var b bytes.Buffer
	h := report.JSON(&b)
	run, err := g.Report()
	if err == nil {
		err = h.Start(run)
	}
	if err != nil {
		return ecserver.Verdict{}, err
	}
	got, err := g.Stream(ctx, snapshot, h.Verdict)
	if err == nil {
		err = h.Close()
	}
	if err != nil {
		return ecserver.Verdict{}, err
	}
	for result, n := range map[policy.Outcome]int{policy.Pass: got.Passed, policy.Fail: got.Refused, policy.Unchecked: got.Unchecked} {
		s.m.images.WithLabelValues("image", string(result)).Add(float64(n))
	}
	out := ecserver.Verdict{Report: b.Bytes(), Result: string(policy.Fail)}
	switch {
	case got.Unchecked > 0 || got.Passed+got.Refused == 0:
		out.Result = string(policy.Unchecked)
	case got.Refused == 0:
		out.Pass, out.Result = true, string(policy.Pass)
	}
	return out, nil
}

// described is the answer to GET /v1/policy.
type described struct {
	Name    string           `json:"name"`
	Digest  string           `json:"digest"`
	Trust   string           `json:"trust"`
	Since   time.Time        `json:"since"`
	Sources []report.Source  `json:"sources"`
	Trusted []report.Trusted `json:"trusted"`
	Skipped []string         `json:"skipped,omitempty"`
}

// policy is GET /v1/policy.
func (s *Server) policy(w http.ResponseWriter, _ *http.Request) {
	st, g, err := s.judging()
	if err != nil {
		var known *ecserver.Error
		if !errors.As(err, &known) {
			s.log.Error("the policy cannot be shown", "error", err.Error())
			known = &ecserver.Error{Message: "the policy cannot be shown", Status: http.StatusInternalServerError}
		}
		refuse(w, known.Status, known.Message)
		return
	}
	run, err := g.Report()
	if err != nil {
		s.log.Error("the policy cannot be shown", "error", err.Error())
		refuse(w, http.StatusInternalServerError, "the policy cannot be shown")
		return
	}
	out := described{
		Name: st.Policy.Name(), Digest: st.Policy.Digest(), Trust: st.Trust, Since: st.since.UTC(),
		Sources: append([]report.Source{}, run.Sources...), Trusted: append([]report.Trusted{}, run.Trusted...), Skipped: run.Skipped,
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out)
}
