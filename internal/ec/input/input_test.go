package input

import "testing"

func FuzzParse(f *testing.F) {
	f.Add(".json", []byte(`[{"a":1},2]`))
	f.Add(".yaml", []byte("a: 1\n---\n# nothing\n--- b\n"))
	f.Fuzz(func(t *testing.T, ext string, raw []byte) {
		if len(raw) > 16<<10 {
			return
		}
		_, _ = Parse(ext, raw)
	})
}

func TestSplitYAML(t *testing.T) {
	for in, want := range map[string]int{"": 0, "# x\n": 0, "a: 1": 1, "---\na: 1\n---\n# x\n---\nb: 2\n": 2, "--- {a: 1}\n--- {b: 1}\n": 2, "a: |\n  ----\n": 1} {
		if got := SplitYAML([]byte(in)); len(got) != want {
			t.Errorf("%q: %d documents, want %d: %q", in, len(got), want, got)
		}
	}
}
