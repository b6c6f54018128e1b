package ec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"

	"assay.dev/assay/policy/conforma"
)

// results are n of them, with messages of a size.
func results(n, size int, code string) []conforma.Result {
	var out []conforma.Result
	for i := range n {
		out = append(out, conforma.Result{
			Message:  fmt.Sprintf("%d <&> \"quoted\": components: []\n%s", i, strings.Repeat("x ", size/2)),
			Metadata: map[string]any{"code": code, "term": []any{"a", "b"}, "n": json.Number("12345678901234567890"), "effective_on": "2026-01-01T00:00:00Z"},
		})
	}
	return out
}

// TestPieces: a report written in pieces is the one that would have been written
// whole.
func TestPieces(t *testing.T) {
	for _, n := range []int{0, 1, 3} {
		var list []reportComponent
		for i := range n {
			list = append(list, reportComponent{
				component:  component{Name: fmt.Sprint("c", i), ContainerImage: fmt.Sprint("r@", i), Source: componentSource{Git: &gitSource{URL: "https://x"}}},
				Violations: results(i, 300, "p.a"), Warnings: results(1, 10, "p.b"), Successes: results(2, 10, "p.c"), Success: i == 0,
				Attestations: []reportAttestation{{Type: "t", Signatures: []signature{{KeyID: "k"}}}},
			})
		}
		r := keptReport(t, &imageReport{
			Success: true, Snapshot: `"components":[]`, Key: "components: []\n", Policy: &conforma.Spec{Name: "\ncomponents: []\n"}, Version: "v",
			EffectiveTime: time.Unix(0, 0).UTC(), Assay: &additions{SkippedChecks: []string{"x\ncomponents: []\n"}},
		}, &encoded{}, list...)
		whole := *r
		var err error
		if whole.Components, err = json.Marshal(list); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			whole.Components = json.RawMessage("[]")
		}
		for format, marshal := range map[string]func(any) ([]byte, error){"json": json.Marshal, "yaml": func(v any) ([]byte, error) { return yaml.Marshal(v) }} {
			want, err := marshal(&whole)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := r.render(&got, target{format: format}); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("%d components as %s (-whole +pieces):\n%s", n, format, diff)
			}
		}
	}
}

func TestSpool(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	rapid.Check(t, func(rt *rapid.T) {
		var s spool
		defer s.close()
		var want [][]byte
		var at []span
		for i, n := range rapid.SliceOfN(rapid.IntRange(0, spoolMemory/3), 0, 8).Draw(rt, "sizes") {
			b := bytes.Repeat([]byte{byte(i)}, n)
			p, err := s.put(b)
			if err != nil {
				rt.Fatal(err)
			}
			want, at = append(want, b), append(at, p)
		}
		for i, p := range at {
			got, err := s.get(p)
			if err != nil || !bytes.Equal(got, want[i]) {
				rt.Fatalf("piece %d: %d bytes, %v", i, len(got), err)
			}
			var copied bytes.Buffer
			if err := s.copy(&copied, p); err != nil || !bytes.Equal(copied.Bytes(), want[i]) {
				rt.Fatalf("piece %d, copied: %d bytes, %v", i, copied.Len(), err)
			}
		}
	})
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	t.Setenv("TMPDIR", t.TempDir()+"/none")
	var s spool
	if _, err := s.put(make([]byte, spoolMemory)); err != nil {
		t.Errorf("what fits into memory: %v", err)
	}
	if _, err := s.put([]byte("x")); err == nil || !strings.Contains(err.Error(), "keeping results") {
		t.Errorf("no place for the rest: %v", err)
	}
}

// TestFlat: what a report of many components takes in memory is what one of some
// takes.
func TestFlat(t *testing.T) {
	live := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	r := keptReport(t, &imageReport{Policy: &conforma.Spec{}}, &encoded{})
	before := live()
	input := bytes.Repeat([]byte("i"), 300<<10)
	for i := range 100 {
		e := &encoded{input: input}
		c := &reportComponent{component: component{Name: fmt.Sprint(i), ContainerImage: fmt.Sprint("r@", i)}, Violations: results(50, 200, "p.a"), Successes: results(200, 20, "p.b")}
		if err := e.fill(c, wanted{successes: true, inputs: true}); err != nil {
			t.Fatal(err)
		}
		if err := r.keep(i, e); err != nil {
			t.Fatal(err)
		}
	}
	grown := int64(live() - before)
	t.Logf("%d MiB of results take %d KiB of memory", r.spool.size>>20, grown>>10)
	if grown > spoolMemory+(4<<20) {
		t.Errorf("%d MiB of results take %d MiB of memory", r.spool.size>>20, grown>>20)
	}
	for _, format := range []string{"json", "text", "policy-input"} {
		if err := r.render(io.Discard, target{format: format, show: show{successes: true, warnings: true}}); err != nil {
			t.Errorf("%s: %v", format, err)
		}
	}
	if grown := int64(live() - before); grown > spoolMemory+(4<<20) {
		t.Errorf("after writing it: %d MiB of memory", grown>>20)
	}
	runtime.KeepAlive(r)
}

func TestColour(t *testing.T) {
	for name, tt := range map[string]struct {
		never, always bool
		env           string
		want          bool
	}{
		"no terminal":        {},
		"--color":            {always: true, want: true},
		"--no-color":         {never: true, always: true},
		"EC_FORCE_COLOR":     {env: "EC_FORCE_COLOR=1", want: true},
		"EC_FORCE_COLOUR":    {env: "EC_FORCE_COLOUR=0", want: true},
		"FORCE_COLOR":        {env: "FORCE_COLOR=1", want: true},
		"set to nothing":     {env: "EC_FORCE_COLOR="},
		"EC_NO_COLOUR":       {env: "EC_NO_COLOUR=1", always: true},
		"NO_COLOR":           {env: "NO_COLOR=1", always: true},
		"NO_COLOR, no value": {env: "NO_COLOR=", always: true, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, n := range []string{"EC_NO_COLOR", "EC_NO_COLOUR", "NO_COLOR", "NO_COLOUR", "EC_FORCE_COLOR", "EC_FORCE_COLOUR", "FORCE_COLOR", "FORCE_COLOUR"} {
				t.Setenv(n, "")
			}
			if k, v, ok := strings.Cut(tt.env, "="); ok {
				t.Setenv(k, v)
			}
			if got := colour(tt.never, tt.always, io.Discard); got != tt.want {
				t.Errorf("%v", got)
			}
		})
	}
}

// TestOutputs: a report goes to several places in several forms at once.
func TestOutputs(t *testing.T) {
	dir := t.TempDir()
	defaults := show{warnings: true}
	list, err := targets([]string{"json", "text=" + dir + "/a.txt?show-successes=true&show-warnings=false", "?show-policy-docs-link=true", "yaml=" + dir + "/b.yaml"}, "text", defaults, inputFormats...)
	if err != nil {
		t.Fatal(err)
	}
	want := []target{
		{"json", "", defaults}, {"text", dir + "/a.txt", show{successes: true}}, {"text", "", show{warnings: true, docsLink: true}}, {"yaml", dir + "/b.yaml", defaults},
	}
	if diff := cmp.Diff(want, list, cmp.AllowUnexported(target{}, show{})); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	var out bytes.Buffer
	if err := writeAll(list, &out, func(w io.Writer, tt target) error {
		_, err := fmt.Fprintf(w, "%s %v", tt.format, tt.show.successes)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if out.String() != "json false\ntext false\n" {
		t.Errorf("%q", out.String())
	}
	if b, err := os.ReadFile(dir + "/a.txt"); err != nil || string(b) != "text true\n" {
		t.Errorf("%q %v", b, err)
	}
	for s, want := range map[string]string{
		"json?show-warnings=perhaps": "invalid syntax", "jason": `"jason" is not a valid report format`, "text=x?%zz": "invalid URL escape",
	} {
		if _, err := targets([]string{s}, "text", defaults, inputFormats...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", s, err)
		}
	}
	// One place that cannot be written to does not keep the report from the others.
	out.Reset()
	err = writeAll([]target{{format: "yaml", path: dir + "/none/x"}, {format: "json"}}, &out, func(w io.Writer, _ target) error {
		_, err := io.WriteString(w, "x\n")
		return err
	})
	if err == nil || out.String() != "x\n" {
		t.Errorf("%v %q", err, out.String())
	}
}
