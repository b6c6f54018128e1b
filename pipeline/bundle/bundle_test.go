package bundle_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"assay.dev/assay/pipeline/bundle"
)

const taskYAML = `apiVersion: tekton.dev/v1
kind: Task
metadata: {name: clone}
spec:
  steps: [{name: run, image: alpine, script: "echo hi"}]
`

const stepActionYAML = `
apiVersion: tekton.dev/v1beta1
kind: StepAction
metadata:
  name: say
spec: {image: alpine, script: "echo hi"}
`

func object(t *testing.T, doc string) *bundle.Object {
	t.Helper()
	o, err := bundle.Parse([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func registryHost(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func TestPushThenFetch(t *testing.T) {
	ctx, host, c := context.Background(), registryHost(t), &bundle.Client{}
	digest, err := c.Push(ctx, host+"/catalog/tasks:1", object(t, taskYAML), object(t, stepActionYAML))
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{host + "/catalog/tasks:1", host + "/catalog/tasks@" + digest, host + "/catalog/tasks:1@" + digest} {
		got, err := c.Fetch(ctx, ref, "Task", "clone")
		if err != nil {
			t.Fatal(err)
		}
		want := &bundle.Fetched{Object: object(t, taskYAML).JSON, Repository: host + "/catalog/tasks", Digest: digest}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: (-want +got)\n%s", ref, d)
		}
	}
	if _, err := c.Fetch(ctx, host+"/catalog/tasks:1", "stepaction", "say"); err != nil {
		t.Error(err)
	}
	_, err = c.Fetch(ctx, host+"/catalog/tasks:1", "pipeline", "clone")
	if !errors.Is(err, bundle.ErrNotFound) || !strings.Contains(err.Error(), "task clone, stepaction say") {
		t.Errorf("want ErrNotFound that lists what is there, got %v", err)
	}
	wrong := strings.Repeat("0", 64)
	if _, err := c.Fetch(ctx, host+"/catalog/tasks@sha256:"+wrong, "task", "clone"); err == nil {
		t.Error("a digest that does not exist was fetched")
	}
}

// The digest names the object, not the way it was typed.
func TestSameObjectSameDigest(t *testing.T) {
	reordered := "kind: Task\nspec:\n  steps:\n  - image: alpine\n    script: echo hi\n    name: run\nmetadata:\n  name: clone # comment\napiVersion: tekton.dev/v1\n"
	var digests []string
	for _, doc := range []string{taskYAML, reordered} {
		img, err := bundle.Image(object(t, doc))
		if err != nil {
			t.Fatal(err)
		}
		d, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d.String())
	}
	if digests[0] != digests[1] {
		t.Errorf("digests differ: %v", digests)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, doc := range map[string]string{
		"no YAML":         "\t",
		"repeated key":    "kind: Task\nkind: Task\napiVersion: tekton.dev/v1\nmetadata: {name: a}",
		"other kind":      "apiVersion: v1\nkind: Secret\nmetadata: {name: a}",
		"a run":           "apiVersion: tekton.dev/v1\nkind: PipelineRun\nmetadata: {name: a}",
		"unknown version": "apiVersion: tekton.dev/v2\nkind: Task\nmetadata: {name: a}",
		"no name":         "apiVersion: tekton.dev/v1\nkind: Task\nmetadata: {}",
		"generateName":    "apiVersion: tekton.dev/v1\nkind: Task\nmetadata: {generateName: a-}",
		"too large":       "# " + strings.Repeat("x", bundle.MaxObjectBytes),
	} {
		if o, err := bundle.Parse([]byte(doc)); err == nil {
			t.Errorf("%s: accepted as %+v", name, o)
		}
	}
}

func TestImageRefuses(t *testing.T) {
	task := object(t, taskYAML)
	many := make([]*bundle.Object, bundle.MaxObjects+1)
	for i := range many {
		many[i] = task
	}
	for name, objects := range map[string][]*bundle.Object{"none": nil, "too many": many, "twice": {task, task}} {
		if _, err := bundle.Image(objects...); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestFetchRefuses(t *testing.T) {
	host, ctx := registryHost(t), context.Background()
	annotations := func(kind string) map[string]string {
		return map[string]string{bundle.AnnotationKind: kind, bundle.AnnotationName: "clone", bundle.AnnotationAPIVersion: "v1"}
	}
	for i, tc := range []struct {
		name string
		body []byte
		ann  map[string]string
	}{
		{"no annotations", []byte(taskYAML), nil},
		{"plural kind", []byte(taskYAML), annotations("tasks")},
		{"too large", bytes.Repeat([]byte("x"), bundle.MaxObjectBytes+20<<10), annotations("task")},
		{"empty", nil, annotations("task")},
	} {
		img, err := mutate.Append(empty.Image, mutate.Addendum{Layer: static.NewLayer(tc.body, types.OCIUncompressedLayer), Annotations: tc.ann})
		if err != nil {
			t.Fatal(err)
		}
		ref, err := name.ParseReference(host + "/bad:" + string(rune('a'+i)))
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, img); err != nil {
			t.Fatal(err)
		}
		if got, err := (&bundle.Client{}).Fetch(ctx, ref.String(), "task", "clone"); err == nil {
			t.Errorf("%s: fetched %q", tc.name, got.Object)
		}
	}
}

// Tekton also reads layers that are the object itself.
func TestFetchRawLayer(t *testing.T) {
	ref, err := name.ParseReference(registryHost(t) + "/raw:1")
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.Append(empty.Image, mutate.Addendum{
		Layer:       static.NewLayer([]byte(taskYAML), types.OCIUncompressedLayer),
		Annotations: map[string]string{bundle.AnnotationKind: "task", bundle.AnnotationName: "clone", bundle.AnnotationAPIVersion: "v1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	got, err := (&bundle.Client{}).Fetch(context.Background(), ref.String(), "task", "clone")
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Object) != taskYAML {
		t.Errorf("got %q", got.Object)
	}
}
