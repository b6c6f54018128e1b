// Package scan reads a few fields out of large JSON objects in one pass and
// without decoding the rest. A watch hands us every change of every run, 30 kB
// each, of which all but the last are looked at only to see that the run has
// not ended yet; decoding them in full is most of what upstream's controller
// spends its time on.
//
//	c := scan.New(data)
//	err := c.Object(func(key []byte) error {
//		switch string(key) {
//		case "kind":
//			return c.String(&kind)
//		}
//		return c.Skip()
//	})
//
// What is skipped is checked only as far as needed to find its end, so scanning
// is for bytes of an API server, and whoever relies on more than the fields read
// decodes the object properly afterwards. Malformed input ends in an error, never
// in a panic, and nesting is bounded.
package scan

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// maxDepth bounds nesting, as encoding/json does.
const maxDepth = 10_000

// Cursor is a position in JSON text. It is not safe for concurrent use.
type Cursor struct {
	data  []byte
	at    int
	depth int
}

// New returns a cursor before the first value of data, which it only reads.
func New(data []byte) *Cursor { return &Cursor{data: data} }

var errEnd = errors.New("unexpected end of JSON")

func (c *Cursor) bad(want string) error {
	if c.at >= len(c.data) {
		return errEnd
	}
	return fmt.Errorf("offset %d: want %s, have %q", c.at, want, c.data[c.at])
}

func (c *Cursor) space() {
	for c.at < len(c.data) {
		switch c.data[c.at] {
		case ' ', '\t', '\r', '\n':
			c.at++
		default:
			return
		}
	}
}

// take consumes b, after white space.
func (c *Cursor) take(b byte) bool {
	c.space()
	if c.at < len(c.data) && c.data[c.at] == b {
		c.at++
		return true
	}
	return false
}

func (c *Cursor) enter() error {
	if c.depth++; c.depth > maxDepth {
		return fmt.Errorf("offset %d: nested more than %d deep", c.at, maxDepth)
	}
	return nil
}

// Object calls member for each key of the object that comes next; member must
// consume the value, by Skip if nothing else. A null is an object without
// members. It fails on anything else, and with the first error of member's.
//
// Key is valid during the call only and is given as written, escapes and all:
// the names looked for have none.
func (c *Cursor) Object(member func(key []byte) error) error {
	if c.null() {
		return nil
	}
	if !c.take('{') {
		return c.bad("an object")
	}
	if err := c.enter(); err != nil {
		return err
	}
	defer func() { c.depth-- }()
	if c.take('}') {
		return nil
	}
	for {
		c.space()
		raw, err := c.quoted()
		if err != nil {
			return err
		}
		if !c.take(':') {
			return c.bad("a colon")
		}
		if err := member(raw[1 : len(raw)-1]); err != nil {
			return err
		}
		if c.take('}') {
			return nil
		}
		if !c.take(',') {
			return c.bad("a comma or the end of an object")
		}
	}
}

// Array calls item before each value of the array that comes next; item must
// consume it. A null is an empty array.
func (c *Cursor) Array(item func() error) error {
	if c.null() {
		return nil
	}
	if !c.take('[') {
		return c.bad("an array")
	}
	if err := c.enter(); err != nil {
		return err
	}
	defer func() { c.depth-- }()
	if c.take(']') {
		return nil
	}
	for {
		if err := item(); err != nil {
			return err
		}
		if c.take(']') {
			return nil
		}
		if !c.take(',') {
			return c.bad("a comma or the end of an array")
		}
	}
}

// String reads the string that comes next; null leaves to alone.
func (c *Cursor) String(to *string) error {
	if c.null() {
		return nil
	}
	raw, err := c.quoted()
	if err != nil {
		return err
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		*to = string(raw[1 : len(raw)-1])
		return nil
	}
	if err := json.Unmarshal(raw, to); err != nil {
		return fmt.Errorf("reading a string: %w", err)
	}
	return nil
}

// Bool reads the boolean that comes next.
func (c *Cursor) Bool(to *bool) error {
	c.space()
	switch rest := c.data[c.at:]; {
	case bytes.HasPrefix(rest, []byte("true")):
		*to, c.at = true, c.at+4
	case bytes.HasPrefix(rest, []byte("false")):
		*to, c.at = false, c.at+5
	default:
		return c.bad("true or false")
	}
	return nil
}

// Raw consumes the value that comes next and returns its text, a part of the
// data that the cursor was made of.
func (c *Cursor) Raw() ([]byte, error) {
	c.space()
	from := c.at
	if err := c.Skip(); err != nil {
		return nil, err
	}
	return c.data[from:c.at], nil
}

// Skip consumes the value that comes next.
func (c *Cursor) Skip() error {
	c.space()
	if c.at >= len(c.data) {
		return errEnd
	}
	switch c.data[c.at] {
	case '"':
		_, err := c.quoted()
		return err
	case '{', '[':
		return c.skipNested()
	case '}', ']', ',', ':':
		return c.bad("a value")
	}
	// A number, true, false or null.
	for c.at < len(c.data) {
		switch c.data[c.at] {
		case ',', '}', ']', ' ', '\t', '\r', '\n':
			return nil
		}
		c.at++
	}
	return nil
}

func (c *Cursor) skipNested() error {
	open := 0
	for c.at < len(c.data) {
		switch c.data[c.at] {
		case '"':
			if _, err := c.quoted(); err != nil {
				return err
			}
			continue
		case '{', '[':
			if open++; c.depth+open > maxDepth {
				return fmt.Errorf("offset %d: nested more than %d deep", c.at, maxDepth)
			}
		case '}', ']':
			if open--; open == 0 {
				c.at++
				return nil
			}
		}
		c.at++
	}
	return errEnd
}

// End returns an error unless only white space is left.
func (c *Cursor) End() error {
	if c.space(); c.at < len(c.data) {
		return c.bad("the end")
	}
	return nil
}

func (c *Cursor) null() bool {
	c.space()
	if bytes.HasPrefix(c.data[c.at:], []byte("null")) {
		c.at += 4
		return true
	}
	return false
}

// quoted consumes a string and returns it with its quotes.
func (c *Cursor) quoted() ([]byte, error) {
	if c.at >= len(c.data) || c.data[c.at] != '"' {
		return nil, c.bad("a string")
	}
	from := c.at
	at := from + 1
	for {
		i := bytes.IndexByte(c.data[at:], '"')
		if i < 0 {
			c.at = len(c.data)
			return nil, errEnd
		}
		at += i
		slashes := 0
		for at-slashes > from+1 && c.data[at-slashes-1] == '\\' {
			slashes++
		}
		at++
		if slashes%2 == 0 {
			c.at = at
			return c.data[from:at], nil
		}
	}
}
