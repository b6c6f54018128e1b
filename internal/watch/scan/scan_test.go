package scan_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/internal/watch/scan"
)

// collect reads every value by the cursor's own methods, as encoding/json would
// into any, with numbers as text.
func collect(c *scan.Cursor) (any, error) {
	raw, err := c.Raw()
	if err != nil {
		return nil, err
	}
	in := scan.New(raw)
	switch raw[0] {
	case '{':
		m := map[string]any{}
		err := in.Object(func(key []byte) error {
			k := string(key)
			v, err := collect(in)
			m[k] = v
			return err
		})
		return m, err
	case '[':
		a := []any{}
		err := in.Array(func() error {
			v, err := collect(in)
			a = append(a, v)
			return err
		})
		return a, err
	case '"':
		var s string
		err := in.String(&s)
		return s, err
	case 't', 'f':
		var b bool
		err := in.Bool(&b)
		return b, err
	case 'n':
		return nil, nil
	}
	return json.Number(raw), nil
}

func TestReads(t *testing.T) {
	for name, data := range map[string]string{
		"flat":    `{"a":"x","b":1,"c":true,"d":null,"e":false}`,
		"nested":  ` { "a" : [ 1 , "]" , {"b":{}} , [] ] , "c" : {"d":"}"} } `,
		"escapes": `{"a":"\"","b":"\\","c":"\\\"x","d":"\u00e9\n"}`,
		"numbers": `[-1.5e+10,0]`,
	} {
		t.Run(name, func(t *testing.T) {
			c := scan.New([]byte(data))
			got, err := collect(c)
			if err == nil {
				err = c.End()
			}
			if err != nil {
				t.Fatal(err)
			}
			var want any
			d := json.NewDecoder(strings.NewReader(data))
			d.UseNumber()
			if err := d.Decode(&want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-encoding/json +scan):\n%s", diff)
			}
		})
	}
}

func TestRefuses(t *testing.T) {
	for name, data := range map[string]string{
		"nothing":           ``,
		"cut string":        `{"a":"x`,
		"cut escape":        `{"a":"x\"`,
		"cut object":        `{"a":1`,
		"no colon":          `{"a" 1}`,
		"no comma":          `{"a":1 "b":2}`,
		"no value":          `{"a":}`,
		"trailing":          `{} {}`,
		"deeper than bound": strings.Repeat(`{"a":`, 20_000) + "1" + strings.Repeat("}", 20_000),
	} {
		t.Run(name, func(t *testing.T) {
			c := scan.New([]byte(data))
			err := c.Object(func([]byte) error { return c.Skip() })
			if err == nil {
				err = c.End()
			}
			if err == nil {
				t.Error("accepted")
			}
		})
	}
}

// FuzzAgrees: whatever encoding/json accepts, scan reads to the same value, and
// nothing makes it panic.
func FuzzAgrees(f *testing.F) {
	f.Add([]byte(`{"a":[1,"x\"",{"b":null}],"c":true}`))
	f.Add([]byte(`[[[[`))
	f.Add([]byte(`"\\\\"`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		c := scan.New(data)
		raw, err := c.Raw()
		if err == nil {
			err = c.End()
		}
		if !json.Valid(data) {
			return
		}
		if err != nil {
			t.Fatalf("refuses valid JSON %q: %v", data, err)
		}
		var got, want json.RawMessage
		if json.Unmarshal(raw, &got) != nil || json.Unmarshal(data, &want) != nil {
			t.Fatalf("%q is not one value of %q", raw, data)
		}
	})
}
