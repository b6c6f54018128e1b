package gate

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"pgregory.net/rapid"

	"assay.dev/assay/attest"
	"assay.dev/assay/policy"
	"assay.dev/assay/report"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
	"assay.dev/assay/verify"
)

// The registry of these tests is a real one (olareg), in this process.
const registryName = "localhost:5055"

// lenient passes what it is shown, but for a component that is told by name.
const lenient = `package main

# METADATA
# title: Has provenance
# custom:
#   short_name: attested
#   solution: Attest it.
deny contains result if {
	count(input.attestations) == 0
	result := {"code": "main.attested", "msg": "no provenance"}
}

# METADATA
# title: Is not called bad
# custom:
#   short_name: name
deny contains result if {
	startswith(input.component_name, "bad")
	result := {"code": "main.name", "msg": sprintf("called %s", [input.component_name]), "term": input.component_name}
}
`

func writeFile(t testing.TB, dir, name, content string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func loadPolicy(t testing.TB, config string) *policy.Policy {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, dir, "rules/main.rego", lenient)
	p, err := policy.Load(t.Context(), writeFile(t, dir, "policy.yaml", config), policy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

const plain = "name: test\nsources: [{policy: [./rules]}]\n"

// counter counts requests by path.
type counter struct {
	base http.RoundTripper
	mu   sync.Mutex
	n    map[string]int
}

func (c *counter) RoundTrip(req *http.Request) (*http.Response, error) {
	c.mu.Lock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[req.Method+" "+req.URL.Path]++
	c.mu.Unlock()
	return c.base.RoundTrip(req)
}

func (c *counter) total() int {
	n := 0
	for _, k := range c.n {
		n += k
	}
	return n
}

type rig struct {
	t   *testing.T
	rt  *counter
	key *attest.Key
}

func newRig(t *testing.T) *rig {
	t.Helper()
	return &rig{t, &counter{base: storetest.Transport(storetest.Registry(t, true))}, storetest.NewKey(t)}
}

// image pushes an image and hangs evidence on it.
func (r *rig) image(repo, say string, evidence ...func(store.Subject) store.Evidence) store.Subject {
	r.t.Helper()
	s := storetest.PushImage(r.t, r.rt.base, registryName, repo, say)
	n, err := name.NewRepository(s.Repo)
	if err != nil {
		r.t.Fatal(err)
	}
	var list []store.Evidence
	for _, e := range evidence {
		list = append(list, e(s))
	}
	if len(list) > 0 {
		if _, err := oci.New(n, r.rt.base, oci.Options{}).Put(r.t.Context(), s, list...); err != nil {
			r.t.Fatal(err)
		}
	}
	return s
}

func (r *rig) signature(s store.Subject) store.Evidence { return storetest.Signature(r.t, r.key, s) }

func (r *rig) provenance(s store.Subject) store.Evidence {
	return storetest.Provenance(r.t, r.key, s, "run of "+s.Digest)
}

func (r *rig) good(repo, say string) store.Subject {
	return r.image(repo, say, r.signature, r.provenance)
}

func (r *rig) gate(p *policy.Policy) *Gate {
	return &Gate{
		Keys: []verify.Key{{Name: "test.pub", Public: r.key.Public()}}, Policy: p, Transport: r.rt, Embedded: registryName, Workers: 3,
		Context: policy.Context{Now: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)},
	}
}

func (r *rig) stream(g *Gate, components ...policy.Component) ([]report.Entry, Outcome) {
	r.t.Helper()
	s := &policy.Snapshot{Components: components}
	if err := Complete(s); err != nil {
		r.t.Fatal(err)
	}
	var out []report.Entry
	n, err := g.Stream(r.t.Context(), s, func(e report.Entry) error {
		out = append(out, e)
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return out, n
}

func states(list []report.Entry) []string {
	var out []string
	for _, e := range list {
		s := e.Component + " "
		switch {
		case e.Err != nil:
			s += "error"
		default:
			s += string(e.Verdict.Result)
			for _, v := range e.Verdict.Violations {
				s += " " + v.Code
			}
		}
		out = append(out, s)
	}
	return out
}

// TestStream: every component gets its own verdict, in order; what cannot be checked
// does not take the others with it, and an unsigned image is refused, not unknown.
func TestStream(t *testing.T) {
	r := newRig(t)
	one, two := r.good("app/one", "1"), r.good("app/two", "2")
	bare := r.image("app/bare", "3")
	foreign := r.image("app/foreign", "4", func(s store.Subject) store.Evidence { return storetest.Signature(t, storetest.NewKey(t), s) })
	list, n := r.stream(r.gate(loadPolicy(t, plain)),
		policy.Component{Name: "a", ContainerImage: one.Ref()},
		policy.Component{Name: "gone", ContainerImage: registryName + "/app/gone:1"},
		policy.Component{Name: "bad", ContainerImage: one.Ref()},
		policy.Component{Name: "bare", ContainerImage: bare.Ref()},
		policy.Component{Name: "no reference", ContainerImage: "Not A Reference"},
		policy.Component{Name: "foreign", ContainerImage: foreign.Ref()},
		policy.Component{Name: "b", ContainerImage: two.Repo + ":2"},
	)
	want := []string{
		"a pass", "gone error", "bad fail main.name", "bare fail " + CodeSignature + " " + CodeProvenance,
		"no reference error", "foreign fail " + CodeSignature + " " + CodeProvenance, "b pass",
	}
	if d := cmp.Diff(want, states(list)); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if n != (Outcome{Passed: 2, Refused: 3, Unchecked: 2}) {
		t.Errorf("%+v", n)
	}
	if list[5].Rejected == nil || len(list[0].Signers) == 0 {
		t.Error("evidence set aside, or who signed, is not told")
	}
}

// TestSameImage: two components with one image keep their names and exceptions, and
// the image is fetched and verified once.
func TestSameImage(t *testing.T) {
	r := newRig(t)
	s := r.good("app/one", "1")
	p := loadPolicy(t, `name: test
sources:
- policy: [./rules]
  volatileConfig: {exclude: [{value: main.name, componentNames: [bad-excused]}]}
`)
	list, _ := r.stream(r.gate(p),
		policy.Component{Name: "bad-excused", ContainerImage: s.Ref()},
		policy.Component{Name: "bad", ContainerImage: s.Ref()},
		policy.Component{Name: "good", ContainerImage: s.Repo + ":1"},
	)
	if d := cmp.Diff([]string{"bad-excused pass", "bad fail main.name", "good pass"}, states(list)); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	for path, n := range r.rt.n {
		if n > 1 {
			t.Errorf("%s: asked %d times", path, n)
		}
	}
}

// TestNothingKept: when a run is over, and while it lasts beyond what is at work,
// nothing of its images is held.
func TestNothingKept(t *testing.T) {
	r := newRig(t)
	var list []policy.Component
	for i := range 40 {
		s := r.good("app/many", fmt.Sprint("image-", i%20))
		list = append(list, policy.Component{Name: fmt.Sprint("c", i), ContainerImage: s.Ref()})
	}
	g := r.gate(loadPolicy(t, plain))
	s := &policy.Snapshot{Components: list}
	most := 0
	if _, err := g.Stream(t.Context(), s, func(report.Entry) error {
		g.mu.Lock()
		defer g.mu.Unlock()
		most = max(most, len(g.evidence.kept))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if m := &g.evidence; len(m.kept)+len(m.left)+len(m.order)+m.size != 0 {
		t.Errorf("held at the end: %d, %d, %d, %d bytes", len(m.kept), len(m.left), len(m.order), m.size)
	}
	// Twenty images are still to come again when the first twenty are done.
	if most > 20+2*g.Workers {
		t.Errorf("%d held at once", most)
	}
}

// TestRequests: an image with a signature, provenance and an SBOM as tags takes eight
// requests at most, by digest and by tag.
func TestRequests(t *testing.T) {
	for _, byTag := range []bool{false, true} {
		r := newRig(t)
		var list []policy.Component
		for i := range 20 {
			s := storetest.PushImage(t, r.rt.base, registryName, "app/many", fmt.Sprint("image-", i))
			tagged(t, r, s, r.signature(s), r.provenance(s), storetest.Statement(t, r.key, s, "https://spdx.dev/Document", `{"spdxVersion":"SPDX-2.3"}`))
			ref := s.Ref()
			if byTag {
				ref = s.Repo + fmt.Sprint(":image-", i)
			}
			list = append(list, policy.Component{Name: fmt.Sprint("c", i), ContainerImage: ref})
		}
		g := r.gate(loadPolicy(t, plain))
		_, n := r.stream(g, list...)
		if n.Passed != 20 {
			t.Fatalf("%+v", n)
		}
		if got := r.rt.total(); got > 8*20 || int64(got) != g.Requests() {
			t.Errorf("by tag %t: %d requests for 20 images, %d counted", byTag, got, g.Requests())
		}
	}
}

// TestBackDated: the past needs the flag, and shows.
func TestBackDated(t *testing.T) {
	r := newRig(t)
	s := r.good("app/one", "1")
	g := r.gate(loadPolicy(t, plain))
	g.Context.EffectiveTime = g.Context.Now.AddDate(-1, 0, 0)
	if list, _ := r.stream(g, policy.Component{ContainerImage: s.Ref()}); list[0].Err == nil {
		t.Error("the past needs no flag")
	}
	g = r.gate(g.Policy)
	g.Context.EffectiveTime, g.Context.AllowPast = g.Context.Now.AddDate(-1, 0, 0), true
	if list, _ := r.stream(g, policy.Component{ContainerImage: s.Ref()}); list[0].Err != nil || !list[0].Verdict.BackDated {
		t.Errorf("%+v", list[0])
	}
}

// TestAttestationTime: each image is judged as of its own build, whoever is judged at
// the same time; one whose provenance does not say when that was cannot be.
func TestAttestationTime(t *testing.T) {
	r := newRig(t)
	var list []policy.Component
	var want []time.Time
	for i := range 12 {
		when := time.Date(2026, 1, 1+i, 10, 0, 0, 0, time.UTC)
		s := r.image("app/timed", fmt.Sprint("image-", i), r.signature, func(s store.Subject) store.Evidence {
			return storetest.Statement(t, r.key, s, "https://slsa.dev/provenance/v0.2", fmt.Sprintf(
				`{"builder":{"id":"b"},"buildType":"x","metadata":{"buildStartedOn":%q,"buildFinishedOn":%q}}`, when.Add(-time.Hour).Format(time.RFC3339), when.Format(time.RFC3339)))
		})
		list, want = append(list, policy.Component{Name: fmt.Sprint("c", i), ContainerImage: s.Ref()}), append(want, when)
	}
	list = append(list, policy.Component{Name: "timeless", ContainerImage: r.good("app/timeless", "x").Ref()})
	g := r.gate(loadPolicy(t, plain))
	g.AttestationTime, g.Context.AllowPast, g.Workers = true, true, 4
	got, _ := r.stream(g, list...)
	for i, w := range want {
		if got[i].Err != nil || !got[i].Verdict.EffectiveTime.Equal(w) || !got[i].Verdict.BackDated {
			t.Errorf("image %d: %+v, want %s", i, got[i], w)
		}
	}
	if got[12].Err == nil || !strings.Contains(got[12].Err.Error(), "when its build ended") {
		t.Errorf("timeless: %v", got[12].Err)
	}
}

// TestInOrder: whatever takes how long, results come in order, and no more of them
// wait than said.
func TestInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, workers := rapid.IntRange(0, 60).Draw(t, "n"), rapid.IntRange(1, 9).Draw(t, "workers")
		stop := rapid.IntRange(-1, 59).Draw(t, "stop")
		var mu sync.Mutex
		begun, taken, most := 0, 0, 0
		var got []int
		err := inOrder(context.Background(), n, workers, func(i int) int {
			mu.Lock()
			begun++
			most = max(most, begun-taken)
			mu.Unlock()
			if i%7 == 3 {
				time.Sleep(time.Millisecond)
			}
			return i
		}, func(i int) error {
			mu.Lock()
			taken++
			mu.Unlock()
			got = append(got, i)
			if i == stop {
				return errors.New("stop")
			}
			return nil
		})
		if !slices.IsSorted(got) || len(got) > 0 && got[len(got)-1] != len(got)-1 {
			t.Fatalf("order %v", got)
		}
		if stopped := stop >= 0 && stop < n; stopped != (err != nil) || !stopped && len(got) != n {
			t.Fatalf("%d of %d, %v", len(got), n, err)
		}
		if most > 2*workers+2 {
			t.Fatalf("%d results at once with %d workers", most, workers)
		}
	})
}

// TestCancelled: a run that is ended makes no verdicts.
func TestCancelled(t *testing.T) {
	r := newRig(t)
	s := r.good("app/one", "1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := r.gate(loadPolicy(t, plain)).Stream(ctx, &policy.Snapshot{Components: []policy.Component{{Name: "a", ContainerImage: s.Ref()}}}, func(report.Entry) error {
		t.Error("an entry")
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
