package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/rego"
	"sigs.k8s.io/yaml"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/policy/spec"
	"assay.dev/assay/verify"
)

// fakeEvidence stands where verification would: these tests are about what
// policies make of evidence. Evaluate itself takes none but verify's.
type fakeEvidence struct {
	ref        string
	manifest   []byte
	signatures []verify.Signature
	runs       []verify.Run
	statements []verify.Statement // beside those of runs
}

func (f *fakeEvidence) Ref() string                    { return f.ref }
func (f *fakeEvidence) Digest() string                 { _, d, _ := strings.Cut(f.ref, "@"); return d }
func (f *fakeEvidence) Manifest() []byte               { return f.manifest }
func (f *fakeEvidence) Signatures() []verify.Signature { return f.signatures }
func (f *fakeEvidence) Runs() []verify.Run             { return f.runs }
func (f *fakeEvidence) Rejected() []verify.Rejected    { return nil }
func (f *fakeEvidence) Statements() []verify.Statement {
	out := slices.Clone(f.statements)
	for _, r := range f.runs {
		for _, s := range []*verify.Statement{r.Provenance, r.Observation} {
			if s != nil {
				out = append(out, *s)
			}
		}
	}
	return out
}

// world is a case's evidence and trusted tasks: testdata/good.json, patched.
type world struct {
	Image string    `json:"image"`
	When  time.Time `json:"when"`
	// Manifest is the index that the image is.
	Manifest   json.RawMessage `json:"manifest"`
	Signatures []string        `json:"signatures"` // grades
	// Logs and Witnesses are trusted; SignatureLog is about every signature.
	Logs         []string         `json:"logs"`
	Witnesses    []string         `json:"witnesses"`
	SignatureLog []tlog.Inclusion `json:"signatureLog"`
	Runs         []struct {
		ID             string           `json:"id"`
		Grade          string           `json:"grade"`
		Observation    json.RawMessage  `json:"observation"`
		Provenance     json.RawMessage  `json:"provenance"`
		ProvenanceLog  []tlog.Inclusion `json:"provenanceLog"`
		ObservationLog []tlog.Inclusion `json:"observationLog"`
	} `json:"runs"`
	TrustedTasks json.RawMessage `json:"trusted_tasks"`
}

func identity(grade string) verify.Identity {
	return verify.Identity{KeyID: "k1", Key: "aa11", KeyName: "test", Grade: verify.Grade(grade), Reason: "as the test says"}
}

func (w *world) evidence(t *testing.T) *fakeEvidence {
	t.Helper()
	e := &fakeEvidence{ref: w.Image, manifest: w.Manifest}
	for _, grade := range w.Signatures {
		e.signatures = append(e.signatures, verify.Signature{Identity: identity(grade), Sig: "c2ln", Format: "cosign-tag", Logged: w.logged(w.SignatureLog)})
	}
	for _, r := range w.Runs {
		one := verify.Run{ID: r.ID}
		id := identity(r.Grade)
		if r.Provenance != nil {
			one.Provenance = statement(id, api.PredicateSLSAv02, r.Provenance)
			one.Provenance.Logged = w.logged(r.ProvenanceLog)
		}
		if r.Provenance != nil && r.Observation != nil {
			// The observation names the provenance, whatever the case made of it.
			r.Observation = json.RawMessage(strings.ReplaceAll(string(r.Observation), "PROVENANCE", one.Provenance.PayloadDigest))
		}
		if r.Observation != nil {
			one.Observation = statement(id, api.PredicateObservation, r.Observation)
			one.Observation.Logged = w.logged(r.ObservationLog)
		}
		e.runs = append(e.runs, one)
	}
	return e
}

// logged is what verification says of logs.
func (w *world) logged(entries []tlog.Inclusion) verify.Logged {
	l := verify.Logged{Log: entries}
	if len(entries) == 0 && len(w.Logs) > 0 {
		l.NotLogged = "no log entry is kept with it"
	}
	return l
}

func statement(id verify.Identity, predicateType string, predicate json.RawMessage) *verify.Statement {
	payload := fmt.Sprintf(`{"_type":%q,"predicateType":%q,"subject":[],"predicate":%s}`, api.StatementV1, predicateType, predicate)
	h := sha256.Sum256([]byte(payload))
	return &verify.Statement{Identity: id, Payload: []byte(payload), PayloadDigest: "sha256:" + hex.EncodeToString(h[:]), PredicateType: predicateType, Predicate: predicate, Sig: "c2ln"}
}

// patched applies a JSON patch (RFC 6902) to good.json.
func patched(t *testing.T, ops any) *world {
	t.Helper()
	var good any
	readJSON(t, "testdata/good.json", &good)
	if ops == nil {
		ops = []any{}
	}
	rs, err := rego.New(rego.Query("x = json.patch(input.doc, input.ops)"), rego.StrictBuiltinErrors(true),
		rego.Input(map[string]any{"doc": good, "ops": ops})).Eval(t.Context())
	if err != nil || len(rs) == 0 {
		t.Fatalf("applying the case's patch: %v", err)
	}
	return toWorld(t, rs[0].Bindings["x"])
}

func toWorld(t *testing.T, doc any) *world {
	t.Helper()
	raw, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	w := new(world)
	if err := json.Unmarshal(raw, w); err != nil {
		t.Fatal(err)
	}
	return w
}

// examplePolicy loads one of the policies that users start from, with the
// world's trusted tasks and perhaps rules excluded.
func examplePolicy(t *testing.T, name string, w *world, exclude []string) *Policy {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", "examples", "policy", name))
	if err != nil {
		t.Fatal(err)
	}
	path := dir
	if len(exclude) > 0 {
		raw, err := os.ReadFile(filepath.Join(dir, "policy.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		s, err := parseSpec(raw)
		if err != nil {
			t.Fatal(err)
		}
		src := &s.Sources[0]
		for i, p := range src.Policy {
			src.Policy[i] = filepath.Join(dir, p)
		}
		src.Data = nil
		src.Config = &spec.Config{Exclude: exclude}
		if raw, err = yaml.Marshal(s); err != nil {
			t.Fatal(err)
		}
		path = filepath.Join(t.TempDir(), "policy.yaml")
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var opts Options
	if name == "release" {
		file := filepath.Join(t.TempDir(), "trusted_tasks.json")
		raw := fmt.Sprintf(`{"trusted_tasks": %s}`, w.TrustedTasks)
		if err := os.WriteFile(file, []byte(raw), 0o600); err != nil {
			t.Fatal(err)
		}
		opts.Data = []string{file}
	}
	p, err := Load(t.Context(), path, opts)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

type expectation struct {
	Code string   `json:"code"`
	Has  []string `json:"has"`
}

type exampleCase struct {
	Shows           string         `json:"shows"`
	Patch           []any          `json:"patch"`
	Exclude         []string       `json:"exclude"`
	Prototype       *[]expectation `json:"prototype"` // null: not judged
	Release         *[]expectation `json:"release"`
	ReleaseWarnings *[]expectation `json:"releaseWarnings"`
	// PrototypeWarnings are those of prototype.
	PrototypeWarnings *[]expectation                 `json:"prototypeWarnings"`
	Notes             map[string][]expectation       `json:"notes"`
	Questions         map[string]map[Question]string `json:"questions"`
	Run               string                         `json:"run"`
}

func TestExamplePolicies(t *testing.T) {
	files, err := filepath.Glob("testdata/cases/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		var c exampleCase
		readJSON(t, file, &c)
		w := patched(t, c.Patch)
		for name, want := range map[string]*[]expectation{"prototype": c.Prototype, "release": c.Release} {
			if want == nil {
				continue
			}
			t.Run(strings.TrimSuffix(filepath.Base(file), ".json")+"/"+name, func(t *testing.T) {
				p := examplePolicy(t, name, w, c.Exclude)
				v, err := p.evaluate(t.Context(), w.evidence(t), Context{Now: w.When, Logs: w.Logs, Witnesses: w.Witnesses})
				if err != nil {
					t.Fatal(err)
				}
				if (v.Result == Pass) != (len(*want) == 0) {
					t.Errorf("result %s", v.Result)
				}
				compare(t, "violations", v.Violations, *want)
				if name == "release" && c.ReleaseWarnings != nil {
					compare(t, "warnings", v.Warnings, *c.ReleaseWarnings)
				}
				if name == "prototype" && c.PrototypeWarnings != nil {
					compare(t, "warnings", v.Warnings, *c.PrototypeWarnings)
				}
				for _, n := range c.Notes[name] {
					find(t, v.Notes, n)
				}
				for _, a := range v.Questions {
					if want := c.Questions[name][a.Question]; want != "" && a.Answer != want {
						t.Errorf("question %s: %s, want %s", a.Question, a.Answer, want)
					}
				}
				if c.Run != "" && v.Run != c.Run {
					t.Errorf("judged by run %q, want %q", v.Run, c.Run)
				}
			})
		}
	}
}

func compare(t *testing.T, what string, got []Result, want []expectation) {
	t.Helper()
	codes := func(n int, at func(int) string) []string {
		var out []string
		for i := range n {
			out = append(out, at(i))
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	if d := cmp.Diff(codes(len(want), func(i int) string { return want[i].Code }), codes(len(got), func(i int) string { return got[i].Code })); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
		for _, r := range got {
			t.Log(r.Code, r.Msg)
		}
	}
	for _, w := range want {
		find(t, got, w)
	}
}

func find(t *testing.T, got []Result, want expectation) {
	t.Helper()
	for _, r := range got {
		if r.Code == want.Code && !slices.ContainsFunc(want.Has, func(s string) bool { return !strings.Contains(r.Msg, s) }) {
			return
		}
	}
	t.Errorf("no %s that says %q; got:", want.Code, want.Has)
	for _, r := range got {
		t.Log(r.Code, r.Msg)
	}
}

// TestMissingFieldsDoNotOpenTheGate removes one field of the observation after
// another from evidence that is refused: whatever else comes of it, it must not
// pass. A rule that falls silent because a field is missing would let it.
func TestMissingFieldsDoNotOpenTheGate(t *testing.T) {
	// The paths beside a case are the offence itself: without it all is well.
	for name, offence := range map[string][]string{
		"tampered":             nil,
		"read-only-extra-task": nil,
		"edited-modules":       nil,
		"goflags":              {"/tasks/3/params/GOFLAGS"},
		"unchecked-bundle":     nil,
		"forged-artifact":      nil,
		"rogue-member":         nil,
	} {
		var c exampleCase
		readJSON(t, filepath.Join("testdata", "cases", name+".json"), &c)
		for policy, want := range map[string]*[]expectation{"prototype": c.Prototype, "release": c.Release} {
			if len(*want) == 0 {
				continue
			}
			t.Run(name+"/"+policy, func(t *testing.T) {
				w := patched(t, c.Patch)
				p := examplePolicy(t, policy, w, nil)
				var doc any
				if err := json.Unmarshal(w.Runs[0].Observation, &doc); err != nil {
					t.Fatal(err)
				}
				removeEach(doc, "", func(path string) {
					if slices.Contains(offence, path) {
						return
					}
					raw, err := json.Marshal(doc)
					if err != nil {
						t.Fatal(err)
					}
					w.Runs[0].Observation = raw
					v, err := p.evaluate(t.Context(), w.evidence(t), Context{Now: w.When})
					if err == nil && v.Result == Pass {
						t.Errorf("passes without %s", path)
					}
				})
			})
		}
	}
}

// removeEach calls f with each key of each object removed in turn. Whole
// objects of a list stay: a task that is not listed did not run.
func removeEach(v any, path string, f func(path string)) {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range sortedKeys(v) {
			old := v[k]
			delete(v, k)
			f(path + "/" + k)
			v[k] = old
			removeEach(old, path+"/"+k, f)
		}
	case []any:
		for i, x := range v {
			removeEach(x, fmt.Sprintf("%s/%d", path, i), f)
		}
	}
}
