package pipeline

import (
	"context"
	"errors"
	"fmt"
	"strings"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"github.com/tektoncd/pipeline/pkg/apis/pipeline/v1beta1"

	"assay.dev/assay/pipeline/bundle"
)

// Bundles fetches objects out of Tekton bundles; *bundle.Client does.
type Bundles interface {
	// Fetch returns the object of this kind and name, with the digest of the
	// bundle. See bundle.Client.
	Fetch(ctx context.Context, ref, kind, name string) (*bundle.Fetched, error)
}

var _ Bundles = (*bundle.Client)(nil)

// resolver finds what references refer to. What was fetched once is not fetched
// again: a tag must mean the same throughout a run.
type resolver struct {
	objects *Objects
	bundles Bundles
	fetched map[[3]string]*found
}

// found is a referred object and where it is from.
type found struct {
	objects *Objects // the set that decoding put it in
	source  *v1.RefSource
	origin  Origin
}

// bundleRef is the parameters of the bundles resolver.
type bundleRef struct{ bundle, kind, name string }

func readBundleRef(params v1.Params, defaultKind string) (bundleRef, error) {
	r := bundleRef{kind: defaultKind}
	for _, p := range params {
		if p.Value.Type != v1.ParamTypeString {
			return r, fmt.Errorf("parameter %s of the bundles resolver is no string", p.Name)
		}
		value := p.Value.StringVal
		if strings.Contains(value, "$(") {
			return r, fmt.Errorf("parameter %s of the bundles resolver is %q: it has to be known before the run starts", p.Name, value)
		}
		switch p.Name {
		case "bundle":
			r.bundle = value
		case "kind":
			r.kind = strings.ToLower(value)
		case "name":
			r.name = value
		case "cache":
			// Says how long a cluster may keep it; here it is fetched once a run.
		case "serviceAccount":
			if value != "" && value != "default" {
				return r, fmt.Errorf("parameter serviceAccount of the bundles resolver is not supported: credentials come from the docker configuration of who runs this")
			}
		default:
			return r, fmt.Errorf("parameter %s of the bundles resolver is not supported: it takes bundle, name and kind", p.Name)
		}
	}
	if r.bundle == "" || r.name == "" {
		return r, errors.New("the bundles resolver needs the parameters bundle and name")
	}
	return r, nil
}

// fromBundle fetches an object and loads it as strictly as a file.
func (r *resolver) fromBundle(ctx context.Context, params v1.Params, kind string) (*found, string, error) {
	ref, err := readBundleRef(params, kind)
	if err != nil {
		return nil, "", err
	}
	if ref.kind != kind {
		return nil, "", fmt.Errorf("kind of the bundles resolver is %q where a %s belongs", ref.kind, kind)
	}
	key := [3]string{ref.bundle, ref.kind, ref.name}
	if f := r.fetched[key]; f != nil {
		return f, ref.name, nil
	}
	if r.bundles == nil {
		return nil, "", fmt.Errorf("bundle %s: no registry to fetch it from was given", ref.bundle)
	}
	got, err := r.bundles.Fetch(ctx, ref.bundle, ref.kind, ref.name)
	if err != nil {
		return nil, "", err
	}
	algorithm, hex, ok := strings.Cut(got.Digest, ":")
	if !ok {
		return nil, "", fmt.Errorf("bundle %s came with %q, which is no digest", ref.bundle, got.Digest)
	}
	f := &found{
		objects: NewObjects(),
		origin:  Origin{File: got.Repository + "@" + got.Digest},
		source: &v1.RefSource{
			URI:        got.Repository,
			Digest:     map[string]string{algorithm: hex},
			EntryPoint: ref.name,
		},
	}
	if err := f.objects.decode(f.origin, got.Object); err != nil {
		return nil, "", err
	}
	r.fetched[key] = f
	return f, ref.name, nil
}

func only[T any](kind, name string, m map[string]loaded[T], at Origin) (loaded[T], error) {
	l, ok := m[name]
	if !ok {
		return l, fmt.Errorf("%s: the layer called %s %q holds another object", at, kind, name)
	}
	return l, nil
}

// unknownName is the error for a reference that nothing loaded answers.
func unknownName(kind, name, have string) error {
	return fmt.Errorf("%s %q is not among the loaded objects (there: %s); add the file that holds it", kind, name, have)
}

func (r *resolver) pipeline(ctx context.Context, ref *v1.PipelineRef) (loaded[*v1.Pipeline], *v1.RefSource, error) {
	if ref.Resolver == "" {
		p, ok := r.objects.pipelines[ref.Name]
		if !ok {
			return p, nil, unknownName("Pipeline", ref.Name, names(r.objects.pipelines))
		}
		return p, nil, nil
	}
	f, name, err := r.fromBundle(ctx, ref.Params, "pipeline")
	if err != nil {
		return loaded[*v1.Pipeline]{}, nil, err
	}
	p, err := only("pipeline", name, f.objects.pipelines, f.origin)
	return p, f.source, err
}

func (r *resolver) task(ctx context.Context, ref *v1.TaskRef) (loaded[*v1.Task], *v1.RefSource, error) {
	if ref.Resolver == "" {
		t, ok := r.objects.tasks[ref.Name]
		if !ok {
			return t, nil, unknownName("Task", ref.Name, names(r.objects.tasks))
		}
		return t, nil, nil
	}
	f, name, err := r.fromBundle(ctx, ref.Params, "task")
	if err != nil {
		return loaded[*v1.Task]{}, nil, err
	}
	t, err := only("task", name, f.objects.tasks, f.origin)
	return t, f.source, err
}

func (r *resolver) stepAction(ctx context.Context, ref *v1.Ref) (loaded[*v1beta1.StepAction], *v1.RefSource, error) {
	if ref.Resolver == "" {
		s, ok := r.objects.stepActions[ref.Name]
		if !ok {
			return s, nil, unknownName("StepAction", ref.Name, names(r.objects.stepActions))
		}
		return s, nil, nil
	}
	f, name, err := r.fromBundle(ctx, ref.Params, "stepaction")
	if err != nil {
		return loaded[*v1beta1.StepAction]{}, nil, err
	}
	s, err := only("stepaction", name, f.objects.stepActions, f.origin)
	return s, f.source, err
}

// definition is a Task ready to be run any number of times.
type definition struct {
	// name is the Task's, empty where the Task is written into the run.
	name        string
	labels      map[string]string
	annotations map[string]string
	spec        *v1.TaskSpec
	source      *v1.RefSource
	origin      Origin
	stepActions map[int]*v1beta1.StepAction
	stepSources map[int]*v1.RefSource
}

// bundle is repo@digest, as plan.Task has it.
func (d *definition) bundle() string {
	if d.source == nil {
		return ""
	}
	for algorithm, hex := range d.source.Digest {
		return d.source.URI + "@" + algorithm + ":" + hex
	}
	return ""
}

// complete fetches the StepActions of a definition and checks its spec.
func (r *resolver) complete(ctx context.Context, d *definition) error {
	d.spec = d.spec.DeepCopy()
	d.spec.SetDefaults(ctx)
	d.stepActions, d.stepSources = map[int]*v1beta1.StepAction{}, map[int]*v1.RefSource{}
	for i, step := range d.spec.Steps {
		if step.Ref == nil {
			continue
		}
		ref := step.Ref.DeepCopy()
		for _, p := range ref.Params {
			if strings.Contains(p.Value.StringVal, "$(") {
				return fmt.Errorf("spec.steps[%d].ref: its resolver's parameters must not use variables", i)
			}
		}
		action, source, err := r.stepAction(ctx, ref)
		if err != nil {
			return fmt.Errorf("spec.steps[%d].ref: %w", i, err)
		}
		d.stepActions[i], d.stepSources[i] = action.object, source
	}
	return nil
}
