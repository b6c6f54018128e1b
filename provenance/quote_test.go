package provenance

import (
	"encoding/json"
	"strings"
	"testing"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"pgregory.net/rapid"
)

// anyString is bytes of every sort, with long runs of what needs no escape.
func anyString(t *rapid.T) string {
	var b strings.Builder
	for range rapid.IntRange(0, 6).Draw(t, "parts") {
		switch rapid.IntRange(0, 3).Draw(t, "sort") {
		case 0:
			b.WriteString(strings.Repeat("plain ", rapid.IntRange(0, 5).Draw(t, "plain")))
		case 1:
			b.Write(rapid.SliceOfN(rapid.Byte(), 0, 12).Draw(t, "bytes"))
		case 2:
			b.WriteString(rapid.String().Draw(t, "unicode"))
		case 3:
			b.WriteString(rapid.SampledFrom([]string{"\"", "\\", "\n", "\x00", "\x1f", "\x7f", "<&>", "\u2028", "\u2029", "\ufffd", "\xff"}).Draw(t, "special"))
		}
	}
	return b.String()
}

// TestAppendString: whatever a string holds, readers get it back, invalid bytes
// as encoding/json replaces them.
func TestAppendString(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anyString(t)
		var got, want string
		if err := json.Unmarshal(appendString(nil, s), &got); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		std, _ := json.Marshal(s)
		if err := json.Unmarshal(std, &want); err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Fatalf("%q reads back as %q, want %q", s, got, want)
		}
	})
}

// TestAppendGoString: byproducts have the very bytes of encoding/json.
func TestAppendGoString(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anyString(t)
		want, err := json.Marshal(v1.NewStructuredValues(s))
		if err != nil {
			t.Fatal(err)
		}
		if got := appendGoString(nil, s); string(got) != string(want) {
			t.Fatalf("%q: wrote %s, encoding/json writes %s", s, got, want)
		}
	})
}

// TestPlain: each byte value ends the plain part or not wherever it stands.
func TestPlain(t *testing.T) {
	for c := range 256 {
		for at := range 20 {
			s := []byte(strings.Repeat("x", 24))
			s[at] = byte(c)
			want := len(s)
			if c < ' ' || c == '"' || c == '\\' || c > 127 {
				want = at
			}
			if got := plain(string(s)); got != want {
				t.Fatalf("byte %#x at %d: %d bytes plain, want %d", c, at, got, want)
			}
		}
	}
}
