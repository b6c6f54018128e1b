package attack_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"assay.dev/assay/internal/channel"
	"assay.dev/assay/internal/testrig"
	"assay.dev/assay/ledger"
	"assay.dev/assay/observe"
)

// rig is a home with an image that holds busybox and the probes.
type rig struct {
	*testrig.Rig
	image string
	bin   string // the folder that is /bin in the image
	n     int
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{Rig: testrig.New(t)}
	bin := t.TempDir()
	copyFile(t, "/bin/busybox", filepath.Join(bin, "busybox"))
	list, err := exec.Command("/bin/busybox", "--list").Output()
	must(t, err)
	for _, name := range strings.Fields(string(list)) {
		if name != "busybox" {
			must(t, os.Symlink("busybox", filepath.Join(bin, name)))
		}
	}
	for name, pkg := range map[string]string{"probe": "assay.dev/assay/sandbox/sandboxtest/probe", "attack": "assay.dev/assay/internal/attack/probe"} {
		c := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(bin, name), pkg)
		c.Dir, c.Env = testrig.Root(), append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("building %s: %v\n%s", name, err, out)
		}
	}
	r.bin = bin
	r.image = r.pack("probe:1", "--folder", bin+"=/bin")
	return r
}

// pack pushes an image into the catalog and returns its reference by digest.
func (r *rig) pack(name string, args ...string) string {
	r.T.Helper()
	out, errout, code := r.Run(append([]string{"image", "pack", "localhost:5055/catalog/" + name, "--output", "json"}, args...)...)
	if code != 0 {
		r.T.Fatalf("packing %s: %s", name, errout)
	}
	var p struct{ Ref string }
	must(r.T, json.Unmarshal([]byte(out), &p))
	return p.Ref
}

// task is a Task that is written into its run.
type task struct {
	network string // default none
	outputs string
	inputs  string
	results []string
	params  []string // declared as strings
	spec    map[string]any
	steps   []string // scripts; step i is named s<i>
}

func (k task) object(image string) (spec map[string]any, annotations map[string]any) {
	if k.network == "" {
		k.network = "none"
	}
	annotations = map[string]any{"assay.dev/network": k.network}
	if k.outputs != "" {
		annotations["assay.dev/outputs"] = k.outputs
	}
	if k.inputs != "" {
		annotations["assay.dev/inputs"] = k.inputs
	}
	var steps, results, params []any
	for i, s := range k.steps {
		steps = append(steps, map[string]any{"name": "s" + string(rune('0'+i)), "image": image, "script": "#!/bin/sh\n" + strings.TrimSpace(s) + "\n"})
	}
	for _, n := range k.results {
		results = append(results, map[string]any{"name": n})
	}
	for _, n := range k.params {
		params = append(params, map[string]any{"name": n, "type": "string"})
	}
	spec = map[string]any{"steps": steps}
	if results != nil {
		spec["results"] = results
	}
	if params != nil {
		spec["params"] = params
	}
	for key, v := range k.spec {
		spec[key] = v
	}
	return spec, annotations
}

// run carries out one task as a TaskRun.
func (r *rig) run(t *testing.T, k task, args ...string) *outcome {
	t.Helper()
	spec, annotations := k.object(r.image)
	return r.object(t, map[string]any{
		"apiVersion": "tekton.dev/v1", "kind": "TaskRun",
		"metadata": map[string]any{"generateName": "attack-", "annotations": annotations},
		"spec":     map[string]any{"taskSpec": spec},
	}, args...)
}

// link is a task of a pipeline.
type link struct {
	name   string
	task   task
	params map[string]string
	after  []string
}

// pipeline carries out tasks as a PipelineRun.
func (r *rig) pipeline(t *testing.T, tasks []link, results map[string]string, args ...string) *outcome {
	t.Helper()
	var list, res []any
	for _, l := range tasks {
		spec, annotations := l.task.object(r.image)
		spec["metadata"] = map[string]any{"annotations": annotations}
		pt := map[string]any{"name": l.name, "taskSpec": spec}
		var params []any
		for n, v := range l.params {
			params = append(params, map[string]any{"name": n, "value": v})
		}
		if params != nil {
			pt["params"] = params
		}
		if l.after != nil {
			pt["runAfter"] = l.after
		}
		list = append(list, pt)
	}
	for n, v := range results {
		res = append(res, map[string]any{"name": n, "value": v})
	}
	spec := map[string]any{"tasks": list}
	if res != nil {
		spec["results"] = res
	}
	return r.object(t, map[string]any{
		"apiVersion": "tekton.dev/v1", "kind": "PipelineRun",
		"metadata": map[string]any{"generateName": "attack-"},
		"spec":     map[string]any{"pipelineSpec": spec},
	}, args...)
}

// asYAML are objects that are written out already.
type asYAML string

func (r *rig) object(t *testing.T, o any, args ...string) *outcome {
	t.Helper()
	b, err := json.MarshalIndent(o, "", " ")
	must(t, err)
	if y, ok := o.(asYAML); ok {
		b = []byte(y)
	}
	r.n++
	file := r.Write("run-"+string(rune('a'+r.n/26))+string(rune('a'+r.n%26))+".yaml", string(b))
	before := r.runs(t)
	res := &outcome{Result: r.RunFile(file, args...), t: t}
	for id := range r.runs(t) {
		if !before[id] {
			res.Run = id
		}
	}
	if res.Run != "" {
		rec, err := ledger.Read(filepath.Join(r.Home, "ledger"), res.Run)
		must(t, err)
		res.rec = rec
	}
	return res
}

func (r *rig) runs(t *testing.T) map[string]bool {
	t.Helper()
	list, err := ledger.List(filepath.Join(r.Home, "ledger"))
	must(t, err)
	out := map[string]bool{}
	for _, s := range list {
		out[s.Run] = true
	}
	return out
}

// outcome is a run with its record in the ledger.
type outcome struct {
	*testrig.Result
	t   *testing.T
	rec *ledger.Record
}

var logLine = regexp.MustCompile(`(?m)^\[[^\]]* : [^\]]*\] ?(.*)$`)

// said is what the steps printed.
func (o *outcome) said() string {
	var b strings.Builder
	for _, m := range logLine.FindAllStringSubmatch(o.Stderr, -1) {
		b.WriteString(m[1] + "\n")
	}
	return b.String()
}

// finished is the end of a task attempt in the ledger; name is a part of the TaskRun's name.
func (o *outcome) finished(name string) observe.TaskFinishedBody {
	o.t.Helper()
	for _, f := range o.finishedAll() {
		if strings.Contains(f.Task, name) {
			return f
		}
	}
	o.t.Fatalf("no fact of %q's end: %s", name, o.Stderr)
	return observe.TaskFinishedBody{}
}

func (o *outcome) finishedAll() []observe.TaskFinishedBody {
	o.t.Helper()
	list, err := ledger.Facts[observe.TaskFinishedBody](o.rec, observe.TaskFinished)
	must(o.t, err)
	return list
}

func (o *outcome) result(task, name string) string {
	o.t.Helper()
	for _, v := range o.finished(task).Results {
		if v.Name == name {
			return v.Value
		}
	}
	return ""
}

// ended asserts how the ledger says the run ended.
func (o *outcome) ended(want string) {
	o.t.Helper()
	if o.rec == nil || o.rec.Ending == nil {
		o.t.Fatalf("the run did not end recorded:\n%s", o.Stderr)
	}
	if o.rec.Ending.Outcome != want {
		o.t.Errorf("the run ended as %+v, want %s\n%s", *o.rec.Ending, want, o.Stderr)
	}
}

// unsigned asserts that nothing was signed about the run.
func (o *outcome) unsigned() {
	o.t.Helper()
	if o.rec != nil && o.rec.Signing != nil && len(o.rec.Signing.Payloads)+len(o.rec.Signing.Subjects) > 0 {
		o.t.Errorf("it was signed: %+v", *o.rec.Signing)
	}
}

// none asserts that nothing that steps printed matches.
func (o *outcome) none(pattern string) {
	o.t.Helper()
	if m := regexp.MustCompile(`(?m)`+pattern).FindAllString(o.said(), -1); m != nil {
		o.t.Errorf("%q:\n%s\nof\n%s", pattern, strings.Join(m, "\n"), o.said())
	}
}

// has asserts that something does.
func (o *outcome) has(pattern string) {
	o.t.Helper()
	if !regexp.MustCompile(`(?m)` + pattern).MatchString(o.said()) {
		o.t.Errorf("nothing printed matches %q:\n%s\n%s", pattern, o.said(), o.Stderr)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, b, 0o755))
}

// refused: the peer said no, with a reason that holds text.
func refused(err error, text string) bool {
	var r *channel.Refused
	return errors.As(err, &r) && strings.Contains(r.Reason, text)
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// raw writes bytes to a Unix socket and returns what comes back.
func raw(t testing.TB, socket, text string) string {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = c.Write([]byte(text))
	b := make([]byte, 64<<10)
	n, _ := c.Read(b)
	return string(b[:n])
}

func (r *rig) attackBinary(t testing.TB) string { t.Helper(); return filepath.Join(r.bin, "attack") }
