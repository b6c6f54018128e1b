package ec

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/ec/input"
	"assay.dev/assay/internal/ec/server"
	"assay.dev/assay/policy/conforma"
)

// serverFlags are those of validate input --server.
type serverFlags struct {
	on      bool
	address string
	port    int
}

func (s *serverFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.BoolVar(&s.on, "server", false, "judge what is posted to /v1/validate/input until told to stop; there is no authentication")
	f.StringVar(&s.address, "server-address", "127.0.0.1", "address to serve on")
	f.IntVar(&s.port, "server-port", 8080, "port to serve on; 0 for any")
}

// inputServer judges documents that are posted.
type inputServer struct {
	inputs
	past bool
	load func(context.Context, time.Time) (*conforma.Policy, error)
	// fixed says that the effective time was named. Else it is now, and stays so: a
	// rule that comes into force while the server runs has to be in force.
	fixed bool

	mu sync.Mutex // guards policy and when of inputs
}

// maxAge is how long ago now may be.
const maxAge = time.Minute

// current is the policy as of now.
func (s *inputServer) current(ctx context.Context) (inputs, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now().UTC(); !s.fixed && now.Sub(s.when) > maxAge {
		p, err := s.load(ctx, now)
		if err != nil {
			return inputs{}, fmt.Errorf("loading the policy as of now: %w", err)
		}
		s.policy, s.when = p, now
	}
	return s.inputs, nil
}

func (s *inputServer) judge(ctx context.Context, r server.Request) (server.Verdict, error) {
	values, err := input.FromRequest(r)
	if err != nil {
		return server.Verdict{}, err
	}
	in, err := s.current(ctx)
	if err != nil {
		return server.Verdict{}, err
	}
	e, err := in.policy.Evaluate(ctx, []conforma.Document{{Name: "input", Values: values}}, conforma.Target{})
	if err != nil {
		return server.Verdict{}, fmt.Errorf("evaluating policy: %w", err)
	}
	report := in.report([]string{"input"}, []*conforma.Evaluation{e}, &additions{PastEffectiveTime: s.past})
	b, err := json.Marshal(report)
	return server.Verdict{Report: b, Pass: report.Success}, err
}

// serve serves until the context ends, and then lets what is being judged end.
func (s *inputServer) serve(cmd *cobra.Command, f serverFlags) error {
	for _, name := range []string{"output", "strict", "workers", "no-color", "color"} {
		if cmd.Flags().Changed(name) {
			s.warn("Flag --%s has no effect in server mode", name)
		}
	}
	if f.port < 0 || f.port > 65535 {
		return fmt.Errorf("--server-port %d: a port is a number up to 65535", f.port)
	}
	l, err := new(net.ListenConfig).Listen(cmd.Context(), "tcp", net.JoinHostPort(f.address, strconv.Itoa(f.port)))
	if err != nil {
		return fmt.Errorf("starting the server: %w", err)
	}
	log := slog.New(slog.NewJSONHandler(s.log.writer(), nil))
	log.Info("Server listening on "+l.Addr().String(), "sources", len(s.spec.Sources), "version", Version())
	h := server.Handler(map[string]server.Judge{"/v1/validate/input": s.judge}, server.Options{Ready: func() bool { return true }, Log: log})
	err = server.Serve(cmd.Context(), l, h, server.MaxTime+5*time.Second)
	log.Info("Server stopped")
	return err
}

// inputFiles are the documents that arguments name, each once.
func (s *serverFlags) inputFiles(given []string) ([]string, error) {
	var list []string
	for _, a := range given {
		if strings.TrimSpace(a) != "" && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	switch {
	case s.on && len(list) > 0:
		return nil, errors.New("--server and input files are mutually exclusive")
	case !s.on && len(list) == 0:
		return nil, errors.New("at least one input file must be specified as a positional argument or via the --file flag")
	}
	return list, nil
}
