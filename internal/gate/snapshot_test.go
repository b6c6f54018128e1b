package gate

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/policy"
)

func TestParseSnapshot(t *testing.T) {
	for name, tc := range map[string]struct {
		in   string
		want []string // name=image
		fail string
	}{
		"a spec":               {in: `{"application":"a","components":[{"name":"x","containerImage":"r.example/x:1"}]}`, want: []string{"x=r.example/x:1"}},
		"a resource":           {in: "apiVersion: appstudio.redhat.com/v1alpha1\nkind: Snapshot\nmetadata: {name: s}\nspec:\n  application: a\n  displayName: d\n  components:\n  - {name: x, containerImage: r.example/x:1, source: {git: {url: u}}}\n", want: []string{"x=r.example/x:1"}},
		"only spec":            {in: "spec:\n  components: [{name: x, containerImage: r.example/x:1}]\n", want: []string{"x=r.example/x:1"}},
		"a list of references": {in: `["r.example/a/x:1","r.example/b/x@sha256:` + strings.Repeat("a", 64) + `"]`, want: []string{"x=r.example/a/x:1", "x-2=r.example/b/x@sha256:" + strings.Repeat("a", 64)}},
		"a YAML list":          {in: "- r.example/x:1\n- {name: z, containerImage: r.example/y:1}\n", want: []string{"x=r.example/x:1", "z=r.example/y:1"}},
		"lines":                {in: "# images\nlocalhost:5000/x\n\n  r.example/x:1  \n", want: []string{"x=localhost:5000/x", "x-2=r.example/x:1"}},
		"a name that is taken": {in: `[{"containerImage":"r.example/x:1"},{"name":"x","containerImage":"r.example/z:1"}]`, want: []string{"x-2=r.example/x:1", "x=r.example/z:1"}},
		"one image, two names": {in: `{"components":[{"name":"x","containerImage":"r.example/x:1"},{"name":"y","containerImage":"r.example/x:1"}]}`, want: []string{"x=r.example/x:1", "y=r.example/x:1"}},

		"nothing":              {in: " \n", fail: "empty"},
		"no components":        {in: `{"components":[]}`, fail: "no components"},
		"no such member":       {in: `{"application":"a"}`, fail: "no components"},
		"null":                 {in: `{"components":null}`, fail: "components"},
		"an empty list":        {in: `[]`, fail: "no components"},
		"no image":             {in: `{"components":[{"name":"x"}]}`, fail: `"x" has no containerImage`},
		"two of a name":        {in: `{"components":[{"name":"x","containerImage":"a"},{"name":"x","containerImage":"b"}]}`, fail: "components 1 and 2 are both named"},
		"another kind":         {in: `{"apiVersion":"v1","kind":"List","items":[]}`, fail: `kind "List"; want Snapshot`},
		"duplicate members":    {in: `{"components":[{"name":"x","name":"y","containerImage":"a"}]}`, fail: "name"},
		"duplicate YAML":       {in: "components: []\ncomponents: [{containerImage: a}]\n", fail: "components"},
		"a number":             {in: `[1]`, fail: "item 1"},
		"wrong type":           {in: `{"components":"x"}`, fail: "components"},
		"prose":                {in: "these are: not images\n", fail: "no components"},
		"deep":                 {in: strings.Repeat("[", 2000) + strings.Repeat("]", 2000), fail: "reading snapshot"},
		"only comments":        {in: "# nothing\n", fail: "no components"},
		"lines with something": {in: "r.example/x:1\nnot a reference\n", fail: "reading snapshot"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := ParseSnapshot([]byte(tc.in))
			if tc.fail != "" {
				if err == nil || !strings.Contains(err.Error(), tc.fail) {
					t.Errorf("error %v, want %q", err, tc.fail)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range s.Components {
				got = append(got, c.Name+"="+c.ContainerImage)
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// FuzzParseSnapshot: what it returns can be judged: components with images, each of a
// name of its own.
func FuzzParseSnapshot(f *testing.F) {
	for _, s := range []string{`{"components":[{"name":"x","containerImage":"a"}]}`, "- a\n- b\n", "a\nb\n", "kind: Snapshot\n", "&a [*a]", "{}", "spec: {components: [{}]}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 64<<10 {
			t.Skip("bounded input")
		}
		s, err := ParseSnapshot(in)
		if err != nil {
			return
		}
		check(t, s)
	})
}

func check(t *testing.T, s *policy.Snapshot) {
	names := map[string]bool{}
	for _, c := range s.Components {
		if c.ContainerImage == "" || names[c.Name] {
			t.Fatalf("%+v", s.Components)
		}
		names[c.Name] = true
	}
	if len(names) == 0 {
		t.Fatal("nothing to judge")
	}
}
