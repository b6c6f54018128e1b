package render

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"github.com/tektoncd/pipeline/pkg/apis/pipeline/v1beta1"
	"github.com/tektoncd/pipeline/pkg/container"
	"github.com/tektoncd/pipeline/pkg/substitution"
)

// mergeStepActions replaces each step that refers to a StepAction by the step
// that the two make together.
func mergeStepActions(spec *v1.TaskSpec, run *v1.TaskRun, actions map[int]*v1beta1.StepAction) error {
	original := spec.DeepCopy()
	for i := range spec.Steps {
		if spec.Steps[i].Ref == nil {
			continue
		}
		action := actions[i]
		if action == nil {
			return fmt.Errorf("step %s refers to a StepAction that was not given", StepName(spec.Steps[i].Name, i))
		}
		if err := mergeStepAction(&spec.Steps[i], action, original.Params, run.Spec.Params); err != nil {
			return fmt.Errorf("step %s with StepAction %s: %w", StepName(spec.Steps[i].Name, i), action.Name, err)
		}
	}
	return nil
}

// mergeStepAction: the action gives image, security context and working
// directory; command, args, script, env, mounts and results where it has them.
func mergeStepAction(step *v1.Step, action *v1beta1.StepAction, taskParams v1.ParamSpecs, runParams v1.Params) error {
	spec := action.Spec.DeepCopy()
	spec.SetDefaults(context.Background())
	if err := checkStepParams(step.Params, spec.Params); err != nil {
		return err
	}
	from := spec.ToStep()
	if err := applyStepParams(from, step.Params, spec.Params, taskParams, runParams); err != nil {
		return err
	}
	step.Image, step.SecurityContext, step.WorkingDir = from.Image, from.SecurityContext, from.WorkingDir
	if len(from.Command) > 0 {
		step.Command = from.Command
	}
	if len(from.Args) > 0 {
		step.Args = from.Args
	}
	if from.Script != "" {
		step.Script = from.Script
	}
	if from.Env != nil {
		step.Env = from.Env
	}
	if len(from.VolumeMounts) > 0 {
		step.VolumeMounts = from.VolumeMounts
	}
	if len(from.Results) > 0 {
		step.Results = from.Results
	}
	step.Ref, step.Params = nil, nil
	return nil
}

// checkStepParams wants every parameter without default given, and none that
// the action does not know.
func checkStepParams(given v1.Params, declared v1.ParamSpecs) error {
	known := map[string]bool{}
	for _, d := range declared {
		known[d.Name] = true
	}
	has := map[string]bool{}
	for _, g := range given {
		if !known[g.Name] {
			return fmt.Errorf("it has no parameter %q", g.Name)
		}
		has[g.Name] = true
	}
	for _, d := range declared {
		if d.Default == nil && !has[d.Name] {
			return fmt.Errorf("parameter %q has no value and no default", d.Name)
		}
	}
	return nil
}

// applyStepParams fills the action's parameters: the step's values, in which the
// Task's own parameters are filled in first; else the defaults, which may refer
// to other parameters of the action; and results of earlier steps as references
// that stay until the task runs.
func applyStepParams(from *v1.Step, given v1.Params, declared v1.ParamSpecs, taskParams v1.ParamSpecs, runParams v1.Params) error {
	if given != nil {
		s, a, o := taskReplacements(taskParams, runParams)
		given = given.ReplaceVariables(s, a, o)
	}
	values, err := stepValues(given, declared)
	if err != nil {
		return err
	}
	s, a, o := defaultReplacements(declared)
	vs, va, vo := paramReplacements(values)
	maps.Copy(s, vs)
	maps.Copy(a, va)
	mergeObjects(o, vo)
	late, err := stepResultReplacements(from, given, declared)
	if err != nil {
		return err
	}
	maps.Copy(s, late)
	for _, key := range slices.Sorted(maps.Keys(s)) {
		if _, both := a[key]; both {
			return fmt.Errorf("parameter %s is a string here and an array there: give it the type of its default", key)
		}
	}
	container.ApplyStepReplacements(from, s, a)
	return nil
}

// stepValues resolves the action's parameters among themselves.
func stepValues(given v1.Params, declared v1.ParamSpecs) (v1.Params, error) {
	values := map[string]v1.ParamValue{}
	for _, g := range given {
		values[g.Name] = g.Value
	}
	known := map[string]bool{}
	var open []v1.ParamSpec
	var out v1.Params
	for _, d := range declared {
		known[d.Name] = true
		value, isGiven := values[d.Name]
		switch {
		case isGiven:
			out = append(out, v1.Param{Name: d.Name, Value: value})
		case d.Default == nil:
		case refersToParam(d.Default.StringVal):
			open = append(open, d)
		default:
			out = append(out, v1.Param{Name: d.Name, Value: *d.Default})
		}
	}
	resolved := map[string]v1.ParamValue{}
	for _, p := range out {
		resolved[p.Name] = p.Value
	}
	for len(open) > 0 {
		var still []v1.ParamSpec
		for _, d := range open {
			value, ready, err := fillDefault(d, resolved, known)
			if err != nil {
				return nil, err
			}
			if !ready {
				still = append(still, d)
				continue
			}
			resolved[d.Name] = value
			out = append(out, v1.Param{Name: d.Name, Value: value})
		}
		if len(still) == len(open) {
			return nil, fmt.Errorf("the defaults of its parameters refer to each other in a circle, beginning with %q", still[0].Name)
		}
		open = still
	}
	return out, nil
}

func fillDefault(d v1.ParamSpec, resolved map[string]v1.ParamValue, known map[string]bool) (value v1.ParamValue, ready bool, err error) {
	value = *d.Default.DeepCopy()
	expressions, _ := substitution.ExtractVariableExpressions(value.StringVal, "params")
	for _, e := range expressions {
		other := strings.TrimSuffix(strings.TrimPrefix(e, "$(params."), ")")
		if !known[other] {
			return value, false, fmt.Errorf("the default of parameter %q refers to %q, which it does not declare", d.Name, other)
		}
		r, ok := resolved[other]
		if !ok {
			return value, false, nil
		}
		value.StringVal = strings.ReplaceAll(value.StringVal, "$(params."+other+")", r.StringVal)
	}
	return value, true, nil
}

// stepResultReplacements turns uses of a parameter whose value is another
// step's result into uses of that result.
func stepResultReplacements(from *v1.Step, given v1.Params, declared v1.ParamSpecs) (stringMap, error) {
	out := stringMap{}
	for _, g := range given {
		if !strings.HasPrefix(g.Value.StringVal, "$(steps.") {
			continue
		}
		ref, err := stepResultRef(g.Value.StringVal)
		if err != nil {
			return nil, err
		}
		for _, d := range declared {
			if d.Name != g.Name {
				continue
			}
			switch d.Type {
			case v1.ParamTypeObject:
				for key := range d.Properties {
					out["params."+d.Name+"."+key] = "$(" + ref + "." + key + ")"
				}
			case v1.ParamTypeArray:
				for _, spelling := range paramSpellings {
					out[fmt.Sprintf(spelling, d.Name)+"[*]"] = "$(" + ref + "[*])"
				}
				for key, index := range arrayUses(from, d.Name) {
					out[key] = "$(" + ref + "[" + index + "])"
				}
			default:
				for _, spelling := range paramSpellings {
					out[fmt.Sprintf(spelling, d.Name)] = g.Value.StringVal
				}
			}
		}
	}
	return out, nil
}

// stepResultRef reduces $(steps.x.results.y[*]) to steps.x.results.y.
func stepResultRef(value string) (string, error) {
	inner := strings.TrimSuffix(strings.TrimPrefix(value, "$("), ")")
	parts := strings.Split(inner, ".")
	if len(parts) < 4 || len(parts) > 5 || parts[0] != "steps" || parts[2] != "results" {
		return "", fmt.Errorf("%q does not name a result of a step: write $(steps.<step>.results.<result>)", value)
	}
	name, _, _ := strings.Cut(parts[3], "[")
	return strings.Join([]string{"steps", parts[1], "results", name}, "."), nil
}

// arrayUses finds $(params.name[3]) and its other spellings in a step.
func arrayUses(step *v1.Step, name string) map[string]string {
	fields := slices.Concat(step.Command, step.Args)
	for _, e := range step.Env {
		fields = append(fields, e.Value)
	}
	quoted := regexp.QuoteMeta(name)
	use := regexp.MustCompile(`\$\((params(?:\.` + quoted + `|\["` + quoted + `"\]|\['` + quoted + `'\])\[([0-9]+)\])\)`)
	out := map[string]string{}
	for _, f := range fields {
		for _, m := range use.FindAllStringSubmatch(f, -1) {
			out[m[1]] = m[2]
		}
	}
	return out
}
