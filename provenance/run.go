package provenance

import (
	"strings"
	"time"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"assay.dev/assay/hint"
)

// run is what statements ask of a TaskRun or PipelineRun, read once.
type run struct {
	kind       string // TaskRun or PipelineRun
	meta       *metav1.ObjectMeta
	provenance *v1.Provenance
	source     *source
	params     []v1.Param
	specs      []v1.ParamSpec // with the defaults of params
	started    *metav1.Time
	finished   *metav1.Time
	remote     bool // its definition came by a resolver
	spec       any  // as runSpec states it
	results    []named
	hints      hint.Hints

	task     *v1.TaskRun     // kind TaskRun
	pipeline *v1.PipelineRun // kind PipelineRun
	stages   []stage
}

// named is a result.
type named struct {
	name  string
	value *v1.ParamValue
}

// stage is one task of a pipeline and the TaskRuns that carry its label.
type stage struct {
	task    *v1.PipelineTask
	finally bool
	runs    []*child
}

// child is a TaskRun of a pipeline.
type child struct {
	*v1.TaskRun
	source *source
	hints  *hint.Hints // nil until asked for
	steps  []hint.Hints
	asked  bool // for steps
}

func newRun(in Input) *run {
	if tr := in.TaskRun; tr != nil {
		r := &run{
			kind: "TaskRun", meta: &tr.ObjectMeta, task: tr,
			provenance: tr.Status.Provenance, source: newSource(tr.Status.Provenance),
			params: tr.Spec.Params, started: tr.Status.StartTime, finished: tr.Status.CompletionTime,
			remote: tr.Spec.TaskRef != nil && isRemote(tr.Spec.TaskRef.ResolverRef),
			spec:   &tr.Spec, hints: hint.OfTaskRun(tr), results: taskResults(tr.Status.Results),
		}
		if spec := tr.Status.TaskSpec; spec != nil {
			r.specs = spec.Params
		}
		return r
	}
	pr := in.PipelineRun
	r := &run{
		kind: "PipelineRun", meta: &pr.ObjectMeta, pipeline: pr,
		provenance: pr.Status.Provenance, source: newSource(pr.Status.Provenance),
		params: pr.Spec.Params, started: pr.Status.StartTime, finished: pr.Status.CompletionTime,
		remote: pr.Spec.PipelineRef != nil && isRemote(pr.Spec.PipelineRef.ResolverRef),
		spec:   &pr.Spec, hints: hint.OfPipelineRun(pr),
	}
	r.results = make([]named, len(pr.Status.Results))
	for i := range pr.Status.Results {
		r.results[i] = named{pr.Status.Results[i].Name, &pr.Status.Results[i].Value}
	}
	spec := pr.Status.PipelineSpec
	if spec == nil {
		return r
	}
	r.specs = spec.Params
	byTask := make(map[string][]*child, len(in.Children))
	children := make([]child, len(in.Children))
	for i, tr := range in.Children {
		// Without the label a TaskRun belongs to no task, not to one named "".
		if task, ok := tr.Labels[hint.LabelPipelineTask]; ok {
			children[i] = child{TaskRun: tr, source: newSource(tr.Status.Provenance)}
			byTask[task] = append(byTask[task], &children[i])
		}
	}
	r.stages = make([]stage, 0, len(spec.Tasks)+len(spec.Finally))
	for i := range spec.Tasks {
		r.stages = append(r.stages, stage{task: &spec.Tasks[i], runs: byTask[spec.Tasks[i].Name]})
	}
	for i := range spec.Finally {
		r.stages = append(r.stages, stage{task: &spec.Finally[i], finally: true, runs: byTask[spec.Finally[i].Name]})
	}
	return r
}

// executed calls do for every child that completed, in the order of the
// pipeline's specification, finally tasks last, until do fails.
func (r *run) executed(do func(*child) error) error {
	for _, st := range r.stages {
		for _, c := range st.runs {
			if c.Status.CompletionTime == nil {
				continue
			}
			if err := do(c); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *child) taskHints() *hint.Hints {
	if c.hints == nil {
		h := hint.OfTaskRun(c.TaskRun)
		c.hints = &h
	}
	return c.hints
}

func (c *child) stepHints() []hint.Hints {
	if !c.asked {
		c.steps, c.asked = hint.OfSteps(c.TaskRun), true
	}
	return c.steps
}

func taskResults(in []v1.TaskRunResult) []named {
	out := make([]named, len(in))
	for i := range in {
		out[i] = named{in[i].Name, &in[i].Value}
	}
	return out
}

// isRemote is upstream's rule. It excepts "Cluster", which no resolver is
// called: the cluster resolver's name is lower case and counts as remote.
func isRemote(ref v1.ResolverRef) bool {
	return ref.Resolver != "" && ref.Resolver != "Cluster"
}

// source is where a definition was resolved from.
type source struct {
	uri    string
	entry  string
	digest digestSet
}

// newSource returns nil where nothing is recorded.
func newSource(p *v1.Provenance) *source {
	if p == nil || p.RefSource == nil {
		return nil
	}
	s := &source{uri: p.RefSource.URI, entry: p.RefSource.EntryPoint}
	for alg, hex := range p.RefSource.Digest {
		s.digest.set(alg, hex)
	}
	return s
}

// ref is one digest as alg:hex. Of several upstream takes a random one; we take
// the longest, and of equals the last by name, because it is the strongest.
func (s *source) ref() string {
	best := hint.Digest{}
	for i, d := range s.digest.all {
		if i == 0 || len(d.Hex) >= len(best.Hex) {
			best = d
		}
	}
	if best == (hint.Digest{}) {
		return ""
	}
	return best.String()
}

// timestamp is t as protobuf's JSON form has it: whole seconds or three, six or
// nine digits behind the point.
func timestamp(t *metav1.Time) (string, error) {
	u := t.UTC()
	if u.Year() < 1 || u.Year() > 9999 {
		return "", &time.ParseError{Layout: time.RFC3339, Value: u.String(), Message: ": year outside 1..9999"}
	}
	s := u.Format("2006-01-02T15:04:05.000000000")
	s = strings.TrimSuffix(s, "000")
	s = strings.TrimSuffix(s, "000")
	s = strings.TrimSuffix(s, ".000")
	return s + "Z", nil
}
