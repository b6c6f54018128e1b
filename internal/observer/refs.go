package observer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"sigs.k8s.io/yaml"

	"assay.dev/assay/api"
	"assay.dev/assay/observe"
	"assay.dev/assay/pipeline/bundle"
	"assay.dev/assay/pipeline/render"
)

// Bundles fetches objects out of Tekton bundles; *bundle.Client.
type Bundles interface {
	Fetch(ctx context.Context, ref, kind, name string) (*bundle.Fetched, error)
}

// checkRefs fetches every definition that the specification says came from a
// bundle, by digest and over our own connection, and compares it with what the
// specification holds. A difference is a lie and an error; a bundle that cannot
// be had leaves the reference claimed.
func checkRefs(ctx context.Context, b Bundles, a *agreed) (map[string]observe.Ref, *observe.Ref, error) {
	known := map[*render.SpecifiedTask]observe.Ref{}
	out := map[string]observe.Ref{}
	for name, t := range a.tasks {
		ref, ok := known[t]
		if !ok {
			var err error
			if ref, err = checkTask(ctx, b, t); err != nil {
				return nil, nil, err
			}
			known[t] = ref
		}
		out[name] = ref
	}
	p := a.spec.Pipeline
	if p == nil {
		return out, nil, nil
	}
	ref := &observe.Ref{Name: p.Name, Status: observe.Observed}
	if p.RefSource == nil {
		return out, ref, nil
	}
	if ref.Bundle, ref.Reason = bundleOf(p.RefSource); ref.Bundle == "" {
		ref.Status = observe.Claimed
		return out, ref, nil
	}
	got, err := b.Fetch(ctx, ref.Bundle, "pipeline", p.Name)
	if errors.Is(err, bundle.ErrNotFound) {
		return nil, nil, fmt.Errorf("pipeline %s: %w", p.Name, err)
	}
	if err != nil {
		ref.Status, ref.Reason = observe.Claimed, err.Error()
		return out, ref, nil
	}
	var pipeline v1.Pipeline
	if err := yaml.Unmarshal(got.Object, &pipeline); err != nil {
		return nil, nil, fmt.Errorf("decoding pipeline %s of %s: %w", p.Name, ref.Bundle, err)
	}
	if err := samePipeline(&pipeline.Spec, p.PipelineSpec); err != nil {
		return nil, nil, fmt.Errorf("pipeline %s is not what %s holds: %w", p.Name, ref.Bundle, err)
	}
	ref.Status = observe.Checked
	return out, ref, nil
}

func checkTask(ctx context.Context, b Bundles, t *render.SpecifiedTask) (observe.Ref, error) {
	ref := observe.Ref{Name: t.Task, Status: observe.Observed}
	if t.RefSource == nil {
		// Written into the run: it is what the run says it is, and the run's
		// specification is in the ledger by its digest.
		return ref, nil
	}
	if ref.Bundle, ref.Reason = bundleOf(t.RefSource); ref.Bundle == "" {
		ref.Status = observe.Claimed
		return ref, nil
	}
	got, err := b.Fetch(ctx, ref.Bundle, "task", t.Task)
	if errors.Is(err, bundle.ErrNotFound) {
		return ref, fmt.Errorf("task %s: %w", t.Task, err)
	}
	if err != nil {
		ref.Status, ref.Reason = observe.Claimed, err.Error()
		return ref, nil
	}
	var task v1.Task
	if err := yaml.Unmarshal(got.Object, &task); err != nil {
		return ref, fmt.Errorf("decoding task %s of %s: %w", t.Task, ref.Bundle, err)
	}
	task.SetDefaults(ctx)
	want := t.Spec.DeepCopy()
	want.SetDefaults(ctx)
	if !sameJSON(&task.Spec, want) || !declarations(task.Annotations, t.Annotations) {
		return ref, fmt.Errorf("task %s is not what %s holds", t.Task, ref.Bundle)
	}
	ref.Status = observe.Checked
	return ref, nil
}

// bundleOf reads repo@sha256:… out of a reference's source.
func bundleOf(s *v1.RefSource) (ref, reason string) {
	d := s.Digest["sha256"]
	if d == "" {
		return "", "the reference has no sha256 digest"
	}
	return strings.TrimPrefix(s.URI, "oci://") + "@sha256:" + d, ""
}

func sameJSON(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

// declarations compares the annotations by which a task hands over its inputs
// and outputs; others do not matter to what was run.
func declarations(fetched, specified map[string]string) bool {
	for _, k := range []string{api.AnnotationInputs, api.AnnotationOutputs, api.AnnotationNetwork} {
		if fetched[k] != specified[k] {
			return false
		}
	}
	return true
}

// samePipeline compares what parameters cannot change: which tasks there are,
// in which order, and what they refer to. The specification's copy has its
// parameters filled in.
func samePipeline(fetched, filled *v1.PipelineSpec) error {
	for _, lists := range [][2][]v1.PipelineTask{{fetched.Tasks, filled.Tasks}, {fetched.Finally, filled.Finally}} {
		if len(lists[0]) != len(lists[1]) {
			return fmt.Errorf("it has %d tasks, the run %d", len(lists[0]), len(lists[1]))
		}
		for i, t := range lists[0] {
			other := lists[1][i]
			if t.Name != other.Name {
				return fmt.Errorf("its task %s is %s in the run", t.Name, other.Name)
			}
			if (t.TaskRef == nil) != (other.TaskRef == nil) {
				return fmt.Errorf("task %s is written into one and referred to by the other", t.Name)
			}
			if t.TaskRef == nil {
				continue
			}
			raw, err := json.Marshal(t.TaskRef)
			if err != nil {
				return err
			}
			if !strings.Contains(string(raw), "$(") && !sameJSON(t.TaskRef, other.TaskRef) {
				return fmt.Errorf("task %s refers to another task", t.Name)
			}
		}
	}
	return nil
}
