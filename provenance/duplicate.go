package provenance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

// checkDuplicates refuses JSON in which an object has a member twice: which of
// the two counts differs from reader to reader, and what is signed must not.
// data must be valid JSON.
func checkDuplicates(data []byte) error {
	d := duplicates{data: data}
	return d.value()
}

type duplicates struct {
	data []byte
	pos  int
}

// space skips to the next byte that means something and returns it.
func (d *duplicates) space() byte {
	for {
		switch c := d.data[d.pos]; c {
		case ' ', '\t', '\r', '\n', ',', ':':
			d.pos++
		default:
			return c
		}
	}
}

func (d *duplicates) value() error {
	switch d.space() {
	case '{':
		return d.object()
	case '[':
		d.pos++
		for d.space() != ']' {
			if err := d.value(); err != nil {
				return err
			}
		}
		d.pos++
	case '"':
		d.string()
	default: // number, true, false, null
		for d.pos < len(d.data) && !bytes.ContainsRune([]byte(" \t\r\n,:]}"), rune(d.data[d.pos])) {
			d.pos++
		}
	}
	return nil
}

func (d *duplicates) object() error {
	d.pos++
	// Most objects are small: comparing a handful of names is cheaper than a map.
	var few [16][]byte
	names := few[:0]
	var many map[string]bool
	for d.space() != '}' {
		name := d.string()
		if bytes.IndexByte(name, '\\') >= 0 || !utf8.Valid(name) {
			var s string
			if err := json.Unmarshal(name, &s); err != nil {
				return err
			}
			name = append(append([]byte{'"'}, s...), '"')
		}
		known := false
		if many != nil {
			known = many[string(name)]
			many[string(name)] = true
		} else {
			for _, n := range names {
				known = known || bytes.Equal(n, name)
			}
			if names = append(names, name); len(names) == len(few) {
				many = make(map[string]bool, 2*len(names))
				for _, n := range names {
					many[string(n)] = true
				}
			}
		}
		if known {
			return fmt.Errorf("field %.100s is given twice in one object", name)
		}
		if err := d.value(); err != nil {
			return err
		}
	}
	d.pos++
	return nil
}

// string returns the string that begins at pos, quotes and all.
func (d *duplicates) string() []byte {
	start := d.pos
	for d.pos++; d.data[d.pos] != '"'; d.pos++ {
		if d.data[d.pos] == '\\' {
			d.pos++
		}
	}
	d.pos++
	return d.data[start:d.pos]
}
