package cli_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/attest"
	"assay.dev/assay/internal/cli"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
)

// gateRig is a real registry (olareg) on this machine with images, a key and a policy.
type gateRig struct {
	t        *testing.T
	dir      string
	registry string
	server   *httptest.Server
	key      *attest.Key
	pub      string
	policy   string
}

const gateRules = `package main

# METADATA
# title: The component is not called bad
# description: Names are destiny
# custom:
#   short_name: name
#   solution: Call it otherwise.
#   effective_on: 2026-01-01T00:00:00Z
deny contains result if {
	startswith(input.component_name, "bad")
	result := {"code": "main.name", "msg": sprintf("called %s", [input.component_name]), "term": input.component_name}
}
`

func newGateRig(t *testing.T) *gateRig {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("ASSAY_HOME", filepath.Join(dir, "home"))
	t.Setenv("XDG_CACHE_HOME", filepath.Join(dir, "cache"))
	t.Setenv("DOCKER_CONFIG", dir)
	srv := httptest.NewUnstartedServer(storetest.NewRegistry(true))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Start()
	t.Cleanup(srv.Close)
	r := &gateRig{t: t, dir: dir, server: srv, registry: strings.TrimPrefix(srv.URL, "http://"), key: storetest.NewKey(t)}
	r.pub = r.write("key.pub", string(storetest.Public(t, r.key).PEM()))
	r.write("policy/rules/main.rego", gateRules)
	r.policy = filepath.Dir(r.write("policy/policy.yaml", "name: test\nsources: [{policy: [./rules]}]\n"))
	return r
}

func (r *gateRig) write(name, content string) string {
	r.t.Helper()
	p := filepath.Join(r.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), 0o644)); err != nil {
		r.t.Fatal(err)
	}
	return p
}

func (r *gateRig) image(repo string, signed bool) store.Subject {
	r.t.Helper()
	s := storetest.PushImage(r.t, http.DefaultTransport, r.registry, repo, "v1")
	if !signed {
		return s
	}
	n, err := name.NewRepository(s.Repo)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := oci.New(n, nil, oci.Options{}).Put(r.t.Context(), s, storetest.Signature(r.t, r.key, s), storetest.Provenance(r.t, r.key, s, repo)); err != nil {
		r.t.Fatal(err)
	}
	return s
}

// run calls assay with --key and --policy.
func (r *gateRig) run(args ...string) (code int, out, errout string) {
	return r.bare(append([]string{"gate", "--key", r.pub, "--policy", r.policy, "--retries", "0"}, args...)...)
}

func (r *gateRig) bare(args ...string) (code int, out, errout string) {
	var o, e bytes.Buffer
	code = cli.Main(args, strings.NewReader(""), &o, &e)
	return code, o.String(), e.String()
}

func (r *gateRig) want(code, got int, out, errout string, parts ...string) {
	r.t.Helper()
	if code != got {
		r.t.Errorf("exit %d, want %d\n%s\n%s", got, code, out, errout)
	}
	for _, p := range parts {
		if !strings.Contains(out+errout, p) {
			r.t.Errorf("nothing says %q\n%s\n%s", p, out, errout)
		}
	}
}

// TestGateExitCodes: 0 all pass, 1 not checked, 2 usage, 3 refused; and what is said.
func TestGateExitCodes(t *testing.T) {
	r := newGateRig(t)
	good, bad, bare := r.image("app/good", true), r.image("app/bad", true), r.image("app/bare", false)
	gone := r.registry + "/app/gone:1"
	snapshot := func(name, content string) string { return r.write(name, content) }
	component := func(name, image string) string {
		return fmt.Sprintf("{name: %q, containerImage: %q}", name, image)
	}
	for name, tc := range map[string]struct {
		args []string
		code int
		want []string
	}{
		"a pass":        {[]string{good.Ref()}, 0, []string{"PASS", "signed    by key.pub (key holder)"}},
		"by tag":        {[]string{good.Repo + ":v1"}, 0, []string{"PASS", good.Digest}},
		"the policy":    {[]string{bad.Ref()}, 3, []string{"REFUSED", "called bad", "in force  since 2026-01-01", "solution  Call it otherwise.", `waive     add to volatileConfig.exclude`, "main.name:bad"}},
		"unsigned":      {[]string{bare.Ref()}, 3, []string{"REFUSED", "builtin.image.signature_check", "nothing is attached to this digest"}},
		"gone":          {[]string{gone}, 1, []string{"NOT CHECKED", "no such artifact"}},
		"not reachable": {[]string{"127.0.0.1:1/x:1"}, 1, []string{"NOT CHECKED", "connection refused"}},
		"all of it":     {[]string{good.Ref(), bad.Ref(), gone}, 1, []string{"PASS", "REFUSED", "NOT CHECKED", "3 images: 1 passed, 1 refused, 1 not checked"}},
		"a snapshot": {[]string{"--snapshot", snapshot("s.yaml", "apiVersion: appstudio.redhat.com/v1alpha1\nkind: Snapshot\nspec:\n  application: a\n  components:\n  - "+component("one", good.Ref())+"\n  - "+component("bad-two", good.Ref())+"\n")},
			3, []string{"component  one", "called bad-two"}},
		"a spec":          {[]string{"--snapshot", `{"components":[` + fmt.Sprintf(`{"name":"one","containerImage":%q}`, good.Ref()) + `]}`}, 0, []string{"PASS"}},
		"a list":          {[]string{"--images", snapshot("list", "# ours\n"+good.Ref()+"\n\n")}, 0, []string{"PASS"}},
		"no components":   {[]string{"--snapshot", snapshot("none.yaml", "components: []\n")}, 1, []string{"no components, so nothing would be checked", "none.yaml"}},
		"an empty file":   {[]string{"--images", snapshot("empty", "\n")}, 1, []string{"empty"}},
		"duplicate names": {[]string{"--snapshot", snapshot("dup.yaml", "components:\n- "+component("x", good.Ref())+"\n- "+component("x", bad.Ref())+"\n")}, 1, []string{`both named "x"`}},
		"duplicate keys":  {[]string{"--snapshot", `{"components":[],"components":[{"containerImage":"x"}]}`}, 1, []string{"components"}},
		"another kind":    {[]string{"--snapshot", `{"kind":"Pod","apiVersion":"v1","spec":{"components":[]}}`}, 1, []string{"want Snapshot"}},
		"no such file":    {[]string{"--images", filepath.Join(r.dir, "nope")}, 1, []string{"nope", "one reference a line"}},
		"no image":        {nil, 2, []string{"no image given"}},
		"two ways":        {[]string{good.Ref(), "--images", "x"}, 2, []string{"give one of them"}},
		"no such form":    {[]string{good.Ref(), "--output", "xml"}, 2, []string{"the forms are text, json, yaml, sarif, junit, markdown, github"}},
		"twice to stdout": {[]string{good.Ref(), "-o", "json", "-o", "text"}, 2, []string{"name a file for one"}},
		"the past":        {[]string{good.Ref(), "--effective-time", "2020-01-01"}, 2, []string{"--allow-past-effective-time"}},
		"the past, meant": {[]string{bad.Ref(), "--effective-time", "2025-01-01", "--allow-past-effective-time"}, 0, []string{"as of     2025-01-01T00:00:00Z, which is in the past"}},
		"no time":         {[]string{good.Ref(), "--effective-time", "soon"}, 2, []string{"want RFC 3339 or YYYY-MM-DD"}},
		"no build's time": {[]string{good.Ref(), "--effective-time", "attestation", "--allow-past-effective-time"}, 1, []string{"when its build ended"}},
		"without both":    {[]string{bare.Ref(), "--without-signature", "--without-provenance"}, 3, []string{"signature or statement"}},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errout := r.run(tc.args...)
			(&gateRig{t: t}).want(tc.code, code, out, errout, tc.want...)
		})
	}
}

// TestGateReports: every form at once, each whole; none where the run is refused.
func TestGateReports(t *testing.T) {
	r := newGateRig(t)
	good, bad := r.image("app/good", true), r.image("app/bad", true)
	var args []string
	forms := []string{"json", "yaml", "sarif", "junit", "markdown", "github"}
	for _, f := range forms {
		args = append(args, "--output", f+"="+filepath.Join(r.dir, "out", f))
	}
	if err := os.Mkdir(filepath.Join(r.dir, "out"), 0o755); err != nil {
		t.Fatal(err)
	}
	code, out, errout := r.run(append(args, good.Ref(), bad.Ref(), "--output", "text")...)
	r.want(3, code, out, errout, "2 images: 1 passed, 1 refused")
	for _, f := range forms {
		b, err := os.ReadFile(filepath.Join(r.dir, "out", f))
		if err != nil || !bytes.Contains(b, []byte("called bad")) {
			t.Errorf("%s: %v\n%s", f, err, b)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(r.dir, "out", ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	code, out, errout = r.run("--output", "json="+filepath.Join(r.dir, "out", "x"), "--effective-time", "never", good.Ref())
	r.want(2, code, out, errout)
	if left, _ := filepath.Glob(filepath.Join(r.dir, "out", "*x*")); len(left) > 0 {
		t.Errorf("a report of a run that never was: %v", left)
	}
}

// TestGateOwnSigners: the policy says whose word counts, for what; flags do not widen
// that.
func TestGateOwnSigners(t *testing.T) {
	r := newGateRig(t)
	good := r.image("app/good", true)
	other := storetest.NewKey(t)
	pem := func(k *attest.Key) string { return fmt.Sprintf("%q", storetest.Public(t, k).PEM()) }
	config := func(name, text string) string {
		return r.write("policy/"+name, "name: own\nsources: [{policy: [./rules]}]\n"+text)
	}
	for name, tc := range map[string]struct {
		policy string
		args   []string
		code   int
		want   []string
	}{
		"its key alone":        {config("a.yaml", "publicKey: "+pem(r.key)+"\n"), nil, 0, []string{"by the policy's (key holder)"}},
		"another key":          {config("b.yaml", "publicKey: "+pem(other)+"\n"), nil, 3, []string{"the policy's"}},
		"another and a flag":   {config("c.yaml", "publicKey: "+pem(other)+"\n"), []string{"--key", r.pub}, 3, []string{"builtin.image.signature_check", "builtin.attestation.signature_check", "the policy's"}},
		"by what is signed":    {config("d.yaml", "assay: {signers: {image: [{publicKey: "+pem(r.key)+"}], provenance: [{publicKey: "+pem(other)+"}]}}\n"), nil, 3, []string{"builtin.attestation.signature_check", "whom the policy does not ask for provenance"}},
		"one of two":           {config("e.yaml", "assay: {signers: {image: [{publicKey: "+pem(other)+"}, {publicKey: "+pem(r.key)+"}]}}\n"), nil, 0, []string{"PASS"}},
		"nobody":               {config("f.yaml", ""), nil, 2, []string{"no key given"}},
		"an identity, nothing": {config("g.yaml", "identity: {subject: me@example.com, issuer: https://accounts.example.com}\n"), []string{"--offline"}, 3, []string{"the policy's"}},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errout := r.bare(append([]string{"gate", "--retries", "0", "--policy", tc.policy, good.Ref()}, tc.args...)...)
			(&gateRig{t: t}).want(tc.code, code, out, errout, tc.want...)
		})
	}
}

// TestGateRecord: --record and --replay, with the registry and the policy gone.
func TestGateRecord(t *testing.T) {
	r := newGateRig(t)
	good, bad, bare := r.image("app/good", true), r.image("app/bad", true), r.image("app/bare", false)
	dir := filepath.Join(r.dir, "recording")
	code, want, errout := r.run("--record", dir, "--output", "json", good.Ref(), bad.Ref(), bare.Ref(), r.registry+"/app/gone:1")
	r.want(1, code, want, errout, "recorded in")
	_, digest, _ := strings.Cut(errout, "--recording-digest ")
	digest = strings.TrimSpace(digest)
	r.server.Close()
	if err := errors.Join(os.RemoveAll(r.policy), os.Remove(r.pub)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{}, {"--recording-digest", digest}, {"--workers", "1"}} {
		code, got, errout := r.bare(append([]string{"gate", "--replay", dir, "--output", "json"}, args...)...)
		r.want(1, code, got, errout)
		if got != want {
			t.Errorf("another verdict:\n%s\nnot\n%s\n%s", got, want, errout)
		}
	}
	if !json.Valid([]byte(want)) || !strings.Contains(want, `"result": "fail"`) {
		t.Error(want)
	}
	for name, args := range map[string][]string{
		"an image": {good.Ref()}, "a key": {"--key", r.pub}, "a policy": {"--policy", "x"}, "a time": {"--effective-time", "now"},
	} {
		code, out, errout := r.bare(append([]string{"gate", "--replay", dir}, args...)...)
		if code != 2 || out != "" {
			t.Errorf("%s beside a recording: exit %d\n%s%s", name, code, out, errout)
		}
	}
	code, out, errout := r.bare("gate", "--replay", dir, "--recording-digest", "sha256:"+strings.Repeat("0", 64))
	r.want(1, code, out, errout, "another recording")
	r.write("recording/recording.json", "{}")
	code, out, errout = r.bare("gate", "--replay", dir)
	r.want(1, code, out, errout, "recording.json was changed")
}

// TestGatePolicyFaults: what can be wrong with a policy is said, and is no pass.
func TestGatePolicyFaults(t *testing.T) {
	r := newGateRig(t)
	good := r.image("app/good", true)
	rules := func(text string) string {
		dir := filepath.Join("policies", strings.Map(func(c rune) rune {
			if c >= 'a' && c <= 'z' {
				return c
			}
			return -1
		}, text[:min(len(text), 80)]))
		return filepath.Dir(r.write(dir+"/main.rego", text))
	}
	for name, tc := range map[string]struct {
		policy string
		want   string
	}{
		"syntax":            {rules("package main\ndeny contains {\n"), "rego_parse_error"},
		"conflicting rules": {rules("package main\nx := 1 if input.component_name\nx := 2 if input.image\ndeny contains {\"code\": \"main.x\", \"msg\": \"m\"} if x == 3\n"), "conflict"},
		"a rule's type":     {rules("package main\ndeny := true\n"), "not a set"},
		"a result's type":   {rules("package main\ndeny contains 1 if input.image\n"), "neither a string nor an object"},
		"recursion":         {rules("package main\na := b\nb := a\ndeny contains \"x\" if a\n"), "recursive"},
		"no rules":          {rules("package main\nallow := true\n"), "nothing would be checked"},
		"the network":       {rules("package main\ndeny contains \"x\" if http.send({\"url\": \"http://x\"}).status_code == 200\n"), "http.send"},
		"no source":         {r.write("nosource.yaml", "name: x\nsources: [{policy: [./nowhere]}]\n"), "nowhere"},
		"no sources":        {r.write("nosources.yaml", "name: x\nsources: []\n"), "source"},
		"an unknown member": {r.write("unknown.yaml", "name: x\nsource: []\n"), "source"},
		"an empty include":  {r.write("include.yaml", "name: x\nsources: [{policy: [./policy/rules], config: {include: [nothing.here]}}]\n"), ""},
		"no policy":         {filepath.Join(r.dir, "none"), "none"},
		"plain http":        {"http://x.example/policy.yaml", "insecure"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errout := r.bare("gate", "--key", r.pub, "--retries", "0", "--policy", tc.policy, good.Ref())
			if code == 0 || strings.Contains(out, "PASS") || !strings.Contains(out+errout, tc.want) {
				t.Errorf("exit %d, want %q\n%s%s", code, tc.want, out, errout)
			}
		})
	}
}

// TestGateExplain: one rule, its text, what it read and said; no verdict.
func TestGateExplain(t *testing.T) {
	r := newGateRig(t)
	bad := r.image("app/bad", true)
	code, out, errout := r.run("--explain", "main.name", bad.Ref())
	r.want(0, code, out, errout, "main.name: The component is not called bad", `startswith(input.component_name, "bad")`, "violation: called bad", "it read", "what happened")
	code, out, errout = r.run("--explain", "main.name", "-o", "json", bad.Ref(), r.registry+"/app/gone:1")
	r.want(1, code, out, errout, `"explanation":{"rule":{"code":"main.name"`, `"error":"`)
	code, out, errout = r.run("--explain", "main.other", bad.Ref())
	r.want(2, code, out, errout, `no rule "main.other"`)
}
