package observer

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/apis"

	"assay.dev/assay/internal/channel"
	"assay.dev/assay/ledger"
	"assay.dev/assay/observe"
	"assay.dev/assay/pipeline/render"
	"assay.dev/assay/plan"
	"assay.dev/assay/provenance"
)

// timeSlack is how far a time in a status may be from the fact: statuses carry
// whole seconds.
const timeSlack = 2 * time.Second

// attemptFacts are the facts of one task attempt.
type attemptFacts struct {
	started  observe.TaskStartedBody
	steps    []observe.StepFinishedBody
	finished observe.TaskFinishedBody
	source   *observe.SourceRefBody
}

// run is a recorded run with its facts sorted out.
type run struct {
	rec      *ledger.Record
	opened   observe.RunOpenedBody
	attempts []*attemptFacts // in the order they started
}

func collect(rec *ledger.Record) (*run, error) {
	r := &run{rec: rec}
	opened, err := ledger.Facts[observe.RunOpenedBody](rec, observe.RunOpened)
	if err != nil {
		return nil, err
	}
	if len(opened) != 1 {
		return nil, fmt.Errorf("run %s was never opened by its executor", rec.Admission.Run)
	}
	r.opened = opened[0]
	byID := map[observe.Attempt]*attemptFacts{}
	for _, e := range rec.Entries {
		switch e.Type {
		case observe.TaskStarted:
			a := &attemptFacts{}
			if err := strict(e.Body, &a.started); err != nil {
				return nil, err
			}
			byID[a.started.Attempt] = a
			r.attempts = append(r.attempts, a)
		case observe.StepFinished:
			var b observe.StepFinishedBody
			if err := strict(e.Body, &b); err != nil {
				return nil, err
			}
			byID[b.Attempt].steps = append(byID[b.Attempt].steps, b)
		case observe.TaskFinished:
			var b observe.TaskFinishedBody
			if err := strict(e.Body, &b); err != nil {
				return nil, err
			}
			byID[b.Attempt].finished = b
		case observe.SourceSeen:
			var b observe.SourceRefBody
			if err := strict(e.Body, &b); err != nil {
				return nil, err
			}
			if a := byID[b.Attempt]; a != nil {
				a.source = &b
			}
		}
	}
	return r, nil
}

// attemptsOf are the attempts of one TaskRun, first to last.
func (r *run) attemptsOf(taskRun string) []*attemptFacts {
	var out []*attemptFacts
	for _, a := range r.attempts {
		if a.started.Task == taskRun {
			out = append(out, a)
		}
	}
	return out
}

// agreed is a run whose objects say what the facts say.
type agreed struct {
	*run
	in    provenance.Input
	spec  *render.Specification
	tasks map[string]*render.SpecifiedTask // by TaskRun
	runs  map[string]*v1.TaskRun
}

// disagreement is a list of what the objects say and the facts deny.
type disagreement []error

func (d *disagreement) add(format string, a ...any) { *d = append(*d, fmt.Errorf(format, a...)) }

// agree compares the finished objects with the facts. The planner wrote the
// objects and reads strangers' input, so every field that a statement will
// repeat is compared; one difference and nothing is signed.
func agree(r *run, s channel.State) (*agreed, error) {
	if got := digest(s.Spec); got != r.opened.SpecDigest {
		return nil, fmt.Errorf("the specification handed in has %s, the run was opened with %s", got, r.opened.SpecDigest)
	}
	spec, err := render.ParseSpecification(plan.Run{ID: s.Run, Spec: s.Spec})
	if err != nil {
		return nil, err
	}
	children := make([][]byte, len(s.Children))
	for i, c := range s.Children {
		children[i] = c
	}
	in, err := provenance.Load(s.Object, children...)
	if err != nil {
		return nil, err
	}
	a := &agreed{run: r, in: in, spec: spec, tasks: map[string]*render.SpecifiedTask{}, runs: map[string]*v1.TaskRun{}}
	var d disagreement
	var condition *apis.Condition
	var uid string
	taskRuns := in.Children
	if in.PipelineRun != nil {
		uid, condition = string(in.PipelineRun.UID), in.PipelineRun.Status.GetCondition(apis.ConditionSucceeded)
		if len(in.Children) != len(s.Children) {
			d.add("status.childReferences names %d of the %d TaskRuns handed in", len(in.Children), len(s.Children))
		}
	} else {
		uid, condition = string(in.TaskRun.UID), in.TaskRun.Status.GetCondition(apis.ConditionSucceeded)
		taskRuns = []*v1.TaskRun{in.TaskRun}
	}
	if uid != s.Run {
		d.add("the object's uid is %q, the run is %q", uid, s.Run)
	}
	// A bare TaskRun takes over its Task's annotations and labels when it is
	// fetched; a PipelineRun has its Pipeline's before the run is opened.
	var fetched map[string]string
	if in.TaskRun != nil && len(spec.Tasks) == 1 {
		fetched = spec.Tasks[0].Annotations
	}
	if err := sameRun(s.Object, spec.Run, in.TaskRun != nil, fetched); err != nil {
		d = append(d, err)
	}
	if ok := condition.IsTrue(); ok != (r.rec.Ending.Outcome == ledger.Succeeded) {
		d.add("the object says succeeded=%t, the run %s", ok, r.rec.Ending.Outcome)
	}
	for _, tr := range taskRuns {
		if a.runs[tr.Name] != nil {
			d.add("TaskRun %s was handed in twice", tr.Name)
		}
		a.runs[tr.Name] = tr
		t := specified(spec, tr, in.PipelineRun != nil)
		if t == nil {
			d.add("TaskRun %s belongs to no task of the specification", tr.Name)
			continue
		}
		a.tasks[tr.Name] = t
		d = append(d, a.compareTaskRun(tr, t)...)
		if in.PipelineRun != nil {
			d = append(d, a.compareChild(tr, t)...)
		}
	}
	if in.PipelineRun != nil {
		d = append(d, a.comparePipeline(in.PipelineRun)...)
	}
	for _, f := range r.attempts {
		if a.runs[f.started.Task] == nil {
			d.add("%s was run and no TaskRun of this name was handed in", f.started.Task)
		}
	}
	if len(d) > 0 {
		return nil, fmt.Errorf("the objects and the facts disagree: %w", errors.Join(d...))
	}
	return a, nil
}

func specified(spec *render.Specification, tr *v1.TaskRun, inPipeline bool) *render.SpecifiedTask {
	if !inPipeline {
		if len(spec.Tasks) == 1 {
			return &spec.Tasks[0]
		}
		return nil
	}
	name := tr.Labels["tekton.dev/pipelineTask"]
	for i := range spec.Tasks {
		if spec.Tasks[i].Name == name && name != "" {
			return &spec.Tasks[i]
		}
	}
	return nil
}

func (a *agreed) compareTaskRun(tr *v1.TaskRun, t *render.SpecifiedTask) (d disagreement) {
	attempts := a.attemptsOf(tr.Name)
	say := func(format string, args ...any) { d.add("TaskRun "+tr.Name+": "+format, args...) }
	if len(attempts) == 0 {
		say("no such task was run")
		return d
	}
	if len(tr.Status.RetriesStatus) != len(attempts)-1 {
		say("it says %d retries, %d were run", len(tr.Status.RetriesStatus), len(attempts)-1)
	}
	last := attempts[len(attempts)-1]
	if last.started.PipelineTask != t.Name {
		say("it was run as %q", last.started.PipelineTask)
	}
	if ok := tr.Status.GetCondition(apis.ConditionSucceeded).IsTrue(); ok != (last.finished.Reason == "") {
		say("it says succeeded=%t, its last attempt ended with %q", ok, last.finished.Reason)
	}
	compareTime(say, "startTime", tr.Status.StartTime, attempts[0].started.Started, last.started.Started)
	compareTime(say, "completionTime", tr.Status.CompletionTime, last.finished.Finished)
	if !sameSource(tr.Status.Provenance, t.RefSource) {
		say("provenance.refSource is not that of the specification")
	}
	compareResults(say, tr.Status.Results, last.finished.Results, t)
	if !declarations(tr.Annotations, t.Annotations) {
		say("its inputs, outputs or network are declared otherwise than by the task")
	}
	for i, f := range attempts {
		// Each attempt saw the number of those before it as context.
		attempt := tr.DeepCopy()
		attempt.Status.RetriesStatus = make([]v1.TaskRunStatus, i)
		rendered, err := render.Task(t.Input(attempt, a.sources()))
		if err != nil {
			say("rendering it: %v", err)
			return d
		}
		compareSteps(say, rendered.Steps, f.steps, f.finished.Reason == "")
		compareArtifacts(say, rendered, f)
		if f == last {
			compareStatus(say, tr, rendered, f.steps)
		}
	}
	return d
}

// sources resolves what lies beside the tasks; secrets stay unseen.
func (a *agreed) sources() render.Sources {
	return render.Sources{
		Opaque: true,
		ConfigMap: func(name string) (map[string][]byte, bool) {
			m, ok := a.spec.ConfigMaps[name]
			return m, ok
		},
		Host: func(claim string) (string, bool) { return claim, true },
	}
}

func compareTime(say func(string, ...any), field string, got *metav1.Time, want ...time.Time) {
	if got == nil {
		say("%s is missing", field)
		return
	}
	for _, w := range want {
		if diff := got.Time.Sub(w); diff > -timeSlack && diff < timeSlack {
			return
		}
	}
	say("%s is %s, it was %s", field, got.UTC().Format(time.RFC3339), want[0].UTC().Format(time.RFC3339))
}

func sameSource(p *v1.Provenance, want *v1.RefSource) bool {
	var got *v1.RefSource
	if p != nil {
		got = p.RefSource
	}
	if got == nil || want == nil {
		return got == nil && want == nil
	}
	return reflect.DeepEqual(got, want)
}

func compareResults(say func(string, ...any), got []v1.TaskRunResult, want []observe.Value, t *render.SpecifiedTask) {
	values := map[string]string{}
	for _, v := range want {
		values[v.Name] = v.Value
	}
	types := map[string]v1.ResultsType{}
	for _, r := range t.Spec.Results {
		types[r.Name] = r.Type
		if r.Type == "" {
			types[r.Name] = v1.ResultsTypeString
		}
	}
	seen := map[string]bool{}
	for _, r := range got {
		if seen[r.Name] {
			say("result %s is there twice", r.Name)
		}
		seen[r.Name] = true
		if types[r.Name] != r.Type || string(r.Type) != string(r.Value.Type) {
			say("result %s is of type %q, the task declares %q", r.Name, r.Type, types[r.Name])
		}
		w, ok := values[r.Name]
		if !ok {
			say("result %s was never written", r.Name)
			continue
		}
		if r.Value.Type == v1.ParamTypeString {
			if r.Value.StringVal != w {
				say("result %s is not what was written", r.Name)
			}
			continue
		}
		var x, y any
		raw, err := json.Marshal(r.Value)
		if err != nil || json.Unmarshal(raw, &x) != nil || json.Unmarshal([]byte(w), &y) != nil || !reflect.DeepEqual(x, y) {
			say("result %s is not what was written", r.Name)
		}
	}
	for _, v := range want {
		if !seen[v.Name] && types[v.Name] != "" {
			say("result %s was written and is missing", v.Name)
		}
	}
}

// compareSteps holds what was executed against what the Task says.
func compareSteps(say func(string, ...any), want []plan.Step, got []observe.StepFinishedBody, complete bool) {
	if len(got) > len(want) || complete && len(got) != len(want) {
		say("%d steps were run, the task has %d", len(got), len(want))
		return
	}
	results := map[string]string{}
	fill := func(s string) string {
		for name, v := range results {
			s = strings.ReplaceAll(s, "$("+name+")", v)
		}
		return s
	}
	for i, g := range got {
		w := want[i]
		name := "step " + w.Name
		if g.Step != w.Name || g.Image != w.Image {
			say("%s of image %s was run where the task has %s of %s", g.Step, g.Image, name, w.Image)
			continue
		}
		argv := append(slices.Clone(w.Command), w.Args...)
		script := ""
		if w.Script != "" {
			argv = append([]string{fmt.Sprintf("/tekton/scripts/script-%d", i)}, w.Args...)
			script = digest([]byte(w.Script))
		}
		for j := range argv {
			argv[j] = fill(argv[j])
		}
		same := slices.Equal(argv, g.Argv)
		if w.Script == "" && len(w.Command) == 0 {
			// The image's entrypoint comes first; the image is known by digest.
			same = len(g.Argv) >= len(argv) && slices.Equal(argv, g.Argv[len(g.Argv)-len(argv):])
		}
		if !same || script != g.Script {
			say("%s: what was executed is not what the task says", name)
		}
		if len(w.Env) != len(g.Env) {
			say("%s: it was given %d variables, the task has %d", name, len(g.Env), len(w.Env))
		} else {
			for j, v := range w.Env {
				value := digest([]byte(fill(v.Value)))
				if v.Secret {
					value = ""
				}
				if g.Env[j].Name != v.Name || g.Env[j].Digest != value {
					say("%s: variable %s is not what the task says", name, v.Name)
				}
			}
		}
		for _, r := range g.Results {
			results["steps."+strings.TrimPrefix(w.Name, "step-")+".results."+r.Name] = r.Value
		}
	}
}

// compareArtifacts holds inputs, outputs and network against the declaration.
func compareArtifacts(say func(string, ...any), want *render.Rendered, got *attemptFacts) {
	if string(want.Network) != got.started.Network {
		say("it ran with network %s, the task declares %s", got.started.Network, want.Network)
	}
	given := map[string]observe.Tree{}
	for _, in := range got.started.Inputs {
		given[in.Name] = in
	}
	if got.finished.Reason != "" {
		return
	}
	for _, in := range want.Inputs {
		g, ok := given[in.Param]
		if in.URI == "" {
			continue
		}
		if !ok || g.URI != in.URI || g.Path != in.Path {
			say("input %s: %q was unpacked, the task says %q", in.Param, g.URI, in.URI)
		}
	}
	exported := map[string]bool{}
	for _, o := range got.finished.Outputs {
		exported[o.Kind+" "+o.Name+" "+o.Path] = true
	}
	for _, o := range want.Outputs {
		if !exported[string(o.Kind)+" "+o.Name+" "+o.Path] {
			say("output %s was not exported", o.Name)
		}
	}
}

// compareStatus holds what the v0.2 and v1 formats read of a status.
func compareStatus(say func(string, ...any), tr *v1.TaskRun, want *render.Rendered, got []observe.StepFinishedBody) {
	if tr.Status.TaskSpec == nil {
		say("status.taskSpec is missing")
		return
	}
	if !sameJSON(tr.Status.TaskSpec, want.Spec) {
		say("status.taskSpec is not the task's")
	}
	if len(tr.Status.Steps) > len(want.Steps) {
		say("status.steps has %d steps, the task %d", len(tr.Status.Steps), len(want.Steps))
	}
	for i := len(got); i < len(tr.Status.Steps); i++ {
		if st := tr.Status.Steps[i]; st.Terminated != nil && st.Terminated.ExitCode == 0 {
			say("step %s was not run", st.Name)
		}
	}
	for i, s := range got {
		if i >= len(tr.Status.Steps) {
			say("status.steps has %d steps, %d were run", len(tr.Status.Steps), len(got))
			return
		}
		st := tr.Status.Steps[i]
		if st.Name != s.Step {
			say("status.steps[%d] is %s, step %s was run", i, st.Name, s.Step)
		}
		if _, d, ok := strings.Cut(st.ImageID, "@"); !ok || d != s.ImageDigest {
			say("step %s: imageID %q, it ran %s", s.Step, st.ImageID, s.ImageDigest)
		}
		if st.Terminated == nil || int(st.Terminated.ExitCode) != s.ExitCode {
			say("step %s: the exit code was %d", s.Step, s.ExitCode)
		}
	}
}
