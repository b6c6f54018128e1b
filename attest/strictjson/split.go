package strictjson

import (
	"bytes"
	"encoding/json"
	"strings"
	"unicode/utf8"
)

// split gives the members of an object, or the elements of an array, without decoding
// them, which is several times faster than encoding/json is with raw messages: most of
// what verification does beside cryptography is to take documents apart. Data must be
// valid JSON; of two members of one name the last one counts, as there.
func split(data []byte, member func(name string, value json.RawMessage), element func(json.RawMessage)) error {
	s := scanner{data: bytes.Trim(data, " \t\r\n")}
	end := byte('}')
	if element != nil {
		end = ']'
	}
	for s.i = 1; ; {
		s.space()
		switch s.data[s.i] {
		case end:
			return nil
		case ',':
			s.i++
			continue
		}
		name := ""
		if member != nil {
			var err error
			if name, err = s.name(); err != nil {
				return err
			}
			s.space()
			s.i++ // the colon
			s.space()
		}
		start := s.i
		s.skip()
		// Nobody who appends to a value may write over the next one.
		value := json.RawMessage(s.data[start:s.i:s.i])
		if member != nil {
			member(name, value)
		} else {
			element(value)
		}
	}
}

// skip goes to the end of a value, however deep it is.
func (s *scanner) skip() {
	depth := 0
	for {
		switch s.data[s.i] {
		case '"':
			s.str()
		case '{', '[':
			depth++
			s.i++
		case '}', ']':
			depth--
			s.i++
		case ' ', '\t', '\r', '\n', ',', ':':
			s.i++
			continue
		default:
			for s.i < len(s.data) && !strings.ContainsRune(",]} \t\r\n", rune(s.data[s.i])) {
				s.i++
			}
		}
		if depth == 0 {
			return
		}
	}
}

// plain is a string that is written without escapes, which nearly all are.
func plain(data []byte) (string, bool) {
	data = bytes.Trim(data, " \t\r\n")
	if len(data) < 2 || data[0] != '"' || data[len(data)-1] != '"' {
		return "", false
	}
	data = data[1 : len(data)-1]
	for _, c := range data {
		if c < ' ' || c == '"' || c == '\\' {
			return "", false
		}
	}
	return string(data), utf8.Valid(data)
}
