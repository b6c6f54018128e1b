package recording_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/internal/gate"
	"assay.dev/assay/internal/gate/recording"
	"assay.dev/assay/internal/registry"
	"assay.dev/assay/policy"
	"assay.dev/assay/policy/source"
	"assay.dev/assay/report"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
	"assay.dev/assay/verify"
)

// The registry of these tests is a real one (olareg), in this process.
const registryName = "localhost:5055"

const rules = `package main

import data.lib

# METADATA
# title: The base is known
# custom:
#   short_name: base
deny contains result if {
	m := ec.oci.image_manifest(sprintf("%s/app/base:base", [lib.registry]))
	not m.schemaVersion == 2
	result := {"code": "main.base", "msg": "the base is strange"}
}

# METADATA
# title: Is not called bad
# custom:
#   short_name: name
deny contains result if {
	startswith(input.component_name, lib.bad)
	result := {"code": "main.name", "msg": sprintf("called %s, signed by %d", [input.component_name, count(input.assay.signatures)])}
}
`

func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
	return p
}

// site is a registry, a policy, and a snapshot of what passes, is refused and cannot
// be checked.
type site struct {
	gate     *gate.Gate
	policy   string
	data     string
	snapshot *policy.Snapshot
}

func newSite(t *testing.T) *site {
	t.Helper()
	rt := registry.Route(registryName, storetest.Transport(storetest.Registry(t, true)), http.DefaultTransport)
	key := storetest.NewKey(t)
	push := func(repo, say string, signed bool) store.Subject {
		s := storetest.PushImage(t, rt, registryName, repo, say)
		n, err := name.NewRepository(s.Repo)
		if err != nil {
			t.Fatal(err)
		}
		if signed {
			if _, err := oci.New(n, rt, oci.Options{}).Put(t.Context(), s, storetest.Signature(t, key, s), storetest.Provenance(t, key, s, say)); err != nil {
				t.Fatal(err)
			}
		}
		return s
	}
	good, bare := push("app/good", "good", true), push("app/bare", "bare", false)
	push("app/base", "base", false)
	dir := t.TempDir()
	write(t, dir, "rules/main.rego", rules)
	write(t, dir, "data/lib.yaml", "lib: {registry: \""+registryName+"\"}\n")
	extra := write(t, dir, "elsewhere/extra.json", `{"lib": {"bad": "bad"}}`)
	conf := write(t, dir, "policy/policy.yaml", "name: recorded\nsources:\n- policy: [../rules]\n  data: [../data]\n")
	return &site{
		gate: &gate.Gate{
			Keys: []verify.Key{{Name: "test.pub", Public: key.Public()}}, Transport: rt, Embedded: registryName, Workers: 2,
			At: time.Now().UTC(), Context: policy.Context{Now: time.Now().UTC().Round(time.Second)},
		},
		policy: conf, data: extra,
		snapshot: &policy.Snapshot{Application: "app", Components: []policy.Component{
			{Name: "good", ContainerImage: good.Ref(), Source: json.RawMessage(`{"git":{"url":"https://x.example"}}`)},
			{Name: "bad", ContainerImage: good.Repo + ":good"},
			{Name: "bare", ContainerImage: bare.Ref()},
			{Name: "gone", ContainerImage: registryName + "/app/gone:1"},
			{Name: "nowhere", ContainerImage: "localhost:1/app/gone:1"},
		}},
	}
}

func judged(t *testing.T, g *gate.Gate, s *policy.Snapshot) (string, gate.Outcome) {
	t.Helper()
	var b bytes.Buffer
	h := report.JSON(&b)
	run, err := g.Report()
	if err == nil {
		err = h.Start(run)
	}
	if err != nil {
		t.Fatal(err)
	}
	n, err := g.Stream(t.Context(), s, h.Verdict)
	if err == nil {
		err = h.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.String(), n
}

// record judges the site and records it.
func (s *site) record(t *testing.T) (dir, digest, verdict string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "recording")
	rec, err := recording.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	s.gate.Tap = rec.Tap
	set, err := s.gate.Functions()
	if err != nil {
		t.Fatal(err)
	}
	if s.gate.Policy, err = rec.Policy(t.Context(), s.policy, policy.Options{Sources: source.Local{}, Builtins: set, Data: []string{s.data}}); err != nil {
		t.Fatal(err)
	}
	verdict, n := judged(t, s.gate, s.snapshot)
	if n != (gate.Outcome{Passed: 1, Refused: 2, Unchecked: 2}) {
		t.Fatalf("%+v\n%s", n, verdict)
	}
	trust, err := s.gate.Trust()
	if err != nil {
		t.Fatal(err)
	}
	if digest, err = rec.Close(recording.Case{Trust: *trust, Snapshot: s.snapshot, Embedded: registryName, Now: s.gate.Context.Now}); err != nil {
		t.Fatal(err)
	}
	return dir, digest, verdict
}

type broken struct{ t *testing.T }

func (b broken) RoundTrip(r *http.Request) (*http.Response, error) {
	b.t.Errorf("a replay asks %s", r.URL)
	return nil, errors.New("there is no network")
}

func replay(t *testing.T, dir, digest string) (string, error) {
	t.Helper()
	r, err := recording.Open(dir, digest)
	if err != nil {
		return "", err
	}
	g := &gate.Gate{Transport: broken{t}, Workers: 5}
	if err := r.Apply(g); err != nil {
		return "", err
	}
	set, err := g.Functions()
	if err != nil {
		return "", err
	}
	if g.Policy, err = r.Policy(t.Context(), t.TempDir(), policy.Options{Builtins: set}); err != nil {
		return "", err
	}
	out, _ := judged(t, g, r.Case().Snapshot)
	return out, nil
}

// TestReplay: the same verdict, byte for byte, without the registry and without the
// policy's files, at another time.
func TestReplay(t *testing.T) {
	s := newSite(t)
	dir, digest, want := s.record(t)
	if err := os.RemoveAll(filepath.Dir(filepath.Dir(s.policy))); err != nil {
		t.Fatal(err)
	}
	moved := filepath.Join(t.TempDir(), "moved")
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond) // the clock has moved on
	for range 2 {
		got, err := replay(t, moved, digest)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("-recorded +replayed:\n%s", d)
		}
	}
	for _, part := range []string{"main.name", "builtin.image.signature_check", `"result": "error"`, "connection refused", "no such artifact"} {
		if !strings.Contains(want, part) {
			t.Errorf("the verdict lacks %q", part)
		}
	}
}

// TestTampered: whatever is changed, removed or added is named.
func TestTampered(t *testing.T) {
	s := newSite(t)
	dir, digest, _ := s.record(t)
	var files []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, p)
		}
		return err
	})
	if err != nil || len(files) < 10 {
		t.Fatal(files, err)
	}
	refused := func(what, file string) {
		t.Helper()
		_, err := recording.Open(dir, digest)
		if err == nil || !strings.Contains(err.Error(), filepath.Base(file)) {
			t.Errorf("%s %s: %v", what, file, err)
		}
	}
	for _, f := range files {
		old, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		bad := append([]byte(nil), old...)
		if len(bad) == 0 {
			bad = []byte("x")
		} else {
			bad[len(bad)/2] ^= 1
		}
		for what, do := range map[string]func() error{
			"changed":   func() error { return os.WriteFile(f, bad, 0o644) },
			"cut":       func() error { return os.WriteFile(f, append(old, '\n'), 0o644) },
			"taken out": func() error { return os.Remove(f) },
		} {
			if err := do(); err != nil {
				t.Fatal(err)
			}
			refused(what, f)
			if err := os.WriteFile(f, old, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	added := write(t, dir, "blobs/sha256/"+strings.Repeat("0", 64), "x")
	refused("added", added)
	if err := os.Remove(added); err != nil {
		t.Fatal(err)
	}
	if _, err := recording.Open(dir, digest); err != nil {
		t.Error(err)
	}
	if _, err := recording.Open(dir, "sha256:"+strings.Repeat("0", 64)); err == nil || !strings.Contains(err.Error(), "another recording") {
		t.Error(err)
	}
}

// TestReplaced: a recording that somebody replaced as a whole, sums and all, opens
// only for who did not keep the digest.
func TestReplaced(t *testing.T) {
	a, b := newSite(t), newSite(t)
	_, mine, _ := a.record(t)
	theirs, _, _ := b.record(t)
	if _, err := recording.Open(theirs, mine); err == nil {
		t.Error("opened with another's digest")
	}
}

// TestCreate: a folder with something in it is not written into, and what was never
// closed is no recording.
func TestCreate(t *testing.T) {
	dir := t.TempDir()
	if _, err := recording.Create(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := recording.Open(dir, ""); err == nil || !strings.Contains(err.Error(), "once it has ended") {
		t.Error(err)
	}
	if _, err := recording.Create(dir); err == nil {
		t.Error("a second recording in one folder")
	}
}

// TestCredentials: what signs in to a registry is not in a recording.
func TestCredentials(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	rec, err := recording.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	const secret = "s3cr3t"
	rt := rec.Tap(answer(func(req *http.Request) *http.Response {
		return &http.Response{StatusCode: 200, Header: http.Header{"Set-Cookie": {secret}, "Content-Type": {"text/plain"}}, Body: http.NoBody, Request: req}
	}))
	for _, u := range []string{"https://r.example/v2/a/manifests/1", "https://auth.example/token?account=" + secret} {
		req, _ := http.NewRequest(http.MethodGet, u, nil) //nolint:errcheck // a constant
		req.Header.Set("Authorization", "Bearer "+secret)
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	if _, err := rec.Close(recording.Case{}); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "recording.json"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(raw), secret) || !strings.Contains(string(raw), "manifests/1") {
		t.Errorf("%s", raw)
	}
}

type answer func(*http.Request) *http.Response

func (a answer) RoundTrip(req *http.Request) (*http.Response, error) { return a(req), nil }

// TestOutside: a recording by a stranger writes nowhere but into the folder it is given.
func TestOutside(t *testing.T) {
	content := []byte("x")
	d := storetest.Digest(content)
	for _, doc := range []string{
		`"files":[{"name":"/../../escaped.yaml","digest":"` + d + `"}]`,
		`"files":[{"name":"../../escaped.yaml","digest":"` + d + `"}]`,
		`"sources":[{"asked":"a","path":"/../../escaped","files":[{"name":"escaped.yaml","digest":"` + d + `"}]}]`,
		`"sources":[{"asked":"a","path":"/a","files":[{"name":"../../../../escaped.yaml","digest":"` + d + `"}]}]`,
		`"sources":[{"asked":"a","files":[{"name":"/escaped.yaml","digest":"` + d + `"}]}]`,
		`"data":[{"name":"..","digest":"` + d + `"}]`,
	} {
		dir, to := t.TempDir(), filepath.Join(t.TempDir(), "a", "b")
		raw := []byte(`{"format":"assay-recording/v1","case":{"trust":{"log":{}},"now":"2026-01-01T00:00:00Z"},"policy":{"ref":"/policy.yaml",` + doc + `},"requests":[]}`)
		write(t, dir, "recording.json", string(raw))
		write(t, dir, "recording.sha256", strings.TrimPrefix(storetest.Digest(raw), "sha256:")+"  recording.json\n")
		write(t, dir, "blobs/sha256/"+strings.TrimPrefix(d, "sha256:"), string(content))
		if err := os.MkdirAll(to, 0o755); err != nil {
			t.Fatal(err)
		}
		r, err := recording.Open(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Policy(t.Context(), to, policy.Options{}); err == nil || !strings.Contains(err.Error(), "outside") {
			t.Errorf("%s: %v", doc, err)
		}
		found := false
		_ = filepath.WalkDir(filepath.Dir(filepath.Dir(to)), func(p string, _ fs.DirEntry, err error) error {
			found = found || strings.Contains(p, "escaped") && !strings.HasPrefix(p, to)
			return err
		})
		if found {
			t.Errorf("%s: something was written outside", doc)
		}
	}
}

// FuzzOpen: a stranger's recording is read within bounds and never panics.
func FuzzOpen(f *testing.F) {
	f.Add([]byte(`{"format":"assay-recording/v1","case":{},"policy":{},"requests":[]}`))
	f.Add([]byte(`{"format":"assay-recording/v1","case":{"snapshot":{"components":[{}]}},"policy":{"sources":[{"asked":"x","files":[{"name":"../../x","digest":"sha256:0"}]}]},"requests":[{"method":"GET","url":"x","body":"../../../etc/passwd"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 64<<10 {
			t.Skip("bounded input")
		}
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "recording.json"), raw, 0o644); err != nil {
			t.Fatal(err)
		}
		sum := fmt.Sprintf("%s  recording.json\n", strings.TrimPrefix(storetest.Digest(raw), "sha256:"))
		if err := os.WriteFile(filepath.Join(dir, "recording.sha256"), []byte(sum), 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := recording.Open(dir, "")
		if err != nil {
			return
		}
		to := t.TempDir()
		if _, err := r.Policy(t.Context(), to, policy.Options{}); err == nil {
			t.Error("a policy out of nothing")
		}
	})
}
