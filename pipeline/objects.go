package pipeline

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"github.com/tektoncd/pipeline/pkg/apis/pipeline/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/apis"
)

// Objects are the loaded objects. Runs are kept apart from what they refer to.
type Objects struct {
	runs        []loadedRun
	pipelines   map[string]loaded[*v1.Pipeline]
	tasks       map[string]loaded[*v1.Task]
	stepActions map[string]loaded[*v1beta1.StepAction]
	configMaps  map[string]loaded[*corev1.ConfigMap]
	secrets     map[string]loaded[*corev1.Secret]
}

type loaded[T any] struct {
	object T
	origin Origin
}

// loadedRun has one of its two runs set.
type loadedRun struct {
	pipelineRun *v1.PipelineRun
	taskRun     *v1.TaskRun
	origin      Origin
}

func (r loadedRun) String() string {
	if r.pipelineRun != nil {
		return "PipelineRun " + r.pipelineRun.Name + r.pipelineRun.GenerateName
	}
	return "TaskRun " + r.taskRun.Name + r.taskRun.GenerateName
}

// NewObjects returns an empty set, for Add.
func NewObjects() *Objects {
	return &Objects{
		pipelines:   map[string]loaded[*v1.Pipeline]{},
		tasks:       map[string]loaded[*v1.Task]{},
		stepActions: map[string]loaded[*v1beta1.StepAction]{},
		configMaps:  map[string]loaded[*corev1.ConfigMap]{},
		secrets:     map[string]loaded[*corev1.Secret]{},
	}
}

// Runs lists the loaded runs as "PipelineRun name" and "TaskRun name", a name
// to generate with its prefix, in the order they were read.
func (o *Objects) Runs() []string {
	var out []string
	for _, r := range o.runs {
		out = append(out, r.String())
	}
	return out
}

// run picks the one run, or the one called name.
func (o *Objects) run(name string) (loadedRun, error) {
	var found []loadedRun
	for _, r := range o.runs {
		if name == "" || r.String() == name || strings.HasSuffix(r.String(), " "+name) {
			found = append(found, r)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0 && name != "":
		return loadedRun{}, &InputError{Problem: fmt.Sprintf("no run %q among the loaded: %s", name, orNone(o.Runs()))}
	case len(found) == 0:
		return loadedRun{}, &InputError{Problem: "no PipelineRun or TaskRun among the loaded objects", Remedy: "add one that refers to them"}
	}
	return loadedRun{}, &InputError{Problem: fmt.Sprintf("there are %d runs (%s)", len(found), strings.Join(o.Runs(), ", ")), Remedy: "say which one to run"}
}

// keep stores an object under its name, once.
func keep[T any](l *loading, into map[string]loaded[T], name string, object T) error {
	if before, ok := into[name]; ok {
		return l.fail("metadata.name", "the same object is also in "+before.origin.String(), "keep one of them")
	}
	into[name] = loaded[T]{object: object, origin: l.origin}
	return nil
}

// admit holds an object to what we execute and to Tekton's validation, which is
// of a copy with defaults: the object itself stays as written.
func admit[T interface {
	tektonObject
	metav1.Object
}](l *loading, object, scratch T, spec any, s *shape) error {
	if e := unsupported(spec, s); e != nil {
		return l.located(e)
	}
	if a := object.GetAnnotations(); a["tekton.dev/v1beta1Resources"] != "" {
		return l.fail("spec.resources", "PipelineResources are not supported", "use parameters and workspaces")
	}
	ctx := tektonContext(context.Background(), nil)
	scratch.SetDefaults(ctx)
	if err := scratch.Validate(ctx); err != nil {
		return l.invalid(err)
	}
	return nil
}

// Runs are held to what we execute when they are resolved, since the command
// line may replace a volume that we cannot bind.
func (l *loading) pipelineRun(r *v1.PipelineRun) error {
	if err := l.checkRun(r); err != nil {
		return err
	}
	if r.Spec.Status != "" {
		return l.fail("spec.status", "status is not supported", remedies["status"])
	}
	r.TypeMeta = metav1.TypeMeta{APIVersion: "tekton.dev/v1", Kind: "PipelineRun"}
	r.Status = v1.PipelineRunStatus{}
	l.objects.runs = append(l.objects.runs, loadedRun{pipelineRun: r, origin: l.origin})
	return nil
}

func (l *loading) taskRun(r *v1.TaskRun) error {
	if err := l.checkRun(r); err != nil {
		return err
	}
	if r.Spec.Status != "" {
		return l.fail("spec.status", "status is not supported", remedies["status"])
	}
	r.TypeMeta = metav1.TypeMeta{APIVersion: "tekton.dev/v1", Kind: "TaskRun"}
	r.Status = v1.TaskRunStatus{}
	l.objects.runs = append(l.objects.runs, loadedRun{taskRun: r, origin: l.origin})
	return nil
}

func (l *loading) checkRun(r apis.Validatable) error {
	// The API server's own check of a name to generate: leave room for five.
	if m, ok := r.(metav1.Object); ok && len(m.GetName())+len(m.GetGenerateName()) > 240 {
		return l.fail("metadata.name", "is longer than 240 bytes", "")
	}
	return nil
}

func (l *loading) pipeline(p *v1.Pipeline) error {
	if err := admit(l, p, p.DeepCopy(), p.Spec, supportedPipeline()); err != nil {
		return err
	}
	return keep(l, l.objects.pipelines, p.Name, p)
}

func (l *loading) task(t *v1.Task) error {
	if err := admit(l, t, t.DeepCopy(), t.Spec, supportedTask()); err != nil {
		return err
	}
	return keep(l, l.objects.tasks, t.Name, t)
}

func (l *loading) stepAction(s *v1beta1.StepAction) error {
	if err := admit(l, s, s.DeepCopy(), s.Spec, supportedStepAction()); err != nil {
		return err
	}
	return keep(l, l.objects.stepActions, s.Name, s)
}

func (l *loading) configMap(c *corev1.ConfigMap) error {
	if err := l.strict(c); err != nil {
		return err
	}
	return keep(l, l.objects.configMaps, c.Name, c)
}

func (l *loading) secret(s *corev1.Secret) error {
	if err := l.strict(s); err != nil {
		return err
	}
	return keep(l, l.objects.secrets, s.Name, s)
}

// configMapData is what a step sees of a ConfigMap.
func (o *Objects) configMapData(name string) (map[string][]byte, bool) {
	c, ok := o.configMaps[name]
	if !ok {
		return nil, false
	}
	data := map[string][]byte{}
	maps.Copy(data, c.object.BinaryData)
	for k, v := range c.object.Data {
		data[k] = []byte(v)
	}
	return data, true
}

func (o *Objects) secretData(name string) (map[string][]byte, bool) {
	s, ok := o.secrets[name]
	if !ok {
		return nil, false
	}
	data := map[string][]byte{}
	maps.Copy(data, s.object.Data)
	for k, v := range s.object.StringData {
		data[k] = []byte(v)
	}
	return data, true
}

func names[T any](m map[string]loaded[T]) string {
	if len(m) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(maps.Keys(m)), ", ")
}
