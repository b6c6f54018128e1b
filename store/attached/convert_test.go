package attached_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/store"
	"assay.dev/assay/store/attached"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
	"assay.dev/assay/verify"
)

// conformance finds the real bundles beside the repository.
func conformance(t *testing.T, pattern string) []string {
	t.Helper()
	root := filepath.Join("..", "..", "..", "shared", "conformance")
	if _, err := os.Stat(root); err != nil {
		t.Skipf("no conformance data: %v", err)
	}
	var out []string
	err := filepath.WalkDir(filepath.Join(root, pattern), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// trust believes everybody whom the public instance gave a certificate.
func trust(t *testing.T) verify.Options {
	t.Helper()
	in, err := verify.PublicGood()
	if err != nil {
		t.Fatal(err)
	}
	return verify.Options{
		Instances: []*verify.Instance{in}, Identities: []verify.CertificateIdentity{{SANRegexp: ".*", IssuerRegexp: ".*"}},
		At: time.Now(), WithoutSignature: true, WithoutProvenance: true, AnyOutcome: true,
	}
}

// TestRealBundles converts every bundle of a real release that verifies to a tag's
// layer and back: each form verifies, by the same signer.
func TestRealBundles(t *testing.T) {
	opts := trust(t)
	done, promised := 0, 0
	for _, path := range append(conformance(t, "sigstore/real-bundles"), conformance(t, "slsa-verifier")...) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		docs, err := attached.Documents(data)
		if err != nil {
			continue
		}
		for _, doc := range docs {
			b, err := bundle.Parse(doc)
			if err != nil || b.Envelope == nil || !b.Certificate {
				continue
			}
			s, err := intoto.Parse(b.Envelope.Payload)
			if err != nil || s.Subjects[0].Digest["sha256"] == "" {
				continue
			}
			digest := "sha256:" + s.Subjects[0].Digest["sha256"]
			a, err := verify.DigestArtifact(digest)
			if err != nil {
				t.Fatal(err)
			}
			by := func(form string, it store.Item) string {
				e, err := verify.Files(a, []store.Item{it}, opts)
				if err != nil {
					if form != "" {
						t.Errorf("%s: %s: %v", path, form, err)
					}
					return ""
				}
				return e.Statements()[0].Certificate.SAN
			}
			first := store.Item{Format: store.FormatBundle, MediaType: b.MediaType, Content: doc}
			signer := by("", first)
			if signer == "" {
				continue // of another instance, or tampered with
			}
			layer, notes, err := attached.Layer(first, digest)
			if err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}
			tag := store.Item{Format: store.FormatTag, MediaType: layer.MediaType, Annotations: layer.Annotations, Content: layer.Content}
			// Rekor 2 gives no promise, which is the one thing that tags have room for;
			// other readers than ours find no entry there then.
			if len(notes) == 0 {
				promised++
				if got := by("as a layer", tag); got != signer {
					t.Errorf("%s: as a layer by %q, was %q", path, got, signer)
				}
			}
			rs, _, err := attached.Bundles(tag, digest, nil)
			if err != nil || len(rs) != 1 {
				t.Errorf("%s: back: %d bundles, %v", path, len(rs), err)
				continue
			}
			again := store.Item{Format: store.FormatBundle, MediaType: rs[0].MediaType, Annotations: rs[0].Annotations, Content: rs[0].Content}
			if got := by("as a bundle again", again); got != signer {
				t.Errorf("%s: as a bundle again by %q, was %q", path, got, signer)
			}
			done++
		}
	}
	t.Logf("%d bundles, %d of them with a promise", done, promised)
	if done < 20 || promised < 10 {
		t.Errorf("only %d bundles, %d with a promise; this test proves little", done, promised)
	}
}

// TestRefusals: nothing is made whole that is not.
func TestRefusals(t *testing.T) {
	rt := storetest.Transport(storetest.Registry(t, true))
	image := storetest.PushImage(t, rt, "localhost:1", "a/b", "x")
	key, other := storetest.NewKey(t), storetest.NewKey(t)
	e := storetest.Provenance(t, key, image, "p")
	sig := storetest.Signature(t, key, image)
	elsewhere := storetest.Digest([]byte("elsewhere"))
	env, err := e.Envelope.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs := storetest.Public(t, key), storetest.Public(t, other)

	var wrong *attached.OtherImageError
	if _, _, err := attached.AttestationLayer(env, elsewhere, attached.Signer{}); !errors.As(err, &wrong) || wrong.Names[0] != image.Digest {
		t.Errorf("another image: %v", err)
	}
	if _, _, err := attached.AttestationLayer(env, image.Digest, attached.Signer{Key: &theirs}); err == nil {
		t.Error("a signature by another key was taken")
	}
	l, _, err := attached.AttestationLayer(env, image.Digest, attached.Signer{Key: &mine})
	if err != nil {
		t.Fatal(err)
	}
	item := store.Item{Format: store.FormatTag, MediaType: l.MediaType, Annotations: l.Annotations, Content: l.Content}
	if _, _, err := attached.Bundles(item, image.Digest, nil); err == nil || !strings.Contains(err.Error(), "--key") {
		t.Errorf("without a key: %v", err)
	}
	if _, _, err := attached.Bundles(item, image.Digest, []dsse.PublicKey{theirs}); err == nil {
		t.Error("a bundle was made for another key")
	}
	if _, _, err := attached.Bundles(item, elsewhere, []dsse.PublicKey{mine}); !errors.As(err, &wrong) {
		t.Errorf("a bundle about another image: %v", err)
	}
	// Two signatures are two bundles, and one whose key is not known is noted.
	both, err := e.Envelope.Verify(1, mine)
	if err != nil {
		t.Fatal(err)
	}
	second := storetest.Provenance(t, other, image, "p").Envelope.Signatures[0]
	two := &dsse.Envelope{PayloadType: e.Envelope.PayloadType, Payload: e.Envelope.Payload, Signatures: []dsse.Signature{both[0].Signature, second}}
	if item.Content, err = two.MarshalJSON(); err != nil {
		t.Fatal(err)
	}
	if rs, notes, err := attached.Bundles(item, image.Digest, []dsse.PublicKey{mine, theirs}); err != nil || len(rs) != 2 || len(notes) != 0 {
		t.Errorf("two signatures: %d bundles, %v, %v", len(rs), notes, err)
	}
	if rs, notes, err := attached.Bundles(item, image.Digest, []dsse.PublicKey{mine}); err != nil || len(rs) != 1 || len(notes) != 1 {
		t.Errorf("one of two signatures: %d bundles, %v, %v", len(rs), notes, err)
	}
	// Image signatures have no other form.
	simple := store.Item{Format: store.FormatTag, MediaType: "application/vnd.dev.cosign.simplesigning.v1+json", Content: sig.Simple.Payload}
	if _, _, err := attached.Bundles(simple, image.Digest, []dsse.PublicKey{mine}); !errors.Is(err, attached.ErrForm) {
		t.Errorf("a layer of .sig: %v", err)
	}
	b, err := bundle.Encode(sig.Envelope, mine, bundle.Material{})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := attached.Layer(store.Item{Format: store.FormatBundle, Content: b}, image.Digest); !errors.Is(err, attached.ErrForm) {
		t.Errorf("a bundle that signs an image: %v", err)
	}
	if _, err := attached.SignatureLayer(attached.ImageSignature{Payload: sig.Simple.Payload, Sig: sig.Simple.Sig}, image.Repo, elsewhere, attached.Signer{}); !errors.As(err, &wrong) {
		t.Errorf("a signature of another image: %v", err)
	}
	if _, err := attached.SignatureLayer(attached.ImageSignature{Payload: sig.Simple.Payload, Sig: sig.Simple.Sig}, image.Repo, image.Digest, attached.Signer{Key: &theirs}); err == nil {
		t.Error("a signature by another key was taken")
	}
}

func TestSBOM(t *testing.T) {
	image, other := storetest.Digest([]byte("image")), storetest.Digest([]byte("other"))
	hex := strings.TrimPrefix(image, "sha256:")
	spdx := func(root string) string {
		return `{"spdxVersion":"SPDX-2.3","relationships":[{"spdxElementId":"SPDXRef-DOCUMENT","relationshipType":"DESCRIBES","relatedSpdxElement":"r"}],"packages":[` + root + `,{"SPDXID":"x","name":"x","versionInfo":"` + other + `"}]}`
	}
	for name, tc := range map[string]struct {
		data string
		want string // "", unnamed, other or refused
	}{
		"SPDX, version":                {spdx(`{"SPDXID":"r","name":"a","versionInfo":"` + image + `"}`), ""},
		"SPDX, checksum":               {spdx(`{"SPDXID":"r","name":"a","checksums":[{"algorithm":"SHA256","checksumValue":"` + hex + `"}]}`), ""},
		"SPDX, package URL":            {spdx(`{"SPDXID":"r","name":"a","externalRefs":[{"referenceType":"purl","referenceLocator":"pkg:oci/a@sha256%3A` + hex + `"}]}`), ""},
		"SPDX, another image":          {spdx(`{"SPDXID":"r","name":"a","versionInfo":"` + other + `"}`), "other"},
		"SPDX, the image as a part":    {spdx(`{"SPDXID":"r","name":"a"},{"SPDXID":"b","name":"b","versionInfo":"` + image + `"}`), "unnamed"},
		"CycloneDX, version":           {`{"bomFormat":"CycloneDX","specVersion":"1.6","metadata":{"component":{"name":"a","version":"` + image + `"}}}`, ""},
		"CycloneDX, hash":              {`{"bomFormat":"CycloneDX","specVersion":"1.6","metadata":{"component":{"name":"a","hashes":[{"alg":"SHA-256","content":"` + hex + `"}]}}}`, ""},
		"CycloneDX, another":           {`{"bomFormat":"CycloneDX","specVersion":"1.6","metadata":{"component":{"name":"a@` + other + `"}}}`, "other"},
		"CycloneDX, nothing":           {`{"bomFormat":"CycloneDX","specVersion":"1.6"}`, "unnamed"},
		"SPDX twice, two digests":      {`{"spdxVersion":"SPDX-2.3","spdxVersion":"SPDX-2.2"}`, "refused"},
		"SPDX 3":                       {`{"@context":"x","@graph":[]}`, "refused"},
		"syft's own":                   {`{"schema":{"url":"https://raw.githubusercontent.com/anchore/syft/main/schema/json/schema-16.json"}}`, "refused"},
		"tag-value":                    {"SPDXVersion: SPDX-2.3\n", "refused"},
		"something else":               {`{}`, "refused"},
		"documentDescribes, an image":  {`{"spdxVersion":"SPDX-2.3","documentDescribes":["r"],"packages":[{"SPDXID":"r","name":"` + image + `"}]}`, ""},
		"documentDescribes of nothing": {`{"spdxVersion":"SPDX-2.3","documentDescribes":["z"],"packages":[{"SPDXID":"r","name":"` + image + `"}]}`, "unnamed"},
	} {
		l, err := attached.SBOMLayer([]byte(tc.data), image)
		var wrong *attached.OtherImageError
		got := ""
		switch {
		case errors.As(err, &wrong):
			got = "other"
		case errors.Is(err, attached.ErrUnnamed):
			got = "unnamed"
		case err != nil:
			got = "refused"
		case !attached.IsSBOM(l.MediaType):
			t.Errorf("%s: media type %q", name, l.MediaType)
		}
		if got != tc.want {
			t.Errorf("%s: %q (%v); want %q", name, got, err, tc.want)
		}
	}
}

// TestConcurrent: many writers of one tag lose nothing, in a registry that lets
// everybody overwrite everything.
func TestConcurrent(t *testing.T) {
	rt := storetest.Transport(storetest.Registry(t, true))
	image := storetest.PushImage(t, rt, "localhost:1", "a/b", "x")
	const n = 6
	errs := make(chan error, n)
	for i := range n {
		key := storetest.NewKey(t)
		env, err := storetest.Provenance(t, key, image, string(rune('a'+i))).Envelope.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		l, _, err := attached.AttestationLayer(env, image.Digest, attached.Signer{})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, err := open(t, rt, image).AttachLayers(t.Context(), image, ".att", l)
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	items, err := open(t, rt, image).List(t.Context(), image.Digest)
	if err != nil || len(items) != n {
		t.Errorf("%d layers of %d, %v", len(items), n, err)
	}
}

// FuzzRead: whatever a file holds, reading it ends, and nothing is taken for the image
// that does not name it.
func FuzzRead(f *testing.F) {
	image := storetest.Digest([]byte("image"))
	f.Add([]byte(`{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"sig":"AA=="}]}`))
	f.Add([]byte(`{"bomFormat":"CycloneDX","metadata":{"component":{"version":"` + image + `"}}}`))
	f.Add([]byte(`{"Base64Signature":"AA==","Payload":"e30=","Cert":{"Raw":"AA=="}}`))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 64<<10 {
			return
		}
		docs, _ := attached.Documents(data)
		for _, d := range docs {
			for _, it := range []store.Item{
				{Format: store.FormatTag, MediaType: "application/vnd.dsse.envelope.v1+json", Content: d, Annotations: map[string]string{oci.AnnotationLogEntry: string(data)}},
				{Format: store.FormatBundle, Content: d},
			} {
				if rs, _, err := attached.Bundles(it, image, nil); err == nil && len(rs) > 0 && !strings.Contains(string(data), "ertificate") && !strings.Contains(string(data), "cert") {
					t.Error("a bundle without a signer")
				}
				_, _, _ = attached.Layer(it, image)
			}
			_, _, _ = attached.AttestationLayer(d, image, attached.Signer{})
			_, _, _ = attached.BundleReferrer(d, image)
		}
		if l, err := attached.SBOMLayer(data, image); err == nil && !strings.Contains(string(l.Content), image[7:]) {
			t.Error("an SBOM that does not name the image was taken for its own")
		}
		if s, by, err := attached.ParseSignature(data); err == nil {
			_, _ = attached.SignatureLayer(s, "localhost/x", image, by)
		}
		_, _ = attached.ParseCertificates(data)
	})
}
