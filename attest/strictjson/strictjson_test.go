package strictjson_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"assay.dev/assay/attest/strictjson"
)

func TestCheck(t *testing.T) {
	many := `{` + strings.Repeat(`"k":1,`, 0)
	for i := range 40 {
		many += `"k` + strings.Repeat("x", i) + `":1,`
	}
	for _, tc := range []struct {
		name, doc string
		ok        bool
	}{
		{"object", `{"a":1,"b":[true,null,{"a":"x"}]}`, true},
		{"white space around", " \n{\"a\" : [ ] , \"b\" : { } }\t\n", true},
		{"same name in two objects", `[{"a":1},{"a":2},{"a":{"a":3}}]`, true},
		{"names that differ in case", `{"a":1,"A":2}`, true},
		{"escaped quote in a name", `{"a\"":1,"a":2}`, true},
		{"many members", many + `"last":1}`, true},
		{"bare number", `1`, true},
		{"duplicate", `{"a":1,"a":2}`, false},
		{"duplicate deep down", `{"x":[{"y":{"a":1,"b":2,"a":3}}]}`, false},
		{"duplicate by escape", `{"a":1,"\u0061":2}`, false},
		{"duplicate among many", many + `"kxxx":1}`, false},
		{"duplicate by lone surrogates", `{"\ud800":1,"\ud801":2}`, false},
		{"trailing value", `{} {}`, false},
		{"trailing comma", `{"a":1,}`, false},
		{"empty", ``, false},
		{"invalid UTF-8", "{\"a\":\"\xff\"}", false},
		{"too deep", strings.Repeat("[", 300) + strings.Repeat("]", 300), false},
	} {
		if err := strictjson.Check([]byte(tc.doc), 1<<20); (err == nil) != tc.ok {
			t.Errorf("%s: %v; want ok %t", tc.name, err, tc.ok)
		}
	}
	if err := strictjson.Check([]byte(`{"a":1,"a":2}`), 100); !errors.Is(err, strictjson.ErrDuplicate) {
		t.Errorf("duplicate: %v", err)
	}
	if err := strictjson.Check([]byte(`"0123456789"`), 5); !errors.Is(err, strictjson.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
}

// What Check accepts has one reading: decoding and encoding again keeps all
// members.
func FuzzCheck(f *testing.F) {
	f.Add([]byte(`{"a":1,"b":[true,null,{"a":"\u0061"}],"\"":2}`))
	f.Add([]byte(`{"a":1,"\u0061":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if strictjson.Check(data, 1<<16) != nil {
			return
		}
		dec := json.NewDecoder(bytes.NewReader(data))
		dec.UseNumber()
		names, total := 0, 0
		var stack []bool // in an object, by level
		key := false
		for {
			tok, err := dec.Token()
			if err != nil {
				break
			}
			if d, ok := tok.(json.Delim); ok {
				switch d {
				case '{':
					stack, key = append(stack, true), true
				case '[':
					stack, key = append(stack, false), false
				default:
					stack = stack[:len(stack)-1]
					key = len(stack) > 0 && stack[len(stack)-1]
				}
				continue
			}
			if key {
				names++
			}
			if len(stack) > 0 && stack[len(stack)-1] {
				key = !key
			}
		}
		var v any
		whole := json.NewDecoder(bytes.NewReader(data))
		whole.UseNumber() // 1e999 is JSON, if no float64
		if err := whole.Decode(&v); err != nil {
			t.Fatalf("accepted what does not decode: %v", err)
		}
		var count func(any)
		count = func(v any) {
			switch v := v.(type) {
			case map[string]any:
				total += len(v)
				for _, e := range v {
					count(e)
				}
			case []any:
				for _, e := range v {
					count(e)
				}
			}
		}
		count(v)
		if names != total {
			t.Fatalf("%d names in the text, %d members decoded", names, total)
		}
	})
}
