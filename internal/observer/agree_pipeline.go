package observer

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"

	"assay.dev/assay/observe"
	"assay.dev/assay/pipeline/render"
)

// sameRun compares the object's spec, labels and annotations with those that
// opened the run. A bare TaskRun may have more labels, and the annotations of
// its Task.
func sameRun(object, specified json.RawMessage, bare bool, fetched map[string]string) error {
	type named struct {
		Metadata struct {
			Name        string            `json:"name"`
			UID         string            `json:"uid"`
			Labels      map[string]string `json:"labels"`
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
		Spec any `json:"spec"`
	}
	var a, b named
	if err := json.Unmarshal(object, &a); err != nil {
		return fmt.Errorf("decoding the object: %w", err)
	}
	if err := json.Unmarshal(specified, &b); err != nil {
		return fmt.Errorf("decoding the specification: %w", err)
	}
	if a.Metadata.Name != b.Metadata.Name || !reflect.DeepEqual(a.Spec, b.Spec) {
		return fmt.Errorf("%s: its spec is not the one that the run was opened with", a.Metadata.Name)
	}
	if bare {
		for k, v := range a.Metadata.Labels {
			if _, ok := b.Metadata.Labels[k]; !ok {
				b.Metadata.Labels = with(b.Metadata.Labels, k, v)
			}
		}
		for k, v := range fetched {
			if _, ok := b.Metadata.Annotations[k]; !ok && a.Metadata.Annotations[k] == v {
				b.Metadata.Annotations = with(b.Metadata.Annotations, k, v)
			}
		}
	}
	if !maps.Equal(a.Metadata.Labels, b.Metadata.Labels) || !maps.Equal(a.Metadata.Annotations, b.Metadata.Annotations) {
		return fmt.Errorf("%s: its labels and annotations are not those that the run was opened with", a.Metadata.Name)
	}
	return nil
}

func with(m map[string]string, k, v string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	m[k] = v
	return m
}

// comparePipeline holds what a PipelineRun's status says of itself against the
// specification and the facts.
func (a *agreed) comparePipeline(pr *v1.PipelineRun) (d disagreement) {
	say := func(format string, args ...any) { d.add("PipelineRun "+pr.Name+": "+format, args...) }
	p := a.spec.Pipeline
	if p == nil {
		say("the run was opened without a pipeline")
		return d
	}
	if !sameJSON(pr.Status.PipelineSpec, p.PipelineSpec) {
		say("status.pipelineSpec is not that of the specification")
	}
	if !sameSource(pr.Status.Provenance, p.RefSource) {
		say("provenance.refSource is not that of the specification")
	}
	if pr.Status.StartTime == nil || pr.Status.StartTime.Time.Before(a.rec.Opened.Add(-timeSlack)) || pr.Status.StartTime.Time.After(a.rec.Closed.Add(timeSlack)) {
		say("startTime is not within the run")
	}
	compareTime(say, "completionTime", pr.Status.CompletionTime, a.rec.Closed)
	if p.PipelineSpec != nil {
		a.comparePipelineResults(say, pr.Status.Results, p.PipelineSpec.Results)
	}
	return d
}

// comparePipelineResults: a result of the pipeline is what its expression makes
// of the tasks' results, which are facts.
func (a *agreed) comparePipelineResults(say func(string, ...any), got []v1.PipelineRunResult, declared []v1.PipelineResult) {
	values := map[string]v1.PipelineResult{}
	for _, r := range declared {
		values[r.Name] = r
	}
	seen := map[string]bool{}
	for _, r := range got {
		want, ok := values[r.Name]
		switch {
		case !ok:
			say("the pipeline has no result %q", r.Name)
		case seen[r.Name]:
			say("result %s is there twice", r.Name)
		default:
			if v, known := a.resolve(want.Value); known && !sameJSON(v, r.Value) {
				say("result %s is not what the tasks' results make it", r.Name)
			}
		}
		seen[r.Name] = true
	}
	for _, r := range declared {
		if _, known := a.resolve(r.Value); known && !seen[r.Name] && a.rec.Ending.Outcome == "succeeded" {
			say("result %s is missing", r.Name)
		}
	}
}

// compareChild holds a TaskRun of a pipeline against its task there.
func (a *agreed) compareChild(tr *v1.TaskRun, t *render.SpecifiedTask) (d disagreement) {
	say := func(format string, args ...any) { d.add("TaskRun "+tr.Name+": "+format, args...) }
	pr := a.in.PipelineRun
	spec := a.spec.Pipeline
	if spec == nil || spec.PipelineSpec == nil {
		return d
	}
	var task *v1.PipelineTask
	member := v1.PipelineTasks
	for i := range spec.PipelineSpec.Tasks {
		if spec.PipelineSpec.Tasks[i].Name == t.Name {
			task = &spec.PipelineSpec.Tasks[i]
		}
	}
	for i := range spec.PipelineSpec.Finally {
		if spec.PipelineSpec.Finally[i].Name == t.Name {
			task, member = &spec.PipelineSpec.Finally[i], v1.PipelineFinallyTasks
		}
	}
	if task == nil {
		say("the pipeline has no task %q", t.Name)
		return d
	}
	for key, want := range map[string]string{
		"tekton.dev/pipelineRun": pr.Name, "tekton.dev/pipelineRunUID": string(pr.UID), "tekton.dev/pipelineTask": t.Name,
		"tekton.dev/task": t.Task, "tekton.dev/memberOf": member, "tekton.dev/pipeline": pr.Labels["tekton.dev/pipeline"],
	} {
		if tr.Labels[key] != want {
			say("label %s is %q, it should be %q", key, tr.Labels[key], want)
		}
	}
	// Annotations are read by policies: each comes from somewhere that is in the
	// specification. (Of labels that is only asked of tekton.dev's own, since a
	// Task's labels are not there.)
	sources := []map[string]string{pr.Annotations, t.Annotations, {v1.PipelineTaskOnErrorAnnotation: string(task.OnError)}}
	if m := pr.GetTaskRunSpec(t.Name).Metadata; m != nil {
		sources = append(sources, m.Annotations)
	}
	if task.TaskSpec != nil {
		sources = append(sources, task.TaskSpec.Metadata.Annotations)
	}
	for k, v := range tr.Annotations {
		if !slices.ContainsFunc(sources, func(m map[string]string) bool { s, ok := m[k]; return ok && s == v }) {
			say("annotation %s is %q, which nothing in the specification says", k, v)
		}
	}
	a.compareParams(say, tr.Spec.Params, task)
	if task.TaskRef != nil && !sameJSON(task.TaskRef, tr.Spec.TaskRef) && !strings.Contains(asJSON(task.TaskRef), "$(") {
		say("it refers to another task than the pipeline")
	}
	if task.TaskSpec != nil {
		if want, known := a.resolveAny(task.TaskSpec.TaskSpec); known && !reflect.DeepEqual(want, asAny(tr.Spec.TaskSpec)) {
			say("its taskSpec is not the pipeline's")
		}
	}
	return d
}

// compareParams: a TaskRun has the parameters that the pipeline gives its task,
// and those of one combination of its matrix.
func (a *agreed) compareParams(say func(string, ...any), got v1.Params, task *v1.PipelineTask) {
	want := map[string][]v1.ParamValue{} // the values that are allowed; none: any
	fill := func(p v1.Param, one bool) {
		v, known := a.resolve(p.Value)
		switch {
		case !known:
			want[p.Name] = nil
		case one:
			want[p.Name] = []v1.ParamValue{v}
		default:
			for _, s := range v.ArrayVal {
				want[p.Name] = append(want[p.Name], *v1.NewStructuredValues(s))
			}
		}
	}
	optional := map[string]bool{}
	if task.Matrix != nil {
		for _, p := range task.Matrix.Params {
			fill(p, false)
		}
		for _, in := range task.Matrix.Include {
			for _, p := range in.Params {
				if _, ok := want[p.Name]; !ok {
					optional[p.Name] = true
				}
				want[p.Name] = nil // which combination it joins is Tekton's rule
			}
		}
	}
	for _, p := range task.Params {
		fill(p, true)
	}
	seen := map[string]bool{}
	for _, p := range got {
		allowed, ok := want[p.Name]
		switch {
		case !ok:
			say("the pipeline gives no parameter %q", p.Name)
		case seen[p.Name]:
			say("parameter %s is there twice", p.Name)
		case len(allowed) > 0 && !slices.ContainsFunc(allowed, func(v v1.ParamValue) bool { return sameJSON(v, p.Value) }):
			say("parameter %s is not what the pipeline gives", p.Name)
		}
		seen[p.Name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if !seen[name] && !optional[name] {
			say("parameter %s is missing", name)
		}
	}
}

// taskResult is a reference to a task's result: all of it, an element, or a key.
var taskResult = regexp.MustCompile(`\$\((?:tasks|finally)\.([^.()$]+)\.results\.([^.()$\[\]]+)(\[(?:\d+|\*)\]|\.[^()$\[\]]+)?\)`)

// resolve fills the tasks' results, as the facts have them, into a value. It
// reports false where something else remains to be filled in that only Tekton's
// reconciler knows, or the result is not there.
func (a *agreed) resolve(v v1.ParamValue) (v1.ParamValue, bool) {
	// A whole array or object stands where a string was.
	if m := taskResult.FindStringSubmatch(v.StringVal); v.Type == v1.ParamTypeString && m != nil && m[0] == v.StringVal && (m[3] == "" || m[3] == "[*]") {
		raw, ok := a.resultOf(m[1], m[2])
		if !ok {
			return v, false
		}
		var whole v1.ParamValue
		if a.declaredType(m[1], m[2]) != v1.ResultsTypeString {
			if json.Unmarshal([]byte(raw), &whole) != nil || whole.Type == v1.ParamTypeString {
				return v, false
			}
			return whole, true
		}
		return *v1.NewStructuredValues(raw), true
	}
	out, known := a.resolveAny(v)
	if !known {
		return v, false
	}
	raw, err := json.Marshal(out)
	var filled v1.ParamValue
	if err != nil || json.Unmarshal(raw, &filled) != nil {
		return v, false
	}
	if filled.Type != v.Type {
		// A string that looks like a list is still a string.
		filled = v
		if s, ok := out.(string); ok {
			filled.StringVal = s
		}
	}
	return filled, true
}

// resolveAny is resolve for every string in a document.
func (a *agreed) resolveAny(v any) (any, bool) {
	known := true
	var walk func(v any) any
	walk = func(v any) any {
		switch v := v.(type) {
		case string:
			s := taskResult.ReplaceAllStringFunc(v, func(ref string) string {
				m := taskResult.FindStringSubmatch(ref)
				raw, ok := a.resultOf(m[1], m[2])
				if ok {
					raw, ok = element(raw, m[3], a.declaredType(m[1], m[2]))
				}
				if !ok {
					known = false
				}
				return raw
			})
			for _, kind := range []string{"$(tasks.", "$(finally.", "$(context.", "$(workspaces."} {
				if strings.Contains(s, kind) && kind != "$(workspaces." && kind != "$(context.task" {
					known = known && kind == "$(context." && !strings.Contains(s, "$(context.pipeline")
				}
			}
			return s
		case map[string]any:
			out := map[string]any{}
			for k, e := range v {
				out[k] = walk(e)
			}
			return out
		case []any:
			out := make([]any, len(v))
			for i, e := range v {
				out[i] = walk(e)
			}
			return out
		}
		return v
	}
	out := walk(asAny(v))
	return out, known
}

// element is one element of an array, one key of an object, or the string.
func element(raw, which string, typ v1.ResultsType) (string, bool) {
	switch {
	case which == "" && typ == v1.ResultsTypeString:
		return raw, true
	case strings.HasPrefix(which, "["):
		var list []string
		i, err := strconv.Atoi(strings.Trim(which, "[]"))
		if err != nil || json.Unmarshal([]byte(raw), &list) != nil || i >= len(list) {
			return "", false
		}
		return list[i], true
	case strings.HasPrefix(which, "."):
		var object map[string]string
		if json.Unmarshal([]byte(raw), &object) != nil {
			return "", false
		}
		s, ok := object[which[1:]]
		return s, ok
	}
	return "", false
}

// resultOf is a result of a task of the pipeline that made one TaskRun.
func (a *agreed) resultOf(task, name string) (string, bool) {
	var of string
	var last *attemptFacts
	for _, f := range a.attempts {
		if f.started.PipelineTask != task {
			continue
		}
		if of != "" && of != f.started.Task {
			return "", false // a matrix has several
		}
		of, last = f.started.Task, f
	}
	if last == nil || last.finished.Reason != "" {
		return "", false
	}
	i := slices.IndexFunc(last.finished.Results, func(v observe.Value) bool { return v.Name == name })
	if i < 0 {
		return "", false
	}
	return last.finished.Results[i].Value, true
}

func (a *agreed) declaredType(task, name string) v1.ResultsType {
	for _, t := range a.spec.Tasks {
		if t.Name != task || t.Spec == nil {
			continue
		}
		for _, r := range t.Spec.Results {
			if r.Name == name && r.Type != "" {
				return r.Type
			}
		}
	}
	return v1.ResultsTypeString
}

func asJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(err)
	}
	return string(b)
}

func asAny(v any) any {
	var out any
	if json.Unmarshal([]byte(asJSON(v)), &out) != nil {
		return nil
	}
	return out
}
