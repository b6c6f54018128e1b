package signing

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"assay.dev/assay/attest/strictjson"
)

// span is a part of a document.
type span struct{ from, to int }

// members scans a JSON object in one pass and returns where the values of its
// own members are. It accepts exactly what strictjson.Check does, at several times
// the speed: a statement of 434 kB passes here once for every signature of it, and
// FuzzScan holds the two together.
func members(data []byte) (map[string]span, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("invalid UTF-8")
	}
	s := scanner{data: data, top: map[string]span{}}
	s.space()
	if s.peek() != '{' {
		return nil, errors.New("want an object")
	}
	if err := s.value(0); err != nil {
		return nil, err
	}
	s.space()
	if s.i != len(data) {
		return nil, fmt.Errorf("something follows the document at byte %d", s.i)
	}
	return s.top, nil
}

type scanner struct {
	data  []byte
	i     int
	top   map[string]span
	names [][]byte // of the open objects, the innermost last
}

// peek is the next byte; 0, which is no JSON, at the end.
func (s *scanner) peek() byte {
	if s.i < len(s.data) {
		return s.data[s.i]
	}
	return 0
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

func (s *scanner) bad() error {
	if s.i >= len(s.data) {
		return errors.New("unexpected end of JSON")
	}
	return fmt.Errorf("invalid JSON at byte %d", s.i)
}

func (s *scanner) value(depth int) error {
	if depth > strictjson.MaxDepth {
		return fmt.Errorf("nested deeper than %d levels", strictjson.MaxDepth)
	}
	switch c := s.peek(); {
	case c == '"':
		_, _, err := s.str()
		return err
	case c == '{':
		return s.object(depth)
	case c == '[':
		return s.array(depth)
	case c == 't':
		return s.word("true")
	case c == 'f':
		return s.word("false")
	case c == 'n':
		return s.word("null")
	case c == '-' || '0' <= c && c <= '9':
		return s.number()
	}
	return s.bad()
}

func (s *scanner) word(w string) error {
	if len(s.data)-s.i < len(w) || string(s.data[s.i:s.i+len(w)]) != w {
		return s.bad()
	}
	s.i += len(w)
	return nil
}

func (s *scanner) digits() bool {
	from := s.i
	for c := s.peek(); '0' <= c && c <= '9'; c = s.peek() {
		s.i++
	}
	return s.i > from
}

func (s *scanner) number() error {
	if s.peek() == '-' {
		s.i++
	}
	if s.peek() == '0' {
		s.i++
	} else if !s.digits() {
		return s.bad()
	}
	if s.peek() == '.' {
		s.i++
		if !s.digits() {
			return s.bad()
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.i++
		if c := s.peek(); c == '+' || c == '-' {
			s.i++
		}
		if !s.digits() {
			return s.bad()
		}
	}
	return nil
}

func (s *scanner) array(depth int) error {
	s.i++
	s.space()
	if s.peek() == ']' {
		s.i++
		return nil
	}
	for {
		s.space()
		if err := s.value(depth + 1); err != nil {
			return err
		}
		s.space()
		switch s.peek() {
		case ',':
			s.i++
		case ']':
			s.i++
			return nil
		default:
			return s.bad()
		}
	}
}

func (s *scanner) object(depth int) error {
	s.i++
	base := len(s.names)
	defer func() { s.names = s.names[:base] }()
	var many map[string]bool // once there are more names than are quickly compared
	s.space()
	if s.peek() == '}' {
		s.i++
		return nil
	}
	for {
		s.space()
		if s.peek() != '"' {
			return s.bad()
		}
		name, escaped, err := s.str()
		if err != nil {
			return err
		}
		if escaped {
			if name, err = unescape(name); err != nil {
				return err
			}
		}
		if !s.add(base, name, &many) {
			return fmt.Errorf("%w %q", strictjson.ErrDuplicate, name)
		}
		s.space()
		if s.peek() != ':' {
			return s.bad()
		}
		s.i++
		s.space()
		from := s.i
		if err := s.value(depth + 1); err != nil {
			return err
		}
		if depth == 0 {
			s.top[string(name)] = span{from, s.i}
		}
		s.space()
		switch s.peek() {
		case ',':
			s.i++
		case '}':
			s.i++
			return nil
		default:
			return s.bad()
		}
	}
}

// add notes a member's name and says whether it is new among those from base on.
func (s *scanner) add(base int, name []byte, many *map[string]bool) bool {
	if *many != nil {
		if (*many)[string(name)] {
			return false
		}
		(*many)[string(name)] = true
		return true
	}
	here := s.names[base:]
	if slices.ContainsFunc(here, func(n []byte) bool { return string(n) == string(name) }) {
		return false
	}
	s.names = append(s.names, name)
	if len(here)+1 == 24 {
		*many = make(map[string]bool, 64)
		for _, n := range s.names[base:] {
			(*many)[string(n)] = true
		}
	}
	return true
}

// unescape is a name as a decoder will see it.
func unescape(raw []byte) ([]byte, error) {
	var name string
	if err := json.Unmarshal(slices.Concat([]byte{'"'}, raw, []byte{'"'}), &name); err != nil {
		return nil, err
	}
	return []byte(name), nil
}

// Constants to look at eight bytes at once.
const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// plain skips whole words of eight bytes in which nothing is special.
func (s *scanner) plain() {
	for s.i+8 <= len(s.data) {
		w := binary.LittleEndian.Uint64(s.data[s.i:])
		quote, slash := w^(ones*'"'), w^(ones*'\\')
		special := (quote-ones)&^quote | (slash-ones)&^slash | (w-ones*0x20)&^w
		if special&highs != 0 {
			return
		}
		s.i += 8
	}
}

// str skips a string and returns what stands between the quotes, and whether it
// holds escapes.
func (s *scanner) str() (inner []byte, escaped bool, err error) {
	s.i++
	from := s.i
	for {
		s.plain()
		for n := 0; n < 8; n++ {
			if s.i >= len(s.data) {
				return nil, false, s.bad()
			}
			c := s.data[s.i]
			switch {
			case c == '"':
				s.i++
				return s.data[from : s.i-1], escaped, nil
			case c == '\\':
				escaped = true
				if err := s.escape(); err != nil {
					return nil, false, err
				}
				continue
			case c < 0x20:
				return nil, false, s.bad()
			}
			s.i++
		}
	}
}

func (s *scanner) escape() error {
	s.i++
	switch s.peek() {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.i++
		return nil
	case 'u':
		s.i++
		for range 4 {
			c := s.peek()
			if !('0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F') {
				return s.bad()
			}
			s.i++
		}
		return nil
	}
	return s.bad()
}
