package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// The protocol: one JSON request a connection, answered by one JSON message
// with the image or the error. Closing the connection calls the request off.

const (
	maxRequest     = 64 << 10
	maxResponse    = 16 << 20
	maxConnections = 256
)

type request struct {
	Ref      string   `json:"ref"`
	Platform Platform `json:"platform"`
	Recheck  bool     `json:"recheck,omitempty"`
}

type response struct {
	Image *Image     `json:"image,omitempty"`
	Error *wireError `json:"error,omitempty"`
}

// wireError keeps an error's kind across the socket.
type wireError struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
}

func toWire(err error) *wireError {
	kind, _ := classify(err, "")
	// An *Error's own kind comes before what its cause may also be.
	if e := (*Error)(nil); errors.As(err, &e) {
		kind = e.Kind
	}
	for _, k := range kinds {
		if k.kind == kind {
			return &wireError{k.name, err.Error()}
		}
	}
	return &wireError{"local", err.Error()}
}

// remoteError is an error that came over the socket.
type remoteError struct {
	kind error
	text string
}

func (r *remoteError) Error() string { return r.text }
func (r *remoteError) Unwrap() error { return r.kind }

func (w *wireError) err() error {
	for _, k := range kinds {
		if k.name == w.Kind {
			return &Error{Kind: k.kind, Err: &remoteError{k.kind, w.Message}}
		}
	}
	return &Error{Kind: ErrLocal, Err: fmt.Errorf("%s (of a kind %q that this version does not know)", w.Message, w.Kind)}
}

// Serve answers requests from l until ctx ends, then closes l, calls off what
// is running and waits for it. It returns nil then, and the listener's error
// if it broke earlier.
//
// Who can connect can have any image pulled that the store's credentials
// allow: the socket's permissions decide who that is.
func Serve(ctx context.Context, l net.Listener, s *Store) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	slots := make(chan struct{}, maxConnections)
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			l.Close()
			return fmt.Errorf("serving images: %w", err)
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			c.Close()
			return nil
		}
		wg.Go(func() {
			defer func() { <-slots }()
			serveOne(ctx, c, s)
		})
	}
}

func serveOne(ctx context.Context, c net.Conn, s *Store) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	in := io.LimitReader(c, maxRequest)
	var req request
	dec := json.NewDecoder(in)
	dec.DisallowUnknownFields()
	out := json.NewEncoder(c)
	if err := dec.Decode(&req); err != nil {
		_ = out.Encode(response{Error: &wireError{"bad-reference", "reading request: " + err.Error()}})
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	gone := make(chan struct{})
	go func() {
		// The client has nothing more to say but that it is gone.
		defer close(gone)
		_, _ = io.Copy(io.Discard, c)
		cancel()
	}()
	img, err := s.ensure(ctx, req.Ref, req.Platform, req.Recheck)
	var resp response
	if err != nil {
		resp.Error = toWire(err)
	} else {
		resp.Image = img
	}
	_ = c.SetWriteDeadline(time.Now().Add(30 * time.Second))
	_ = out.Encode(resp)
	c.Close()
	<-gone
}

// Client asks a store that another process serves.
type Client struct {
	// Socket is the path of its Unix socket.
	Socket string
	// Dial replaces dialing Socket, for a connection made elsewhere.
	Dial func(ctx context.Context) (net.Conn, error)
}

// Ensure is Store.Ensure over the socket. Errors keep their kind; without a
// store that answers it is ErrLocal.
func (c *Client) Ensure(ctx context.Context, ref string, p Platform) (*Image, error) {
	return c.do(ctx, request{Ref: ref, Platform: p})
}

// Recheck is Store.Recheck over the socket.
func (c *Client) Recheck(ctx context.Context, ref string, p Platform) (*Image, error) {
	return c.do(ctx, request{Ref: ref, Platform: p, Recheck: true})
}

func (c *Client) do(ctx context.Context, req request) (*Image, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, &Error{Kind: ErrLocal, Op: "asking the image store for", Ref: req.Ref, Err: err, Hint: "is the image store running?"}
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	resp, err := exchange(conn, req)
	if ctx.Err() != nil {
		return nil, fail("pulling", req.Ref, ctx.Err())
	}
	if err != nil {
		return nil, &Error{Kind: ErrLocal, Op: "asking the image store for", Ref: req.Ref, Err: err, Hint: "did the image store end?"}
	}
	if resp.Error != nil {
		return nil, resp.Error.err()
	}
	return resp.Image, nil
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	if c.Dial != nil {
		return c.Dial(ctx)
	}
	return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "unix", c.Socket)
}

func exchange(conn net.Conn, req request) (*response, error) {
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return nil, err
	}
	var resp response
	if err := json.NewDecoder(io.LimitReader(conn, maxResponse)).Decode(&resp); err != nil {
		return nil, fmt.Errorf("reading answer: %w", err)
	}
	if (resp.Image == nil) == (resp.Error == nil) {
		return nil, errors.New("the answer has neither an image nor an error")
	}
	return &resp, nil
}
