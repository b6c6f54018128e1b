package kubeapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"assay.dev/assay/internal/watch/scan"
)

// Selection is a set of objects to follow.
type Selection struct {
	Resource  Resource
	Namespace string // empty: all
	Label     string // selector
	Field     string // selector
}

// String names the selection for people.
func (s Selection) String() string {
	out := s.Resource.Plural
	if s.Namespace != "" {
		out += " in " + s.Namespace
	}
	if s.Label != "" {
		out += " with " + s.Label
	}
	if s.Field != "" {
		out += " where " + s.Field
	}
	return out
}

// Handler is told what happens to the objects of a selection, one call at a
// time. Objects are valid during the call only.
//
//	Begin ─▶ Object* ─▶ Synced ─▶ (Object | Gone)* ─┐
//	  ▲                                             │ events were missed (410)
//	  └─────────────────────────────────────────────┘
type Handler interface {
	// Begin: everything is told anew; what is not told until Synced is gone.
	Begin()
	// Object is there, was made or was changed.
	Object(object []byte)
	// Gone: the object was deleted; it is given as it was last.
	Gone(object []byte)
	// Synced: everything there is has been told.
	Synced()
	// Trouble: the API server cannot be followed at the moment, and the follower
	// tries again by itself; nil: it can again.
	Trouble(err error)
}

// streamPatience is how long a server may be silent before it has told the initial
// state. It can only do so when its cache has caught up with etcd, which on a quiet
// cluster can be minutes away; a list is answered at once.
const streamPatience = 3 * time.Second

// errSilent says that a server did not tell the initial state in time.
var errSilent = errors.New("the server did not tell what there is")

// errRestart asks for the whole selection anew.
var errRestart = errors.New("events were missed")

// Follow tells handler about a selection until ctx ends, over restarts of the
// API server, cut connections and missed events. It returns ctx's error.
func (c *Client) Follow(ctx context.Context, sel Selection, handler Handler) error {
	f := &follower{c: c, sel: sel, h: handler}
	pause := time.Duration(0)
	for ctx.Err() == nil {
		began := time.Now()
		err := f.once(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errRestart):
			f.version = ""
		case errors.Is(err, errSilent):
			f.version, f.listing = "", true
			continue
		case err != nil:
			handler.Trouble(err)
		}
		// A watch that lasted ended for good reasons: go on at once. One that
		// keeps ending is given longer and longer pauses.
		if err == nil || time.Since(began) > 10*time.Second {
			pause = 0
		} else {
			pause = min(max(2*pause, 100*time.Millisecond), 15*time.Second)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause/2+1)):
		}
	}
	return context.Cause(ctx)
}

type follower struct {
	c   *Client
	sel Selection
	h   Handler
	// version to go on from; empty: from the beginning.
	version string
	// listing: the server cannot stream the initial state.
	listing bool
	line    []byte
	silence *time.Timer // runs until the initial state is told
}

// once follows until the connection ends: nil where the server closed it in
// good order.
func (f *follower) once(ctx context.Context) error {
	if f.version == "" && f.listing {
		if err := f.list(ctx); err != nil {
			return err
		}
	}
	q := f.query()
	q.Set("watch", "true")
	q.Set("allowWatchBookmarks", "true")
	q.Set("timeoutSeconds", strconv.Itoa(300+rand.IntN(300)))
	initial := f.version == ""
	if initial {
		q.Set("sendInitialEvents", "true")
		q.Set("resourceVersionMatch", "NotOlderThan")
	} else {
		q.Set("resourceVersion", f.version)
	}
	// Silence before the initial state is told ends the connection.
	wctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if initial {
		f.silence = time.AfterFunc(streamPatience, func() { cancel(errSilent) })
		defer f.silence.Stop()
	}
	resp, err := f.c.send(wctx, request{method: "GET", verb: "watch", res: f.sel.Resource, namespace: f.sel.Namespace, query: q})
	switch {
	case err == nil:
	case errors.Is(context.Cause(wctx), errSilent):
		return errSilent
	case gone(err):
		return errRestart
	case initial && (apierrors.IsInvalid(err) || apierrors.IsBadRequest(err)):
		// Servers before 1.32, or with the feature off: list, then watch.
		f.listing = true
		return f.once(ctx)
	default:
		return err
	}
	defer resp.Body.Close()
	if initial {
		f.h.Begin()
	}
	f.h.Trouble(nil)
	err = f.stream(resp.Body, initial)
	if err != nil && errors.Is(context.Cause(wctx), errSilent) {
		return errSilent
	}
	return err
}

func gone(err error) bool {
	return apierrors.IsResourceExpired(err) || apierrors.IsGone(err)
}

func (f *follower) query() url.Values {
	q := url.Values{}
	if f.sel.Label != "" {
		q.Set("labelSelector", f.sel.Label)
	}
	if f.sel.Field != "" {
		q.Set("fieldSelector", f.sel.Field)
	}
	return q
}

// stream reads events, a line each.
func (f *follower) stream(body io.Reader, initial bool) error {
	r := bufio.NewReaderSize(body, 64<<10)
	for {
		line, err := f.readLine(r)
		if len(line) > 0 {
			ended, err := f.event(line, initial)
			if err != nil {
				return err
			}
			if initial = initial && !ended; initial {
				f.silence.Reset(streamPatience)
			} else if f.silence != nil {
				f.silence.Stop()
			}
		}
		switch {
		case err == io.EOF && initial:
			// Cut before all was told: what was told counts for nothing.
			return fmt.Errorf("following %s: %w", f.sel, io.ErrUnexpectedEOF)
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("following %s: %w", f.sel, err)
		}
	}
}

func (f *follower) readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if err != bufio.ErrBufferFull {
		return line, err
	}
	f.line = append(f.line[:0], line...)
	for err == bufio.ErrBufferFull {
		if len(f.line) > MaxObject {
			return nil, fmt.Errorf("an event has more than the %d bytes accepted", MaxObject)
		}
		line, err = r.ReadSlice('\n')
		f.line = append(f.line, line...)
	}
	line = f.line
	if cap(f.line) > 4<<20 {
		f.line = nil
	}
	return line, err
}

// event handles one line and says whether it ends the initial state.
func (f *follower) event(line []byte, initial bool) (bool, error) {
	var kind string
	var object []byte
	c := scan.New(line)
	err := c.Object(func(key []byte) (err error) {
		switch string(key) {
		case "type":
			return c.String(&kind)
		case "object":
			object, err = c.Raw()
			return err
		}
		return c.Skip()
	})
	if err != nil {
		return false, fmt.Errorf("following %s: reading an event: %w", f.sel, err)
	}
	if kind == "ERROR" {
		var s metav1.Status
		if err := json.Unmarshal(object, &s); err != nil {
			return false, fmt.Errorf("following %s: reading an error: %w", f.sel, err)
		}
		if s.Code == http.StatusGone {
			return false, errRestart
		}
		return false, fmt.Errorf("following %s: %w", f.sel, &apierrors.StatusError{ErrStatus: s})
	}
	version, ends, err := meta(object)
	if err != nil {
		return false, fmt.Errorf("following %s: reading metadata: %w", f.sel, err)
	}
	switch kind {
	case "ADDED", "MODIFIED":
		f.h.Object(object)
	case "DELETED":
		f.h.Gone(object)
	case "BOOKMARK":
		if ends && initial {
			f.h.Synced()
		}
	default:
		return false, fmt.Errorf("following %s: unknown event type %q", f.sel, kind)
	}
	// While the initial state streams there is nothing to go on from.
	if version != "" && (!initial || ends) {
		f.version = version
	}
	return ends, nil
}

// meta reads resourceVersion and whether a bookmark ends the initial state.
func meta(object []byte) (version string, ends bool, err error) {
	c := scan.New(object)
	found := errors.New("found")
	err = c.Object(func(key []byte) error {
		if string(key) != "metadata" {
			return c.Skip()
		}
		err := c.Object(func(key []byte) error {
			switch string(key) {
			case "resourceVersion":
				return c.String(&version)
			case "annotations":
				return c.Object(func(key []byte) error {
					ends = ends || string(key) == metav1.InitialEventsAnnotationKey
					return c.Skip()
				})
			}
			return c.Skip()
		})
		if err != nil {
			return err
		}
		return found
	})
	if errors.Is(err, found) {
		err = nil
	}
	return version, ends, err
}

// list tells the initial state page by page.
func (f *follower) list(ctx context.Context) error {
	begun := false
	next := ""
	for {
		q := f.query()
		q.Set("limit", "250")
		if next != "" {
			q.Set("continue", next)
		}
		version := ""
		next = ""
		err := f.c.List(ctx, f.sel.Resource, f.sel.Namespace, q, func(body []byte) error {
			if !begun {
				begun = true
				f.h.Begin()
			}
			var m struct{ version, next string }
			c := scan.New(body)
			err := c.Object(func(key []byte) error {
				switch string(key) {
				case "metadata":
					return c.Object(func(key []byte) error {
						switch string(key) {
						case "resourceVersion":
							return c.String(&m.version)
						case "continue":
							return c.String(&m.next)
						}
						return c.Skip()
					})
				case "items":
					return c.Array(func() error {
						raw, err := c.Raw()
						if err == nil {
							f.h.Object(raw)
						}
						return err
					})
				}
				return c.Skip()
			})
			version, next = m.version, m.next
			return err
		})
		switch {
		case err != nil && gone(err):
			return errRestart
		case err != nil:
			return fmt.Errorf("listing %s: %w", f.sel, err)
		case next == "":
			f.version = version
			f.h.Synced()
			return nil
		}
	}
}
