package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"
)

// FieldManager is the name under which manifests are applied.
const FieldManager = "assayd"

// maxManifest bounds one file of manifests.
const maxManifest = 64 << 20

// ReadManifests reads YAML or JSON objects, several to a file, from files and
// from folders (*.yaml, *.yml and *.json in it, not below, by name). Lists are
// taken apart. A document that is no object is an error that names its file; so
// is a path with nothing in it.
func ReadManifests(paths ...string) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	for _, path := range paths {
		files, err := manifestFiles(path)
		if err != nil {
			return nil, fmt.Errorf("reading manifests: %w", err)
		}
		found := 0
		for _, file := range files {
			objects, err := readManifest(file)
			if err != nil {
				return nil, fmt.Errorf("reading manifests: %s: %w", file, err)
			}
			found += len(objects)
			out = append(out, objects...)
		}
		if found == 0 {
			return nil, fmt.Errorf("reading manifests: there is no object in %s", path)
		}
	}
	return out, nil
}

func manifestFiles(path string) ([]string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if e.Type()&fs.ModeDir == 0 && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
			files = append(files, filepath.Join(path, e.Name()))
		}
	}
	return files, nil
}

func readManifest(file string) ([]*unstructured.Unstructured, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxManifest {
		return nil, fmt.Errorf("it is larger than %d MiB", maxManifest>>20)
	}
	return ParseManifests(b)
}

// ParseManifests decodes YAML documents or one JSON object. It fails on the first
// that is not a Kubernetes object; empty documents are passed over.
func ParseManifests(b []byte) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	docs := utilyaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(b)))
	defer docs.Close()
	// The decoder needs room for the largest document.
	buf := make([]byte, len(b)+1)
	for i := 1; ; i++ {
		n, err := docs.Read(buf)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", i, err)
		}
		j, err := yaml.YAMLToJSON(buf[:n])
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", i, err)
		}
		if bytes.Equal(j, []byte("null")) {
			continue
		}
		u := &unstructured.Unstructured{}
		if j[0] != '{' {
			return nil, fmt.Errorf("document %d: it is no object", i)
		}
		if err := u.UnmarshalJSON(j); err != nil {
			return nil, fmt.Errorf("document %d: %w", i, err)
		}
		if _, list := u.Object["items"]; list && strings.HasSuffix(u.GetKind(), "List") {
			l, err := u.ToList()
			if err != nil {
				return nil, fmt.Errorf("document %d: %w", i, err)
			}
			for k := range l.Items {
				if err := named(&l.Items[k]); err != nil {
					return nil, fmt.Errorf("document %d: item %d: %w", i, k, err)
				}
				out = append(out, &l.Items[k])
			}
			continue
		}
		if err := named(u); err != nil {
			return nil, fmt.Errorf("document %d: %w", i, err)
		}
		out = append(out, u)
	}
}

// named says whether an object can be applied at all.
func named(u *unstructured.Unstructured) error {
	if u.GetAPIVersion() == "" || u.GetKind() == "" || u.GetName() == "" {
		return fmt.Errorf("want apiVersion, kind and metadata.name; it has %q, %q and %q", u.GetAPIVersion(), u.GetKind(), u.GetName())
	}
	return nil
}

// Apply sends objects to an API server by server-side apply, definitions of
// custom resources first, and waits until those are served before it sends the
// rest: namespaces, then everything in the given order. Objects without a
// namespace that need one go to "default". It fails with the first object that is
// refused, naming it; what was applied before stays. Applying the same again
// changes nothing. Fields that another manager owns are taken over.
func Apply(ctx context.Context, c *rest.Config, objects ...*unstructured.Unstructured) error {
	client, err := dynamic.NewForConfig(c)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	disco, err := discovery.NewDiscoveryClientForConfig(c)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	a := &applier{client: client, mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(disco))}
	var crds, first, rest []*unstructured.Unstructured
	for _, o := range objects {
		switch o.GroupVersionKind().GroupKind() {
		case schema.GroupKind{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"}:
			crds = append(crds, o)
		case schema.GroupKind{Kind: "Namespace"}:
			first = append(first, o)
		default:
			rest = append(rest, o)
		}
	}
	for _, o := range crds {
		if err := a.apply(ctx, o); err != nil {
			return err
		}
	}
	for _, o := range crds {
		if err := a.served(ctx, o.GetName()); err != nil {
			return err
		}
	}
	if len(crds) > 0 {
		a.mapper.Reset()
	}
	for _, o := range slices.Concat(first, rest) {
		if err := a.apply(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

type applier struct {
	client dynamic.Interface
	mapper *restmapper.DeferredDiscoveryRESTMapper
}

func (a *applier) apply(ctx context.Context, o *unstructured.Unstructured) error {
	gvk := o.GroupVersionKind()
	what := gvk.Kind + " " + o.GetName()
	m, err := a.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return fmt.Errorf("applying %s: %w", what, err)
	}
	var r dynamic.ResourceInterface = a.client.Resource(m.Resource)
	if m.Scope.Name() == meta.RESTScopeNameNamespace {
		ns := o.GetNamespace()
		if ns == "" {
			ns = "default"
			o = o.DeepCopy()
			o.SetNamespace(ns)
		}
		r = a.client.Resource(m.Resource).Namespace(ns)
	}
	if _, err := r.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: FieldManager, Force: true}); err != nil {
		return fmt.Errorf("applying %s: %w", what, err)
	}
	return nil
}

// served waits until a custom resource's definition is established.
func (a *applier) served(ctx context.Context, name string) error {
	crds := a.client.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	for {
		crd, err := crds.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("waiting for %s: %w", name, err)
		}
		// Null at first; anything but a list is no condition that holds.
		v, _, _ := unstructured.NestedFieldNoCopy(crd.Object, "status", "conditions")
		conditions, _ := v.([]any)
		for _, c := range conditions {
			c, ok := c.(map[string]any)
			switch {
			case !ok:
			case c["type"] == "Established" && c["status"] == "True":
				return nil
			case c["type"] == "NamesAccepted" && c["status"] == "False":
				return fmt.Errorf("waiting for %s: its names are not accepted: %v", name, c["message"])
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", name, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
