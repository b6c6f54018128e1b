package pipeline

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/tektoncd/pipeline/pkg/apis/config"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"github.com/tektoncd/pipeline/pkg/apis/pipeline/v1beta1"
	presources "github.com/tektoncd/pipeline/pkg/reconciler/pipelinerun/resources"
	tresources "github.com/tektoncd/pipeline/pkg/reconciler/taskrun/resources"
	"github.com/tektoncd/pipeline/pkg/substitution"
	"github.com/tektoncd/pipeline/pkg/trustedresources"
	"github.com/tektoncd/pipeline/pkg/workspace"
	kerrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"knative.dev/pkg/kmeta"
)

// notFound is how upstream's state learns that a TaskRun was not made yet.
func notFound(name string) error {
	return kerrors.NewNotFound(schema.GroupResource{Group: "tekton.dev", Resource: "taskruns"}, name)
}

// state is upstream's view of the given tasks: names of their TaskRuns, the
// TaskRuns that exist, the Task, with results of before filled in.
func (r *Resolved) state(ctx context.Context, pr *v1.PipelineRun, tasks []v1.PipelineTask, getTaskRun tresources.GetTaskRun, before presources.PipelineRunState) (presources.PipelineRunState, error) {
	noRun := func(name string) (*v1beta1.CustomRun, error) { return nil, notFound(name) }
	noPipelineRun := func(name string) (*v1.PipelineRun, error) { return nil, notFound(name) }
	noPipeline := func(_ context.Context, name string) (*v1.Pipeline, *v1.RefSource, *trustedresources.VerificationResult, error) {
		return nil, nil, nil, notFound(name)
	}
	state := before
	for _, t := range tasks {
		d := r.tasks[t.Name]
		getTask := func(context.Context, string) (*v1.Task, *v1.RefSource, *trustedresources.VerificationResult, error) {
			task := &v1.Task{Spec: *d.spec.DeepCopy()}
			task.Name = d.name
			return task, d.source, nil, nil
		}
		rpt, err := presources.ResolvePipelineTask(ctx, *pr, noPipelineRun, noPipeline, getTask, getTaskRun, noRun, *t.DeepCopy(), state)
		if err != nil {
			return nil, fmt.Errorf("task %s: %w", t.Name, err)
		}
		state = append(state, rpt)
	}
	return state, nil
}

// newTaskRun makes the TaskRun of one combination of a task's matrix, or the
// only one.
func newTaskRun(ctx context.Context, pr *v1.PipelineRun, rpt *presources.ResolvedPipelineTask, run string, combination int, bindings []v1.WorkspaceBinding, facts *presources.PipelineRunFacts) *v1.TaskRun {
	var params v1.Params
	if rpt.PipelineTask.IsMatrixed() {
		if all := rpt.PipelineTask.Matrix.FanOut(); len(all) > combination {
			params = slices.Clone(all[combination])
		}
	}
	if facts == nil {
		facts = &presources.PipelineRunFacts{}
	}
	task := presources.ApplyPipelineTaskContexts(rpt.PipelineTask, pr.Status, facts)
	of := pr.GetTaskRunSpec(task.Name)
	name := rpt.TaskRunNames[combination]
	tr := &v1.TaskRun{
		TypeMeta: metav1.TypeMeta{APIVersion: "tekton.dev/v1", Kind: "TaskRun"},
		ObjectMeta: metav1.ObjectMeta{
			Name:            name,
			Namespace:       pr.Namespace,
			UID:             childUID(run, name),
			OwnerReferences: []metav1.OwnerReference{*kmeta.NewControllerRef(pr)},
			Labels:          taskRunLabels(pr, task),
			Annotations:     taskRunAnnotations(pr, task),
		},
		Spec: v1.TaskRunSpec{
			Retries:            task.Retries,
			Params:             append(params, task.Params...),
			ServiceAccountName: of.ServiceAccountName,
			StepSpecs:          of.StepSpecs,
			ComputeResources:   of.ComputeResources,
			Workspaces:         bindings,
			Timeout:            taskTimeout(ctx, pr, rpt, of.Timeout, facts),
		},
	}
	if rpt.ResolvedTask.TaskName != "" {
		tr.Spec.TaskRef = task.TaskRef
	} else {
		tr.Spec.TaskSpec = rpt.ResolvedTask.TaskSpec
	}
	tr.SetDefaults(ctx)
	return tr
}

// taskTimeout: the run's word for this task, else the task's own, else that of
// the run where it is longer than the default would let the task be.
func taskTimeout(ctx context.Context, pr *v1.PipelineRun, rpt *presources.ResolvedPipelineTask, override *metav1.Duration, facts *presources.PipelineRunFacts) *metav1.Duration {
	if override != nil {
		return override
	}
	if t := rpt.PipelineTask.Timeout; t != nil {
		return t
	}
	whole := pr.TasksTimeout()
	if facts.FinalTasksGraph != nil && rpt.IsFinalTask(facts) {
		whole = pr.FinallyTimeout()
	}
	if whole == nil {
		return nil
	}
	byDefault := time.Duration(config.FromContextOrDefaults(ctx).Defaults.DefaultTimeoutMinutes) * time.Minute
	if whole.Duration == config.NoTimeoutDuration || whole.Duration > byDefault {
		return whole
	}
	return nil
}

// taskWorkspaces binds a task's workspaces to the run's. A Task written into
// the pipeline also gets those that its steps use without saying so.
func taskWorkspaces(pr *v1.PipelineRun, rpt *presources.ResolvedPipelineTask) ([]v1.WorkspaceBinding, error) {
	given := map[string]v1.WorkspaceBinding{}
	for _, b := range pr.Spec.Workspaces {
		given[b.Name] = b
	}
	wanted := slices.Clone(rpt.PipelineTask.Workspaces)
	if t := rpt.PipelineTask.TaskSpec; t != nil {
		used, err := workspace.FindWorkspacesUsedByTask(t.TaskSpec)
		if err != nil {
			return nil, fmt.Errorf("looking for the workspaces it uses: %w", err)
		}
		for _, name := range used.List() {
			if !slices.ContainsFunc(wanted, func(w v1.WorkspacePipelineTaskBinding) bool { return w.Name == name }) {
				wanted = append(wanted, v1.WorkspacePipelineTaskBinding{Name: name})
			}
		}
	}
	pipelineName := ""
	if pr.Spec.PipelineRef != nil {
		pipelineName = pr.Spec.PipelineRef.Name
	}
	contexts := presources.GetContextReplacements(pipelineName, pr)
	var out []v1.WorkspaceBinding
	for _, w := range wanted {
		from := w.Workspace
		if from == "" {
			from = w.Name
		}
		b, ok := given[from]
		if !ok {
			if optionalWorkspace(rpt, w.Name) {
				continue
			}
			return nil, fmt.Errorf("expected workspace %q to be provided by pipelinerun for pipeline task %q", from, rpt.PipelineTask.Name)
		}
		b = *b.DeepCopy()
		b.Name = w.Name
		switch {
		case b.SubPath == "":
			b.SubPath = w.SubPath
		case w.SubPath != "":
			b.SubPath = filepath.Join(b.SubPath, w.SubPath)
		}
		b.SubPath = substitution.ApplyReplacements(b.SubPath, contexts)
		out = append(out, b)
	}
	return out, nil
}

func optionalWorkspace(rpt *presources.ResolvedPipelineTask, name string) bool {
	if rpt.ResolvedTask == nil || rpt.ResolvedTask.TaskSpec == nil {
		return false
	}
	return slices.ContainsFunc(rpt.ResolvedTask.TaskSpec.Workspaces, func(d v1.WorkspaceDeclaration) bool {
		return d.Name == name && d.Optional
	})
}
