// Package bundle reads and writes Tekton bundles: OCI images whose layers are
// Tekton objects, the form in which catalogs publish Tasks and Pipelines and in
// which a reference can pin them by digest.
//
// The layout is Tekton's own, so that a cluster's bundles resolver and tkn read
// what we push and we read what they push. An image has at most MaxObjects
// layers; each is a tar with one file, the object, and its descriptor carries
// three annotations:
//
//	dev.tekton.image.name        metadata.name
//	dev.tekton.image.kind        the kind in lower case: task, pipeline, stepaction
//	dev.tekton.image.apiVersion  the version without its group: v1, v1beta1
//
// Writing is reproducible: an object is stored as JSON with sorted keys, no time
// or owner is recorded, and the same objects in the same order make the same
// digest whatever the layout of the YAML they were written in.
//
// Reading treats the registry as a stranger: what it sends is bounded, every
// byte is checked against the digest that named it, and a bundle that breaks
// the layout is refused. Nothing here interprets an object beyond its kind and
// name; package pipeline does, strictly.
package bundle

import (
	"errors"
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

// Annotations of a layer.
const (
	AnnotationName       = "dev.tekton.image.name"
	AnnotationKind       = "dev.tekton.image.kind"
	AnnotationAPIVersion = "dev.tekton.image.apiVersion"
)

// Bounds on a bundle. MaxObjects is Tekton's; the others are ours and far above
// what a catalog holds.
const (
	MaxObjects     = 20
	MaxObjectBytes = 2 << 20
)

// ErrNotFound is returned, wrapped, when a bundle has no object of the kind and
// name asked for.
var ErrNotFound = errors.New("not in the bundle")

// kinds maps what bundles may hold to the API versions that Tekton serves.
var kinds = map[string][]string{
	"Task":       {"v1", "v1beta1"},
	"Pipeline":   {"v1", "v1beta1"},
	"StepAction": {"v1beta1", "v1alpha1"},
}

// Object is one Tekton object as a bundle stores it.
type Object struct {
	APIVersion string // v1, without the group
	Kind       string // task, pipeline or stepaction
	Name       string
	JSON       []byte // the whole object, keys sorted
}

// Parse reads one YAML or JSON document as an object of a bundle. It fails if
// the document is no YAML, repeats a key, has no name, or is of a kind or
// version that bundles do not hold.
func Parse(document []byte) (*Object, error) {
	if len(document) > MaxObjectBytes {
		return nil, fmt.Errorf("object has %d bytes, more than the %d a bundle's object may have", len(document), MaxObjectBytes)
	}
	raw, err := yaml.YAMLToJSONStrict(document)
	if err != nil {
		return nil, fmt.Errorf("reading YAML: %w", err)
	}
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			Name string `json:"name"`
		} `json:"metadata"`
	}
	if err := yaml.Unmarshal(raw, &head); err != nil {
		return nil, fmt.Errorf("reading apiVersion, kind and metadata.name: %w", err)
	}
	group, version, _ := strings.Cut(head.APIVersion, "/")
	versions, known := kinds[head.Kind]
	if group != "tekton.dev" || !known {
		return nil, fmt.Errorf("%s %s: a bundle holds Task, Pipeline and StepAction of tekton.dev only", head.APIVersion, head.Kind)
	}
	if !contains(versions, version) {
		return nil, fmt.Errorf("%s %s: write it in one of tekton.dev/%s", head.APIVersion, head.Kind, strings.Join(versions, ", tekton.dev/"))
	}
	if head.Metadata.Name == "" {
		return nil, fmt.Errorf("%s without metadata.name: a bundle finds its objects by name", head.Kind)
	}
	return &Object{
		APIVersion: version,
		Kind:       strings.ToLower(head.Kind),
		Name:       head.Metadata.Name,
		JSON:       raw,
	}, nil
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}
