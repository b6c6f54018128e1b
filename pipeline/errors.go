package pipeline

import (
	"fmt"
	"strings"
)

// Origin says where an object was read.
type Origin struct {
	File     string // or the reference of a bundle
	Document int    // counted from 1 within the file; 0 where there is one only
}

// String is the origin as it stands in messages.
func (o Origin) String() string {
	if o.Document == 0 {
		return o.File
	}
	return fmt.Sprintf("%s: document %d", o.File, o.Document)
}

// InputError is something wrong in what the user wrote. It says where and what
// to do about it.
type InputError struct {
	Origin Origin
	Object string // kind and name, if known so far
	Path   string // within the object: spec.tasks[0].taskRef
	// Problem says what is wrong; Remedy what to do, and may be empty where the
	// problem says it.
	Problem string
	Remedy  string
	// Err is the cause, if there is one. Problem already tells it.
	Err error
}

// Error implements error: origin, object, path, problem and remedy.
func (e *InputError) Error() string {
	var parts []string
	for _, p := range []string{e.Origin.String(), strings.TrimSpace(e.Object), e.Path, e.Problem, e.Remedy} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, ": ")
}

// Unwrap returns the cause.
func (e *InputError) Unwrap() error { return e.Err }
