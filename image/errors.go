package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Kinds of failures. Every *Error has one of them.
var (
	// ErrNotFound: the registry answered and does not have it.
	ErrNotFound = errors.New("not found")
	// ErrUnauthorized: the registry wants other or any credentials.
	ErrUnauthorized = errors.New("not authorized")
	// ErrUnreachable: no answer, an answer of 5xx, or one that broke off. The
	// same request may succeed later.
	ErrUnreachable = errors.New("registry unreachable")
	// ErrBadImage: what is there is not what its name, its manifest or the
	// format says, or exceeds a bound. Asking again does not help.
	ErrBadImage = errors.New("bad image")
	// ErrBadReference: the reference itself cannot be understood.
	ErrBadReference = errors.New("bad reference")
	// ErrLocal: this machine failed: disk full, no permission.
	ErrLocal = errors.New("local failure")
)

// kinds is the one table between kinds and their names on the wire.
var kinds = []struct {
	kind error
	name string
}{
	{ErrNotFound, "not-found"},
	{ErrUnauthorized, "unauthorized"},
	{ErrUnreachable, "unreachable"},
	{ErrBadImage, "bad-image"},
	{ErrBadReference, "bad-reference"},
	{ErrLocal, "local"},
}

// Error is a failed operation on a reference.
type Error struct {
	Kind error  // one of the Err… above
	Op   string // what was being done: "pulling", "pushing blob sha256:…"
	Ref  string // the reference, with its registry
	Err  error  // the cause; nil for an error that came over the socket
	Hint string // what to do about it; may be empty
}

// Error is one line: operation, reference, cause, remedy.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Op != "" {
		b.WriteString(e.Op + " " + e.Ref + ": ")
	}
	if e.Err != nil {
		b.WriteString(e.Err.Error())
	} else {
		b.WriteString(e.Kind.Error())
	}
	if e.Hint != "" {
		b.WriteString(" (" + e.Hint + ")")
	}
	return b.String()
}

// Unwrap gives errors.Is both the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// bad is a cause of kind ErrBadImage.
func bad(format string, args ...any) error {
	return &kinded{ErrBadImage, fmt.Errorf(format, args...)}
}

// kinded gives a cause its kind before operation and reference are known.
type kinded struct {
	kind error
	err  error
}

func (k *kinded) Error() string   { return k.err.Error() }
func (k *kinded) Unwrap() []error { return []error{k.kind, k.err} }

// fail makes an *Error of a cause. An *Error is passed on as it is: the
// innermost operation knows best what failed.
func fail(op, ref string, err error) error {
	if err == nil {
		return nil
	}
	if e := (*Error)(nil); errors.As(err, &e) {
		return err
	}
	kind, hint := classify(err, ref)
	return &Error{Kind: kind, Op: op, Ref: ref, Err: err, Hint: hint}
}

// classify finds the kind of a cause and what to do about it.
func classify(err error, ref string) (kind error, hint string) {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return ErrLocal, "the disk is full: make room and try again"
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EROFS):
		return ErrLocal, "this process may not do that; see the owner and mode of the folder"
	}
	for _, k := range kinds {
		if errors.Is(err, k.kind) {
			return k.kind, ""
		}
	}
	host := hostOf(ref)
	if te := (*transport.Error)(nil); errors.As(err, &te) {
		return classifyStatus(te.StatusCode, host)
	}
	switch {
	case errors.Is(err, context.Canceled):
		return ErrUnreachable, ""
	case isPathError(err):
		return ErrLocal, ""
	}
	return ErrUnreachable, "is " + host + " running and reachable from here? Mirrors and proxy settings apply"
}

func classifyStatus(status int, host string) (kind error, hint string) {
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return ErrUnauthorized, "log in to " + host + " (docker login, or a credential for it in $DOCKER_CONFIG/config.json), and check that the account may do this"
	case status == http.StatusNotFound:
		return ErrNotFound, "check the name; a private repository may also answer so without credentials"
	case status == http.StatusTooManyRequests:
		return ErrUnreachable, host + " limits requests: wait, log in, or use a mirror"
	case status >= 500:
		return ErrUnreachable, host + " is in trouble: try again later or use a mirror"
	}
	return ErrBadImage, host + " refused the request"
}

// asLocal marks an error of the local side of a transfer, so that a broken
// source is not taken for an unreachable registry.
func asLocal(err error) error {
	if err == nil {
		return nil
	}
	for _, k := range kinds {
		if errors.Is(err, k.kind) {
			return err
		}
	}
	return &kinded{ErrLocal, err}
}
