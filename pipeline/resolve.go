package pipeline

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/tektoncd/pipeline/pkg/apis/config"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"github.com/tektoncd/pipeline/pkg/reconciler/pipeline/dag"
	"k8s.io/apimachinery/pkg/types"

	"assay.dev/assay/pipeline/render"
	"assay.dev/assay/plan"
)

// Options decide how a run is resolved. The zero value resolves the only run
// that was loaded, without parameters, folders or bundles.
type Options struct {
	// RunID becomes the run's uid; empty: a new random one.
	RunID string
	// Run picks one of several loaded runs by its name.
	Run string
	// Params are NAME=VALUE; see the text on --param in docs/commands.md.
	Params []string
	// Workspaces bind workspaces of the run, over what it says itself.
	Workspaces []Workspace
	// Bundles fetches bundles; nil: references to bundles are errors.
	Bundles Bundles
	// FeatureFlags are set over ours, by the names of Tekton's ConfigMap.
	FeatureFlags map[string]string
}

// Resolved is a run with everything it refers to, checked and ready for Run.
// Its zero value is not.
type Resolved struct {
	id       string
	flags    *config.FeatureFlags
	objects  *Objects
	hosts    map[string]string
	warnings []string
	spec     json.RawMessage

	// For a PipelineRun:
	pipelineRun  *v1.PipelineRun
	pipelineName string           // for $(context.pipeline.name)
	pipelineSpec *v1.PipelineSpec // parameters, context and workspaces applied
	declared     []v1.PipelineTask
	graph        *dag.Graph
	finally      *dag.Graph
	tasks        map[string]*definition // by the task's name in the pipeline

	// For a TaskRun:
	taskRun *v1.TaskRun
	task    *definition
}

// ID is the run's id, its uid.
func (r *Resolved) ID() string { return r.id }

// Name is the run's name.
func (r *Resolved) Name() string {
	if r.taskRun != nil {
		return r.taskRun.Name
	}
	return r.pipelineRun.Name
}

// Plan is what opens the run at the executor.
func (r *Resolved) Plan() plan.Run { return plan.Run{ID: r.id, Spec: r.spec} }

// Warnings lists what the run asks for that is recorded but not enforced here.
func (r *Resolved) Warnings() []string { return r.warnings }

// Resolve picks a run out of the loaded objects, fetches all that it refers to,
// and checks that it can run: references, parameters and their types,
// workspaces, results, the graph, and that every task uses only what we
// execute. Nothing has run when it fails; the error names file and path.
func Resolve(ctx context.Context, objects *Objects, opts Options) (*Resolved, error) {
	flags, err := featureFlags(opts.FeatureFlags)
	if err != nil {
		return nil, err
	}
	chosen, err := objects.run(opts.Run)
	if err != nil {
		return nil, err
	}
	id := opts.RunID
	if id == "" {
		id = uuid.NewString()
	}
	if _, err := uuid.Parse(id); err != nil {
		return nil, fmt.Errorf("run id %q is no UUID: %w", id, err)
	}
	r := &Resolved{id: id, flags: flags, objects: objects}
	find := &resolver{objects: objects, bundles: opts.Bundles, fetched: map[[3]string]*found{}}
	ctx = tektonContext(ctx, flags)
	if chosen.pipelineRun != nil {
		err = r.resolvePipelineRun(ctx, find, chosen.pipelineRun.DeepCopy(), opts)
	} else {
		err = r.resolveTaskRun(ctx, find, chosen.taskRun.DeepCopy(), opts)
	}
	if err != nil {
		return nil, locate(err, chosen)
	}
	if r.spec, err = r.specification(); err != nil {
		return nil, fmt.Errorf("writing the resolved specification: %w", err)
	}
	return r, nil
}

// locate gives an error that has no origin yet that of the run.
func locate(err error, run loadedRun) error {
	var in *InputError
	if errors.As(err, &in) {
		if in.Origin == (Origin{}) {
			in.Origin, in.Object = run.origin, run.String()
		}
		return err
	}
	return &InputError{Origin: run.origin, Object: run.String(), Problem: err.Error(), Err: err}
}

// at makes an error one about a path of the run.
func at(path string, err error) error {
	var in *InputError
	if errors.As(err, &in) {
		return err
	}
	return &InputError{Path: path, Problem: err.Error(), Err: err}
}

// generatedName completes metadata.generateName. The suffix follows from the
// run's id, so that a run given the same id is the same run.
func generatedName(prefix, id string) string {
	// Kubernetes' alphabet for generated names: no vowels, no look-alikes.
	const alphabet = "bcdfghjklmnpqrstvwxz2456789"
	sum := sha256.Sum256([]byte(id))
	suffix := make([]byte, 5)
	for i := range suffix {
		suffix[i] = alphabet[int(sum[i])%len(alphabet)]
	}
	const longest = 63 - 5
	if len(prefix) > longest {
		prefix = prefix[:longest]
	}
	return prefix + string(suffix)
}

// childUID is a TaskRun's uid: that of its name within the run.
func childUID(run, name string) types.UID {
	space, err := uuid.Parse(run)
	if err != nil {
		space = uuid.Nil
	}
	return types.UID(uuid.NewSHA1(space, []byte(name)).String())
}

// sources is where tasks of this run find what lies beside them.
func (r *Resolved) sources() render.Sources {
	return render.Sources{
		ConfigMap: r.objects.configMapData,
		Secret:    r.objects.secretData,
		Host:      func(claim string) (string, bool) { h, ok := r.hosts[claim]; return h, ok },
	}
}

// usesResults tells whether a value waits for another task's result or status.
func usesResults(params v1.Params) bool {
	for _, p := range params {
		texts := append([]string{p.Value.StringVal}, p.Value.ArrayVal...)
		for _, v := range p.Value.ObjectVal {
			texts = append(texts, v)
		}
		for _, t := range texts {
			if strings.Contains(t, "$(tasks.") || strings.Contains(t, "$(finally.") {
				return true
			}
		}
	}
	return false
}

// warn notes, once, what is recorded only.
func (r *Resolved) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	for _, w := range r.warnings {
		if w == text {
			return
		}
	}
	r.warnings = append(r.warnings, text)
}

// warnAbout looks for limits that nothing here enforces.
func (r *Resolved) warnAbout(name string, spec *v1.TaskSpec) {
	for _, s := range spec.Steps {
		for kind := range s.ComputeResources.Limits {
			if kind != "memory" {
				r.warn("task %s: the limit on %s is recorded, not enforced", name, kind)
			}
		}
	}
	for _, v := range spec.Volumes {
		if v.EmptyDir != nil && v.EmptyDir.SizeLimit != nil {
			r.warn("task %s: sizeLimit of volume %s is recorded, not enforced; the executor bounds what a task writes altogether", name, v.Name)
		}
	}
}
