package watch

import (
	"context"
	"fmt"
	"net/url"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"

	"assay.dev/assay/hint"
	"assay.dev/assay/internal/watch/kubeapi"
	"assay.dev/assay/store"
)

// Back ends know records and no runs. What they need of a run's object, the
// observer tells them.

// Annotations returns the annotations that a run's object has now; of runs being
// worked on without asking the API server. It fails if the object cannot be had.
// It has the form of annotations.Getter.
func (o *Observer) Annotations(ctx context.Context, run store.Run) (map[string]string, error) {
	if have, ok := o.inWork.Load(run.UID); ok {
		return have.(map[string]string), nil
	}
	var have map[string]string
	err := o.api.Get(ctx, resourceOf(run), run.Namespace, run.Name, func(body []byte) (err error) {
		have, err = readAnnotations(body)
		return err
	})
	if err != nil {
		return nil, apiClass(fmt.Errorf("reading the annotations of %s: %w", run, err))
	}
	return have, nil
}

// Images returns the images that a run says it made, repository@sha256:…, each
// once: a PipelineRun's and those of its TaskRuns. It asks the API server and
// fails if the run cannot be had; TaskRuns that are gone are left out.
func (o *Observer) Images(ctx context.Context, run store.Run) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	add := func(h hint.Hints) {
		for _, c := range h.Images {
			if image := c.URI + "@" + c.Digest.String(); !seen[image] {
				seen[image] = true
				out = append(out, image)
			}
		}
	}
	if run.Kind == "TaskRun" {
		tr := &v1.TaskRun{}
		err := o.api.Get(ctx, kubeapi.TaskRuns, run.Namespace, run.Name, func(body []byte) error { return decode(body, tr) })
		if err != nil {
			return nil, apiClass(fmt.Errorf("reading %s: %w", run, err))
		}
		add(hint.OfTaskRun(tr))
		return out, nil
	}
	pr := &v1.PipelineRun{}
	err := o.api.Get(ctx, kubeapi.PipelineRuns, run.Namespace, run.Name, func(body []byte) error { return decode(body, pr) })
	if err != nil {
		return nil, apiClass(fmt.Errorf("reading %s: %w", run, err))
	}
	var trs []*v1.TaskRun
	q := url.Values{"labelSelector": {labelPipelineRun + "=" + pr.Name}}
	err = o.api.List(ctx, kubeapi.TaskRuns, run.Namespace, q, func(body []byte) (err error) {
		trs, err = decodeChildren(body, string(pr.UID), nil)
		return err
	})
	if err != nil {
		return nil, apiClass(fmt.Errorf("reading the TaskRuns of %s: %w", run, err))
	}
	add(hint.OfPipelineRun(pr))
	for _, tr := range chooseChildren(pr, trs, nil, nil).input.Children {
		add(hint.OfTaskRun(tr))
	}
	return out, nil
}

func resourceOf(run store.Run) kubeapi.Resource { return head{kind: run.Kind}.resource() }
