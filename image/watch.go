package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// watchdog ends a request over which nothing moves any more. A limit on the
// whole request would either cut off big layers or wait long for a dead peer.
type watchdog struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	idle   time.Duration
}

func watch(ctx context.Context, idle time.Duration) *watchdog {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watchdog{ctx: ctx, cancel: cancel, idle: idle}
	w.timer = time.AfterFunc(idle, func() { cancel(&stalledError{idle}) })
	return w
}

type stalledError struct{ idle time.Duration }

func (e *stalledError) Error() string {
	return fmt.Sprintf("nothing was sent or taken for %s", e.idle)
}

// cause replaces the "context canceled" that a stall looks like.
func (w *watchdog) cause(err error) error {
	if s := (*stalledError)(nil); err != nil && !errors.Is(err, io.EOF) && errors.As(context.Cause(w.ctx), &s) {
		return s
	}
	return err
}

// stop ends the watch with the error to report.
func (w *watchdog) stop(err error) error {
	w.timer.Stop()
	err = w.cause(err)
	w.cancel(nil)
	return err
}

// watchedBody is a body whose reader shows that something moves. Closing a
// response's body ends the watch; a request's body (keep) comes before the
// answer, whose wait is watched still.
type watchedBody struct {
	io.ReadCloser
	w    *watchdog
	keep bool
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.w.timer.Reset(b.w.idle)
	}
	return n, b.w.cause(err)
}

func (b *watchedBody) Close() error {
	err := b.ReadCloser.Close()
	if !b.keep {
		b.w.stop(nil)
	}
	return err
}
