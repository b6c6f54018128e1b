package gateserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"assay.dev/assay/attest/strictjson"
)

// The wire types of admission.k8s.io/v1, as much of them as is used.
const reviewVersion, reviewKind = "admission.k8s.io/v1", "AdmissionReview"

type reviewed struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Response   *Response `json:"response"`
}

// Response is AdmissionReview's response.
type Response struct {
	UID              string            `json:"uid"`
	Allowed          bool              `json:"allowed"`
	Status           *Status           `json:"status,omitempty"`
	Warnings         []string          `json:"warnings,omitempty"`
	AuditAnnotations map[string]string `json:"auditAnnotations,omitempty"`
}

// Status is a metav1.Status: why something is not allowed.
type Status struct {
	Status  string `json:"status"`
	Message string `json:"message"`
	Reason  string `json:"reason"`
	Code    int    `json:"code"`
}

// Request is AdmissionReview's request, with the images that it would bring.
type Request struct {
	UID       string
	Kind      string // group/Kind; Pod is /Pod
	Namespace string
	Name      string
	Operation string
	DryRun    bool
	// Images are those that were not there before, each once, in order.
	Images []Named
}

// Named is an image as an object names it.
type Named struct {
	Ref string
	// Where is the container or volume, such as container web.
	Where string
}

// templates says where each kind has its pods' specification.
var templates = map[string][]string{
	"/Pod":                   {"spec"},
	"/PodTemplate":           {"template", "spec"},
	"/ReplicationController": {"spec", "template", "spec"},
	"apps/Deployment":        {"spec", "template", "spec"},
	"apps/StatefulSet":       {"spec", "template", "spec"},
	"apps/DaemonSet":         {"spec", "template", "spec"},
	"apps/ReplicaSet":        {"spec", "template", "spec"},
	"batch/Job":              {"spec", "template", "spec"},
	"batch/CronJob":          {"spec", "jobTemplate", "spec", "template", "spec"},
}

// maxNamed bounds the images of one object.
const maxNamed = 1000

// member is a member of an object, read with care: names count exactly. A missing one is
// nil.
func member(raw json.RawMessage, path ...string) (json.RawMessage, error) {
	for _, p := range path {
		if raw == nil || strictjson.Kind(raw) == "null" {
			return nil, nil
		}
		m, err := strictjson.Object(raw)
		if err != nil {
			return nil, fmt.Errorf("before %s: %w", p, err)
		}
		raw = m[p]
	}
	return raw, nil
}

// text is a member that is a string or missing.
func text(raw json.RawMessage, path ...string) (string, error) {
	m, err := member(raw, path...)
	if err != nil || m == nil || strictjson.Kind(m) == "null" {
		return "", err
	}
	s, err := strictjson.String(m)
	if err != nil {
		return "", fmt.Errorf("%s: %w", strings.Join(path, "."), err)
	}
	return s, nil
}

// ParseReview reads an AdmissionReview of at most max bytes. It fails on what is none;
// then there is nobody to answer. Where the review is one, but the object is of a kind
// that has no images here, or not of the form that its kind has, it returns the request
// and an error: that is to be refused.
func ParseReview(raw []byte, max int) (*Request, error) {
	if err := strictjson.Check(raw, max); err != nil {
		return nil, err
	}
	version, err := text(raw, "apiVersion")
	if err != nil {
		return nil, err
	}
	kind, err := text(raw, "kind")
	if err != nil {
		return nil, err
	}
	if version != reviewVersion || kind != reviewKind {
		return nil, fmt.Errorf("it is %q of %q; want %s of %s", kind, version, reviewKind, reviewVersion)
	}
	req, err := member(raw, "request")
	if err != nil {
		return nil, err
	}
	out := new(Request)
	var group, name string
	for _, f := range []struct {
		to   *string
		path []string
	}{
		{&out.UID, []string{"uid"}}, {&group, []string{"kind", "group"}}, {&name, []string{"kind", "kind"}},
		{&out.Namespace, []string{"namespace"}}, {&out.Name, []string{"name"}}, {&out.Operation, []string{"operation"}},
	} {
		if *f.to, err = text(req, f.path...); err != nil {
			return nil, err
		}
	}
	if out.UID == "" {
		return nil, errors.New("the request has no uid")
	}
	out.Kind = group + "/" + name
	if dry, err := member(req, "dryRun"); err != nil {
		return nil, err
	} else if dry != nil {
		out.DryRun = string(dry) == "true"
	}
	return out, out.read(req)
}

// read finds the images that the request brings.
func (r *Request) read(req json.RawMessage) error {
	switch r.Operation {
	case "DELETE", "CONNECT":
		return nil // neither brings an image
	case "CREATE", "UPDATE":
	default:
		return fmt.Errorf("the operation %q is not known", r.Operation)
	}
	path, ok := templates[r.Kind]
	if !ok {
		return fmt.Errorf("objects of the kind %s are not known here: take them out of the webhook's rules, or ask for the kinds that make their Pods", strings.TrimPrefix(r.Kind, "/"))
	}
	object, err := member(req, "object")
	if err != nil {
		return err
	}
	if object == nil || strictjson.Kind(object) == "null" {
		return errors.New("there is no object in the request")
	}
	now, err := imagesOf(object, path)
	if err != nil {
		return err
	}
	had := map[string]bool{}
	if r.Operation == "UPDATE" {
		before, err := member(req, "oldObject")
		if err != nil {
			return err
		}
		if before != nil {
			list, err := imagesOf(before, path)
			if err != nil {
				return fmt.Errorf("the object before: %w", err)
			}
			for _, n := range list {
				had[n.Ref] = true
			}
		}
	}
	for _, n := range now {
		if !had[n.Ref] {
			had[n.Ref] = true
			r.Images = append(r.Images, n)
		}
	}
	return nil
}

// imagesOf are the images in an object's pods' specification.
func imagesOf(object json.RawMessage, path []string) ([]Named, error) {
	spec, err := member(object, path...)
	if err != nil {
		return nil, err
	}
	if spec == nil || strictjson.Kind(spec) == "null" {
		return nil, fmt.Errorf("the object has no %s", strings.Join(path, "."))
	}
	var out []Named
	for _, k := range []struct {
		list, what string
		image      []string
		optional   bool
	}{
		{"initContainers", "init container", []string{"image"}, false},
		{"containers", "container", []string{"image"}, false},
		{"ephemeralContainers", "ephemeral container", []string{"image"}, false},
		{"volumes", "image volume", []string{"image", "reference"}, true},
	} {
		raw, err := member(spec, k.list)
		if err != nil {
			return nil, err
		}
		if raw == nil || strictjson.Kind(raw) == "null" {
			continue
		}
		items, err := strictjson.Array(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k.list, err)
		}
		for _, item := range items {
			name, err := text(item, "name")
			if err != nil {
				return nil, fmt.Errorf("%s: %w", k.list, err)
			}
			if k.optional {
				if v, err := member(item, k.image[0]); err != nil {
					return nil, fmt.Errorf("%s: %w", k.list, err)
				} else if v == nil {
					continue // a volume of another kind
				}
			}
			ref, err := text(item, k.image...)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", k.list, err)
			}
			if out = append(out, Named{ref, k.what + " " + name}); len(out) > maxNamed {
				return nil, fmt.Errorf("the object names more than %d images", maxNamed)
			}
		}
	}
	return out, nil
}
