package pipeline

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/tektoncd/pipeline/pkg/apis/config"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"github.com/tektoncd/pipeline/pkg/reconciler/taskrun"
	tresources "github.com/tektoncd/pipeline/pkg/reconciler/taskrun/resources"
	"github.com/tektoncd/pipeline/pkg/substitution"
	"github.com/tektoncd/pipeline/pkg/workspace"
	"k8s.io/apimachinery/pkg/types"

	"assay.dev/assay/pipeline/render"
)

func (r *Resolved) resolveTaskRun(ctx context.Context, find *resolver, tr *v1.TaskRun, opts Options) error {
	if tr.Name == "" {
		tr.Name = generatedName(tr.GenerateName, r.id)
	}
	if tr.Namespace == "" {
		tr.Namespace = "default"
	}
	tr.UID = types.UID(r.id)
	r.taskRun = tr
	var err error
	if tr.Spec.Workspaces, r.hosts, err = bind(tr.Spec.Workspaces, opts.Workspaces); err != nil {
		return err
	}
	if e := unsupported(tr.Spec, supportedTaskRun()); e != nil {
		return e
	}
	d := &definition{}
	switch {
	case tr.Spec.TaskSpec != nil:
		d.annotations, d.spec = tr.Annotations, tr.Spec.TaskSpec
	case tr.Spec.TaskRef != nil:
		// A bare TaskRun's reference may use the run's own parameters.
		ref := tr.Spec.TaskRef.DeepCopy()
		replacements := map[string]string{}
		for _, p := range tr.Spec.Params {
			replacements["params."+p.Name] = p.Value.StringVal
		}
		for i := range ref.Params {
			ref.Params[i].Value.StringVal = substitution.ApplyReplacements(ref.Params[i].Value.StringVal, replacements)
		}
		found, source, err := find.task(ctx, ref)
		if err != nil {
			return at("spec.taskRef", err)
		}
		task := found.object
		d.name, d.labels, d.annotations, d.spec = task.Name, task.Labels, task.Annotations, &task.Spec
		d.source, d.origin = source, found.origin
	default:
		return at("spec", fmt.Errorf("neither taskRef nor taskSpec is given"))
	}
	if err := find.complete(ctx, d); err != nil {
		return at("spec.taskSpec", err)
	}
	r.task = d
	if tr.Spec.Params, err = setParams(tr.Spec.Params, opts.Params, d.spec.Params, d.name == ""); err != nil {
		return at("spec.params", err)
	}
	tr.SetDefaults(ctx)
	if err := tr.Validate(ctx); err != nil {
		return fmt.Errorf("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	if err := checkTaskRun(ctx, tr, d); err != nil {
		return at("spec", err)
	}
	r.warnAbout(tr.Name, d.spec)
	if _, err := r.render(tr, d); err != nil {
		return at("spec", err)
	}
	return nil
}

// checkTaskRun is what upstream checks of a TaskRun before it makes a pod.
func checkTaskRun(ctx context.Context, tr *v1.TaskRun, d *definition) error {
	spec := d.spec
	if tr.Spec.TaskSpec != nil {
		spec = tr.Spec.TaskSpec
	}
	name := d.name
	if name == "" {
		name = tr.Name
	}
	resolved := &tresources.ResolvedTask{TaskName: name, TaskSpec: spec}
	if err := taskrun.ValidateResolvedTask(ctx, tr.Spec.Params, &v1.Matrix{}, resolved); err != nil {
		return err
	}
	if config.FromContextOrDefaults(ctx).FeatureFlags.EnableParamEnum {
		if err := taskrun.ValidateEnumParam(ctx, tr.Spec.Params, spec.Params); err != nil {
			return err
		}
	}
	if err := tresources.ValidateParamArrayIndex(spec, tr.Spec.Params); err != nil {
		return err
	}
	declared := slices.Clone(spec.Workspaces)
	if tr.Spec.TaskSpec != nil {
		// A Task written into the run may use workspaces without declaring them.
		for _, b := range tr.Spec.Workspaces {
			declared = append(declared, v1.WorkspaceDeclaration{Name: b.Name})
		}
	}
	if err := workspace.ValidateBindings(ctx, declared, tr.Spec.Workspaces); err != nil {
		return err
	}
	for _, o := range tr.Spec.StepSpecs {
		if !slices.ContainsFunc(spec.Steps, func(s v1.Step) bool { return s.Name == o.Name }) {
			return fmt.Errorf("stepSpecs: there is no step %s", o.Name)
		}
	}
	return nil
}

// render derives what one TaskRun executes, the way the observer will.
func (r *Resolved) render(tr *v1.TaskRun, d *definition) (*render.Rendered, error) {
	pipelineTask := ""
	if r.pipelineRun != nil {
		pipelineTask = tr.Labels["tekton.dev/pipelineTask"]
	}
	s := d.specified(pipelineTask)
	return render.Task(s.Input(tr, r.sources()))
}
