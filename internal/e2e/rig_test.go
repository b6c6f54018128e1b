package e2e_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"assay.dev/assay/catalog"
	"assay.dev/assay/internal/testrig"
)

const registryName = "localhost:5055"

// rig is a home with the catalog, the tasks of testdata, a git server and a
// policy that trusts what was pushed.
type rig struct {
	*testrig.Rig
	refs     map[string]string // image/NAME, bundle/NAME → repo@digest
	commit   string            // of app.git
	forwards []string
	n        int
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Getenv("ASSAY_SLOW") == "" {
		t.Skip("runs whole pipelines, which takes minutes: `make test-all` (ASSAY_SLOW=1) as root, or CI, runs it")
	}
	r := &rig{Rig: testrig.New(t), refs: map[string]string{}}
	for k, v := range r.Catalog.Images {
		r.refs["image/"+k] = v
	}
	for _, m := range []map[string]string{r.Catalog.Tasks, r.Catalog.Pipelines} {
		for k, v := range m {
			r.refs["bundle/"+k] = v
		}
	}
	r.bundle("build-shell", r.file("testdata/tasks/build-shell.yaml"))
	r.bundle("prefetch-shell", r.file("testdata/tasks/prefetch-shell.yaml"))
	for _, name := range []string{"edit-source", "edit-prefetch", "read-source", "restore-source"} {
		r.bundle(name, r.file(filepath.Join(testrig.Root(), "examples", "run", "tasks", name+".yaml")))
	}
	repos := t.TempDir()
	r.commit = r.repository(repos, "app", map[string]string{
		"go.mod":  "module example.com/app\n\ngo 1.26\n",
		"main.go": "package main\n\nfunc main() { println(\"hello\") }\n",
	})
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	addr, err := testrig.GitServer(ctx, repos)
	must(t, err)
	r.forwards = []string{"8080=" + addr}
	return r
}

func (r *rig) file(path string) string {
	r.T.Helper()
	b, err := os.ReadFile(path)
	must(r.T, err)
	return string(b)
}

func (r *rig) repository(root, name string, files map[string]string) string {
	r.T.Helper()
	dir := r.T.TempDir()
	for p, content := range files {
		must(r.T, os.MkdirAll(filepath.Dir(filepath.Join(dir, p)), 0o755))
		must(r.T, os.WriteFile(filepath.Join(dir, p), []byte(content), 0o644))
	}
	commit, err := testrig.GitRepository(context.Background(), root, name, dir)
	must(r.T, err)
	return commit
}

// serve serves a folder over http and lets tasks with an open network reach it
// as localhost:port.
func (r *rig) serve(port int, dir string) {
	r.T.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(r.T, err)
	srv := &http.Server{Handler: http.FileServer(http.Dir(dir))}
	go srv.Serve(l) //nolint:errcheck // it ends with the test
	r.T.Cleanup(func() { srv.Close() })
	r.forwards = append(r.forwards, fmt.Sprintf("%d=%s", port, l.Addr()))
}

// bundle pushes a Task or Pipeline and keeps its reference as bundle/name. The
// bundle's repository is task-<its own name>, so that an altered Task of the
// same name is another digest in the same repository.
func (r *rig) bundle(name, text string) string {
	r.T.Helper()
	filled, err := catalog.Fill([]byte(text), r.refs)
	must(r.T, err)
	var o struct {
		Kind     string
		Metadata struct{ Name string }
	}
	must(r.T, yaml.Unmarshal(filled, &o))
	file := r.Write(name+".yaml", string(filled))
	repo := fmt.Sprintf("%s/catalog/%s-%s:latest", registryName, strings.ToLower(o.Kind), o.Metadata.Name)
	out, errout, code := r.Run("bundle", "push", repo, file)
	if code != 0 {
		r.T.Fatalf("pushing %s: %s", name, errout)
	}
	r.refs["bundle/"+name] = strings.TrimSpace(out)
	return r.refs["bundle/"+name]
}

// task is one task of a pipeline.
type task struct {
	name   string
	bundle string // bundle/NAME
	as     string // the Task's own name; default: bundle
	// written into the run instead:
	script                   string
	inputs, outputs, network string
	results, declared        []string

	params map[string]any
	after  []string
}

// object renders the task as a PipelineRun has it.
func (r *rig) object(k task) map[string]any {
	out := map[string]any{"name": k.name}
	if k.bundle != "" {
		if k.as == "" {
			k.as = k.bundle
		}
		ref, ok := r.refs["bundle/"+k.bundle]
		if !ok {
			r.T.Fatalf("no bundle %s", k.bundle)
		}
		out["taskRef"] = map[string]any{"resolver": "bundles", "params": []any{
			param("name", k.as), param("bundle", ref), param("kind", "task"),
		}}
	} else {
		if k.network == "" {
			k.network = "none"
		}
		annotations := map[string]any{"assay.dev/network": k.network}
		for name, v := range map[string]string{"assay.dev/inputs": k.inputs, "assay.dev/outputs": k.outputs} {
			if v != "" {
				annotations[name] = v
			}
		}
		spec := map[string]any{
			"metadata": map[string]any{"annotations": annotations},
			"volumes":  []any{map[string]any{"name": "workdir", "emptyDir": map[string]any{}}},
			"steps": []any{map[string]any{
				"name": "step", "image": r.refs["image/task"], "script": "#!/bin/sh\nset -eu\n" + k.script,
				"volumeMounts": []any{map[string]any{"name": "workdir", "mountPath": "/var/workdir"}},
			}},
		}
		var params, results []any
		for _, p := range k.declared {
			params = append(params, map[string]any{"name": p, "type": "string"})
		}
		for _, n := range k.results {
			results = append(results, map[string]any{"name": n})
		}
		if params != nil {
			spec["params"] = params
		}
		if results != nil {
			spec["results"] = results
		}
		out["taskSpec"] = spec
	}
	var params []any
	for _, n := range slices.Sorted(maps.Keys(k.params)) {
		params = append(params, param(n, k.params[n]))
	}
	if params != nil {
		out["params"] = params
	}
	if k.after != nil {
		out["runAfter"] = k.after
	}
	return out
}

func param(name string, value any) any { return map[string]any{"name": name, "value": value} }

// Tasks of the pipeline that every control starts from.
func cloneTask() task {
	return task{name: "clone-repository", bundle: "git-clone-oci-ta", params: map[string]any{"url": "http://localhost:8080/app.git", "revision": "main"}}
}

func prefetchTask() task {
	return task{name: "prefetch-dependencies", bundle: "prefetch-shell", as: "prefetch-dependencies", params: map[string]any{"SOURCE_ARTIFACT": "$(tasks.clone-repository.results.SOURCE_ARTIFACT)"}}
}

func buildTask() task {
	return task{name: "build", bundle: "build-shell", params: map[string]any{
		"IMAGE":           stagingRepo,
		"SOURCE_ARTIFACT": "$(tasks.clone-repository.results.SOURCE_ARTIFACT)",
		"CACHI2_ARTIFACT": "$(tasks.prefetch-dependencies.results.CACHI2_ARTIFACT)",
	}}
}

const stagingRepo = registryName + "/staging/$(context.pipelineRun.uid)"

// with is a copy of the task with some parameters replaced.
func (k task) with(params map[string]any) task {
	k.params = maps.Clone(k.params)
	maps.Copy(k.params, params)
	return k
}

// built is a finished run.
type built struct {
	*testrig.Result
	r     *rig
	image string // repo@digest
}

// imageResults are the pipeline's results of the usual builds.
var imageResults = map[string]string{
	"IMAGE_URL":    "$(tasks.build.results.IMAGE_URL)",
	"IMAGE_DIGEST": "$(tasks.build.results.IMAGE_DIGEST)",
}

// run carries out a pipeline of tasks; results are the pipeline's.
func (r *rig) run(results map[string]string, tasks ...task) *built {
	r.T.Helper()
	var list, res []any
	for _, k := range tasks {
		list = append(list, r.object(k))
	}
	for _, n := range slices.Sorted(maps.Keys(results)) {
		res = append(res, map[string]any{"name": n, "value": results[n]})
	}
	spec := map[string]any{"tasks": list}
	if res != nil {
		spec["results"] = res
	}
	return r.pipelineRun(map[string]any{"pipelineSpec": spec})
}

func (r *rig) pipelineRun(spec map[string]any) *built {
	r.T.Helper()
	b, err := json.MarshalIndent(map[string]any{
		"apiVersion": "tekton.dev/v1", "kind": "PipelineRun",
		"metadata": map[string]any{"generateName": "control-"}, "spec": spec,
	}, "", " ")
	must(r.T, err)
	r.n++
	file := r.Write(fmt.Sprintf("run-%d.json", r.n), string(b))
	var args []string
	for _, f := range r.forwards {
		args = append(args, "--forward", f)
	}
	out := &built{Result: r.RunFile(file, args...), r: r}
	values := out.results()
	if d := values["IMAGE_DIGEST"]; d != "" {
		out.image = values["IMAGE_URL"] + "@" + d
	}
	return out
}

func (b *built) results() map[string]string {
	b.r.T.Helper()
	out := map[string]string{}
	if len(b.PipelineRun) == 0 {
		return out
	}
	var pr struct {
		Status struct {
			Results []struct{ Name, Value string }
		}
	}
	must(b.r.T, json.Unmarshal(b.PipelineRun, &pr))
	for _, v := range pr.Status.Results {
		out[v.Name] = v.Value
	}
	return out
}

// attested fails the test unless the run succeeded and its image was attested.
func (b *built) attested(t *testing.T) *built {
	t.Helper()
	if b.Code != 0 || !b.Succeeded || b.Stated == nil || !slices.Contains(b.Stated.Subjects, b.image) {
		t.Fatalf("the run was not attested: exit %d, %+v\n%s", b.Code, b.Stated, b.Stderr)
	}
	return b
}

// claim finds what became of a claim.
func (b *built) claim(t *testing.T, field, value string) (status, reason string) {
	t.Helper()
	if b.Stated == nil {
		t.Fatalf("nothing was stated: %s", b.Stderr)
	}
	for _, c := range b.Stated.Claims {
		if c.Field == field && strings.HasSuffix(c.Value, value) {
			return c.Status, c.Reason
		}
	}
	t.Fatalf("no claim %s …%s among %+v", field, value, b.Stated.Claims)
	return "", ""
}

// trusted is an entry of trusted_tasks.json.
type trusted struct {
	ref  string // repo@digest
	from time.Time
}

var longAgo = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// policy copies the example policies, makes them fit the shell builds and
// trusts the tasks of the usual pipeline and more. exclude leaves out rules.
func (r *rig) policy(t *testing.T, name string, exclude []string, more ...trusted) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.CopyFS(dir, os.DirFS(filepath.Join(testrig.Root(), "examples", "policy"))))
	edit(t, filepath.Join(dir, name, "policy.yaml"), func(p map[string]any) {
		source := p["sources"].([]any)[0].(map[string]any)
		data := source["ruleData"].(map[string]any)
		if name == "release" {
			data["required_tasks"] = []any{"git-clone-oci-ta", "prefetch-dependencies", "build-shell"}
			data["allowed_params"] = map[string]any{"build-shell": []any{"IMAGE", "PACKAGE", "SOURCE_ARTIFACT", "CACHI2_ARTIFACT"}}
		}
		if exclude != nil {
			source["config"] = map[string]any{"exclude": exclude}
		}
	})
	for _, b := range []string{"git-clone-oci-ta", "prefetch-shell", "build-shell"} {
		more = append(more, trusted{r.refs["bundle/"+b], longAgo})
	}
	r.trust(t, filepath.Join(dir, "release", "trusted_tasks.json"), more)
	return filepath.Join(dir, name)
}

func (r *rig) trust(t *testing.T, file string, list []trusted) {
	t.Helper()
	tasks := map[string][]any{}
	for _, k := range list {
		repo, digest, _ := strings.Cut(k.ref, "@")
		tasks["oci://"+repo] = append(tasks["oci://"+repo], map[string]any{"ref": digest, "effective_on": k.from.UTC().Format(time.RFC3339)})
	}
	b, err := json.Marshal(map[string]any{"trusted_tasks": tasks})
	must(t, err)
	must(t, os.WriteFile(file, b, 0o644))
}

func edit(t *testing.T, file string, change func(map[string]any)) {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	var v map[string]any
	must(t, yaml.Unmarshal(b, &v))
	change(v)
	b, err = yaml.Marshal(v)
	must(t, err)
	must(t, os.WriteFile(file, b, 0o644))
}

func (r *rig) key() string { return filepath.Join(r.Home, "public", "executed.pub") }

// verdict is what `assay gate --output json` says.
type verdict struct {
	Success    bool
	Components []struct {
		ContainerImage string
		Violations     []result
		Warnings       []result
		Assay          struct {
			Result, Error, Run string
			Runs               []struct{ ID, Result string }
			Notes              []result
			Questions          []struct{ Question, Answer string }
			Digests            []string
		}
	}
	code int
	text string
}

type result struct {
	Msg      string
	Metadata struct {
		Code    string
		Term    any
		Task    string
		Digests []string
	}
}

// codes are the violations' codes, each once, sorted.
func (v *verdict) codes() []string {
	set := map[string]bool{}
	for _, c := range v.Components {
		for _, x := range c.Violations {
			set[x.Metadata.Code] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// violation is the first violation of a rule.
func (v *verdict) violation(t *testing.T, code string) result {
	t.Helper()
	for _, c := range v.Components {
		for _, x := range c.Violations {
			if x.Metadata.Code == code {
				return x
			}
		}
	}
	t.Fatalf("no violation of %s:\n%s", code, v.text)
	return result{}
}

func (r *rig) gate(t *testing.T, image, policy string, args ...string) *verdict {
	t.Helper()
	out, errout, code := r.Run(append([]string{"gate", image, "--key", r.key(), "--policy", policy, "--output", "json"}, args...)...)
	v := &verdict{code: code, text: out + errout}
	if out != "" {
		if err := json.Unmarshal([]byte(out), v); err != nil {
			t.Fatalf("decoding the verdict: %v\n%s", err, out)
		}
	}
	return v
}

// passes wants an image to pass; refuses wants it refused by these rules and no
// others.
func (r *rig) passes(t *testing.T, image, policy string, args ...string) *verdict {
	t.Helper()
	v := r.gate(t, image, policy, args...)
	if v.code != 0 || !v.Success {
		t.Fatalf("exit %d, want 0: %v\n%s", v.code, v.codes(), v.text)
	}
	return v
}

func (r *rig) refuses(t *testing.T, image, policy string, codes ...string) *verdict {
	t.Helper()
	v := r.gate(t, image, policy)
	if v.code != 3 || v.Success {
		t.Fatalf("exit %d, want 3:\n%s", v.code, v.text)
	}
	if got := v.codes(); !slices.Equal(got, codes) {
		t.Errorf("refused by %v, want %v\n%s", got, codes, v.text)
	}
	return v
}

// listing is every file of the embedded registry below a repository, with its
// content.
func (r *rig) listing(t *testing.T, repo string) map[string]string {
	t.Helper()
	out := map[string]string{}
	root := filepath.Join(r.Home, "registry", repo)
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		rel, _ := filepath.Rel(root, p) //nolint:errcheck // p is below root
		out[rel] = string(b)
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return out
}

func lines(s string) [][]byte { return bytes.Split(bytes.TrimSpace([]byte(s)), []byte("\n")) }

func sum(content string) string {
	h := sha256.Sum256([]byte(content))
	return "sha256:" + hex.EncodeToString(h[:])
}

func digestOf(ref string) string { _, d, _ := strings.Cut(ref, "@"); return d }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
