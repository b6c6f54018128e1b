package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/policy"
	"assay.dev/assay/report"
	"assay.dev/assay/store"
)

// maxMembers bounds the images of an index.
const maxMembers = 256

var sha256Digest = regexp.MustCompile(`^sha256:[a-f0-9]{64}$`)

// manifest is what a reference stood for when it was read.
type manifest struct {
	repo   name.Repository
	digest string
	bytes  []byte
}

func (m *manifest) ref() string { return m.repo.Name() + "@" + m.digest }

// image is one image to judge.
type image struct {
	component policy.Component
	parent    string // name of the component that an index was
	ref       string // repo@sha256:…; as it was given, where err is set
	digests   []string
	aside     []report.Aside
	err       error
}

// resolve asks what a reference stands for.
func (g *Gate) resolve(ctx context.Context, ref string) (*manifest, error) {
	r, err := name.ParseReference(ref)
	if err != nil {
		return nil, fmt.Errorf("reading the reference %q: %w", ref, err)
	}
	g.open()
	g.mu.Lock()
	kept := g.manifests[r.Context().Name()+"@"+r.Identifier()]
	g.mu.Unlock()
	if kept != nil {
		return &manifest{repo: r.Context(), digest: r.Identifier(), bytes: kept}, nil
	}
	s, err := g.store(ctx, r.Context())
	if err != nil {
		return nil, err
	}
	subject, raw, err := s.Resolve(ctx, r.Identifier())
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("verifying %s: no such artifact; check repository, tag and digest: %w", ref, err)
	}
	if err != nil {
		return nil, fmt.Errorf("verifying %s: %w", ref, err)
	}
	m := &manifest{repo: r.Context(), digest: subject.Digest, bytes: raw}
	if r.Identifier() != subject.Digest && len(raw) <= maxKeptManifest {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.manifests[m.ref()] == nil && g.size+len(raw) <= maxKeptManifests {
			g.manifests[m.ref()] = raw
			g.size += len(raw)
		}
	}
	return m, nil
}

// resolved remembers what references stood for: all who name one tag in one run
// mean the same image.
type resolved struct {
	mu   sync.Mutex // guards refs
	refs map[string]*resolution
}

type resolution struct {
	once    sync.Once
	ref     string
	members []member
	aside   []report.Aside
	err     error
}

func (r *resolved) get(ref string) *resolution {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refs == nil {
		r.refs = map[string]*resolution{}
	}
	if r.refs[ref] == nil {
		r.refs[ref] = new(resolution)
	}
	return r.refs[ref]
}

// expand lists a component's image and, where it is an index, the images in it.
func (g *Gate) expand(ctx context.Context, c policy.Component, seen *resolved) ([]image, error) {
	r := seen.get(c.ContainerImage)
	r.once.Do(func() {
		m, err := g.resolve(ctx, c.ContainerImage)
		if err != nil {
			r.err = err
			return
		}
		r.ref = m.ref()
		if r.members, r.aside, err = membersOf(m.bytes); err != nil {
			r.err = fmt.Errorf("%s: %w", r.ref, err)
		}
	})
	if r.err != nil {
		return nil, r.err
	}
	repo, digest, _ := strings.Cut(r.ref, "@")
	top := image{component: c, ref: r.ref, digests: []string{digest}, aside: r.aside}
	top.component.ContainerImage = r.ref
	out := []image{top}
	for _, m := range r.members {
		out[0].digests = append(out[0].digests, m.digest)
		one := image{component: c, parent: c.Name, ref: repo + "@" + m.digest, digests: []string{m.digest}}
		one.component.Name = c.Name + "-" + m.digest + "-" + m.arch
		one.component.ContainerImage = one.ref
		out = append(out, one)
	}
	return out, nil
}

// member is an image of an index. Names of such components are Conforma's, so that
// exceptions which name them hold here too.
type member struct{ digest, arch string }

// Annotations by which BuildKit says that a manifest of an index is none of its
// images: it holds what is said about one.
const (
	referenceType   = "vnd.docker.reference.type"
	referenceDigest = "vnd.docker.reference.digest"
	attestations    = "attestation-manifest"
)

// membersOf lists the images of an index, and what else it lists; an image has
// none.
func membersOf(raw []byte) ([]member, []report.Aside, error) {
	var m struct {
		Manifests []struct {
			MediaType string `json:"mediaType"`
			Digest    string `json:"digest"`
			Platform  struct {
				OS           string `json:"os"`
				Architecture string `json:"architecture"`
			} `json:"platform"`
			Annotations map[string]string `json:"annotations"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, nil, fmt.Errorf("reading the manifest: %w", err)
	}
	if len(m.Manifests) > maxMembers {
		return nil, nil, fmt.Errorf("the index lists %d images, at most %d are judged", len(m.Manifests), maxMembers)
	}
	var out []member
	var aside []report.Aside
	listed := map[string]bool{}
	for _, d := range m.Manifests {
		listed[d.Digest] = true
	}
	for i, d := range m.Manifests {
		if strings.Contains(d.MediaType, "index") || strings.Contains(d.MediaType, "manifest.list") {
			return nil, nil, errors.New("the index lists another index, which is not judged: name that one itself")
		}
		if !sha256Digest.MatchString(d.Digest) {
			return nil, nil, fmt.Errorf("the index lists %q, which is no sha256 digest", d.Digest)
		}
		if d.Annotations[referenceType] == attestations {
			// Only where nothing can run it: a manifest with a platform is an image,
			// whatever its annotations say, and one that a runtime picks is judged.
			if d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown" && listed[d.Annotations[referenceDigest]] {
				aside = append(aside, report.Aside{Digest: d.Digest, Reason: "BuildKit's attestations about " + d.Annotations[referenceDigest] + ", no image"})
				continue
			}
		}
		arch := fmt.Sprintf("noarch-%d", i)
		if d.Platform.Architecture != "" {
			arch = d.Platform.Architecture
		}
		out = append(out, member{d.Digest, arch})
	}
	return out, aside, nil
}
