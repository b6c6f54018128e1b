package pipeline

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/tektoncd/pipeline/pkg/apis/config"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"github.com/tektoncd/pipeline/pkg/reconciler/pipeline/dag"
	presources "github.com/tektoncd/pipeline/pkg/reconciler/pipelinerun/resources"
	"github.com/tektoncd/pipeline/pkg/reconciler/taskrun"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// resolvePipelineRun goes through what upstream's reconciler checks before the
// first TaskRun, in its order.
func (r *Resolved) resolvePipelineRun(ctx context.Context, find *resolver, pr *v1.PipelineRun, opts Options) error {
	if pr.Name == "" {
		pr.Name = generatedName(pr.GenerateName, r.id)
	}
	if pr.Namespace == "" {
		pr.Namespace = "default"
	}
	pr.UID = types.UID(r.id)
	r.pipelineRun = pr
	var err error
	if pr.Spec.Workspaces, r.hosts, err = bind(pr.Spec.Workspaces, opts.Workspaces); err != nil {
		return err
	}
	if e := unsupported(pr.Spec, supportedPipelineRun()); e != nil {
		return e
	}
	pr.SetDefaults(ctx)

	spec, meta, source, err := r.pipelineData(ctx, find)
	if err != nil {
		return at("spec.pipelineRef", err)
	}
	inline := pr.Spec.PipelineSpec != nil
	if pr.Spec.Params, err = setParams(pr.Spec.Params, opts.Params, spec.Params, inline); err != nil {
		return at("spec.params", err)
	}
	if err := pr.Validate(ctx); err != nil {
		return fmt.Errorf("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	if err := undeclaredWorkspace(opts.Workspaces, spec.Workspaces, inline); err != nil {
		return at("spec.workspaces", err)
	}
	labelWithPipeline(pr)
	mergePipelineMeta(pr, meta)
	r.pipelineName = meta.Name
	pr.Status.Provenance = &v1.Provenance{FeatureFlags: r.flags, RefSource: source}

	if r.graph, err = dag.Build(v1.PipelineTaskList(spec.Tasks), v1.PipelineTaskList(spec.Tasks).Deps()); err != nil {
		return at("spec.tasks of the pipeline", err)
	}
	if r.finally, err = dag.Build(v1.PipelineTaskList(spec.Finally), map[string][]string{}); err != nil {
		return at("spec.finally of the pipeline", err)
	}
	if err := spec.Validate(ctx); err != nil {
		return at("spec of the pipeline", fmt.Errorf("%s", strings.ReplaceAll(err.Error(), "\n", "; ")))
	}
	if err := checkRunAgainstPipeline(ctx, pr, spec); err != nil {
		return err
	}

	presources.ApplyParametersToWorkspaceBindings(pr)
	written := spec.DeepCopy()
	r.declared = slices.Concat(written.Tasks, written.Finally)
	if spec, err = presources.ApplyParameters(spec, pr); err != nil {
		return at("spec.params", err)
	}
	spec = presources.ApplyContexts(spec, meta.Name, pr)
	spec = presources.ApplyWorkspaces(spec, pr)
	r.pipelineSpec = spec
	pr.Status.PipelineSpec = spec.DeepCopy()
	for _, t := range slices.Concat(spec.Tasks, spec.Finally) {
		if err := t.ValidateOnError(ctx); err != nil {
			return at("spec of the pipeline", err)
		}
	}
	if err := r.resolveTasks(ctx, find); err != nil {
		return err
	}
	return r.checkFirstState(ctx)
}

// pipelineData finds the pipeline, its metadata and where it came from.
func (r *Resolved) pipelineData(ctx context.Context, find *resolver) (*v1.PipelineSpec, *metav1.ObjectMeta, *v1.RefSource, error) {
	pr := r.pipelineRun
	if s := pr.Spec.PipelineSpec; s != nil {
		spec := s.DeepCopy()
		spec.SetDefaults(ctx)
		return spec, &pr.ObjectMeta, nil, nil
	}
	if pr.Spec.PipelineRef == nil {
		return nil, nil, nil, fmt.Errorf("neither pipelineRef nor pipelineSpec is given")
	}
	p, source, err := find.pipeline(ctx, pr.Spec.PipelineRef)
	if err != nil {
		return nil, nil, nil, err
	}
	spec := p.object.Spec.DeepCopy()
	spec.SetDefaults(ctx)
	return spec, &p.object.ObjectMeta, source, nil
}

// undeclaredWorkspace catches a slip on the command line, which Tekton, seeing
// only objects, has to let pass.
func undeclaredWorkspace(given []Workspace, declared []v1.PipelineWorkspaceDeclaration, inline bool) error {
	if inline {
		return nil
	}
	for _, g := range given {
		if !slices.ContainsFunc(declared, func(d v1.PipelineWorkspaceDeclaration) bool { return d.Name == g.Name }) {
			var names []string
			for _, d := range declared {
				names = append(names, d.Name)
			}
			return fmt.Errorf("workspace %s is not declared by the pipeline: there are %s", g.Name, orNone(names))
		}
	}
	return nil
}

func checkRunAgainstPipeline(ctx context.Context, pr *v1.PipelineRun, spec *v1.PipelineSpec) error {
	if err := presources.ValidateRequiredParametersProvided(&spec.Params, &pr.Spec.Params); err != nil {
		return at("spec.params", fmt.Errorf("%w; give it with --param", err))
	}
	if err := presources.ValidateParamTypesMatching(spec, pr); err != nil {
		return at("spec.params", err)
	}
	if config.FromContextOrDefaults(ctx).FeatureFlags.EnableParamEnum {
		if err := taskrun.ValidateEnumParam(ctx, pr.Spec.Params, spec.Params); err != nil {
			return at("spec.params", err)
		}
	}
	if err := presources.ValidateObjectParamRequiredKeys(spec.Params, pr.Spec.Params); err != nil {
		return at("spec.params", err)
	}
	if err := presources.ValidateParamArrayIndex(spec, pr.Spec.Params); err != nil {
		return at("spec.params", err)
	}
	if err := presources.ValidateWorkspaceBindings(spec, pr); err != nil {
		return at("spec.workspaces", fmt.Errorf("%w; bind it in the run or with --workspace name=path", err))
	}
	if err := presources.ValidateTaskRunSpecs(spec, pr); err != nil {
		return at("spec.taskRunSpecs", err)
	}
	return nil
}

// pipelineTaskPath is where a task of the pipeline stands in it.
func (r *Resolved) pipelineTaskPath(i int) string {
	if n := len(r.pipelineSpec.Tasks); i >= n {
		return fmt.Sprintf("spec.finally[%d] of the pipeline", i-n)
	}
	return fmt.Sprintf("spec.tasks[%d] of the pipeline", i)
}

// resolveTasks finds the definition of every task.
func (r *Resolved) resolveTasks(ctx context.Context, find *resolver) error {
	r.tasks = map[string]*definition{}
	for i, t := range slices.Concat(r.pipelineSpec.Tasks, r.pipelineSpec.Finally) {
		where := fmt.Sprintf("%s (%s)", r.pipelineTaskPath(i), t.Name)
		d := &definition{}
		switch {
		case t.TaskRef != nil:
			found, source, err := find.task(ctx, t.TaskRef)
			if err != nil {
				return at(where+".taskRef", err)
			}
			task := found.object
			d.name, d.labels, d.annotations, d.spec = task.Name, task.Labels, task.Annotations, &task.Spec
			d.source, d.origin = source, found.origin
		case t.TaskSpec != nil:
			d.annotations, d.spec = t.TaskSpec.Metadata.Annotations, &t.TaskSpec.TaskSpec
		default:
			return at(where, fmt.Errorf("neither taskRef nor taskSpec is given"))
		}
		if err := find.complete(ctx, d); err != nil {
			return at(where, err)
		}
		r.warnAbout(t.Name, d.spec)
		r.tasks[t.Name] = d
	}
	return nil
}

// checkFirstState makes the state in which nothing has run yet and holds it to
// what upstream checks there, and each task to whether it can be rendered.
func (r *Resolved) checkFirstState(ctx context.Context) error {
	pr := r.pipelineRun
	none := func(name string) (*v1.TaskRun, error) { return nil, notFound(name) }
	state, err := r.state(ctx, pr, slices.Concat(r.pipelineSpec.Tasks, r.pipelineSpec.Finally), none, nil)
	if err != nil {
		return at("spec of the pipeline", err)
	}
	for i, rpt := range state {
		if err := r.checkTask(ctx, i, rpt); err != nil {
			return at(fmt.Sprintf("%s (%s)", r.pipelineTaskPath(i), rpt.PipelineTask.Name), err)
		}
	}
	if err := presources.ValidatePipelineTaskResults(state); err != nil {
		return at("spec of the pipeline", err)
	}
	if err := presources.ValidatePipelineResults(r.pipelineSpec, state); err != nil {
		return at("spec.results of the pipeline", err)
	}
	if err := presources.ValidateOptionalWorkspaces(r.pipelineSpec.Workspaces, state); err != nil {
		return at("spec.workspaces of the pipeline", err)
	}
	return nil
}

func (r *Resolved) checkTask(ctx context.Context, i int, rpt *presources.ResolvedPipelineTask) error {
	if err := taskrun.ValidateResolvedTask(ctx, rpt.PipelineTask.Params, rpt.PipelineTask.Matrix, rpt.ResolvedTask); err != nil {
		return err
	}
	if r.flags.EnableParamEnum {
		if err := presources.ValidateParamEnumSubset(r.declared[i].Params, r.pipelineSpec.Params, rpt.ResolvedTask); err != nil {
			return err
		}
	}
	if err := rpt.EvaluateCEL(); err != nil {
		return fmt.Errorf("evaluating CEL: %w", err)
	}
	if rpt.ResolvedTask == nil {
		return nil // a matrix over an empty array
	}
	if m := rpt.PipelineTask.Matrix; m != nil && usesResults(m.GetAllParams()) {
		return nil // how many TaskRuns there will be is not known yet
	}
	bindings, err := taskWorkspaces(r.pipelineRun, rpt)
	if err != nil {
		return err
	}
	for c := range rpt.TaskRunNames {
		tr := newTaskRun(ctx, r.pipelineRun, rpt, r.id, c, bindings, nil)
		if usesResults(tr.Spec.Params) {
			continue // known once the results are
		}
		d := r.tasks[rpt.PipelineTask.Name]
		if err := checkTaskRun(ctx, tr, d); err != nil {
			return err
		}
		if _, err := r.render(tr, d); err != nil {
			return err
		}
	}
	return nil
}
