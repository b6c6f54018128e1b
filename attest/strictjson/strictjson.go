// Package strictjson reads JSON that somebody signed, or says that he did.
//
// encoding/json is made for friends: it takes the last of two members of one
// name, matches names without regard to case and stops reading after the first
// value. Two readers of one signed document can then see two different
// documents, and the one who verifies need not be the one who is fooled. Check
// refuses such documents; Object then gives members by their exact names.
//
// What it does not do: decide which members are allowed. Formats differ in
// that (DSSE tells readers to ignore unknown ones, a trust file must not have
// any), so each caller says it with Only.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// MaxDepth is how deep values may nest. Real provenance nests some fifteen
// levels; the bound keeps recursion in readers behind us harmless.
const MaxDepth = 256

// Errors that callers may tell apart with errors.Is.
var (
	// ErrDuplicate says that an object has two members of one name.
	ErrDuplicate = errors.New("duplicate member")
	// ErrTooLarge says that the document exceeds the bound given to Check.
	ErrTooLarge = errors.New("too large")
)

// Check returns nil if data is one JSON value of at most max bytes, in valid
// UTF-8, nested no deeper than MaxDepth, followed by nothing but white space,
// and no object in it has two members of the same (unescaped) name.
func Check(data []byte, max int) error {
	if len(data) > max {
		return fmt.Errorf("%w: %d bytes, at most %d are read", ErrTooLarge, len(data), max)
	}
	if !utf8.Valid(data) {
		return errors.New("invalid UTF-8")
	}
	if !json.Valid(data) {
		// Valid says no more than that; Unmarshal finds the place.
		var v json.RawMessage
		if err := json.Unmarshal(data, &v); err != nil {
			return err
		}
		return errors.New("invalid JSON")
	}
	s := scanner{data: data}
	return s.value(0)
}

// Object returns the members of the JSON object in data by their exact names; they
// are parts of data, not copies. Data must have passed Check, itself or as part of a document. Anything but
// an object is an error, null too.
func Object(data []byte) (map[string]json.RawMessage, error) {
	if k := Kind(data); k != "object" {
		return nil, fmt.Errorf("want an object, have %s", k)
	}
	m := map[string]json.RawMessage{}
	if !json.Valid(data) {
		return nil, json.Unmarshal(data, &m) // finds the place
	}
	if !utf8.Valid(data) { // Check would have refused it
		err := json.Unmarshal(data, &m)
		return m, err
	}
	return m, split(data, func(name string, value json.RawMessage) { m[name] = value }, nil)
}

// Array returns the elements of the JSON array in data. Anything but an array
// is an error, null too.
func Array(data []byte) ([]json.RawMessage, error) {
	if k := Kind(data); k != "array" {
		return nil, fmt.Errorf("want an array, have %s", k)
	}
	a := []json.RawMessage{}
	if !json.Valid(data) {
		return nil, json.Unmarshal(data, &a) // finds the place
	}
	return a, split(data, nil, func(value json.RawMessage) { a = append(a, value) })
}

// String returns the string in data. Anything but a string is an error, null
// and a missing member (nil data) too.
func String(data []byte) (string, error) {
	if k := Kind(data); k != "string" {
		return "", fmt.Errorf("want a string, have %s", k)
	}
	if s, ok := plain(data); ok {
		return s, nil
	}
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return "", err
	}
	return s, nil
}

// Only returns an error that names the first member, in order of name, that is
// not among names.
func Only(members map[string]json.RawMessage, names ...string) error {
	var unknown []string
	for name := range members {
		if !slices.Contains(names, name) {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	slices.Sort(unknown)
	return fmt.Errorf("unknown member %q; known are %s", unknown[0], strings.Join(names, ", "))
}

// Kind names the JSON value in data for error messages: object, array, string,
// number, boolean, null, or nothing.
func Kind(data []byte) string {
	data = bytes.TrimLeft(data, " \t\r\n")
	if len(data) == 0 {
		return "nothing"
	}
	switch data[0] {
	case '{':
		return "object"
	case '[':
		return "array"
	case '"':
		return "string"
	case 't', 'f':
		return "boolean"
	case 'n':
		return "null"
	}
	return "number"
}

// scanner walks a document that json.Valid accepted, so it need not check
// syntax again and only looks at names and depth.
type scanner struct {
	data []byte
	i    int
}

func (s *scanner) space() {
	for s.i < len(s.data) {
		switch s.data[s.i] {
		case ' ', '\t', '\r', '\n':
			s.i++
		default:
			return
		}
	}
}

func (s *scanner) value(depth int) error {
	if depth > MaxDepth {
		return fmt.Errorf("nested deeper than %d levels", MaxDepth)
	}
	s.space()
	switch s.data[s.i] {
	case '{':
		return s.object(depth)
	case '[':
		return s.array(depth)
	case '"':
		s.str()
	default:
		for s.i < len(s.data) && !strings.ContainsRune(",]} \t\r\n", rune(s.data[s.i])) {
			s.i++
		}
	}
	return nil
}

func (s *scanner) object(depth int) error {
	s.i++
	var names names
	for {
		s.space()
		if s.data[s.i] == '}' {
			s.i++
			return nil
		}
		if s.data[s.i] == ',' {
			s.i++
			continue
		}
		name, err := s.name()
		if err != nil {
			return err
		}
		if !names.add(name) {
			return fmt.Errorf("%w %q", ErrDuplicate, name)
		}
		s.space()
		s.i++ // the colon
		if err := s.value(depth + 1); err != nil {
			return err
		}
	}
}

func (s *scanner) array(depth int) error {
	s.i++
	for {
		s.space()
		switch s.data[s.i] {
		case ']':
			s.i++
			return nil
		case ',':
			s.i++
			continue
		}
		if err := s.value(depth + 1); err != nil {
			return err
		}
	}
}

// str skips a string and says whether it holds escapes.
func (s *scanner) str() (escaped bool) {
	for s.i++; s.data[s.i] != '"'; s.i++ {
		if s.data[s.i] == '\\' {
			escaped = true
			s.i++
		}
	}
	s.i++
	return escaped
}

// name reads a member's name as a decoder will see it, so that "a" and
// "\u0061" are one name.
func (s *scanner) name() (string, error) {
	start := s.i
	if !s.str() {
		return string(s.data[start+1 : s.i-1]), nil
	}
	return String(s.data[start:s.i])
}

// names is a set that stays a short list as long as it is short, which nearly
// every object is.
type names struct {
	list []string
	set  map[string]bool
}

func (n *names) add(name string) bool {
	if n.set == nil {
		if slices.Contains(n.list, name) {
			return false
		}
		n.list = append(n.list, name)
		if len(n.list) == 16 {
			n.set = make(map[string]bool, 32)
			for _, l := range n.list {
				n.set[l] = true
			}
		}
		return true
	}
	if n.set[name] {
		return false
	}
	n.set[name] = true
	return true
}
