package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"assay.dev/assay/api"
	"assay.dev/assay/attest"
	"assay.dev/assay/attest/simplesigning"
)

// imageSet is images with all that hangs on them, in one registry.
type imageSet struct {
	registry string
	key      *attest.Key
	pusher   *remote.Pusher
	bundles  map[string]string
	refs     []string // repository@digest
}

func newImageSet(ctx context.Context, registry string) (*imageSet, error) {
	key, err := attest.GenerateKey(attest.ECDSAP256)
	if err != nil {
		return nil, err
	}
	s := &imageSet{registry: registry, key: key, bundles: map[string]string{}}
	if s.pusher, err = remote.NewPusher(remote.WithTransport(http.DefaultTransport), remote.WithJobs(4)); err != nil {
		return nil, err
	}
	for _, k := range pipelineTasks {
		layer := static.NewLayer([]byte("task "+k.bundle), "application/vnd.oci.image.layer.v1.tar+gzip")
		ref, err := s.push(ctx, "tasks/"+k.bundle, "0.1", layer, nil, nil)
		if err != nil {
			return nil, err
		}
		s.bundles[k.bundle] = ref
	}
	return s, nil
}

// grow adds images until there are n.
func (s *imageSet) grow(ctx context.Context, n int) error {
	first := len(s.refs)
	if first >= n {
		return nil
	}
	s.refs = append(s.refs, make([]string, n-first)...)
	errs := make(chan error, n-first)
	slots := make(chan struct{}, 4)
	var wg sync.WaitGroup
	for i := first; i < n; i++ {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			ref, err := s.image(ctx, i)
			if s.refs[i] = ref; err != nil {
				errs <- fmt.Errorf("making image %d: %w", i, err)
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

// image makes one image, its SBOM and scan report as blobs of its repository, its
// signature and its provenance, as cosign's tags.
func (s *imageSet) image(ctx context.Context, i int) (string, error) {
	repository := fmt.Sprintf("apps/app-%03d", i)
	layer := static.NewLayer(fmt.Appendf(nil, "image %d", i), types.OCILayer)
	labels := map[string]string{"name": repository, "vcs-ref": commit, "vendor": "Example", "architecture": "amd64"}
	ref, err := s.push(ctx, repository, "latest", layer, nil, labels)
	if err != nil {
		return "", err
	}
	digest := ref[len(s.registry)+1+len(repository)+1:]
	a := &artifactsOf{repository: s.registry + "/" + repository, digest: digest, bundles: s.bundles}
	sbom, err := sbomOf(a.repository, digest)
	if err != nil {
		return "", err
	}
	if a.sbom, err = s.blob(ctx, a.repository, sbom, "text/spdx+json"); err != nil {
		return "", err
	}
	report, err := clairReport(digest)
	if err != nil {
		return "", err
	}
	if a.report, err = s.blob(ctx, a.repository, report, "application/vnd.redhat.clair-report+json"); err != nil {
		return "", err
	}
	raw, err := statement(a)
	if err != nil {
		return "", err
	}
	env, err := attest.Statement(ctx, s.key, raw)
	if err != nil {
		return "", err
	}
	att, err := json.Marshal(env)
	if err != nil {
		return "", err
	}
	tag := "sha256-" + digest[len("sha256:"):]
	if _, err := s.push(ctx, repository, tag+".att", static.NewLayer(att, api.MediaTypeDSSE), map[string]string{"predicateType": "https://slsa.dev/provenance/v0.2", "dev.cosignproject.cosign/signature": ""}, nil); err != nil {
		return "", err
	}
	sig, err := attest.Image(ctx, s.key, a.repository, digest)
	if err != nil {
		return "", err
	}
	_, err = s.push(ctx, repository, tag+".sig", static.NewLayer(sig.Payload, simplesigning.MediaType), map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig.Sig)}, nil)
	return ref, err
}

// push makes an image of one layer and returns repository@digest.
func (s *imageSet) push(ctx context.Context, repository, tag string, layer v1.Layer, annotations, labels map[string]string) (string, error) {
	t, err := name.NewTag(s.registry + "/" + repository + ":" + tag)
	if err != nil {
		return "", err
	}
	img, err := mutate.Append(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), mutate.Addendum{Layer: layer, Annotations: annotations})
	if err == nil && labels != nil {
		img, err = mutate.Config(img, v1.Config{Labels: labels})
	}
	if err != nil {
		return "", err
	}
	if err := s.pusher.Push(ctx, t, img); err != nil {
		return "", err
	}
	d, err := img.Digest()
	return t.Context().Name() + "@" + d.String(), err
}

// blob puts bytes that no manifest names.
func (s *imageSet) blob(ctx context.Context, repository string, raw []byte, mediaType types.MediaType) (string, error) {
	repo, err := name.NewRepository(repository)
	if err != nil {
		return "", err
	}
	layer := static.NewLayer(bytes.Clone(raw), mediaType)
	if err := s.pusher.Upload(ctx, repo, layer); err != nil {
		return "", err
	}
	d, err := layer.Digest()
	return repository + "@" + d.String(), err
}
