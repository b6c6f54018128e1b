// Package catalog is the built-in Tasks and Pipelines as Tekton objects.
//
// They are kept as YAML with placeholders where a digest belongs, since what
// they refer to is built and pushed by whoever sets up an installation:
//
//	assay.dev/image/NAME    an image: task (busybox and assay-task), go (the
//	                        same and a Go toolchain in /usr/local/go)
//	assay.dev/bundle/NAME   the Tekton bundle of the Task or Pipeline NAME
//
// Setting up goes in two rounds, as a pipeline names the bundles of its tasks:
//
//	images ──Tasks──▶ bundles ──Pipelines──▶ bundles ──▶ PipelineRun
//
// Nothing is ever filled in but a reference by digest: what a catalog's object
// means must not change when somebody moves a tag. Fill does the same for YAML
// from elsewhere, such as the files in examples/run.
package catalog

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

//go:embed tasks/*.yaml pipelines/*.yaml
var files embed.FS

// Object is one Tekton object, complete.
type Object struct {
	APIVersion string // tekton.dev/v1
	Kind       string // Task or Pipeline
	Name       string
	YAML       []byte // one document
}

// Tasks returns the built-in Tasks, by name, with images filled in: task and
// go, each as repo@sha256:…. It fails when one is missing or not by digest.
func Tasks(images map[string]string) ([]Object, error) {
	return load("tasks", prefixed("image/", images))
}

// Pipelines returns the built-in Pipelines, by name, with the bundles of their
// tasks filled in: Task name → repo@sha256:…. It fails when one is missing or
// not by digest.
func Pipelines(bundles map[string]string) ([]Object, error) {
	return load("pipelines", prefixed("bundle/", bundles))
}

// Objects returns Tasks and then Pipelines, for when both images and bundles
// are known; the keys of refs are image/NAME and bundle/NAME.
func Objects(refs map[string]string) ([]Object, error) {
	tasks, err := load("tasks", refs)
	if err != nil {
		return nil, err
	}
	pipelines, err := load("pipelines", refs)
	if err != nil {
		return nil, err
	}
	return append(tasks, pipelines...), nil
}

func prefixed(prefix string, in map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range in {
		out[prefix+k] = v
	}
	return out
}

func load(dir string, refs map[string]string) ([]Object, error) {
	names, err := fs.Glob(files, dir+"/*.yaml")
	if err != nil {
		return nil, fmt.Errorf("loading catalog: %w", err)
	}
	var out []Object
	for _, name := range names {
		data, err := files.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("loading catalog: %w", err)
		}
		if data, err = Fill(data, refs); err != nil {
			return nil, fmt.Errorf("loading catalog: %s: %w", path.Base(name), err)
		}
		objects, err := Parse(data)
		if err != nil {
			return nil, fmt.Errorf("loading catalog: %s: %w", path.Base(name), err)
		}
		out = append(out, objects...)
	}
	slices.SortFunc(out, func(a, b Object) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

var (
	placeholder = regexp.MustCompile(`assay\.dev/(image|bundle)/[A-Za-z0-9._-]*`)
	pinned      = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/-]*@sha256:[0-9a-f]{64}$`)
)

// Fill replaces the placeholders in a YAML file. The keys of refs are image/NAME
// and bundle/NAME, the values references by digest. It fails when a placeholder
// has no reference, and when a reference is not by digest; references that no
// placeholder asks for are left aside.
func Fill(data []byte, refs map[string]string) ([]byte, error) {
	var missing, loose []string
	out := placeholder.ReplaceAllFunc(data, func(p []byte) []byte {
		key := strings.TrimPrefix(string(p), "assay.dev/")
		ref, ok := refs[key]
		switch {
		case !ok:
			missing = append(missing, key)
		case !pinned.MatchString(ref):
			loose = append(loose, fmt.Sprintf("%s is %q", key, ref))
		}
		return []byte(ref)
	})
	switch {
	case len(missing) > 0:
		slices.Sort(missing)
		return nil, fmt.Errorf("filling references: none given for %s", strings.Join(slices.Compact(missing), ", "))
	case len(loose) > 0:
		return nil, fmt.Errorf("filling references: %s: want repository@sha256:…", loose[0])
	}
	return out, nil
}

// Parse splits a YAML file into its documents and reads what each is. It fails
// on a document without apiVersion, kind or a name (generateName will do), and
// on a file without any.
func Parse(data []byte) ([]Object, error) {
	var out []Object
	for i, doc := range bytes.Split(append([]byte("\n"), data...), []byte("\n---\n")) {
		var head struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
			Metadata   struct {
				Name         string `json:"name"`
				GenerateName string `json:"generateName"`
			} `json:"metadata"`
		}
		doc = append(bytes.TrimSpace(doc), '\n')
		if len(doc) == 1 {
			continue
		}
		if err := yaml.Unmarshal(doc, &head); err != nil {
			return nil, fmt.Errorf("reading document %d: %w", i+1, err)
		}
		o := Object{APIVersion: head.APIVersion, Kind: head.Kind, Name: head.Metadata.Name, YAML: doc}
		if o.Name == "" {
			o.Name = head.Metadata.GenerateName
		}
		if o.APIVersion == "" || o.Kind == "" || o.Name == "" {
			return nil, fmt.Errorf("reading document %d: it has no apiVersion, kind or name", i+1)
		}
		out = append(out, o)
	}
	if len(out) == 0 {
		return nil, errors.New("reading YAML: no document in it")
	}
	return out, nil
}
