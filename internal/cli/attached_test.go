package cli_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/rogpeppe/go-internal/testscript"

	"assay.dev/assay/api"
	"assay.dev/assay/attest"
	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/internal/cli"
	"assay.dev/assay/internal/signer"
	"assay.dev/assay/store/storetest"
)

// TestMain lets scripts call assay as a command of this test's own binary.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"assay": func() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
		// The signer of verification summaries, a process of its own.
		"assay-observer": func() { os.Exit(signer.Main(context.Background(), os.Args[2:], os.Stdout, os.Stderr)) },
	})
}

// TestAttachedScripts runs testdata/attached/*.txtar against real registries (olareg):
// $REGISTRY knows referrers, $OLD is from before OCI 1.1.
//
// Commands: `push VAR PATH [PLATFORM…]` pushes an image, or an index, and keeps
// its reference by digest in $VAR and the digest in $VAR_DIGEST; `key NAME` writes
// NAME.pub; `attest FILE KEY VAR TYPE` signs an envelope, `bundled FILE KEY VAR TYPE` a
// bundle, `sign FILE KEY VAR` an image signature with FILE.payload; `fill FILE` puts
// variables into a file. $COSIGN is cosign where ASSAY_COSIGN names one: condition
// [cosign].
func TestAttachedScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "attached"),
		RequireExplicitExec: true,
		UpdateScripts:       *update,
		Setup: func(env *testscript.Env) error {
			for name, referrers := range map[string]bool{"REGISTRY": true, "OLD": false} {
				srv := httptest.NewUnstartedServer(storetest.NewRegistry(referrers))
				srv.Config.ErrorLog = log.New(io.Discard, "", 0) // olareg answers twice to a blob in one request
				srv.Start()
				env.Defer(srv.Close)
				env.Setenv(name, strings.TrimPrefix(srv.URL, "http://"))
			}
			env.Setenv("ASSAY_HOME", filepath.Join(env.WorkDir, "home"))
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("COSIGN", os.Getenv("ASSAY_COSIGN"))
			env.Setenv("COSIGN_PASSWORD", "s3cret")
			env.Setenv("COSIGN_YES", "true")
			env.Values["keys"] = map[string]*attest.Key{}
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond != "cosign" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			return os.Getenv("ASSAY_COSIGN") != "", nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"push": func(ts *testscript.TestScript, _ bool, args []string) {
				ref := push(ts, args[1], args[2:])
				ts.Setenv(args[0], ref)
				ts.Setenv(args[0]+"_DIGEST", ref[strings.Index(ref, "@")+1:])
			},
			"key": func(ts *testscript.TestScript, _ bool, args []string) {
				k, err := attest.GenerateKey(attest.ECDSAP256)
				ts.Check(err)
				ts.Value("keys").(map[string]*attest.Key)[args[0]] = k
				ts.Check(os.WriteFile(ts.MkAbs(args[0]+".pub"), k.PublicPEM(), 0o644))
			},
			"attest": func(ts *testscript.TestScript, _ bool, args []string) {
				b, err := json.Marshal(envelope(ts, args[1], args[2], args[3]))
				ts.Check(err)
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o644))
			},
			"bundled": func(ts *testscript.TestScript, _ bool, args []string) {
				k, err := dsse.NewPublicKey(ts.Value("keys").(map[string]*attest.Key)[args[1]].Public())
				ts.Check(err)
				b, err := bundle.New(envelope(ts, args[1], args[2], args[3]), k)
				ts.Check(err)
				data, err := json.Marshal(b)
				ts.Check(err)
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), append(data, 0x0a), 0o644))
			},
			"sign": func(ts *testscript.TestScript, _ bool, args []string) {
				repo, digest, _ := strings.Cut(ts.Getenv(args[2]), "@")
				s, err := attest.Image(context.Background(), ts.Value("keys").(map[string]*attest.Key)[args[1]], repo, digest)
				ts.Check(err)
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(base64.StdEncoding.EncodeToString(s.Sig)), 0o644))
				ts.Check(os.WriteFile(ts.MkAbs(args[0]+".payload"), s.Payload, 0o644))
			},
			"fill": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(os.Expand(ts.ReadFile(args[0]), ts.Getenv)), 0o644))
			},
		},
	})
}

// push puts an empty image, or an index of one for each platform, at a path.
func push(ts *testscript.TestScript, path string, platforms []string) string {
	ref, err := name.ParseReference(path)
	ts.Check(err)
	image := func(say string) v1.Image {
		img, err := mutate.Config(mutate.MediaType(empty.Image, "application/vnd.oci.image.manifest.v1+json"), v1.Config{Labels: map[string]string{"say": path + say}})
		ts.Check(err)
		return mutate.ConfigMediaType(img, "application/vnd.oci.image.config.v1+json")
	}
	if len(platforms) == 0 {
		img := image("")
		ts.Check(remote.Write(ref, img))
		d, err := img.Digest()
		ts.Check(err)
		return ref.Context().Digest(d.String()).String()
	}
	idx := mutate.IndexMediaType(empty.Index, "application/vnd.oci.image.index.v1+json")
	for _, p := range platforms {
		platform, err := v1.ParsePlatform(p)
		ts.Check(err)
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: image(p), Descriptor: v1.Descriptor{Platform: platform}})
	}
	ts.Check(remote.WriteIndex(ref, idx))
	d, err := idx.Digest()
	ts.Check(err)
	return ref.Context().Digest(d.String()).String()
}

// envelope signs a small statement about the image in a variable.
func envelope(ts *testscript.TestScript, key, variable, predicateType string) *dsse.Envelope {
	_, digest, _ := strings.Cut(ts.Getenv(variable), "@sha256:")
	payload := fmt.Sprintf(`{"_type":%q,"predicateType":%q,"subject":[{"name":"x","digest":{"sha256":%q}}],"predicate":{"builder":{"id":"https://example.com/b"},"buildType":"x"}}`,
		api.StatementV01, predicateType, digest)
	env, err := attest.Statement(context.Background(), ts.Value("keys").(map[string]*attest.Key)[key], []byte(payload))
	ts.Check(err)
	return env
}
