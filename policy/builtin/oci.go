package builtin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/open-policy-agent/opa/v1/ast"
)

// text reads an argument that has to be a string. Undefined input is one way
// for it not to be.
func text(t *ast.Term, what string) (string, error) {
	s, ok := t.Value.(ast.String)
	if !ok {
		return "", fmt.Errorf("%s is not a string", what)
	}
	return string(s), nil
}

func texts(t *ast.Term, what string) ([]string, error) {
	a, ok := t.Value.(*ast.Array)
	if !ok {
		return nil, fmt.Errorf("%s are not an array", what)
	}
	var out []string
	for i := range a.Len() {
		s, ok := a.Elem(i).Value.(ast.String)
		if !ok {
			return nil, fmt.Errorf("%s have an element that is not a string", what)
		}
		out = append(out, string(s))
	}
	return out, nil
}

// reference reads a reference by tag or digest.
func (c *call) reference(t *ast.Term) (name.Reference, error) {
	s, err := text(t, "the reference")
	if err != nil {
		return nil, err
	}
	r, err := name.ParseReference(s)
	if err != nil {
		return nil, err
	}
	return r, c.host(r)
}

// byDigest reads a reference that has to have a digest.
func (c *call) byDigest(t *ast.Term) (name.Digest, error) {
	s, err := text(t, "the reference")
	if err != nil {
		return name.Digest{}, err
	}
	r, err := name.NewDigest(s)
	if err != nil {
		return name.Digest{}, err
	}
	return r, c.host(r)
}

// resolved is a reference with the digest that it stands for.
func (c *call) resolved(t *ast.Term) (name.Digest, error) {
	r, err := c.reference(t)
	if err != nil {
		return name.Digest{}, err
	}
	if d, ok := r.(name.Digest); ok {
		return d, nil
	}
	desc, err := c.puller.Head(c.ctx, r)
	if err != nil {
		return name.Digest{}, err
	}
	return r.Context().Digest(desc.Digest.String()), nil
}

func notFound(err error) bool {
	var t *transport.Error
	return errors.As(err, &t) && t.StatusCode == http.StatusNotFound
}

func descriptor(c *call, args []*ast.Term) (*ast.Term, error) {
	r, err := c.reference(args[0])
	if err != nil {
		return nil, err
	}
	d, err := c.puller.Head(c.ctx, r)
	if err != nil {
		return nil, err
	}
	return descriptorTerm(*d), nil
}

func imageManifest(c *call, args []*ast.Term) (*ast.Term, error) {
	d, err := c.got(args[0])
	if err != nil {
		return nil, err
	}
	// An index stands for its image for linux/amd64.
	img, err := d.Image()
	if err != nil {
		return nil, err
	}
	m, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	return manifestTerm(m.SchemaVersion, m.MediaType, m.Annotations, m.Subject,
		item("config", descriptorTerm(m.Config)), item("layers", descriptorTerms(m.Layers))), nil
}

// got is the manifest, of an image or an index, that a reference names.
func (c *call) got(t *ast.Term) (*remote.Descriptor, error) {
	r, err := c.reference(t)
	if err != nil {
		return nil, err
	}
	return c.puller.Get(c.ctx, r)
}

// manifestTerm is what manifests of images and indexes have in common, and more.
func manifestTerm(schema int64, mediaType types.MediaType, annotations map[string]string, subject *v1.Descriptor, more ...[2]*ast.Term) *ast.Term {
	terms := append([][2]*ast.Term{
		item("schemaVersion", number(schema)),
		item("mediaType", ast.StringTerm(string(mediaType))),
		item("annotations", annotationsTerm(annotations)),
	}, more...)
	if subject != nil {
		terms = append(terms, item("subject", descriptorTerm(*subject)))
	}
	return ast.ObjectTerm(terms...)
}

func descriptorTerms(list []v1.Descriptor) *ast.Term {
	out := make([]*ast.Term, len(list))
	for i, d := range list {
		out[i] = descriptorTerm(d)
	}
	return ast.ArrayTerm(out...)
}

func imageManifests(c *call, args []*ast.Term) (*ast.Term, error) {
	set, ok := args[0].Value.(ast.Set)
	if !ok {
		return nil, errors.New("the references are not a set")
	}
	if set.Len() > c.opts.MaxRefs {
		return nil, fmt.Errorf("%d references, at most %d are fetched at once", set.Len(), c.opts.MaxRefs)
	}
	refs := set.Slice()
	for _, r := range refs {
		if _, err := text(r, "a reference"); err != nil {
			return nil, err
		}
	}
	one := remembered(imageManifest)
	found := make([]*ast.Term, len(refs))
	work := make(chan int)
	var wg sync.WaitGroup
	for range min(c.opts.Parallel, len(refs)) {
		wg.Go(func() {
			for i := range work {
				// Under the single function's name, so that both remember alike.
				single := &call{Set: c.Set, name: ImageManifest, rec: c.rec, ctx: c.ctx}
				t, err := one(single, refs[i:i+1])
				if err != nil {
					c.rec.fail(c.name, subject(refs[i:i+1]), err)
					continue
				}
				found[i] = t
			}
		})
	}
	for i := range refs {
		work <- i
	}
	close(work)
	wg.Wait()
	var terms [][2]*ast.Term
	for i, t := range found {
		if t != nil {
			terms = append(terms, [2]*ast.Term{refs[i], t})
		}
	}
	return ast.ObjectTerm(terms...), nil
}

func imageIndex(c *call, args []*ast.Term) (*ast.Term, error) {
	d, err := c.got(args[0])
	if err != nil {
		return nil, err
	}
	idx, err := d.ImageIndex()
	if err != nil {
		return nil, err
	}
	m, err := idx.IndexManifest()
	if err != nil {
		return nil, err
	}
	return manifestTerm(m.SchemaVersion, m.MediaType, m.Annotations, m.Subject, item("manifests", descriptorTerms(m.Manifests))), nil
}

// imageTagRefs looks for the tags that cosign derives of a digest. One that
// cannot be looked for is told, and the others are given.
func imageTagRefs(c *call, args []*ast.Term) (*ast.Term, error) {
	d, err := c.resolved(args[0])
	if err != nil {
		return nil, err
	}
	h, err := v1.NewHash(d.DigestStr())
	if err != nil {
		return nil, err
	}
	var found []*ast.Term
	for _, suffix := range []string{"sig", "att", "sbom"} {
		tag := d.Context().Tag(h.Algorithm + "-" + h.Hex + "." + suffix)
		switch _, err := c.puller.Head(c.ctx, tag); {
		case err == nil:
			found = append(found, ast.StringTerm(tag.String()))
		case !notFound(err):
			c.rec.fail(c.name, tag.String(), err)
		}
	}
	return ast.ArrayTerm(found...), nil
}

func imageReferrers(c *call, args []*ast.Term) (*ast.Term, error) {
	d, err := c.resolved(args[0])
	if err != nil {
		return nil, err
	}
	idx, err := remote.Referrers(d, append(c.remote, remote.WithContext(c.ctx))...)
	if err != nil {
		return nil, err
	}
	m, err := idx.IndexManifest()
	if err != nil {
		return nil, err
	}
	out := make([]*ast.Term, len(m.Manifests))
	for i, r := range m.Manifests {
		out[i] = ast.ObjectTerm(
			item("mediaType", ast.StringTerm(string(r.MediaType))),
			item("size", number(r.Size)),
			item("digest", ast.StringTerm(r.Digest.String())),
			item("artifactType", ast.StringTerm(r.ArtifactType)),
			item("ref", ast.StringTerm(d.Context().Name()+"@"+r.Digest.String())),
			item("annotations", annotationsTerm(r.Annotations)),
		)
	}
	return ast.ArrayTerm(out...), nil
}

func item(key string, v *ast.Term) [2]*ast.Term { return [2]*ast.Term{ast.StringTerm(key), v} }

func number(n int64) *ast.Term { return ast.NumberTerm(json.Number(strconv.FormatInt(n, 10))) }

func stringsTerm(list []string) *ast.Term {
	out := make([]*ast.Term, len(list))
	for i, s := range list {
		out[i] = ast.StringTerm(s)
	}
	return ast.ArrayTerm(out...)
}

func annotationsTerm(m map[string]string) *ast.Term {
	o := ast.NewObject()
	for k, v := range m {
		o.Insert(ast.StringTerm(k), ast.StringTerm(v))
	}
	return ast.NewTerm(o)
}

func descriptorTerm(d v1.Descriptor) *ast.Term {
	terms := [][2]*ast.Term{
		item("mediaType", ast.StringTerm(string(d.MediaType))),
		item("size", number(d.Size)),
		item("digest", ast.StringTerm(d.Digest.String())),
		item("data", ast.StringTerm(string(d.Data))),
		item("urls", stringsTerm(d.URLs)),
		item("annotations", annotationsTerm(d.Annotations)),
		item("artifactType", ast.StringTerm(d.ArtifactType)),
	}
	if p := d.Platform; p != nil {
		terms = append(terms, item("platform", ast.ObjectTerm(
			item("architecture", ast.StringTerm(p.Architecture)),
			item("os", ast.StringTerm(p.OS)),
			item("os.version", ast.StringTerm(p.OSVersion)),
			item("os.features", stringsTerm(p.OSFeatures)),
			item("variant", ast.StringTerm(p.Variant)),
			item("features", stringsTerm(p.Features)),
		)))
	}
	return ast.ObjectTerm(terms...)
}
