package gate_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"assay.dev/assay/internal/gate"
	"assay.dev/assay/policy"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
	"assay.dev/assay/verify"
)

const allows = `# METADATA
# title: Anything
# description: Passes whatever is verified.
# custom:
#   short_name: anything
package main

import rego.v1

# METADATA
# title: Nothing is wrong
# custom:
#   short_name: fine
#   failure_msg: it is wrong
deny contains result if {
	false
	result := {"code": "main.fine", "msg": "it is wrong"}
}
`

type rawIndex string

func (r rawIndex) RawManifest() ([]byte, error)        { return []byte(r), nil }
func (r rawIndex) MediaType() (types.MediaType, error) { return types.OCIImageIndex, nil }

// TestUnsignedMember: an index passes only with all its members, whoever signed the
// index itself; and what a registry answers for a member is the member.
func TestUnsignedMember(t *testing.T) {
	key := storetest.NewKey(t)
	file := filepath.Join(t.TempDir(), "policy.rego")
	if err := os.WriteFile(file, []byte(allows), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := policy.Load(t.Context(), filepath.Dir(file), policy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name                 string
		index, first, second bool // which is signed
		swap                 bool // the second is answered with the first's bytes
		passed               bool
	}{
		{"all are signed", true, true, true, false, true},
		{"a member is not", true, true, false, false, false},
		{"the index alone is", true, false, false, false, false},
		{"the first's bytes in the place of the second", true, true, true, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rt := http.RoundTripper(storetest.Transport(storetest.Registry(t, true)))
			a := storetest.PushImage(t, rt, "localhost:5055", "multi", "a")
			b := storetest.PushImage(t, rt, "localhost:5055", "multi", "b")
			repo, err := name.NewRepository(a.Repo)
			if err != nil {
				t.Fatal(err)
			}
			if a.Digest == b.Digest {
				t.Fatal("one image twice")
			}
			raw := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s,%s]}`, types.OCIImageIndex, entry(a, "amd64"), entry(b, "arm64"))
			if err := remote.Put(repo.Tag("multi"), rawIndex(raw), remote.WithTransport(rt)); err != nil {
				t.Fatal(err)
			}
			index := store.Subject{Repo: a.Repo, Digest: storetest.Digest([]byte(raw)), MediaType: string(types.OCIImageIndex), Size: int64(len(raw))}
			for s, signed := range map[store.Subject]bool{index: tc.index, a: tc.first, b: tc.second} {
				if !signed {
					continue
				}
				if _, err := oci.New(repo, rt, oci.Options{}).Put(t.Context(), s, storetest.Provenance(t, key, s, "x"), storetest.Signature(t, key, s)); err != nil {
					t.Fatal(err)
				}
			}
			if tc.swap {
				rt = instead{rt, "/manifests/" + b.Digest, "/manifests/" + a.Digest}
			}
			g := &gate.Gate{Keys: []verify.Key{{Name: "k", Public: key.Public()}}, Policy: p, Transport: rt, Embedded: "localhost:5055"}
			j, err := g.Judge(t.Context(), a.Repo+":multi")
			if passed := err == nil && j.Passed(); passed != tc.passed {
				t.Errorf("passed: %t (%v), want %t\n%+v", passed, err, tc.passed, j)
			}
		})
	}
}

func entry(s store.Subject, arch string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d,"platform":{"architecture":%q,"os":"linux"}}`, s.MediaType, s.Digest, s.Size, arch)
}

// instead asks for something else than what is asked for.
type instead struct {
	http.RoundTripper
	path, other string
}

func (i instead) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Path, i.path) {
		r = r.Clone(r.Context())
		r.URL.Path = strings.TrimSuffix(r.URL.Path, i.path) + i.other
	}
	return i.RoundTripper.RoundTrip(r)
}
