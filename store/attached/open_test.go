package attached_test

import (
	"net/http"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/store"
	"assay.dev/assay/store/attached"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
)

func open(t *testing.T, rt http.RoundTripper, subject store.Subject) *oci.Store {
	t.Helper()
	repo, err := name.NewRepository(subject.Repo)
	if err != nil {
		t.Error(err)
	}
	return oci.New(repo, rt, oci.Options{})
}

// TestTree finds what an Assay stores itself, in both forms, with the key's owner
// named where the key is at hand; and what lies about its subject.
func TestTree(t *testing.T) {
	for name, referrers := range map[string]bool{"referrers": true, "tag": false} {
		t.Run(name, func(t *testing.T) {
			rt := storetest.Transport(storetest.Registry(t, referrers))
			image := storetest.PushImage(t, rt, "localhost:1", "a/b", "x")
			other := storetest.PushImage(t, rt, "localhost:1", "a/b", "y")
			s := open(t, rt, image)
			key := storetest.NewKey(t)
			if _, err := s.Put(t.Context(), image, storetest.Provenance(t, key, image, "p"), storetest.Signature(t, key, image), storetest.Observation(t, key, image, "r")); err != nil {
				t.Fatal(err)
			}
			// An envelope about another image, in this one's tag.
			env, err := storetest.Provenance(t, key, other, "o").Envelope.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.AttachLayers(t.Context(), image, ".att", oci.Layer{MediaType: "application/vnd.dsse.envelope.v1+json", Content: env, Annotations: map[string]string{"predicateType": "x"}}); err != nil {
				t.Fatal(err)
			}
			// An SBOM and its own SBOM: referrers of referrers are found.
			at, err := s.AttachReferrer(t.Context(), image, oci.Referrer{ArtifactType: attached.MediaTypeSPDX, MediaType: attached.MediaTypeSPDX, Content: []byte(`{"a":1}`)})
			if err != nil {
				t.Fatal(err)
			}
			sbom, err := s.Manifest(t.Context(), at.Digest)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.AttachReferrer(t.Context(), store.Subject{Repo: image.Repo, Digest: sbom.Digest, MediaType: sbom.MediaType, Size: sbom.Size}, oci.Referrer{ArtifactType: "text/plain", MediaType: "text/plain", Content: []byte(`b`)}); err != nil {
				t.Fatal(err)
			}
			root, err := attached.Tree(t.Context(), s, image.Digest, attached.TreeOptions{Keys: []attached.Key{{Name: "ours", Public: storetest.Public(t, key)}}})
			if err != nil {
				t.Fatal(err)
			}
			count := map[string]int{}
			var walk func(n *attached.Node)
			walk = func(n *attached.Node) {
				count[n.Kind]++
				for _, by := range n.By {
					if by.Verified && by.Key == "ours" {
						count["verified"]++
					}
				}
				if n.Problem != "" {
					count["problem"]++
				}
				for _, k := range n.Kids {
					walk(k)
				}
			}
			walk(root)
			want := map[string]int{attached.KindImage: 1, attached.KindTag: 2, attached.KindSignature: 2, attached.KindAttestation: 4, attached.KindSBOM: 1, attached.KindReferrer: 1, "verified": 5, "problem": 1}
			for k, n := range want {
				if count[k] != n {
					t.Errorf("%s: %d; want %d (%v)", k, count[k], n, count)
				}
			}
			if _, err := attached.Tree(t.Context(), s, image.Digest, attached.TreeOptions{MaxNodes: 3}); err == nil {
				t.Error("more than the bound was listed")
			}
		})
	}
}
