package e2e_test

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func released(t *testing.T, r *rig, good *built) {
	const dest = registryName + "/released/app"
	policy := r.policy(t, "release", nil)
	release := func(image string, args ...string) (string, string, int) {
		return r.Run(append([]string{"release", image, "--key", r.key(), "--policy", policy, "--to", dest, "--output", "json"}, args...)...)
	}
	source := map[string]any{"SOURCE_ARTIFACT": "$(tasks.tidy.results.SOURCE_ARTIFACT)"}
	bad := r.run(imageResults, cloneTask(), editTask("tidy", "edit-source"), prefetchTask(), buildTask().with(source)).attested(t)

	// Refused before anything was released: not even the repository is there.
	if out, errout, code := release(bad.image, "--tag", "latest"); code != 3 {
		t.Fatalf("releasing the forgery: exit %d\n%s%s", code, out, errout)
	}
	if l := r.listing(t, "released/app"); len(l) != 0 {
		t.Errorf("a refused release left %d files", len(l))
	}

	out, errout, code := release(good.image, "--tag", "v1", "--tag", "latest")
	if code != 0 {
		t.Fatalf("releasing: exit %d\n%s%s", code, out, errout)
	}
	var done struct {
		Image                   string
		Tags, Digests, Evidence []string
	}
	must(t, json.Unmarshal([]byte(out), &done))
	if diff := cmp.Diff([]string{digestOf(good.image)}, done.Digests); diff != "" {
		t.Errorf("judged and released (-judged +released):\n%s", diff)
	}
	if done.Image != dest+"@"+digestOf(good.image) || !slices.Equal(done.Tags, []string{"v1", "latest"}) {
		t.Errorf("released %s with tags %v", done.Image, done.Tags)
	}
	// Exactly that lies there: manifests are the judged and the evidence, and
	// what they consist of.
	after := r.listing(t, "released/app")
	manifests := map[string]bool{}
	for _, content := range after {
		var m struct {
			SchemaVersion int
			Manifests     []struct{ Digest string }
			Config        struct{ Digest string }
		}
		if json.Unmarshal([]byte(content), &m) == nil && m.SchemaVersion == 2 && m.Config.Digest != "" {
			manifests[sum(content)] = true
		}
	}
	for _, d := range append(slices.Clone(done.Digests), done.Evidence...) {
		if !manifests[d] {
			t.Errorf("%s was released and is not there", d)
		}
		delete(manifests, d)
	}
	if len(manifests) > 0 {
		t.Errorf("more lies at the destination than was released: %v", manifests)
	}
	// The evidence is there and verifies there; the verdict is the same.
	for _, ref := range []string{done.Image, dest + ":v1", dest + ":latest"} {
		out, errout, code := r.Run("verify", ref, "--key", r.key(), "--output", "json")
		var v struct {
			Digest     string
			Statements []struct{ PredicateType string }
			Rejected   []any
		}
		if code == 0 {
			must(t, json.Unmarshal([]byte(out), &v))
		}
		if code != 0 || v.Digest != digestOf(good.image) || len(v.Statements) < 2 || len(v.Rejected) > 0 {
			t.Errorf("verify %s: exit %d\n%s%s", ref, code, out, errout)
		}
	}
	r.passes(t, done.Image, policy)
	if _, _, code := r.Run("trace", done.Image, "--key", r.key(), "--policy", policy); code != 0 {
		t.Errorf("trace at the destination: exit %d", code)
	}

	// Refused again: nothing there is touched, whatever its tag.
	if _, errout, code := release(bad.image, "--tag", "latest"); code != 3 {
		t.Errorf("releasing the forgery: exit %d\n%s", code, errout)
	}
	if diff := cmp.Diff(after, r.listing(t, "released/app")); diff != "" {
		t.Errorf("a refused release touched the destination:\n%s", diff)
	}
	// The staging repository is not a destination, and no place outside released/ is.
	if out, errout, code := r.Run("release", good.image, "--key", r.key(), "--policy", policy, "--to", registryName+"/catalog/app", "--tag", "v1"); code != 1 || strings.Contains(out, "released "+registryName) {
		t.Errorf("releasing into the catalog: exit %d\n%s%s", code, out, errout)
	}
}

// envelopes prints an image's attestations and decodes the statements.
func (r *rig) envelopes(t *testing.T, image string, args ...string) []map[string]any {
	t.Helper()
	out, errout, code := r.Run(append([]string{"download", "attestation", image}, args...)...)
	if code != 0 {
		t.Fatalf("download: exit %d: %s", code, errout)
	}
	var list []map[string]any
	for _, line := range lines(out) {
		var e struct{ PayloadType, Payload string }
		must(t, json.Unmarshal(line, &e))
		if e.PayloadType != "application/vnd.in-toto+json" {
			t.Errorf("payloadType %q", e.PayloadType)
		}
		raw, err := base64.StdEncoding.DecodeString(e.Payload)
		must(t, err)
		var st map[string]any
		must(t, json.Unmarshal(raw, &st))
		list = append(list, st)
	}
	return list
}

// at walks keys and positions.
func at(v any, path ...any) any {
	for _, p := range path {
		switch k := p.(type) {
		case string:
			m, _ := v.(map[string]any) //nolint:errcheck // nil below what is missing
			v = m[k]
		case int:
			l, _ := v.([]any) //nolint:errcheck // nil below what is missing
			if k >= len(l) {
				return nil
			}
			v = l[k]
		}
	}
	return v
}

// queries are those of users of Tekton Chains, on what users download.
func queries(t *testing.T, r *rig, good *built) {
	att := r.envelopes(t, good.image)
	if len(att) != 1 {
		t.Fatalf(".att holds %d statements, want the provenance alone", len(att))
	}
	predicate, _ := att[0]["predicate"].(map[string]any) //nolint:errcheck // fails below
	var keys []string
	for k := range predicate {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	if diff := cmp.Diff([]string{"buildConfig", "buildType", "builder", "invocation", "materials", "metadata"}, keys); diff != "" {
		t.Errorf(".predicate|keys (-want +got):\n%s", diff)
	}
	var names []string
	tasks, _ := at(predicate, "buildConfig", "tasks").([]any) //nolint:errcheck // fails below
	for _, k := range tasks {
		name, _ := at(k, "name").(string) //nolint:errcheck // empty then
		names = append(names, name)
		if name != "prefetch-dependencies" {
			continue
		}
		bundle := ""
		params, _ := at(k, "ref", "params").([]any) //nolint:errcheck // empty then
		for _, p := range params {
			if at(p, "name") == "bundle" {
				bundle, _ = at(p, "value").(string) //nolint:errcheck // empty then
			}
		}
		if bundle != r.refs["bundle/prefetch-shell"] {
			t.Errorf("prefetch-dependencies: bundle %q, want %s", bundle, r.refs["bundle/prefetch-shell"])
		}
		if v, _ := at(k, "invocation", "parameters", "SOURCE_ARTIFACT").(string); !strings.HasPrefix(v, "oci:"+registryName+"/staging/") { //nolint:errcheck // empty then
			t.Errorf("prefetch-dependencies: parameters %v", at(k, "invocation", "parameters"))
		}
	}
	if diff := cmp.Diff([]string{"clone-repository", "prefetch-dependencies", "build"}, names); diff != "" {
		t.Errorf(".predicate.buildConfig.tasks[].name (-want +got):\n%s", diff)
	}
	var commit, image bool
	materials, _ := predicate["materials"].([]any) //nolint:errcheck // fails below
	for _, m := range materials {
		uri, _ := at(m, "uri").(string) //nolint:errcheck // empty then
		commit = commit || uri == "git+http://localhost:8080/app.git" && at(m, "digest", "sha1") == r.commit
		hex, _ := at(m, "digest", "sha256").(string) //nolint:errcheck // empty then
		image = image || strings.HasPrefix(uri, "oci://"+registryName+"/catalog/task") && hex == strings.TrimPrefix(digestOf(r.refs["image/task"]), "sha256:")
	}
	if !commit || !image {
		t.Errorf("materials have the commit: %t, the task's image: %t\n%v", commit, image, materials)
	}
	// --all: the observation too, and it names this very provenance.
	var types []string
	for _, st := range r.envelopes(t, good.image, "--all") {
		p, _ := st["predicateType"].(string) //nolint:errcheck // empty then
		types = append(types, p)
	}
	slices.Sort(types)
	if len(types) != 2 || types[0] != "https://assay.dev/observation/v0.1" && types[1] != "https://assay.dev/observation/v0.1" {
		t.Errorf("--all prints %v, want provenance and observation", types)
	}
}

// tamperedEvidence alters what is stored: nobody may say "verified" then.
func tamperedEvidence(t *testing.T, r *rig) {
	b := r.run(imageResults, cloneTask(), prefetchTask(), buildTask()).attested(t)
	policy := r.policy(t, "prototype", nil)
	wrong := filepath.Join(t.TempDir(), "other")
	if _, errout, code := r.Run("key", "generate", "--out", wrong); code != 0 {
		t.Fatal(errout)
	}
	pub := wrong + ".pub"
	// What was altered where it is kept is no evidence: all of them say no.
	exits := map[string]int{"verify": 3, "trace": 3, "gate": 3, "release": 3}
	for _, args := range [][]string{{"verify", b.image, "--key", pub}, {"trace", b.image, "--key", pub}} {
		if out, errout, code := r.Run(args...); code != exits[args[0]] || strings.Contains(out, "verified") {
			t.Errorf("%v with a foreign key: exit %d\n%s%s", args[0], code, out, errout)
		}
	}
	if v := r.gate(t, b.image, policy); v.code != 0 {
		t.Fatalf("before: exit %d", v.code)
	}
	if _, errout, code := r.Run("gate", b.image, "--key", pub, "--policy", policy); code != 3 {
		t.Errorf("gate with a foreign key: exit %d: %s", code, errout)
	}
	// A bit of every stored envelope; the digests in the registry catch it before
	// the signatures do.
	repo := strings.TrimPrefix(strings.Split(b.image, "@")[0], registryName+"/")
	root := filepath.Join(r.Home, "registry", repo)
	hit := 0
	for name, content := range r.listing(t, repo) {
		if i := strings.Index(content, `"payload":"`); i >= 0 {
			raw := []byte(content)
			raw[i+60] ^= 1
			must(t, os.WriteFile(filepath.Join(root, name), raw, 0o644))
			hit++
		}
	}
	if hit == 0 {
		t.Fatal("no stored envelope was found")
	}
	for _, args := range [][]string{{"verify", b.image, "--key", r.key()}, {"gate", b.image, "--key", r.key(), "--policy", policy},
		{"release", b.image, "--key", r.key(), "--policy", policy, "--to", registryName + "/released/tampered", "--tag", "v1"}} {
		if out, errout, code := r.Run(args...); code != exits[args[0]] {
			t.Errorf("%s of tampered evidence: exit %d\n%s%s", args[0], code, out, errout)
		}
	}
	if l := r.listing(t, "released/tampered"); len(l) != 0 {
		t.Errorf("it was released: %d files", len(l))
	}
}

// leftovers checks that runs leave no process, mount or scratch behind.
func leftovers(t *testing.T, r *rig) {
	t.Helper()
	out, err := exec.Command("findmnt", "-rno", "TARGET").Output()
	must(t, err)
	if strings.Contains(string(out), r.Home) {
		t.Errorf("mounts are left below %s", r.Home)
	}
	entries, err := os.ReadDir(filepath.Join(r.Home, "run"))
	must(t, err)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "x-") || strings.HasPrefix(e.Name(), "plan-") {
			t.Errorf("run/%s is left", e.Name())
		}
	}
}
