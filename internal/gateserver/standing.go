package gateserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"assay.dev/assay/internal/gate"
	"assay.dev/assay/policy"
	"assay.dev/assay/policy/conforma"
)

// Standing is what judgements are made by until the next is loaded.
type Standing struct {
	Policy *policy.Policy
	// New makes a gate for one request, as of a time.
	New func(now time.Time) (*gate.Gate, error)
	// Trust identifies whom the gates believe: verdicts under another do not count.
	Trust string
	// Input loads the policy for plain documents, as of a time. Its configuration is
	// what reports show. Nil: documents are not judged.
	Input func(ctx context.Context, when time.Time) (*conforma.Policy, *conforma.Spec, error)
}

func (s *Standing) check() error {
	switch {
	case s == nil || s.Policy == nil || s.New == nil:
		return errors.New("there is no policy")
	case s.Trust == "":
		return errors.New("nobody is trusted")
	}
	return nil
}

// serving is a standing in use.
type serving struct {
	*Standing
	since time.Time
	input inputs
}

// errNotReady is told to those who come too early.
var errNotReady = errors.New("the policy is not loaded yet")

func (s *Server) serving() (*serving, error) {
	if st := s.current.Load(); st != nil {
		return st, nil
	}
	return nil, errNotReady
}

// Ready says whether there is a policy to judge by.
func (s *Server) Ready() bool { return s.current.Load() != nil }

// Reload loads policy and trust and puts them in the place of what serves. Where that
// fails nothing changes, and the error is in the log and the metrics too.
func (s *Server) Reload(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, maxLoad)
	defer cancel()
	old := s.current.Load()
	st, err := s.o.Load(ctx)
	if err == nil {
		err = st.check()
	}
	if err != nil {
		err = fmt.Errorf("loading policy and trust: %w", err)
		s.m.reloads.WithLabelValues("failed").Inc()
		s.m.valid.Set(0)
		if old != nil {
			s.log.Error("the policy cannot be loaded, the one from before serves on", "policy", old.Policy.Digest(), "since", old.since, "error", err.Error())
		}
		return err
	}
	s.m.valid.Set(1)
	now := &serving{Standing: st, since: s.now()}
	if old != nil && old.Policy.Digest() == st.Policy.Digest() && old.Trust == st.Trust {
		now.since = old.since
		s.m.reloads.WithLabelValues("same").Inc()
		s.current.Store(now)
		return nil
	}
	s.m.reloads.WithLabelValues("moved").Inc()
	s.m.info.Reset()
	s.m.info.WithLabelValues(st.Policy.Name(), st.Policy.Digest()).Set(1)
	s.m.since.Set(float64(now.since.Unix()))
	s.current.Store(now)
	s.log.Info("policy and trust are loaded", "name", st.Policy.Name(), "policy", st.Policy.Digest(), "trust", st.Trust)
	return nil
}

// Bounds of loading.
const (
	maxLoad    = 10 * time.Minute
	firstRetry = 5 * time.Second
)

// Keep loads policy and trust and keeps them current until the context ends. The first
// time is tried again until it works; it fails only where fatal says that an error of
// the first time will not pass.
func (s *Server) Keep(ctx context.Context, fatal func(error) bool) error {
	for {
		err := s.Reload(ctx)
		if ctx.Err() != nil {
			return nil
		}
		wait := s.o.Reload
		if !s.Ready() {
			if fatal != nil && fatal(err) {
				return err
			}
			s.log.Error("not ready", "error", err.Error())
			wait = firstRetry
		}
		if wait <= 0 {
			<-ctx.Done()
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}
