// Package render derives from a Task and a TaskRun exactly what is to be
// executed: each step's image, command, script, environment, mounts and user,
// and the artifacts that go in and come out. It is a pure function of its
// Input and reads neither clock nor disk nor network.
//
// Two parties call it. The planner does, to write a plan.Task. The observer
// does, on a Task that it fetched by digest itself, to check that what the
// executor reports is what that Task says. So it has to be small enough to be
// linked there, and links Tekton's API types, its substitution and its
// workspace code, but none of the reconcilers with their fifteen hundred
// packages. The rules that upstream keeps in the reconcilers (the order of
// substitutions, defaults that refer to parameters, how a StepAction is merged)
// are written down here once more, and the tests of package pipeline hold them
// to upstream's own functions, on tables, on random tasks and on every example
// that Tekton ships.
//
//	TaskSpec ─▶ StepActions merged ─▶ params ─▶ context ─▶ results ─▶ workspaces   Rendered.Spec, as in status.taskSpec
//	                                                                      │
//	                          volumes, stepTemplate, overrides, script ◀──┘        Rendered.Steps
//
// What stays open is $(steps.<name>.results.<result>), which only the executor
// can fill in, while the task runs.
package render

import (
	"context"
	"errors"
	"fmt"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"github.com/tektoncd/pipeline/pkg/apis/pipeline/v1beta1"
	"github.com/tektoncd/pipeline/pkg/workspace"
	corev1 "k8s.io/api/core/v1"

	"assay.dev/assay/plan"
)

// Input is everything that decides what a task executes. Nothing in it is
// changed.
type Input struct {
	// Spec is the Task's, as it was fetched or written into the run.
	Spec *v1.TaskSpec
	// Name is what $(context.task.name) stands for: the Task's name, or the
	// TaskRun's where the Task is written into it.
	Name string
	// Annotations are those of the definition: the Task's, the embedded
	// taskSpec's metadata, or the TaskRun's for a taskSpec written into it. An
	// annotation of a PipelineRun, which Tekton copies to every TaskRun, must
	// not declare a task's outputs, so the TaskRun's own are not looked at.
	Annotations map[string]string
	// Run is the TaskRun: its name, uid, params, workspaces and the number of
	// its status.retriesStatus are read.
	Run *v1.TaskRun
	// StepActions has, by the index of the step, what the step refers to.
	StepActions map[int]*v1beta1.StepAction
	// Sources resolves the names of what lies outside Task and TaskRun.
	Sources Sources
}

// Sources looks up what a task takes from beside it. A nil function knows
// nothing, which fails a task that needs it.
type Sources struct {
	// ConfigMap returns the data of a ConfigMap.
	ConfigMap func(name string) (map[string][]byte, bool)
	// Secret returns the data of a Secret.
	Secret func(name string) (map[string][]byte, bool)
	// Host returns the launcher's name for the folder that stands for a
	// PersistentVolumeClaim.
	Host func(claim string) (string, bool)
	// Opaque renders for someone who may not see secrets: a variable out of a
	// Secret gets the value «secret:NAME», as records show it, and volumes have
	// no files. Secret is not called.
	Opaque bool
}

// Rendered is what a TaskRun executes.
type Rendered struct {
	// Spec is the TaskSpec with everything substituted, as Tekton writes it
	// into status.taskSpec.
	Spec    *v1.TaskSpec
	Steps   []plan.Step
	Volumes []plan.Volume
	Inputs  []plan.Input
	Outputs []plan.Output
	Results []string
	Network plan.Network
}

// Task renders one TaskRun. It fails where Tekton would not make a pod of it:
// a parameter reference that nothing fills, a workspace that is not bound, a
// missing key of a ConfigMap; and where an annotation of ours does not parse.
func Task(in Input) (*Rendered, error) {
	if in.Spec == nil || in.Run == nil {
		return nil, errors.New("rendering a task: no Task or no TaskRun given")
	}
	ctx := context.Background()
	run := in.Run.DeepCopy()
	spec := in.Spec.DeepCopy()
	spec.SetDefaults(ctx)
	if err := mergeStepActions(spec, run, in.StepActions); err != nil {
		return nil, err
	}

	strings, _, _ := taskReplacements(spec.Params, run.Spec.Params)
	run.Spec.Workspaces = workspace.ReplaceWorkspaceBindingsVars(run.Spec.Workspaces, strings)
	workspaceVolumes := workspace.CreateVolumes(run.Spec.Workspaces)
	spec = substitute(spec, in.Name, run, workspaceVolumes)

	// From here on the spec is the executor's business and no longer what
	// status.taskSpec shows.
	pod := spec.DeepCopy()
	if err := v1.ValidateUsageOfDeclaredParameters(ctx, pod.Steps, pod.Params); err != nil {
		return nil, fmt.Errorf("checking parameters: %w", err)
	}
	pod, err := workspace.Apply(ctx, *pod, run.Spec.Workspaces, workspaceVolumes)
	if err != nil {
		return nil, fmt.Errorf("mounting workspaces: %w", err)
	}
	out := &Rendered{Spec: spec}
	for _, r := range spec.Results {
		out.Results = append(out.Results, r.Name)
	}
	if out.Volumes, err = volumes(pod, workspaceVolumes, in.Sources); err != nil {
		return nil, err
	}
	if out.Steps, err = steps(pod, run, in.Sources); err != nil {
		return nil, err
	}
	if err := out.declare(in.Annotations, spec, run.Spec.Params); err != nil {
		return nil, err
	}
	return out, nil
}

// substitute fills in everything that is known before the task runs, in
// Tekton's order: a value that comes in by an earlier kind of variable may
// contain a later kind, never the other way round.
func substitute(spec *v1.TaskSpec, taskName string, run *v1.TaskRun, vols map[string]corev1.Volume) *v1.TaskSpec {
	strings, arrays, objects := taskReplacements(spec.Params, run.Spec.Params)
	spec = replace(spec, strings, arrays, objects)
	spec = replace(spec, contextReplacements(taskName, run), nil, nil)
	spec = replaceResultPaths(spec)
	spec = replaceExitCodePaths(spec)

	declared := map[string]bool{}
	for _, w := range spec.Workspaces {
		declared[w.Name] = true
	}
	for _, b := range run.Spec.Workspaces {
		if !declared[b.Name] {
			spec.Workspaces = append(spec.Workspaces, v1.WorkspaceDeclaration{Name: b.Name})
		}
	}
	return replaceWorkspaces(spec, run.Spec.Workspaces, vols)
}
