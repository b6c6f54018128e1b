// Package sibling asks another of our programs one question and returns its answer.
//
// Programs are split by what they may hold: assayd links Kubernetes' client,
// assay-observer opens keys, and the one that the user called does neither. What it
// needs of theirs is asked of a process that ends with the answer: arguments in,
// standard output back, words on standard error where there is none. Both are
// bounded, since what a cluster or a key service says passes through.
package sibling

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"assay.dev/assay/internal/launch"
)

// maxWords is how much of standard error is kept.
const maxWords = 16 << 10

// Error is what a program said that ended with another code than 0.
type Error struct {
	Program string
	Code    int
	// Words are its last ones, without its own name before them.
	Words string
}

// Error implements error.
func (e *Error) Error() string {
	if e.Words == "" {
		return fmt.Sprintf("%s ended with code %d and said nothing", e.Program, e.Code)
	}
	return e.Words
}

// Output runs the program of this name and returns its standard output. Program is
// its path; empty: the one beside the running program. The environment is passed
// on. A missing program, one that ends with another code than 0 (an *Error), and
// more than limit bytes are errors; the program does not outlive ctx.
func Output(ctx context.Context, name, program string, limit int, args ...string) ([]byte, error) {
	if program == "" {
		var err error
		if program, err = launch.Binary(name); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out, words := &bounded{left: limit, full: cancel}, &bounded{left: maxWords}
	c := exec.CommandContext(ctx, program, args...)
	c.Stdout, c.Stderr = out, words
	c.WaitDelay = 5 * time.Second
	err := c.Run()
	if out.over {
		return nil, fmt.Errorf("%s gave more than %d bytes", name, limit)
	}
	if err == nil {
		return out.kept.Bytes(), nil
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("waiting for %s: %w", name, context.Cause(ctx))
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return nil, fmt.Errorf("running %s: %w", name, err)
	}
	said := strings.TrimSpace(words.kept.String())
	return nil, &Error{name, exit.ExitCode(), strings.TrimPrefix(said, name+": ")}
}

// bounded keeps so many bytes and forgets what follows; full is called once there
// is more.
type bounded struct {
	kept bytes.Buffer // no part of it: its ReadFrom would read without end
	left int
	over bool
	full func()
}

var _ io.Writer = (*bounded)(nil)

// Write implements io.Writer; it never fails, so that the writer ends by itself.
func (b *bounded) Write(p []byte) (int, error) {
	n := len(p)
	if n > b.left {
		p = p[:b.left]
		if !b.over && b.full != nil {
			b.full()
		}
		b.over = true
	}
	b.left -= len(p)
	b.kept.Write(p)
	return n, nil
}
