package render

import (
	"fmt"
	"maps"
	"path"
	"strconv"
	"strings"

	"github.com/tektoncd/pipeline/pkg/apis/pipeline"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"github.com/tektoncd/pipeline/pkg/container"
	"github.com/tektoncd/pipeline/pkg/substitution"
	corev1 "k8s.io/api/core/v1"
)

// paramSpellings are the ways to write a reference to a parameter.
var paramSpellings = []string{"params.%s", "params[%q]", "params['%s']", "inputs.params.%s"}

// replacements map the inside of $(…) to its value, by type of the value.
type (
	stringMap = map[string]string
	arrayMap  = map[string][]string
	objectMap = map[string]map[string]string
)

// add records a parameter's value under all its spellings.
func add(p v1.Param, s stringMap, a arrayMap, o objectMap) {
	switch p.Value.Type {
	case v1.ParamTypeArray:
		for _, spelling := range paramSpellings {
			key := fmt.Sprintf(spelling, p.Name)
			a[key] = p.Value.ArrayVal
			for i, v := range p.Value.ArrayVal {
				s[fmt.Sprintf("%s[%d]", key, i)] = v
			}
		}
	case v1.ParamTypeObject:
		for _, spelling := range paramSpellings {
			o[fmt.Sprintf(spelling, p.Name)] = maps.Clone(p.Value.ObjectVal)
		}
		for k, v := range p.Value.ObjectVal {
			s["params."+p.Name+"."+k] = v
		}
	default:
		for _, spelling := range paramSpellings {
			s[fmt.Sprintf(spelling, p.Name)] = p.Value.StringVal
		}
	}
}

func refersToParam(value string) bool { return strings.Contains(value, "$(params.") }

// defaultReplacements are those of the declared defaults. A string default may
// refer to other parameters; upstream fills it from their defaults, not from
// the run's values, and where it refers to several only the last known one is
// replaced. We do as upstream does: the same Task must mean the same here.
func defaultReplacements(specs v1.ParamSpecs) (stringMap, arrayMap, objectMap) {
	s, a, o := stringMap{}, arrayMap{}, objectMap{}
	for _, p := range specs {
		if p.Default != nil && !refersToParam(p.Default.StringVal) {
			add(v1.Param{Name: p.Name, Value: *p.Default}, s, a, o)
		}
	}
	for _, p := range specs {
		if p.Default == nil || !refersToParam(p.Default.StringVal) {
			continue
		}
		found, _ := substitution.ExtractVariableExpressions(p.Default.StringVal, "params")
		for _, expression := range found {
			other := strings.TrimSuffix(strings.TrimPrefix(expression, "$(params."), ")")
			for _, spelling := range paramSpellings {
				value, ok := s[fmt.Sprintf(spelling, other)]
				if !ok {
					continue
				}
				filled := strings.ReplaceAll(p.Default.StringVal, expression, value)
				for _, own := range paramSpellings {
					s[fmt.Sprintf(own, p.Name)] = filled
				}
				break
			}
		}
	}
	return s, a, o
}

func paramReplacements(params v1.Params) (stringMap, arrayMap, objectMap) {
	s, a, o := stringMap{}, arrayMap{}, objectMap{}
	for _, p := range params {
		add(p, s, a, o)
	}
	return s, a, o
}

// taskReplacements are the run's values over the Task's defaults; of an object
// the run may give some keys and leave others to the default.
func taskReplacements(specs v1.ParamSpecs, params v1.Params) (stringMap, arrayMap, objectMap) {
	s, a, o := defaultReplacements(specs)
	rs, ra, ro := paramReplacements(params)
	maps.Copy(s, rs)
	maps.Copy(a, ra)
	mergeObjects(o, ro)
	return s, a, o
}

func mergeObjects(into, from objectMap) {
	for name, value := range from {
		if into[name] == nil {
			if len(value) > 0 {
				into[name] = value
			}
			continue
		}
		maps.Copy(into[name], value)
	}
}

func contextReplacements(taskName string, run *v1.TaskRun) stringMap {
	return stringMap{
		"context.taskRun.name":      run.Name,
		"context.taskRun.namespace": run.Namespace,
		"context.taskRun.uid":       string(run.UID),
		"context.task.name":         taskName,
		"context.task.retry-count":  strconv.Itoa(len(run.Status.RetriesStatus)),
	}
}

// replace fills variables into every field of a TaskSpec that may have them. It
// returns a copy.
func replace(spec *v1.TaskSpec, s stringMap, a arrayMap, o objectMap) *v1.TaskSpec {
	spec = spec.DeepCopy()
	for i := range spec.Steps {
		step := &spec.Steps[i]
		if step.Params != nil {
			step.Params = step.Params.ReplaceVariables(s, a, o)
		}
		container.ApplyStepReplacements(step, s, a)
	}
	if spec.StepTemplate != nil {
		container.ApplyStepTemplateReplacements(spec.StepTemplate, s, a)
	}
	for i := range spec.Volumes {
		replaceVolume(&spec.Volumes[i], s)
	}
	for i := range spec.Workspaces {
		spec.Workspaces[i].MountPath = substitution.ApplyReplacements(spec.Workspaces[i].MountPath, s)
	}
	for i := range spec.Sidecars {
		container.ApplySidecarReplacements(&spec.Sidecars[i], s, a)
	}
	return spec
}

// replaceVolume knows the kinds of volume that package pipeline lets through.
func replaceVolume(v *corev1.Volume, s stringMap) {
	fill := func(field *string) { *field = substitution.ApplyReplacements(*field, s) }
	items := func(list []corev1.KeyToPath) {
		for i := range list {
			fill(&list[i].Key)
			fill(&list[i].Path)
		}
	}
	fill(&v.Name)
	switch {
	case v.ConfigMap != nil:
		fill(&v.ConfigMap.Name)
		items(v.ConfigMap.Items)
	case v.Secret != nil:
		fill(&v.Secret.SecretName)
		items(v.Secret.Items)
	case v.PersistentVolumeClaim != nil:
		fill(&v.PersistentVolumeClaim.ClaimName)
	}
}

// stepDir is the folder of a step's own files, as its container's name has it.
func stepDir(step *v1.Step, index int) string {
	return path.Join(pipeline.StepsDir, containerName(step.Name, index))
}

func containerName(step string, index int) string { return "step-" + StepName(step, index) }

// StepName is the name of a step in a TaskRun's status; unnamed steps are
// called by their index.
func StepName(step string, index int) string {
	if step != "" {
		return step
	}
	return fmt.Sprintf("unnamed-%d", index)
}

var resultSpellings = []string{"results.%s.path", "results[%q].path", "results['%s'].path"}

func replaceResultPaths(spec *v1.TaskSpec) *v1.TaskSpec {
	for i := range spec.Steps {
		step := &spec.Steps[i]
		s := stringMap{}
		for _, r := range step.Results {
			for _, spelling := range resultSpellings {
				s["step."+fmt.Sprintf(spelling, r.Name)] = path.Join(stepDir(step, i), "results", r.Name)
			}
		}
		container.ApplyStepReplacements(step, s, nil)
	}
	s := stringMap{}
	for _, r := range spec.Results {
		for _, spelling := range resultSpellings {
			s[fmt.Sprintf(spelling, r.Name)] = path.Join(pipeline.DefaultResultPath, r.Name)
		}
	}
	return replace(spec, s, nil, nil)
}

func replaceExitCodePaths(spec *v1.TaskSpec) *v1.TaskSpec {
	s := stringMap{}
	for i := range spec.Steps {
		s["steps."+containerName(spec.Steps[i].Name, i)+".exitCode.path"] = path.Join(stepDir(&spec.Steps[i], i), "exitCode")
	}
	return replace(spec, s, nil, nil)
}

// replaceWorkspaces fills in where a workspace is mounted. A step that mounts
// an isolated workspace elsewhere sees its own path.
func replaceWorkspaces(spec *v1.TaskSpec, bindings []v1.WorkspaceBinding, vols map[string]corev1.Volume) *v1.TaskSpec {
	bound := map[string]bool{}
	for _, b := range bindings {
		bound[b.Name] = true
	}
	rest := stringMap{}
	for _, d := range spec.Workspaces {
		prefix := "workspaces." + d.Name + "."
		if d.Optional && !bound[d.Name] {
			rest[prefix+"bound"], rest[prefix+"path"] = "false", ""
			continue
		}
		rest[prefix+"bound"] = "true"
		for i := range spec.Steps {
			for _, use := range spec.Steps[i].Workspaces {
				if use.Name == d.Name && use.MountPath != "" {
					container.ApplyStepReplacements(&spec.Steps[i], stringMap{prefix + "path": use.MountPath}, nil)
				}
			}
		}
		spec = replace(spec, stringMap{prefix + "path": d.GetMountPath()}, nil, nil)
	}
	for name, v := range vols {
		rest["workspaces."+name+".volume"] = v.Name
	}
	for _, b := range bindings {
		claim := ""
		if b.PersistentVolumeClaim != nil {
			claim = b.PersistentVolumeClaim.ClaimName
		}
		rest["workspaces."+b.Name+".claim"] = claim
	}
	return replace(spec, rest, nil, nil)
}
