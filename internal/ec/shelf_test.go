package ec_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"assay.dev/assay/attest"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/internal/testrig/sigstore"
	"assay.dev/assay/store/storetest"
)

// shelf is an image in a registry, and evidence to be hung on it.
type shelf struct {
	t      *testing.T
	tag    name.Tag
	digest v1.Hash
	desc   v1.Descriptor
	url    string
	layers map[string][]mutate.Addendum // by suffix
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	return stock(t, realRegistry(t), "app")
}

// realRegistry serves an OCI registry (olareg), and returns its address.
func realRegistry(t *testing.T) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(storetest.Registry(t, true))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // olareg answers twice to a blob in one request
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.URL
}

// stock puts an image on a registry.
func stock(t *testing.T, url, repo string) *shelf {
	t.Helper()
	tag, err := name.NewTag(strings.TrimPrefix(url, "http://") + "/" + repo + ":1")
	must(t, err)
	img, err := random.Image(64, 1)
	must(t, err)
	must(t, remote.Write(tag, img))
	d, err := remote.Head(tag)
	must(t, err)
	return &shelf{t, tag, d.Digest, *d, url, map[string][]mutate.Addendum{}}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// hang adds a layer to the tag that cosign keeps such things under.
func (s *shelf) hang(suffix, mediaType string, content []byte, annotations map[string]string) {
	s.t.Helper()
	s.layers[suffix] = append(s.layers[suffix], mutate.Addendum{Layer: static.NewLayer(content, types.MediaType(mediaType)), Annotations: annotations})
	img, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), s.layers[suffix]...)
	must(s.t, err)
	must(s.t, remote.Write(s.tag.Context().Tag(s.digest.Algorithm+"-"+s.digest.Hex+"."+suffix), img))
}

// refer hangs a bundle on the image as a referrer.
func (s *shelf) refer(bundle any) {
	s.t.Helper()
	raw, ok := bundle.([]byte)
	if !ok {
		var err error
		raw, err = json.Marshal(bundle)
		must(s.t, err)
	}
	const kind = "application/vnd.dev.sigstore.bundle.v0.3+json"
	l := static.NewLayer(raw, kind)
	config := static.NewLayer([]byte("{}"), "application/vnd.oci.empty.v1+json")
	for _, x := range []v1.Layer{l, config} {
		must(s.t, remote.WriteLayer(s.tag.Context(), x))
	}
	describe := func(l v1.Layer) map[string]any {
		h, err := l.Digest()
		must(s.t, err)
		n, err := l.Size()
		must(s.t, err)
		m, err := l.MediaType()
		must(s.t, err)
		return map[string]any{"mediaType": m, "digest": h.String(), "size": n}
	}
	m, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": types.OCIManifestSchema1, "artifactType": kind,
		"config": describe(config), "layers": []any{describe(l)},
		"subject": map[string]any{"mediaType": s.desc.MediaType, "digest": s.digest.String(), "size": s.desc.Size},
	})
	must(s.t, err)
	sum := sha256.Sum256(m)
	must(s.t, remote.Put(s.tag.Context().Digest("sha256:"+hex.EncodeToString(sum[:])), taggable(m)))
}

type taggable []byte

func (m taggable) RawManifest() ([]byte, error)      { return m, nil }
func (taggable) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// provenance is a statement about the image, of the whole form.
func (s *shelf) provenance(say string) []byte {
	return fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"app","digest":{"sha256":%q}}],"predicateType":"https://slsa.dev/provenance/v1",`+
		`"predicate":{"buildDefinition":{"buildType":"https://example.com/%s","externalParameters":{}},"runDetails":{"builder":{"id":"https://example.com/builder"}}}}`, s.digest.Hex, say)
}

func (s *shelf) claim() []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, s.tag.Context().Name(), s.digest)
}

// how a piece is signed and what comes with it.
type how struct {
	by       *sigstore.Signer
	key      *attest.Key // instead of by
	at       time.Time   // when it is logged; zero: a minute after the certificate
	unlogged bool        // nothing of a log comes with it
	hidden   bool        // with unlogged: the log does not have it either
	stamped  bool        // a timestamp comes with it
	payload  []byte      // default: what is right
	kind     string      // payload type, default: in-toto's
}

func (s *shelf) sign(h how, message []byte) (sig, signer []byte) {
	s.t.Helper()
	if h.key == nil {
		return h.by.Sign(s.t, message), h.by.PEM()
	}
	sig, err := h.key.Sign(s.t.Context(), message)
	must(s.t, err)
	return sig, h.key.PublicPEM()
}

func (h how) when(d *sigstore.Deployment) time.Time {
	if h.at.IsZero() {
		return d.Began.Add(2 * time.Minute)
	}
	return h.at
}

// signTag is a signature under the tag .sig.
func (s *shelf) signTag(d *sigstore.Deployment, h how) {
	s.t.Helper()
	claim := s.claim()
	if h.payload != nil {
		claim = h.payload
	}
	sig, signer := s.sign(h, claim)
	a := map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig)}
	if h.by != nil {
		a["dev.sigstore.cosign/certificate"] = string(signer)
		a["dev.sigstore.cosign/chain"] = string(d.RootsPEM())
	}
	if !h.hidden && d != nil {
		if e := d.LogMessage(claim, sig, signer, h.when(d)); !h.unlogged {
			a["dev.sigstore.cosign/bundle"] = e.Annotation()
		}
	}
	s.hang("sig", "application/vnd.dev.cosign.simplesigning.v1+json", claim, a)
}

func (s *shelf) envelope(h how) (env, payload, sig, signer []byte, kind string) {
	s.t.Helper()
	payload, kind = s.provenance("one"), "application/vnd.in-toto+json"
	if h.payload != nil {
		payload = h.payload
	}
	if h.kind != "" {
		kind = h.kind
	}
	sig, signer = s.sign(h, dsse.PAE(kind, payload))
	env, err := json.Marshal(map[string]any{"payloadType": kind, "payload": payload, "signatures": []any{map[string]any{"keyid": "", "sig": sig}}})
	must(s.t, err)
	return env, payload, sig, signer, kind
}

// attestTag is an attestation under the tag .att.
func (s *shelf) attestTag(d *sigstore.Deployment, h how) {
	s.t.Helper()
	env, payload, sig, signer, kind := s.envelope(h)
	a := map[string]string{"dev.cosignproject.cosign/signature": "", "predicateType": kind}
	if h.by != nil {
		a["dev.sigstore.cosign/certificate"] = string(signer)
		a["dev.sigstore.cosign/chain"] = string(d.RootsPEM())
	}
	if !h.hidden && d != nil {
		if e := d.LogEnvelope(env, payload, sig, signer, h.when(d)); !h.unlogged {
			a["dev.sigstore.cosign/bundle"] = e.Annotation()
		}
	}
	s.hang("att", "application/vnd.dsse.envelope.v1+json", env, a)
}

// attestBundle is an attestation as a bundle.
func (s *shelf) attestBundle(d *sigstore.Deployment, h how) {
	s.t.Helper()
	env, payload, sig, signer, _ := s.envelope(h)
	material := map[string]any{"tlogEntries": []any{}}
	if h.by != nil {
		material["certificate"] = map[string]any{"rawBytes": h.by.Certificate.Raw}
	} else {
		material["publicKey"] = map[string]any{"hint": "x"}
	}
	if !h.unlogged {
		material["tlogEntries"] = []any{d.LogEnvelope(env, payload, sig, signer, h.when(d)).Bundled()}
	}
	if h.stamped {
		material["timestampVerificationData"] = map[string]any{"rfc3161Timestamps": []any{map[string]any{"signedTimestamp": d.Timestamp(sig, h.when(d))}}}
	}
	s.refer(map[string]any{
		"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "verificationMaterial": material, "dsseEnvelope": json.RawMessage(env),
	})
}

// environment names a deployment's trust to a run as cosign's variables do.
func environment(t *testing.T, d *sigstore.Deployment) {
	t.Helper()
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CACHE_HOME", filepath.Join(home, "cache"))
	t.Setenv("TUF_ROOT", "")
	for v, raw := range map[string][]byte{"SIGSTORE_ROOT_FILE": d.RootsPEM(), "SIGSTORE_CT_LOG_PUBLIC_KEY_FILE": d.CTLogPEM(), "SIGSTORE_REKOR_PUBLIC_KEY": d.RekorPEM(), "SIGSTORE_TSA_CERTIFICATE_FILE": d.TSAPEM()} {
		path := filepath.Join(home, v)
		must(t, os.WriteFile(path, raw, 0o600))
		t.Setenv(v, path)
	}
}
