package ec

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"runtime/trace"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"assay.dev/assay/policy/conforma"
)

// traces are the kinds of --trace that are switched on.
type traces struct{ perf, cpu, mem, opa, log bool }

const traceKinds = "perf,cpu,mem,opa,log"

// Set reads a list of kinds. The flag was a boolean once, and still takes one. It
// fails on other words, which Conforma passes over.
func (t *traces) Set(s string) error {
	if on, err := strconv.ParseBool(s); err == nil {
		*t = traces{log: on}
		return nil
	}
	*t = traces{}
	for word := range strings.SplitSeq(s, ",") {
		switch strings.ToLower(strings.TrimSpace(word)) {
		case "", "log":
			t.log = true
		case "none":
			*t = traces{}
			return nil
		case "all":
			*t = traces{true, true, true, true, true}
			return nil
		case "perf":
			t.perf = true
		case "cpu":
			t.cpu = true
		case "mem":
			t.mem = true
		case "opa":
			t.opa = true
		default:
			return fmt.Errorf("%q is none of none,all,%s", word, traceKinds)
		}
	}
	return nil
}

func (t *traces) Type() string { return "string" }

// String lists what is on.
func (t *traces) String() string {
	on := []bool{t.perf, t.cpu, t.mem, t.opa, t.log}
	var out []string
	for i, name := range strings.Split(traceKinds, ",") {
		if on[i] {
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ",")
}

// level says how much is logged.
type level int

const (
	levelError level = iota
	levelWarning
	levelDebug
	levelTrace
)

func (l level) String() string { return []string{"error", "warning", "debug", "trace"}[l] }

// logger writes lines as Conforma's does where it writes to a file. Its zero value
// writes nothing.
type logger struct {
	mu     sync.Mutex
	to     io.Writer
	level  level
	caller bool // name the line of code
}

func (l *logger) printf(at level, format string, args ...any) {
	if at > l.level || l.to == nil {
		return
	}
	where := ""
	if l.caller {
		if pc, file, line, ok := runtime.Caller(2); ok {
			name := strings.TrimPrefix(filepath.Ext(runtime.FuncForPC(pc).Name()), ".")
			where = fmt.Sprintf(" func=%s file=\"%s:%d\"", name, filepath.Base(file), line)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.to, "level=%s msg=%q%s\n", at, fmt.Sprintf(format, args...), where)
}

// writer is for lines of another form, each in one Write.
func (l *logger) writer() io.Writer { return lockedWriter{l} }

type lockedWriter struct{ l *logger }

func (w lockedWriter) Write(b []byte) (int, error) {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	if w.l.to == nil {
		return len(b), nil
	}
	return w.l.to.Write(b)
}

func (g *globals) debugf(format string, args ...any) { g.log.printf(levelDebug, format, args...) }

// rules is who is told the steps of rules; nil unless --trace=opa.
func (g *globals) rules() func(conforma.TraceLine) {
	if !g.traces.opa {
		return nil
	}
	return func(l conforma.TraceLine) {
		at := levelTrace
		if l.Printed {
			at = levelDebug
		}
		g.log.printf(at, "[%s] %s", l.Rule, l.Text)
	}
}

// start makes the log and the profiles that the flags ask for. What it began,
// stop ends.
func (g *globals) start(cmd *cobra.Command) error {
	if err := g.check(); err != nil {
		return err
	}
	if g.log.to != nil { // a command in a command
		return nil
	}
	g.errw = cmd.ErrOrStderr()
	g.log.to = g.errw
	switch {
	case g.traces.opa || g.traces.log:
		g.log.level, g.log.caller = levelTrace, true
	case g.debug:
		g.log.level, g.log.caller = levelDebug, true
	case g.verbose:
		g.log.level = levelDebug
	case g.quiet:
		g.log.level = levelError
	default:
		g.log.level = levelWarning
	}
	if g.logfile != "" {
		f, err := os.OpenFile(g.logfile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			fmt.Fprintf(g.errw, "Unable to create log file %q, log lines will appear on standard error. Error was: %v\n", g.logfile, err)
		} else {
			g.log.to = f
			g.atEnd(f.Close)
		}
	}
	g.debugf("globalTimeout is %s", g.timeout)
	if g.traces.cpu {
		if err := g.profile("CPU profile", "cpuprofile.*", pprof.StartCPUProfile, pprof.StopCPUProfile); err != nil {
			return err
		}
	}
	if g.traces.perf {
		if err := g.profile("performance trace", "perf.*", trace.Start, trace.Stop); err != nil {
			return err
		}
	}
	if g.traces.mem {
		if err := g.profile("memory profile", "memprofile.*", nil, nil); err != nil {
			return err
		}
	}
	return nil
}

// profile writes one to a new file of the system's temporary folder, which stays.
// Without begin it is the heap's, as it is at the end.
func (g *globals) profile(what, pattern string, begin func(io.Writer) error, end func()) error {
	f, err := os.CreateTemp("", pattern)
	if err != nil {
		return fmt.Errorf("making the %s: %w", what, err)
	}
	if begin != nil {
		if err := begin(f); err != nil {
			return errors.Join(fmt.Errorf("making the %s: %w", what, err), f.Close(), os.Remove(f.Name()))
		}
	}
	g.atEnd(func() error {
		var err error
		if end != nil {
			end()
		} else {
			err = pprof.WriteHeapProfile(f)
		}
		fmt.Fprintf(g.errw, "Wrote %s to: %s\n", what, f.Name())
		return errors.Join(err, f.Close())
	})
	return nil
}

func (g *globals) atEnd(f func() error) { g.ends = append(g.ends, f) }

// stop ends what start began, the last first.
func (g *globals) stop() error {
	var errs []error
	for _, f := range slices.Backward(g.ends) {
		errs = append(errs, f())
	}
	g.ends = nil
	return errors.Join(errs...)
}
