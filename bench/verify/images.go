package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"assay.dev/assay/api"
	"assay.dev/assay/attest"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
)

// imageSet is images with what is signed about them.
type imageSet struct {
	key  *attest.Key
	refs []string // repository@digest
	// manifests and items are the same once they are local.
	manifests [][]byte
	items     [][]store.Item
}

// counted is a registry that knows what was asked of it.
type counted struct {
	http.Handler
	on    atomic.Bool
	mu    sync.Mutex
	blobs map[string]int // GET of blobs and of manifests by digest
	asked int
}

func (c *counted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if c.on.Load() {
		c.mu.Lock()
		c.asked++
		if i := strings.LastIndex(r.URL.Path, "/sha256:"); i >= 0 && r.Method == http.MethodGet && !strings.Contains(r.URL.Path, "/referrers/") {
			c.blobs[r.URL.Path]++
		}
		c.mu.Unlock()
	}
	c.Handler.ServeHTTP(w, r)
}

// begin counts anew.
func (c *counted) begin() {
	c.mu.Lock()
	c.blobs, c.asked = map[string]int{}, 0
	c.mu.Unlock()
	c.on.Store(true)
}

// end says how many requests there were, of how many blobs, and how often the one
// fetched most was.
func (c *counted) end() (asked, blobs, most int) {
	c.on.Store(false)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.blobs {
		most = max(most, n)
	}
	return c.asked, len(c.blobs), most
}

var _ http.Handler = (*counted)(nil)

// make starts the registry and makes the images; the caller stops it.
func (b *bench) make() (func(), error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	discard := log.New(io.Discard, "", 0)
	handler := &counted{Handler: ggcr.New(ggcr.Logger(discard), ggcr.WithReferrersSupport(true))}
	srv := &http.Server{Handler: handler, ErrorLog: discard}
	go srv.Serve(l) //nolint:errcheck // it is closed
	stop := func() { _ = srv.Close() }
	key, err := attest.GenerateKey(attest.ECDSAP256)
	if err != nil {
		return stop, err
	}
	b.set, b.host, b.handler = &imageSet{key: key}, l.Addr().String(), handler
	b.set.refs = make([]string, b.images)
	b.set.manifests, b.set.items = make([][]byte, b.images), make([][]store.Item, b.images)
	err = parallel(b.images, func(i int) error { return b.image(i) })
	return stop, err
}

// parallel calls f for 0 to n-1 on a few goroutines.
func parallel(n int, f func(int) error) error {
	var wg sync.WaitGroup
	var next atomic.Int64
	errs := make(chan error, workers())
	for range workers() {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := f(i); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

const statement = `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":%q,"digest":{"sha256":%q}}],"predicateType":"https://slsa.dev/provenance/v1","predicate":{"buildDefinition":{"buildType":"https://tekton.dev/chains/v2/slsa-tekton","externalParameters":{"runSpec":{"params":[{"name":"revision","value":"%040d"}]}},"resolvedDependencies":[{"uri":"git+https://example.com/app.git","digest":{"sha1":"%040d"}}]},"runDetails":{"builder":{"id":"https://tekton.dev/chains/v2"},"metadata":{"invocationId":"%d"}}}}`

// image makes one image, its signature and its provenance.
func (b *bench) image(i int) error {
	ctx := context.Background()
	repo, err := name.NewRepository(fmt.Sprintf("%s/apps/app-%04d", b.host, i))
	if err != nil {
		return err
	}
	digest, err := push(repo.Tag("latest"), static.NewLayer(fmt.Appendf(nil, "image %d", i), types.OCILayer), nil)
	if err != nil {
		return err
	}
	env, err := attest.Envelope(ctx, b.set.key, api.PayloadTypeInToto, fmt.Appendf(nil, statement, repo.Name(), strings.TrimPrefix(digest, "sha256:"), i, i, i))
	if err != nil {
		return err
	}
	att, err := json.Marshal(env)
	if err != nil {
		return err
	}
	tag := strings.Replace(digest, ":", "-", 1)
	if _, err := push(repo.Tag(tag+".att"), static.NewLayer(att, api.MediaTypeDSSE), map[string]string{"predicateType": api.PredicateSLSAv1, "dev.cosignproject.cosign/signature": ""}); err != nil {
		return err
	}
	sig, err := attest.Image(ctx, b.set.key, repo.Name(), digest)
	if err != nil {
		return err
	}
	if _, err := push(repo.Tag(tag+".sig"), static.NewLayer(sig.Payload, simplesigning.MediaType), map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig.Sig)}); err != nil {
		return err
	}
	s := oci.New(repo, http.DefaultTransport, oci.Options{})
	subject, manifest, err := s.Resolve(ctx, digest)
	if err != nil {
		return err
	}
	items, err := s.List(ctx, subject.Digest)
	if err != nil {
		return err
	}
	b.set.refs[i], b.set.manifests[i], b.set.items[i] = repo.Name()+"@"+digest, manifest, items
	return nil
}

// push makes an image of one layer and returns its digest.
func push(tag name.Tag, layer v1.Layer, annotations map[string]string) (string, error) {
	img, err := mutate.Append(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), mutate.Addendum{Layer: layer, Annotations: annotations})
	if err != nil {
		return "", err
	}
	if err := remote.Write(tag, img); err != nil {
		return "", err
	}
	d, err := img.Digest()
	return d.String(), err
}
