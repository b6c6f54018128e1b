package provenance

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestAppendStruct: numbers become 64-bit floats and nothing else changes,
// which is what decoding into interface values does.
func TestAppendStruct(t *testing.T) {
	value := func(t *rapid.T) any {
		return map[string]any{
			"s": rapid.String().Draw(t, "s"),
			"i": rapid.Int64().Draw(t, "i"),
			"f": rapid.Float64Range(-1e300, 1e300).Draw(t, "f"),
			"l": rapid.SliceOf(rapid.Float32Range(-9, 9)).Draw(t, "l"),
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		src, err := json.Marshal(value(t))
		if err != nil {
			t.Fatal(err)
		}
		out, err := appendStruct(nil, src)
		if err != nil {
			t.Fatal(err)
		}
		var got, want any
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		if err := json.Unmarshal(src, &want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("changed:\n%s", diff)
		}
		again, err := appendStruct(nil, out)
		if err != nil || string(again) != string(out) {
			t.Fatalf("not stable: %s, then %s (%v)", out, again, err)
		}
	})
}

// TestArtifactsMerge: every digest that goes in is found under its name, and no
// two entries of a name agree.
func TestArtifactsMerge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var a artifacts
		type fact struct{ name, alg, hex string }
		var in []fact
		for range rapid.IntRange(0, 20).Draw(t, "n") {
			f := fact{
				rapid.SampledFrom([]string{"x", "y"}).Draw(t, "name"),
				rapid.SampledFrom([]string{"sha1", "sha256"}).Draw(t, "alg"),
				rapid.SampledFrom([]string{"1", "2", "3"}).Draw(t, "hex"),
			}
			in = append(in, f)
			d := &digestSet{}
			d.set(f.alg, f.hex)
			a.add(f.name, d)
		}
		got := map[fact]int{}
		for _, e := range a.list {
			for _, d := range e.digest.all {
				got[fact{e.name, d.Algorithm, d.Hex}]++
			}
		}
		for _, f := range in {
			if got[f] != 1 {
				t.Fatalf("%v is there %d times, want once", f, got[f])
			}
		}
	})
}

func FuzzDuplicates(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":1,"b":[{"a":2}]}`, `{"a":1,"\u0061":2}`, `"x"`, `[1,true,null,"}"]`, `{"a":{"b":"\""},"c":-1e5}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 4096 || !json.Valid(data) {
			return
		}
		err := checkDuplicates(data)
		if want := twice(t, data); (err != nil) != want {
			t.Errorf("%s: %v, want duplicate %v", data, err, want)
		}
	})
}

// twice finds duplicates the slow way, by the standard library's tokens.
func twice(t *testing.T, data []byte) bool {
	dec := json.NewDecoder(strings.NewReader(string(data)))
	dec.UseNumber()
	found := false
	var value func()
	value = func() {
		tok, err := dec.Token()
		if err != nil {
			t.Fatal(err)
		}
		switch tok {
		case json.Delim('{'):
			seen := map[string]bool{}
			for dec.More() {
				name, err := dec.Token()
				if err != nil {
					t.Fatal(err)
				}
				found = found || seen[name.(string)]
				seen[name.(string)] = true
				value()
			}
			_, _ = dec.Token()
		case json.Delim('['):
			for dec.More() {
				value()
			}
			_, _ = dec.Token()
		}
	}
	value()
	return found
}
