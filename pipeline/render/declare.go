package render

import (
	"fmt"
	"path"
	"regexp"
	"strings"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"

	"assay.dev/assay/api"
	"assay.dev/assay/plan"
)

// artifactURI is the trusted artifact form.
var artifactURI = regexp.MustCompile(`^oci:[a-zA-Z0-9][a-zA-Z0-9._:/-]*@sha256:[0-9a-f]{64}$`)

// declare reads the annotations by which a Task hands inputs and outputs to the
// executor. A word that is not known is an error, since a typo would otherwise
// turn a measured output into an unmeasured one.
func (r *Rendered) declare(annotations map[string]string, spec *v1.TaskSpec, params v1.Params) error {
	var err error
	if r.Network, err = network(annotations[api.AnnotationNetwork]); err != nil {
		return err
	}
	if r.Inputs, err = inputs(annotations[api.AnnotationInputs], spec.Params, params); err != nil {
		return fmt.Errorf("annotation %s: %w", api.AnnotationInputs, err)
	}
	if r.Outputs, err = outputs(annotations[api.AnnotationOutputs], spec.Results); err != nil {
		return fmt.Errorf("annotation %s: %w", api.AnnotationOutputs, err)
	}
	return nil
}

func network(word string) (plan.Network, error) {
	switch n := plan.Network(word); n {
	case "":
		return plan.NetworkOpen, nil
	case plan.NetworkNone, plan.NetworkRegistry, plan.NetworkOpen:
		return n, nil
	}
	return "", fmt.Errorf("annotation %s is %q: it is none, registry or open", api.AnnotationNetwork, word)
}

// lines returns the lines of an annotation that are not empty.
func lines(value string) []string {
	var out []string
	for _, l := range strings.Split(value, "\n") {
		if l = strings.TrimSpace(l); l != "" {
			out = append(out, l)
		}
	}
	return out
}

// nameAndPath splits NAME=/absolute/path.
func nameAndPath(line string) (name, at string, err error) {
	name, at, ok := strings.Cut(line, "=")
	if !ok || name == "" || !path.IsAbs(at) || path.Clean(at) != at || at == "/" {
		return "", "", fmt.Errorf("%q: write NAME=/absolute/path", line)
	}
	return name, at, nil
}

func inputs(value string, specs v1.ParamSpecs, params v1.Params) ([]plan.Input, error) {
	var out []plan.Input
	for _, line := range lines(value) {
		name, at, err := nameAndPath(line)
		if err != nil {
			return nil, err
		}
		uri, err := stringParam(name, specs, params)
		if err != nil {
			return nil, err
		}
		if uri != "" && !artifactURI.MatchString(uri) {
			return nil, fmt.Errorf("parameter %s is %q: an artifact is oci:<repository>@sha256:<digest>", name, uri)
		}
		for _, before := range out {
			if before.Path == at {
				return nil, fmt.Errorf("%s and %s are both unpacked at %s", before.Param, name, at)
			}
		}
		out = append(out, plan.Input{Param: name, URI: uri, Path: at})
	}
	return out, nil
}

// stringParam is the value that a declared string parameter has in a run.
func stringParam(name string, specs v1.ParamSpecs, params v1.Params) (string, error) {
	for _, d := range specs {
		if d.Name != name {
			continue
		}
		if d.Type != v1.ParamTypeString {
			return "", fmt.Errorf("parameter %s is no string", name)
		}
		s, _, _ := taskReplacements(specs, params)
		value, ok := s["params."+name]
		if !ok {
			return "", fmt.Errorf("parameter %s has no value", name)
		}
		return value, nil
	}
	return "", fmt.Errorf("the Task declares no parameter %s", name)
}

func outputs(value string, results []v1.TaskResult) ([]plan.Output, error) {
	declared := map[string]bool{}
	for _, r := range results {
		declared[r.Name] = true
	}
	seen := map[string]bool{}
	var out []plan.Output
	for _, line := range lines(value) {
		word, rest, _ := strings.Cut(line, " ")
		name, at, err := nameAndPath(strings.TrimSpace(rest))
		if err != nil {
			return nil, err
		}
		kind := plan.OutputKind(word)
		need := []string{name}
		switch kind {
		case plan.OutputArtifact, plan.OutputSource, plan.OutputCommit:
		case plan.OutputImage:
			// NAME_REF is for people; a type hint needs the other two.
			need = []string{name + "_URL", name + "_DIGEST"}
		default:
			return nil, fmt.Errorf("%q: an output is artifact, source, commit or image", word)
		}
		for _, n := range need {
			if !declared[n] {
				return nil, fmt.Errorf("%s %s: the Task declares no result %s", kind, name, n)
			}
		}
		if seen[name] {
			return nil, fmt.Errorf("%s is there twice", name)
		}
		seen[name] = true
		out = append(out, plan.Output{Kind: kind, Name: name, Path: at})
	}
	return out, nil
}
