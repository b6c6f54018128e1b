package compare_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"assay.dev/assay/internal/ec/compare"
	"assay.dev/assay/policy/spec"
)

func parse(t *testing.T, s string) *spec.Spec {
	t.Helper()
	out, err := spec.Parse([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestDifferences(t *testing.T) {
	at := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for name, tt := range map[string]struct {
		a, b  string
		image *compare.Image
		want  []compare.Difference
	}{
		"the same": {a: `{sources: [{policy: [a], data: [b]}]}`, b: `{sources: [{policy: [a], data: [b]}]}`},
		"order, repetition, names, wildcards": {
			a: `{sources: [{name: one, policy: [a, b, a], config: {include: [p.*, q]}}]}`,
			b: `{sources: [{name: two, policy: [b, a], config: {include: [q, p, q]}}]}`,
		},
		"how an address is written, and its version": {
			a: `{sources: [{policy: ["git::x/rules//p?ref=main", "oci::x/data@` + digest + `"]}]}`,
			b: `{sources: [{policy: ["https://x/rules//p?ref=v2", "x/data"]}]}`,
		},
		"split into two sources": {
			a: `{sources: [{policy: [a], ruleData: {x: 1, m: {p: 1}}}, {policy: [a], config: {exclude: [z]}, ruleData: {m: {q: 2}}}]}`,
			b: `{sources: [{policy: [a], config: {exclude: [z]}, ruleData: {x: 1, m: {p: 1, q: 2}}}]}`,
		},
		"configuration of all": {
			a: `{configuration: {exclude: [z]}, sources: [{policy: [a]}]}`,
			b: `{sources: [{policy: [a], config: {exclude: [z]}}]}`,
		},
		"other rules": {
			a: `{sources: [{policy: [a]}]}`, b: `{sources: [{policy: [b]}]}`,
			want: []compare.Difference{{Group: "a|", Field: "sources", First: "a|"}, {Group: "b|", Field: "sources", Second: "b|"}},
		},
		"two groups of one name": { // Conforma compares one of them
			a:    `{sources: [{name: x, policy: [a]}, {name: x, policy: [b]}]}`,
			b:    `{sources: [{name: x, policy: [b]}]}`,
			want: []compare.Difference{{Group: "a|", Field: "sources", First: "a|"}},
		},
		"include, exclude, rule data": {
			a: `{sources: [{policy: [a], config: {include: [p], exclude: [q]}, ruleData: {k: 1}}]}`,
			b: `{sources: [{policy: [a], config: {include: [r]}, ruleData: {k: 2}}]}`,
			want: []compare.Difference{
				{Group: "a|", Field: "include", First: "p"}, {Group: "a|", Field: "include", Second: "r"},
				{Group: "a|", Field: "exclude", First: "q"}, {Group: "a|", Field: "ruleData", First: `{"k":1}`, Second: `{"k":2}`},
			},
		},
		"numbers that a float64 cannot tell apart": {
			a:    `{"sources": [{"policy": ["a"], "ruleData": {"n": 9007199254740993}}]}`,
			b:    `{"sources": [{"policy": ["a"], "ruleData": {"n": 9007199254740992}}]}`,
			want: []compare.Difference{{Group: "a|", Field: "ruleData", First: `{"n":9007199254740993}`, Second: `{"n":9007199254740992}`}},
		},
		"volatile items that are over, not yet, and now": {
			a: `{sources: [{policy: [a], volatileConfig: {exclude: [
				{value: old, effectiveUntil: "2026-05-31"}, {value: new, effectiveOn: "2026-07-01T00:00:00Z"}, {value: now, effectiveOn: "2026-06-01"}, {value: bad, effectiveOn: soon}]}}]}`,
			b:    `{sources: [{policy: [a]}]}`,
			want: []compare.Difference{{Group: "a|", Field: "exclude", First: "now"}},
		},
		"volatile items of an image": {
			a:     `{sources: [{policy: [a], volatileConfig: {exclude: [{value: mine, imageDigest: "` + digest + `"}, {value: other, imageUrl: "x/y/z"}]}}]}`,
			b:     `{sources: [{policy: [a]}]}`,
			image: &compare.Image{Digest: digest},
			want:  []compare.Difference{{Group: "a|", Field: "exclude", First: "mine"}},
		},
		"volatile items without an image": {
			a:    `{sources: [{policy: [a], volatileConfig: {exclude: [{value: mine, imageDigest: "` + digest + `"}, {value: other, imageUrl: "x/y/z"}]}}]}`,
			b:    `{sources: [{policy: [a]}]}`,
			want: []compare.Difference{{Group: "a|", Field: "exclude", First: "mine"}, {Group: "a|", Field: "exclude", First: "other"}},
		},
		"none": {a: `{}`, b: `{sources: []}`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := compare.Differences(parse(t, tt.a), parse(t, tt.b), at, tt.image)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			back, err := compare.Differences(parse(t, tt.b), parse(t, tt.a), at, tt.image)
			if err != nil || len(back) != len(got) {
				t.Errorf("the other way round: %v %v", back, err)
			}
		})
	}
}

// TestOrder: no order of sources, addresses or items makes a difference.
func TestOrder(t *testing.T) {
	word := rapid.SampledFrom([]string{"a", "b", "c", "pkg.x", "@all"})
	words := rapid.SliceOfN(word, 0, 4)
	rapid.Check(t, func(t *rapid.T) {
		s := &spec.Spec{Sources: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) spec.Source {
			return spec.Source{
				Policy: words.Draw(t, "policy"), Data: words.Draw(t, "data"),
				RuleData: []byte(rapid.SampledFrom([]string{`{"x":1}`, `{"x":2}`, `{"y":{"z":1}}`, `{"y":{"z":[1]}}`}).Draw(t, "ruleData")),
				Config:   &spec.Config{Include: words.Draw(t, "include"), Exclude: words.Draw(t, "exclude")},
			}
		}), 0, 4).Draw(t, "sources")}
		other := &spec.Spec{Sources: slices.Clone(s.Sources)}
		slices.Reverse(other.Sources)
		for i := range other.Sources {
			src := &other.Sources[i]
			src.Policy = slices.Clone(src.Policy)
			slices.Reverse(src.Policy)
			src.Config = &spec.Config{Include: append(slices.Clone(src.Config.Include), src.Config.Include...), Exclude: src.Config.Exclude}
		}
		if d, err := compare.Differences(s, other, time.Now(), nil); err != nil || len(d) > 0 {
			t.Fatalf("%v %v", d, err)
		}
	})
}
