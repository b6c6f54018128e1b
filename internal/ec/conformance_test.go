// The cases are Conforma's own results, in the conformance material beside the
// repository. The registry of the image cases is go-containerregistry's, on a
// loopback address, holding the signed images of the material's OCI layout.
//
// All of this file runs in ec mode, through Main, as a user types it.
package ec_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"assay.dev/assay/internal/ec"
)

// material finds the conformance material; the test is skipped without.
func material(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if filepath.Dir(dir) == dir {
			t.Fatal("no go.mod above this test")
		}
		dir = filepath.Dir(dir)
	}
	m := filepath.Join(filepath.Dir(dir), "shared", "conformance", "conforma")
	if _, err := os.Stat(m); err != nil {
		t.Skipf("conformance material is not here (%v)", err)
	}
	return m
}

// aCase is one case with Conforma's result.
type aCase struct {
	Args     []string `json:"args"`
	Shows    string   `json:"shows"`
	expected struct {
		Exit    int            `json:"exit"`
		Report  any            `json:"report"`
		Stdout  string         `json:"stdout"`
		Outputs map[string]any `json:"outputs"`
		Stderr  []string       `json:"stderr"`
	}
	raw map[string]any // expected.json
}

// stage copies a case's folder to where the test may write, with words replaced.
func stage(t testing.TB, dir string, replace ...string) (string, *aCase) {
	t.Helper()
	to := t.TempDir()
	r := strings.NewReplacer(replace...)
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), []byte(r.Replace(string(b))), 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	c := &aCase{}
	read := func(name string, v any) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	read("case.json", c)
	read("expected.json", &c.expected)
	read("expected.json", &c.raw)
	return to, c
}

// run runs a command line in a folder.
func run(t testing.TB, dir string, args []string) (code int, stdout, stderr string) {
	t.Helper()
	old, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chdir(dir); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.Chdir(old); err != nil {
			t.Fatal(err)
		}
	}()
	var out, errw bytes.Buffer
	code = ec.Main(args, &out, &errw)
	return code, out.String(), errw.String()
}

// like makes two reports comparable: without what names the program and what
// Conforma's reports do not have, and of built-in checks' messages what does not
// quote an error of some library.
func like(v any) any {
	m, ok := v.(map[string]any)
	if !ok {
		return v
	}
	delete(m, "ec-version")
	delete(m, "assay")
	walk(m)
	return m
}

func walk(v any) {
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			walk(x)
		}
	case map[string]any:
		if s, ok := v["sig"].(string); ok && s != "" {
			v["sig"] = "<signature>"
		}
		meta, _ := v["metadata"].(map[string]any)
		if code, _ := meta["code"].(string); strings.HasPrefix(code, "builtin.") {
			msg, _ := v["msg"].(string)
			msg, _, _ = strings.Cut(msg, ": ")
			msg, _, _ = strings.Cut(msg, " Error:")
			v["msg"] = msg
		}
		for _, x := range v {
			walk(x)
		}
	}
}

func parseReport(t testing.TB, s string) any {
	t.Helper()
	if strings.TrimSpace(s) == "" {
		return nil
	}
	var v any
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		t.Fatalf("the report is not JSON: %v\n%s", err, s)
	}
	return v
}

func cases(t testing.TB, kind string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(material(t), kind, "*", "case.json"))
	if err != nil || len(all) == 0 {
		t.Fatalf("no cases of kind %s: %v", kind, err)
	}
	for i := range all {
		all[i] = filepath.Dir(all[i])
	}
	return all
}

// compare holds a run against a case's report.
func compare(t *testing.T, c *aCase, code int, stdout, stderr string) {
	t.Helper()
	if code != c.expected.Exit {
		t.Errorf("exit %d, Conforma has %d\n%s", code, c.expected.Exit, stderr)
	}
	if diff := cmp.Diff(like(c.expected.Report), like(parseReport(t, stdout))); diff != "" {
		t.Errorf("report (-Conforma +assay):\n%s\n%s", diff, stderr)
	}
	if c.expected.Exit != 0 && !strings.Contains(stderr, "Error: ") {
		t.Errorf("standard error says nothing: %q", stderr)
	}
}

func TestInputCases(t *testing.T) {
	dirs := cases(t, "input-cases")
	passed := 0
	for _, dir := range dirs {
		name := filepath.Base(dir)
		ok := t.Run(name, func(t *testing.T) {
			to, c := stage(t, dir)
			code, stdout, stderr := run(t, to, c.Args)
			switch name {
			case "bad-policy-empty-sources":
				refusedFor(t, code, stdout, stderr, "the policy has no sources")
				return
			case "same-code-warn-and-deny":
				// The report has the violation that Conforma shows as a warning.
				if code != 1 || !strings.Contains(stderr, "success criteria not met") {
					t.Errorf("exit %d, %q", code, stderr)
				}
				soft, hard := messages(c.expected.Report, "warnings"), messages(parseReport(t, stdout), "violations")
				if len(hard) == 0 || slices.ContainsFunc(hard, func(m string) bool { return !slices.Contains(soft, m) }) {
					t.Errorf("violations %q; Conforma has warnings %q", hard, soft)
				}
				return
			}
			compare(t, c, code, stdout, stderr)
		})
		if ok {
			passed++
		}
	}
	t.Logf("input cases: %d of %d", passed, len(dirs))
}

func refusedFor(t *testing.T, code int, stdout, stderr, why string) {
	t.Helper()
	if code != 1 || stdout != "" || !strings.Contains(stderr, why) {
		t.Errorf("exit %d, report %q, error %q; want a refusal: %s", code, stdout, stderr, why)
	}
}

// messages are those of a list in a report, for all its files and components.
func messages(report any, list string) []string {
	var out []string
	m, _ := report.(map[string]any)
	for _, key := range []string{"filepaths", "components"} {
		entries, _ := m[key].([]any)
		for _, e := range entries {
			results, _ := e.(map[string]any)[list].([]any)
			for _, r := range results {
				out = append(out, r.(map[string]any)["msg"].(string))
			}
		}
	}
	return out
}

// serve serves the material's images on an address.
func serve(t testing.TB, addr string) string {
	host, _ := serveCounted(t, addr)
	return host
}

// serveCounted is serve, with the requests that are not the set-up's.
func serveCounted(t testing.TB, addr string) (string, *requests) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skipf("listening on %s, which these images name: %v", addr, err)
	}
	count := &requests{next: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: count}}
	srv.Start()
	t.Cleanup(srv.Close)
	host := l.Addr().String()
	p, err := layout.FromPath(filepath.Join(material(t), "image-set", "layout"))
	if err != nil {
		t.Fatal(err)
	}
	idx, err := p.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	m, err := idx.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range m.Manifests {
		tag, err := name.NewTag(host + "/" + d.Annotations["org.opencontainers.image.ref.name"])
		if err != nil {
			t.Fatal(err)
		}
		if d.MediaType.IsIndex() {
			x, err := idx.ImageIndex(d.Digest)
			if err == nil {
				err = remote.WriteIndex(tag, x)
			}
			if err != nil {
				t.Fatal(err)
			}
			continue
		}
		img, err := idx.Image(d.Digest)
		if err == nil {
			err = remote.Write(tag, img)
		}
		if err != nil {
			t.Fatalf("%s: %v", tag, err)
		}
	}
	count.reset()
	return host, count
}

// requests notes what a registry is asked for.
type requests struct {
	next http.Handler

	mu   sync.Mutex
	list []string
}

func (r *requests) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.list = append(r.list, req.Method+" "+req.URL.Path)
	r.mu.Unlock()
	r.next.ServeHTTP(w, req)
}

func (r *requests) reset() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.list
	r.list = nil
	return old
}

func TestImageCases(t *testing.T) {
	dirs := cases(t, "image-cases")
	// The base image's annotation names this address.
	host := serve(t, "127.0.0.1:5066")
	passed := 0
	for _, dir := range dirs {
		name := filepath.Base(dir)
		ok := t.Run(name, func(t *testing.T) {
			to, c := stage(t, dir, "REGISTRY", host)
			code, stdout, stderr := run(t, to, c.Args)
			if name == "no-sources" {
				refusedFor(t, code, stdout, stderr, "the policy has no sources")
				return
			}
			compare(t, c, code, strings.ReplaceAll(stdout, host, "REGISTRY"), stderr)
		})
		if ok {
			passed++
		}
	}
	t.Logf("image cases: %d of %d", passed, len(dirs))
}

// checkout is the folder of conforma/policy.
func checkout(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("ASSAY_CONFORMA_POLICY")
	if dir == "" {
		t.Skip("set ASSAY_CONFORMA_POLICY to a checkout of github.com/conforma/policy at 7211d0329e93fda0a6d6d3d33c3909fc6a7681ca")
	}
	if _, err := os.Stat(filepath.Join(dir, "policy", "release")); err != nil {
		t.Fatalf("ASSAY_CONFORMA_POLICY: %v", err)
	}
	return dir
}

func TestReleaseCases(t *testing.T) {
	policy := checkout(t)
	dirs := cases(t, "release-cases")
	passed := 0
	for _, dir := range dirs {
		ok := t.Run(filepath.Base(dir), func(t *testing.T) {
			to, c := stage(t, dir, "POLICY", policy)
			for i, a := range c.Args {
				if strings.HasPrefix(a, "attestations/") {
					c.Args[i] = filepath.Join(material(t), a)
				}
			}
			code, stdout, stderr := run(t, to, c.Args)
			if code != c.expected.Exit {
				t.Errorf("exit %d, Conforma has %d: %s", code, c.expected.Exit, stderr)
			}
			report, _ := parseReport(t, stdout).(map[string]any)
			got := map[string]any{"exit": float64(code), "success": report["success"]}
			for _, list := range []string{"violations", "warnings", "successes"} {
				got[list] = brief(report, list)
			}
			for list, want := range c.raw {
				if list == "stderr" {
					continue
				}
				if diff := cmp.Diff(sorted(want), sorted(got[list])); diff != "" {
					t.Errorf("%s (-Conforma +assay):\n%s", list, diff)
				}
			}
		})
		if ok {
			passed++
		}
	}
	t.Logf("release cases: %d of %d", passed, len(dirs))
}

// brief is a list of results in the form of release cases.
func brief(report map[string]any, list string) any {
	out := []any{}
	files, _ := report["filepaths"].([]any)
	for _, f := range files {
		results, _ := f.(map[string]any)[list].([]any)
		for _, r := range results {
			r := r.(map[string]any)
			meta, _ := r["metadata"].(map[string]any)
			if list == "successes" {
				out = append(out, meta["code"])
				continue
			}
			one := map[string]any{"msg": r["msg"]}
			for _, k := range []string{"code", "term", "effective_on"} {
				if v, ok := meta[k]; ok {
					one[k] = v
				}
			}
			out = append(out, one)
		}
	}
	return out
}

// sorted orders a list by its elements' JSON, and drops members without a value.
func sorted(v any) any {
	l, ok := v.([]any)
	if !ok {
		return v
	}
	for _, x := range l {
		if m, ok := x.(map[string]any); ok {
			for k, v := range m {
				if v == nil {
					delete(m, k)
				}
			}
		}
	}
	slices.SortStableFunc(l, func(a, b any) int {
		x, _ := json.Marshal(a)
		y, _ := json.Marshal(b)
		return bytes.Compare(x, y)
	})
	return l
}

// knownFailures are tests of the public policies that fail with another version of
// OPA than the one they were written for.
var knownFailures = []string{"data.lib.json_test.test_validate_args"}

func TestPublicPolicies(t *testing.T) {
	dir := checkout(t)
	if _, err := os.Stat(filepath.Join(dir, "checks")); errors.Is(err, fs.ErrNotExist) {
		t.Fatal("the checkout has no folder checks")
	}
	program := build(t)
	out, code := program(t, dir, "opa", "test", "--format=json", "example/data/rule_data.yml", "policy", "checks")
	var results []struct {
		Package string          `json:"package"`
		Name    string          `json:"name"`
		Fail    bool            `json:"fail"`
		Skip    bool            `json:"skip"`
		Error   json.RawMessage `json:"error"`
	}
	if err := json.Unmarshal([]byte(out), &results); err != nil {
		t.Fatalf("exit %d: %v\n%.2000s", code, err, out)
	}
	passed := 0
	for _, r := range results {
		name := r.Package + "." + r.Name
		switch {
		case !r.Fail && !r.Skip && r.Error == nil:
			passed++
		case slices.Contains(knownFailures, name):
			t.Logf("%s fails, as it has to: its text is that of OPA 1.12.1", name)
		default:
			t.Errorf("%s fails: %s", name, r.Error)
		}
	}
	t.Logf("tests of the public policies: %d of %d pass", passed, len(results))
	if len(results) != 996 || passed != 995 {
		t.Errorf("%d of %d pass, want 995 of 996", passed, len(results))
	}
}
