package ec

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	"sigs.k8s.io/yaml"

	"assay.dev/assay/internal/kubeobject"
)

// snapshotSpec is a Snapshot's spec, as rules see it.
type snapshotSpec struct {
	Application        string      `json:"application"`
	DisplayName        string      `json:"displayName,omitempty"`
	DisplayDescription string      `json:"displayDescription,omitempty"`
	Components         []component `json:"components,omitempty"`
	Artifacts          artifacts   `json:"artifacts"`
}

type artifacts struct {
	UnstableFields json.RawMessage `json:"unstableFields,omitempty"`
}

// component is one image of a snapshot.
type component struct {
	Name           string          `json:"name"`
	ContainerImage string          `json:"containerImage"`
	Source         componentSource `json:"source"`
}

type componentSource struct {
	Git *gitSource `json:"git,omitempty"`
}

type gitSource struct {
	URL           string `json:"url"`
	Revision      string `json:"revision,omitempty"`
	Context       string `json:"context,omitempty"`
	DevfileURL    string `json:"devfileUrl,omitempty"`
	DockerfileURL string `json:"dockerfileUrl,omitempty"`
}

const unnamed = "Unnamed"

// snapshots is the resource of which a cluster has Snapshots.
const snapshots = "snapshots.appstudio.redhat.com"

// maxMembers bounds the images of an index, and maxComponents those of a
// snapshot with them.
const (
	maxMembers    = 1000
	maxComponents = 100_000
)

// parseSnapshot reads a snapshot's spec, bare or in its resource.
func parseSnapshot(raw []byte) (*snapshotSpec, error) {
	doc, err := yaml.YAMLToJSON(raw)
	if err != nil {
		return nil, fmt.Errorf("unable to parse Snapshot specification: %w", err)
	}
	var resource struct {
		Spec *snapshotSpec `json:"spec"`
	}
	if err := json.Unmarshal(doc, &resource); err == nil && resource.Spec != nil {
		return resource.Spec, nil
	}
	s := new(snapshotSpec)
	if err := json.Unmarshal(doc, s); err != nil {
		return nil, fmt.Errorf("unable to parse Snapshot specification: %w", err)
	}
	return s, nil
}

// merge adds another snapshot's components, but for images that are there.
func (s *snapshotSpec) merge(more *snapshotSpec) {
	for to, v := range map[*string]string{&s.Application: more.Application, &s.DisplayName: more.DisplayName, &s.DisplayDescription: more.DisplayDescription} {
		if *to == "" {
			*to = v
		}
	}
	for _, c := range more.Components {
		i := slices.IndexFunc(s.Components, func(x component) bool { return x.ContainerImage == c.ContainerImage })
		switch {
		case i < 0:
			s.Components = append(s.Components, c)
		case s.Components[i].Name == "" || s.Components[i].Name == unnamed:
			s.Components[i].Name = c.Name
		}
	}
}

// snapshotFlags are where images are named.
type snapshotFlags struct{ image, images, file, json, snapshot string }

// read gathers what the flags name.
func (f snapshotFlags) read(ctx context.Context, kubeconfig string) (*snapshotSpec, error) {
	s := &snapshotSpec{}
	given := false
	add := func(raw []byte) error {
		more, err := parseSnapshot(raw)
		if err != nil {
			return err
		}
		s.merge(more)
		given = true
		return nil
	}
	if f.images != "" {
		raw := []byte(f.images)
		if b, err := readFile(f.images); err == nil {
			raw = b
		}
		if err := add(raw); err != nil {
			return nil, err
		}
	}
	if f.file != "" {
		raw, err := readFile(f.file)
		if err != nil {
			return nil, err
		}
		if err := add(raw); err != nil {
			return nil, err
		}
	}
	if f.json != "" {
		if err := add([]byte(f.json)); err != nil {
			return nil, err
		}
	}
	if f.image != "" {
		s.merge(&snapshotSpec{Components: []component{{Name: unnamed, ContainerImage: f.image}}})
		given = true
	}
	if f.snapshot != "" {
		raw := []byte(f.snapshot)
		if !strings.HasPrefix(strings.TrimSpace(f.snapshot), "{") {
			var err error
			if raw, err = kubeobject.Get(ctx, kubeconfig, snapshots, f.snapshot); err != nil {
				return nil, fmt.Errorf("reading --snapshot %s: %w", f.snapshot, err)
			}
		}
		if err := add(raw); err != nil {
			return nil, err
		}
	}
	if !given {
		return nil, errors.New("neither Snapshot nor image reference provided to validate")
	}
	if len(s.Components) == 0 {
		return nil, errors.New("the snapshot has no components, so nothing would be checked")
	}
	return s, nil
}

// expand adds to each image index the images it lists. An image that cannot be
// read stays as it is, and is reported when it is judged: as inaccessible, or, if
// it can be read by then, as one whose images are not known.
func (r *runner) expand(ctx context.Context, s *snapshotSpec) error {
	lists := make([][]component, len(s.Components))
	errs := make([]error, len(s.Components))
	r.each(len(s.Components), func(i int) {
		lists[i] = []component{s.Components[i]}
		more, err := r.members(ctx, s.Components[i])
		lists[i] = append(lists[i], more...)
		if errs[i] = err; err != nil {
			r.unexpanded.Store(s.Components[i].ContainerImage, err)
		}
	})
	s.Components = slices.Concat(lists...)
	if len(s.Components) > maxComponents {
		return fmt.Errorf("the snapshot has %d images with those of its indexes, at most %d are judged", len(s.Components), maxComponents)
	}
	slices.SortStableFunc(s.Components, func(a, b component) int { return strings.Compare(a.ContainerImage, b.ContainerImage) })
	if err := errors.Join(errs...); err != nil {
		r.warn("Encountered error while checking for Image Index: %v", err)
	}
	return nil
}

func (r *runner) members(ctx context.Context, c component) ([]component, error) {
	ref, err := name.ParseReference(c.ContainerImage)
	if err != nil {
		return nil, fmt.Errorf("unable to parse container image %s: %w", c.ContainerImage, err)
	}
	d, err := r.puller.Get(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("unable to fetch descriptor for container image %s: %w", ref, err)
	}
	if !d.MediaType.IsIndex() {
		return nil, nil
	}
	idx, err := d.ImageIndex()
	if err != nil {
		return nil, fmt.Errorf("unable to fetch index for container image %s: %w", c.ContainerImage, err)
	}
	m, err := idx.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("unable to fetch index manifest for container image %s: %w", c.ContainerImage, err)
	}
	if len(m.Manifests) > maxMembers {
		return nil, fmt.Errorf("the index %s lists %d images, at most %d are judged", c.ContainerImage, len(m.Manifests), maxMembers)
	}
	var out []component
	for i, desc := range m.Manifests {
		arch := fmt.Sprintf("noarch-%d", i)
		if desc.Platform != nil && desc.Platform.Architecture != "" {
			arch = desc.Platform.Architecture
		}
		member := c
		member.Name = fmt.Sprintf("%s-%s-%s", c.Name, desc.Digest, arch)
		member.ContainerImage = fmt.Sprintf("%s@%s", ref.Context().Name(), desc.Digest)
		out = append(out, member)
	}
	return out, nil
}

// each runs f for 0 … n-1, as many at a time as there are workers.
func (r *runner) each(n int, f func(int)) {
	work := make(chan int)
	var wg sync.WaitGroup
	for range min(max(r.workers, 1), n) {
		wg.Go(func() {
			for i := range work {
				f(i)
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	wg.Wait()
}
