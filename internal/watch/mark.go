package watch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"assay.dev/assay/internal/watch/kubeapi"
	"assay.dev/assay/internal/watch/scan"
)

// maxAnnotations is how many bytes all annotations of an object may have
// together, keys and values: Kubernetes' own limit.
const maxAnnotations = 256 << 10

// Marks go to the API server as one server-side apply with Chains' own field
// manager, so that either can take over from the other and annotations of both
// merge. The manager's set of fields is what the last apply said: an apply that
// leaves the finalizer out removes it, and every annotation of ours that is to
// stay is sent again.
//
// uid and resourceVersion are preconditions: a run made anew under the same name,
// or changed by another signer meanwhile, is a conflict and not overwritten.
type applied struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name            string            `json:"name"`
		Namespace       string            `json:"namespace"`
		UID             string            `json:"uid"`
		ResourceVersion string            `json:"resourceVersion,omitempty"`
		Annotations     map[string]string `json:"annotations,omitempty"`
		Finalizers      []string          `json:"finalizers,omitempty"`
	} `json:"metadata"`
}

// errGone says that the run is no longer there, or another run has its name.
var errGone = errors.New("the run is gone")

// errTaken says that somebody else marked the run first.
var errTaken = errors.New("somebody else marked the run")

// ours says whether we are to send an annotation again: what a signer wrote, not
// what the run's owner did.
func ours(key string) bool {
	return strings.HasPrefix(key, ownPrefix) || strings.HasPrefix(key, annotationPrefix) && key != annotationUpload
}

// annotate applies annotations and the finalizer (or takes it away), over
// conflicts with whoever changes other things of the run. have are the run's
// annotations as they were at version h.version. It returns errGone or errTaken
// where there is nothing to annotate any more.
func (o *Observer) annotate(ctx context.Context, h head, have, set map[string]string, keepFinalizer bool) error {
	for try := 0; ; try++ {
		var a applied
		a.APIVersion, a.Kind = "tekton.dev/v1", h.kind
		a.Metadata.Name, a.Metadata.Namespace, a.Metadata.UID = h.name, h.namespace, h.uid
		a.Metadata.ResourceVersion = h.version
		a.Metadata.Annotations = map[string]string{}
		for k, v := range have {
			if ours(k) && k != annotationReason {
				a.Metadata.Annotations[k] = v
			}
		}
		maps.Copy(a.Metadata.Annotations, set)
		if keepFinalizer && !h.deleting {
			a.Metadata.Finalizers = []string{finalizer(h.kind)}
		} else if keepFinalizer {
			// Nobody may add finalizers to what is being deleted.
			a.Metadata.Finalizers = h.finalizers
		}
		body, err := json.Marshal(a)
		if err != nil {
			return fmt.Errorf("writing the mark of %s: %w", h, err)
		}
		err = o.api.Apply(ctx, h.resource(), h.namespace, h.name, manager, body, func(answer []byte) error {
			got, err := readHead(h.kind, answer)
			if err != nil {
				return err
			}
			o.table.learn(h.uid, got.version, got.finalizers)
			h.version, h.finalizers = got.version, got.finalizers
			return nil
		})
		switch {
		case err == nil && !keepFinalizer && len(h.finalizers) > 0:
			// Set by Chains, whose manager is another one.
			return o.dropFinalizer(ctx, h)
		case err == nil:
			return nil
		case apierrors.IsNotFound(err):
			return errGone
		case !apierrors.IsConflict(err) || try >= 20:
			return fmt.Errorf("marking %s: %w", h, err)
		}
		if h, have, err = o.latest(ctx, h, try); err != nil {
			return err
		}
		if h.marked() {
			return errTaken
		}
	}
}

// latest is the run as it is after a conflict.
func (o *Observer) latest(ctx context.Context, h head, try int) (now head, have map[string]string, err error) {
	// Whoever keeps writing gets longer and longer turns.
	select {
	case <-time.After(time.Duration(try) * 20 * time.Millisecond):
	case <-ctx.Done():
		return h, nil, context.Cause(ctx)
	}
	err = o.api.Get(ctx, h.resource(), h.namespace, h.name, func(object []byte) (err error) {
		if now, err = readHead(h.kind, object); err == nil {
			have, err = readAnnotations(object)
		}
		return err
	})
	switch {
	case apierrors.IsNotFound(err), err == nil && now.uid != h.uid:
		return h, nil, errGone
	case err != nil:
		return h, nil, fmt.Errorf("reading %s after a conflict: %w", h, err)
	}
	return now, have, nil
}

// readAnnotations reads an object's annotations.
func readAnnotations(object []byte) (map[string]string, error) {
	out := map[string]string{}
	c := scan.New(object)
	err := c.Object(func(key []byte) error {
		if string(key) != "metadata" {
			return c.Skip()
		}
		return c.Object(func(key []byte) error {
			if string(key) != "annotations" {
				return c.Skip()
			}
			raw, err := c.Raw()
			if err != nil {
				return err
			}
			return json.Unmarshal(raw, &out)
		})
	})
	return out, err
}

// dropFinalizer takes away our finalizers from a run, whoever set them, and
// leaves those of others. That the run is gone is no error.
func (o *Observer) dropFinalizer(ctx context.Context, h head) error {
	for range 10 {
		var finalizers []string
		version := ""
		err := o.api.Get(ctx, h.resource(), h.namespace, h.name, func(object []byte) error {
			var uid string
			var err error
			uid, version, finalizers, err = readFinalizers(object)
			if err == nil && uid != h.uid {
				return errGone
			}
			return err
		})
		if err == nil {
			rest := slices.DeleteFunc(slices.Clone(finalizers), func(f string) bool {
				return f == finalizer(h.kind) || f == finalizerLegacy
			})
			if len(rest) == len(finalizers) {
				return nil
			}
			var body []byte
			body, err = json.Marshal(map[string]any{"metadata": map[string]any{
				"resourceVersion": version, "uid": h.uid, "finalizers": rest,
			}})
			if err != nil {
				return fmt.Errorf("writing a patch: %w", err)
			}
			err = o.api.Patch(ctx, h.resource(), h.namespace, h.name, kubeapi.MergePatch, body, nil)
		}
		switch {
		case err == nil, apierrors.IsNotFound(err), errors.Is(err, errGone):
			return nil
		case !apierrors.IsConflict(err):
			return fmt.Errorf("removing the finalizer of %s: %w", h, err)
		}
	}
	return fmt.Errorf("removing the finalizer of %s: others keep changing it", h)
}

func readFinalizers(object []byte) (uid, version string, finalizers []string, err error) {
	c := scan.New(object)
	err = c.Object(func(key []byte) error {
		if string(key) != "metadata" {
			return c.Skip()
		}
		return c.Object(func(key []byte) error {
			switch string(key) {
			case "uid":
				return c.String(&uid)
			case "resourceVersion":
				return c.String(&version)
			case "finalizers":
				return c.Array(func() error {
					var f string
					err := c.String(&f)
					finalizers = append(finalizers, f)
					return err
				})
			}
			return c.Skip()
		})
	})
	return uid, version, finalizers, err
}

// annotationSize is what Kubernetes' limit counts.
func annotationSize(a map[string]string) int {
	n := 0
	for k, v := range a {
		n += len(k) + len(v)
	}
	return n
}
