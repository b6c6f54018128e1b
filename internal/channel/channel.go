// Package channel is how other processes speak with the observer: one Unix
// socket, JSON lines, and the peer's credentials from the kernel deciding what
// it may ask.
//
//	launcher   admit, state     opens a run before its executor exists; hands in the finished objects
//	executor   facts            streams the facts of the one run it was admitted for
//	registry   executor         asks which user executes an open run
//
// This package holds the wire types, the clients and the credential check. What
// the observer does with a request is internal/observer's; nothing here reaches
// a key.
package channel

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"assay.dev/assay/observe"
)

// MaxLine bounds one message. Finished objects of a large run are a few
// megabytes; a fact at most four.
const MaxLine = 64 << 20

// Request is the first line of every connection; exactly one field is set.
type Request struct {
	Admit    *Admit    `json:"admit,omitempty"`
	Facts    *Facts    `json:"facts,omitempty"`
	Executor *Executor `json:"executor,omitempty"`
	State    *State    `json:"state,omitempty"`
	Abandon  *Abandon  `json:"abandon,omitempty"`
}

// Admit opens a run for an executor of the given user.
type Admit struct {
	Run         string `json:"run"`
	ExecutorUID uint32 `json:"executorUid"`
}

// Admitted answers Admit.
type Admitted struct {
	Nonce         string `json:"nonce"`
	KeySeparation string `json:"keySeparation"`
}

// Facts begins a stream of facts. It is accepted once per run, from the
// admitted user, with the admitted nonce.
type Facts struct {
	Run   string `json:"run"`
	Nonce string `json:"nonce"`
}

// Accepted answers Facts and each fact after it.
type Accepted struct {
	Head          string `json:"head"`
	KeySeparation string `json:"keySeparation,omitempty"`
}

// Executor asks who executes a run.
type Executor struct {
	Run string `json:"run"`
}

// Executing answers Executor.
type Executing struct {
	UID  uint32 `json:"uid"`
	Open bool   `json:"open"`
}

// Abandon ends a run that was admitted and whose executor never spoke.
type Abandon struct {
	Run    string `json:"run"`
	Reason string `json:"reason"`
}

// State asks for statements about an ended run.
type State struct {
	Run string `json:"run"`
	// Object is the finished PipelineRun, or TaskRun, as JSON; Children the
	// PipelineRun's TaskRuns.
	Object   json.RawMessage   `json:"object"`
	Children []json.RawMessage `json:"children,omitempty"`
	// Spec is the resolved specification whose digest opened the run.
	Spec json.RawMessage `json:"spec"`
	// Format is a chains format; empty: in-toto.
	Format string `json:"format,omitempty"`
}

// Stated answers State.
type Stated struct {
	// Subjects are the artifacts that were attested, repo@sha256:….
	Subjects []string          `json:"subjects"`
	Payloads []observe.Payload `json:"payloads"`
	Claims   []observe.Claim   `json:"claims"`
	Builder  string            `json:"builder"`
	Key      string            `json:"key"` // file of the public key
}

// failure is the answer to anything refused.
type failure struct {
	Error string `json:"error"`
}

// Refused is what a peer answered instead of doing what was asked.
type Refused struct{ Reason string }

func (e *Refused) Error() string { return "observer: " + e.Reason }

// Conn is one connection, either end.
type Conn struct {
	c  net.Conn
	r  *bufio.Reader
	mu sync.Mutex // held for one write
}

// NewConn wraps a connected socket.
func NewConn(c net.Conn) *Conn { return &Conn{c: c, r: bufio.NewReaderSize(c, 32<<10)} }

// Close closes the socket.
func (c *Conn) Close() error { return c.c.Close() }

// SetReadDeadline bounds the next Read.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.c.SetReadDeadline(t) }

// Write sends one message.
func (c *Conn) Write(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding a message: %w", err)
	}
	if len(b) > MaxLine {
		return fmt.Errorf("message of %d bytes: at most %d", len(b), MaxLine)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err = c.c.Write(append(b, '\n'))
	return err
}

// WriteError sends a refusal.
func (c *Conn) WriteError(err error) error { return c.Write(failure{Error: err.Error()}) }

// Read receives one message; io.EOF when the peer is gone. An answer that is a
// refusal is a *Refused.
func (c *Conn) Read(v any) error {
	line, err := ReadLine(c.r, MaxLine)
	if err != nil {
		return err
	}
	var f failure
	if json.Unmarshal(line, &f) == nil && f.Error != "" {
		return &Refused{Reason: f.Error}
	}
	if err := json.Unmarshal(line, v); err != nil {
		return fmt.Errorf("decoding a message: %w", err)
	}
	return nil
}

// ReadLine reads up to and without the newline. A line longer than max is an
// error, io.EOF only stands between lines.
func ReadLine(r *bufio.Reader, max int) ([]byte, error) {
	var line []byte
	for {
		frag, err := r.ReadSlice('\n')
		if len(line)+len(frag) > max {
			return nil, fmt.Errorf("message of more than %d bytes", max)
		}
		line = append(line, frag...)
		switch {
		case err == nil:
			return line[:len(line)-1], nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}

// Peer returns the user and process at the other end, as the kernel saw them
// when they connected.
func Peer(c net.Conn) (uid uint32, pid int32, err error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return 0, 0, errors.New("peer credentials: not a Unix socket")
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return 0, 0, fmt.Errorf("peer credentials: %w", err)
	}
	var cred *syscall.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = syscall.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, 0, fmt.Errorf("peer credentials: %w", err)
	}
	if cerr != nil {
		return 0, 0, fmt.Errorf("peer credentials: %w", cerr)
	}
	return cred.Uid, cred.Pid, nil
}

// Client asks the observer behind a socket.
type Client struct{ Socket string }

func (c *Client) dial(ctx context.Context) (*Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", c.Socket)
	if err != nil {
		return nil, fmt.Errorf("reaching the observer: %w", err)
	}
	return NewConn(nc), nil
}

func ask[T any](ctx context.Context, c *Client, req Request) (*T, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := conn.Write(req); err != nil {
		return nil, fmt.Errorf("asking the observer: %w", err)
	}
	out := new(T)
	if err := conn.Read(out); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, err
	}
	return out, nil
}

// Admit opens a run.
func (c *Client) Admit(ctx context.Context, a Admit) (*Admitted, error) {
	return ask[Admitted](ctx, c, Request{Admit: &a})
}

// Executor tells which user executes a run and whether the run is open.
func (c *Client) Executor(ctx context.Context, run string) (uid uint32, open bool, err error) {
	e, err := ask[Executing](ctx, c, Request{Executor: &Executor{Run: run}})
	if err != nil {
		return 0, false, err
	}
	return e.UID, e.Open, nil
}

// Abandon ends an admitted run as lost.
func (c *Client) Abandon(ctx context.Context, run, reason string) error {
	_, err := ask[Accepted](ctx, c, Request{Abandon: &Abandon{Run: run, Reason: reason}})
	return err
}

// State asks for the statements about an ended run.
func (c *Client) State(ctx context.Context, s State) (*Stated, error) {
	return ask[Stated](ctx, c, Request{State: &s})
}

// Sender streams the facts of one run. It is safe for concurrent use.
type Sender struct {
	conn          *Conn
	keySeparation string

	mu   sync.Mutex // one fact and its answer at a time
	head string
}

// Send connects and begins the stream.
func (c *Client) Send(ctx context.Context, f Facts) (*Sender, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	if err := conn.Write(Request{Facts: &f}); err != nil {
		conn.Close()
		return nil, fmt.Errorf("asking the observer: %w", err)
	}
	var a Accepted
	if err := conn.Read(&a); err != nil {
		conn.Close()
		return nil, err
	}
	return &Sender{conn: conn, keySeparation: a.KeySeparation, head: a.Head}, nil
}

// KeySeparation as the observer decided it for this run.
func (s *Sender) KeySeparation() string { return s.keySeparation }

// Fact sends one fact and returns when the observer has recorded it. After an
// error nothing that happened counts: the run will be lost.
func (s *Sender) Fact(t observe.FactType, body any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encoding fact %s: %w", t, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.conn.Write(observe.Fact{Type: t, Body: raw}); err != nil {
		return fmt.Errorf("sending fact %s: %w", t, err)
	}
	var a Accepted
	if err := s.conn.Read(&a); err != nil {
		return fmt.Errorf("sending fact %s: %w", t, err)
	}
	s.head = a.Head
	return nil
}

// Head is the hash of the last recorded fact.
func (s *Sender) Head() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.head
}

// Close ends the stream. A run whose run.closed fact was not sent is lost.
func (s *Sender) Close() error { return s.conn.Close() }
