package provenance_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/provenance"
)

func TestDocuments(t *testing.T) {
	const tr = `{"apiVersion":"tekton.dev/v1","kind":"TaskRun","metadata":{"name":"NAME"}}`
	named := func(n string) string { return strings.Replace(tr, "NAME", n, 1) }
	doc := func(n string) string {
		return "apiVersion: tekton.dev/v1\nkind: TaskRun\nmetadata:\n  name: " + n + "\n"
	}
	indent := func(s string) string {
		return "- " + strings.ReplaceAll(strings.TrimSuffix(s, "\n"), "\n", "\n  ") + "\n"
	}
	tests := []struct {
		name, in string
		want     []string // names
		wantErr  string
	}{
		{name: "nothing", in: "\n# only this\n---\n...\n"},
		{name: "one", in: doc("a"), want: []string{"a"}},
		{name: "several", in: "%YAML 1.1\n---\n" + doc("a") + "--- # second\n" + doc("b") + "...\n---\n" + doc("c"), want: []string{"a", "b", "c"}},
		{name: "CRLF", in: strings.ReplaceAll(doc("a")+"---\n"+doc("b"), "\n", "\r\n"), want: []string{"a", "b"}},
		{name: "byte order mark", in: "\ufeff" + doc("a"), want: []string{"a"}},
		{name: "document on the marker's line", in: "--- " + named("a") + "\n--- " + named("b"), want: []string{"a", "b"}},
		{name: "JSON values one behind the other", in: named("a") + "\n" + named("b") + named("c"), want: []string{"a", "b", "c"}},
		{name: "JSON list", in: "[" + named("a") + "," + named("b") + "]", want: []string{"a", "b"}},
		{name: "YAML list", in: indent(doc("a")) + indent(doc("b")), want: []string{"a", "b"}},
		{name: "what kubectl prints as JSON", in: `{"apiVersion":"v1","items":[` + named("a") + "," + named("b") + `],"kind":"List","metadata":{"resourceVersion":""}}`, want: []string{"a", "b"}},
		{name: "what kubectl prints as YAML", in: "apiVersion: v1\nitems:\n" + indent(doc("a")) + indent(doc("b")) + "kind: List\nmetadata:\n  resourceVersion: \"\"\n", want: []string{"a", "b"}},
		{name: "what an API server answers", in: `{"apiVersion":"tekton.dev/v1","kind":"TaskRunList","items":[{"metadata":{"name":"a"}},{ }]}`, want: []string{"a", ""}},
		{name: "list without items", in: "kind: List\napiVersion: v1\n"},
		{name: "anchors", in: "apiVersion: tekton.dev/v1\nkind: TaskRun\nmetadata: {name: &n a, labels: {x: *n}}\n", want: []string{"a"}},
		{name: "dashes within a text", in: "apiVersion: tekton.dev/v1\nkind: TaskRun\nmetadata:\n  name: a\n  annotations:\n    x: |\n      ---\n      y\n", want: []string{"a"}},
		{name: "anchor of another document", in: "a: &n 1\n---\nb: *n\n", wantErr: "document 2: parsing YAML"},
		{name: "half", in: `{"kind":`, wantErr: "document 1: parsing JSON"},
		{name: "word", in: "word\n", wantErr: "no object"},
		{name: "items that are words", in: `{"kind":"List","items":[1]}`, wantErr: "item 0"},
		{name: "items that are no list", in: `{"kind":"List","items":{}}`, wantErr: "parsing List"},
		{name: "items twice", in: `{"kind":"List","items":[],"items":[]}`, wantErr: "twice"},
		{name: "lists in lists", in: `{"kind":"List","items":[{"kind":"List"}]}`, wantErr: "within a list"},
		{name: "anchors that multiply", in: bomb(), wantErr: "parsing YAML"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			docs, err := provenance.Documents([]byte(tt.in))
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Fatalf("error %v lacks %q", err, tt.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range docs {
				var object struct {
					APIVersion, Kind string
					Metadata         struct{ Name string }
				}
				if err := json.Unmarshal(d, &object); err != nil {
					t.Fatalf("%s: %v", d, err)
				}
				if object.APIVersion != "tekton.dev/v1" || object.Kind != "TaskRun" {
					t.Errorf("%s lost its version or kind", d)
				}
				got = append(got, object.Metadata.Name)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// bomb is a short document that its anchors make enormous.
func bomb() string {
	var b strings.Builder
	b.WriteString("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 9; i++ {
		d := string(rune('0' + i))
		p := string(rune('0' + i - 1))
		b.WriteString("a" + d + ": &a" + d + " [" + strings.TrimSuffix(strings.Repeat("*a"+p+", ", 10), ", ") + "]\n")
	}
	return b.String()
}

// FuzzDocuments: what comes out are JSON objects, whatever went in, and taking
// them apart again changes nothing.
func FuzzDocuments(f *testing.F) {
	for _, s := range []string{"", "a: b\n---\nc: d\n", `[{"a":1},{}]`, `{"kind":"List","items":[{}]}`, "--- {}\n...\n", "{}{}", "- a: &x 1\n- b: *x\n", "\ufeff{}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 4096 {
			return
		}
		docs, err := provenance.Documents(data)
		if err != nil {
			return
		}
		for _, d := range docs {
			if !json.Valid(d) || d[0] != '{' {
				t.Fatalf("%q gives %q", data, d)
			}
			again, err := provenance.Documents(d)
			if err != nil || len(again) != 1 || string(again[0]) != string(d) {
				t.Fatalf("%q becomes %q (%v)", d, again, err)
			}
		}
	})
}
