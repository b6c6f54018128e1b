package verify_test

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"assay.dev/assay/attest"
	"assay.dev/assay/store/storetest"
	"assay.dev/assay/verify"
)

// TestCosign passes evidence between Assay and the cosign binary that
// ASSAY_COSIGN names, both ways. Known to build and pass:
//
//	go install github.com/sigstore/cosign/v3/cmd/cosign@v3.1.2
//	go install github.com/sigstore/cosign/v2/cmd/cosign@v2.6.5
func TestCosign(t *testing.T) {
	cosign := os.Getenv("ASSAY_COSIGN")
	if cosign == "" {
		t.Skip("ASSAY_COSIGN names no cosign binary; go install github.com/sigstore/cosign/v3/cmd/cosign@v3.1.2 makes one")
	}
	dir := t.TempDir()
	run := func(t *testing.T, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), cosign, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "COSIGN_PASSWORD=s3cret", "HOME="+dir, "COSIGN_YES=true")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("cosign %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	v3 := strings.Contains(run(t, "version"), "v3.")
	insecure := []string{"--insecure-ignore-tlog=true", "--allow-insecure-registry=true"}
	if !v3 {
		// As soon as an image has any bundle, cosign 2.6 wants Sigstore's
		// trusted root, from the network or a file, even to verify with a key.
		// An empty one will do.
		root := filepath.Join(dir, "trusted_root.json")
		if err := os.WriteFile(root, []byte(`{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`), 0o644); err != nil {
			t.Fatal(err)
		}
		insecure = append(insecure, "--trusted-root="+root)
	}
	formats := []string{"false", "true"}

	registry := storetest.Registry(t, true)
	serve := func(h http.Handler) *httptest.Server {
		srv := httptest.NewUnstartedServer(h)
		srv.Config.ErrorLog = log.New(io.Discard, "", 0) // olareg answers twice to a blob in one request
		srv.Start()
		t.Cleanup(srv.Close)
		return srv
	}
	srv := serve(registry)
	// The same images without their referrers, so that tags must do.
	tagsOnly := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/referrers/") {
			w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
			_, _ = io.WriteString(w, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)
			return
		}
		registry.ServeHTTP(w, r)
	}))
	host := strings.TrimPrefix(srv.URL, "http://")
	newImage := func(t *testing.T, say string) *rig {
		rt := srv.Client().Transport
		return &rig{t, rt, storetest.PushImage(t, rt, host, "interop/"+say, say)}
	}

	for _, kind := range attest.Kinds() {
		t.Run("cosign verifies "+string(kind), func(t *testing.T) {
			key, err := attest.GenerateKey(kind)
			if err != nil {
				t.Fatal(err)
			}
			pub := filepath.Join(dir, string(kind)+".pub")
			if err := os.WriteFile(pub, key.PublicPEM(), 0o644); err != nil {
				t.Fatal(err)
			}
			r := newImage(t, string(kind))
			p := storetest.Provenance(t, key, r.subject, "interop")
			r.put(p, storetest.Signature(t, key, r.subject), observation(t, key, r.subject, "run", p))
			for _, bundle := range formats {
				format := "--new-bundle-format=" + bundle
				run(t, slices.Concat([]string{"verify", "--key", pub, format}, insecure, []string{r.subject.Ref()})...)
				out := run(t, slices.Concat([]string{"verify-attestation", "--key", pub, "--type", "slsaprovenance", format}, insecure, []string{r.subject.Ref()})...)
				if !strings.Contains(out, "payload") {
					t.Errorf("verify-attestation %s gave no payload:\n%s", format, out)
				}
			}
			old := strings.Replace(r.subject.Ref(), host, strings.TrimPrefix(tagsOnly.URL, "http://"), 1)
			run(t, slices.Concat([]string{"verify", "--key", pub, "--new-bundle-format=false"}, insecure, []string{old})...)
			run(t, slices.Concat([]string{"verify-attestation", "--key", pub, "--type", "slsaprovenance", "--new-bundle-format=false"}, insecure, []string{old})...)
			stranger := filepath.Join(dir, "stranger.pub")
			if err := os.WriteFile(stranger, storetest.NewKey(t).PublicPEM(), 0o644); err != nil {
				t.Fatal(err)
			}
			args := slices.Concat([]string{"verify", "--key", stranger}, insecure, []string{r.subject.Ref()})
			if err := exec.CommandContext(t.Context(), cosign, args...).Run(); err == nil {
				t.Error("cosign verified with a stranger's key; this test proves nothing")
			}
			out := run(t, "download", "attestation", "--allow-insecure-registry=true", r.subject.Ref())
			if !strings.Contains(out, `"payloadType":"application/vnd.in-toto+json"`) {
				t.Errorf("download attestation:\n%s", out)
			}
			out = run(t, "tree", "--allow-insecure-registry=true", r.subject.Ref())
			t.Logf("cosign tree:\n%s", out)
		})
	}

	t.Run("cosign signs, Assay verifies", func(t *testing.T) {
		run(t, "generate-key-pair")
		key, err := attest.LoadSigner(filepath.Join(dir, "cosign.key"), attest.StaticPassword([]byte("s3cret")))
		if err != nil {
			t.Fatal(err)
		}
		trusted, err := verify.LoadPublicKey(filepath.Join(dir, "cosign.pub"))
		if err != nil {
			t.Fatal(err)
		}
		predicate := filepath.Join(dir, "predicate.json")
		if err := os.WriteFile(predicate, []byte(`{"builder":{"id":"https://example.com/b"},"buildType":"x"}`), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, bundle := range formats {
			r := newImage(t, "theirs-"+bundle)
			flags := []string{"--key", "cosign.key", "--tlog-upload=false", "--allow-insecure-registry=true", "--new-bundle-format=" + bundle}
			if v3 {
				flags = append(flags, "--use-signing-config=false")
			}
			if !v3 && bundle == "true" {
				// cosign 2 signs images in the old form only.
				run(t, slices.Concat([]string{"sign"}, flags[:4], []string{r.subject.Ref()})...)
			} else {
				run(t, slices.Concat([]string{"sign"}, flags, []string{r.subject.Ref()})...)
			}
			run(t, slices.Concat([]string{"attest", "--type", "slsaprovenance", "--predicate", predicate}, flags, []string{r.subject.Ref()})...)
			e, err := verify.Image(t.Context(), r.subject.Ref(), verify.Options{Keys: []verify.Key{trusted}, Transport: r.rt})
			if err != nil {
				t.Fatalf("bundle format %s: %v", bundle, err)
			}
			if len(e.Signatures()) != 1 || len(e.Statements()) != 1 || len(e.Rejected()) != 0 {
				t.Errorf("bundle format %s: %d signatures, %d statements, rejected %+v", bundle, len(e.Signatures()), len(e.Statements()), e.Rejected())
			}
			// Ours beside theirs, and both still read both.
			r.put(storetest.Provenance(t, key, r.subject, "ours"), storetest.Signature(t, key, r.subject))
			e, err = verify.Image(t.Context(), r.subject.Ref(), verify.Options{Keys: []verify.Key{trusted}, Transport: r.rt})
			if err != nil || len(e.Statements()) != 2 {
				t.Errorf("bundle format %s, both: %v", bundle, err)
			}
			run(t, slices.Concat([]string{"verify", "--key", "cosign.pub", "--new-bundle-format=" + bundle}, insecure, []string{r.subject.Ref()})...)
			run(t, slices.Concat([]string{"verify-attestation", "--key", "cosign.pub", "--type", "slsaprovenance", "--new-bundle-format=" + bundle}, insecure, []string{r.subject.Ref()})...)
		}
	})

	t.Run("cosign uses our key file", func(t *testing.T) {
		key := storetest.NewKey(t)
		path := filepath.Join(dir, "ours.key")
		if err := key.WriteFiles(path, filepath.Join(dir, "ours.pub"), []byte("s3cret")); err != nil {
			t.Fatal(err)
		}
		if got := run(t, "public-key", "--key", path); !strings.Contains(got, string(key.PublicPEM())) {
			t.Errorf("cosign reads another public key from it:\n%s", got)
		}
	})
}
