package provenance

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
)

// encoder appends JSON in the order in which its methods are called. Commas
// follow from the last byte written; it does not check that calls nest. The
// first failure stays in err, and what is written after it means nothing.
type encoder struct {
	buf []byte
	err error
	// names is what stringMap sorts in; maps do not nest, so one will do.
	names []string
}

func (e *encoder) sep() {
	if n := len(e.buf); n > 0 {
		switch e.buf[n-1] {
		case '{', '[', ':':
		default:
			e.buf = append(e.buf, ',')
		}
	}
}

func (e *encoder) open(c byte)  { e.sep(); e.buf = append(e.buf, c) }
func (e *encoder) close(c byte) { e.buf = append(e.buf, c) }

func (e *encoder) key(k string) {
	e.string(k)
	e.buf = append(e.buf, ':')
}

func (e *encoder) string(s string) {
	e.sep()
	e.buf = appendString(e.buf, s)
}

// joined writes a string that comes in two parts.
func (e *encoder) joined(a, b string) {
	e.sep()
	e.buf = append(e.buf, '"')
	e.buf = appendQuoted(e.buf, a)
	e.buf = append(appendQuoted(e.buf, b), '"')
}

func (e *encoder) literal(s string) {
	e.sep()
	e.buf = append(e.buf, s...)
}

// field writes a string member and optional the same unless it is empty.
func (e *encoder) field(k, v string) { e.key(k); e.string(v) }

func (e *encoder) optional(k, v string) {
	if v != "" {
		e.field(k, v)
	}
}

// stringMap writes a map of strings in the order of its keys, nil as null.
func (e *encoder) stringMap(m map[string]string) {
	if m == nil {
		e.literal("null")
		return
	}
	e.sorted(m, nil)
}

// sorted writes the members of a map that keep lets through in the order of
// their keys; nil keeps all.
func (e *encoder) sorted(m map[string]string, keep func(key string) bool) {
	e.names = e.names[:0]
	for k := range m {
		if keep == nil || keep(k) {
			e.names = append(e.names, k)
		}
	}
	slices.Sort(e.names)
	e.open('{')
	for _, k := range e.names {
		e.field(k, m[k])
	}
	e.close('}')
}

// strings writes a list, nil as null.
func (e *encoder) strings(list []string) {
	if list == nil {
		e.literal("null")
		return
	}
	e.open('[')
	for _, s := range list {
		e.string(s)
	}
	e.close(']')
}

func (e *encoder) digests(s *digestSet) {
	e.open('{')
	for _, d := range s.all {
		e.field(d.Algorithm, d.Hex)
	}
	e.close('}')
}

func (e *encoder) base64(data []byte) {
	e.sep()
	e.buf = append(e.buf, '"')
	e.buf = base64.StdEncoding.AppendEncode(e.buf, data)
	e.buf = append(e.buf, '"')
}

// param writes a parameter or result as Tekton does.
func (e *encoder) param(v *v1.ParamValue) {
	switch v.Type {
	case v1.ParamTypeString:
		e.string(v.StringVal)
	case v1.ParamTypeArray:
		e.strings(v.ArrayVal)
	case v1.ParamTypeObject:
		e.stringMap(v.ObjectVal)
	default:
		e.fail(fmt.Errorf("a parameter or result has no value, or one of unknown type %q", v.Type))
	}
}

// typed writes one of Tekton's own structs.
func (e *encoder) typed(v any) {
	data, err := json.Marshal(v)
	if err != nil {
		e.fail(err)
		return
	}
	e.json(data)
}

// json writes a struct that is JSON already. Statements are protobuf Structs to
// upstream, whose numbers are 64-bit floats; so are ours.
func (e *encoder) json(data []byte) {
	e.sep()
	var err error
	if e.buf, err = appendStruct(e.buf, data); err != nil {
		e.fail(err)
	}
}

func (e *encoder) fail(err error) {
	if e.err == nil {
		e.err = err
	}
}

// appendStruct copies valid JSON and rewrites each number that a 64-bit float
// holds differently. It fails for what a protobuf Struct cannot hold: numbers
// out of range and half surrogate pairs. Both reach us only through fields that
// carry JSON of the user's own, such as a custom task's spec.
func appendStruct(dst, src []byte) ([]byte, error) {
	start := 0 // of what is not copied yet
	for i := 0; i < len(src); {
		switch c := src[i]; {
		case c == '"':
			end, err := scanString(src, i)
			if err != nil {
				return dst, err
			}
			i = end
		case c == '-' || c >= '0' && c <= '9':
			end := i
			for end < len(src) && isNumber(src[end]) {
				end++
			}
			text := src[i:end]
			if !exact(text) {
				f, err := strconv.ParseFloat(string(text), 64)
				if err != nil {
					return dst, fmt.Errorf("number %.40s does not fit a 64-bit float", text)
				}
				dst = append(dst, src[start:i]...)
				dst = appendFloat(dst, f)
				start = end
			}
			i = end
		default:
			i++
		}
	}
	return append(dst, src[start:]...), nil
}

func isNumber(c byte) bool {
	return c >= '0' && c <= '9' || c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E'
}

// exact says whether text is an integer small enough to need no rewriting.
func exact(text []byte) bool {
	if text[0] == '-' {
		text = text[1:]
	}
	if len(text) > 15 || text[0] == '0' && len(text) > 1 {
		return false
	}
	for _, c := range text {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// appendFloat writes f as encoding/json and protojson do.
func appendFloat(b []byte, f float64) []byte {
	format := byte('f')
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		format = 'e'
	}
	b = strconv.AppendFloat(b, f, format, -1, 64)
	if n := len(b); format == 'e' && n >= 4 && b[n-4] == 'e' && b[n-3] == '-' && b[n-2] == '0' {
		b[n-2] = b[n-1] // e-09 to e-9
		b = b[:n-1]
	}
	return b
}

// scanString returns the index behind the string that begins at src[i].
func scanString(src []byte, i int) (int, error) {
	for i++; src[i] != '"'; i++ {
		if src[i] != '\\' {
			continue
		}
		i++
		if src[i] != 'u' {
			continue
		}
		r, err := strconv.ParseUint(string(src[i+1:i+5]), 16, 16)
		if err != nil {
			return 0, err
		}
		i += 4
		if r < 0xD800 || r > 0xDFFF {
			continue
		}
		low, ok := uint64(0), false
		if r < 0xDC00 && i+7 <= len(src) && src[i+1] == '\\' && src[i+2] == 'u' {
			low, err = strconv.ParseUint(string(src[i+3:i+7]), 16, 16)
			ok = err == nil && low >= 0xDC00 && low <= 0xDFFF
		}
		if !ok {
			return 0, fmt.Errorf("string holds half a surrogate pair (\\u%04x)", r)
		}
		i += 6
	}
	return i + 1, nil
}
