package registry

import (
	"path"
	"strings"
	"testing"
)

// FuzzParse checks what authorization rests on: a repository is part of the
// path as it was sent, and has no element that leads elsewhere.
func FuzzParse(f *testing.F) {
	for _, p := range []string{
		"/v2/", "/v2/staging/r/manifests/v1", "/v2/staging/r/blobs/uploads/", "/v2/staging/r/blobs/uploads/id",
		"/v2/staging/r/../x/manifests/v1", "/v2/a/blobs/uploads/manifests/x", "/v2//a/tags/list", "/v2/a/referrers/sha256:0",
	} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p string) {
		if len(p) > 4096 {
			return
		}
		got, ok := parse(p)
		if !ok || got.op == opOther || got.op == opPing {
			return
		}
		if path.Clean("/"+got.repo) != "/"+got.repo || !strings.HasPrefix(p, "/v2/"+got.repo+"/") {
			t.Fatalf("%q has repository %q", p, got.repo)
		}
	})
}
