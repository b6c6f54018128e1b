package cli_test

import (
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"assay.dev/assay/api"
	"assay.dev/assay/store/storetest"
)

// TestDownloadUnread: one attestation that cannot be read does not hide the others, and
// is not passed over in silence. The registry is a real one (olareg) on loopback.
func TestDownloadUnread(t *testing.T) {
	r := newGateRig(t)
	image := r.image("download/some", true)
	ref, err := name.ParseReference(strings.Replace(image.Ref(), "@sha256:", ":sha256-", 1) + ".att")
	if err != nil {
		t.Fatal(err)
	}
	att, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	broken := []byte(`{"payloadType":`)
	push := func(of mutate.Addendum) {
		t.Helper()
		img, err := mutate.Append(att, of)
		if err == nil {
			err = remote.Write(ref, img)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	bad := mutate.Addendum{Layer: static.NewLayer(broken, types.MediaType(api.MediaTypeDSSE)), MediaType: types.MediaType(api.MediaTypeDSSE)}
	push(bad)
	digest := storetest.Digest(broken)
	for _, args := range [][]string{{}, {"--all"}, {"--output", "json"}} {
		code, out, errout := r.bare(append([]string{"download", "attestation", image.Ref()}, args...)...)
		if code != 1 || strings.Count(out, `"payloadType"`) != 1 || strings.Count(errout, "reading "+digest) != 1 {
			t.Errorf("%v: %d\n%s\n%s", args, code, out, errout)
		}
	}
	att = mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	push(bad)
	if code, out, errout := r.bare("download", "attestation", image.Ref()); code != 1 || out != "" || !strings.Contains(errout, digest) {
		t.Errorf("nothing else there: %d\n%s\n%s", code, out, errout)
	}
}
