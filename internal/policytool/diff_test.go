package policytool_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/internal/gate"
	"assay.dev/assay/internal/gate/recording"
	"assay.dev/assay/internal/policytool"
	"assay.dev/assay/internal/registry"
	"assay.dev/assay/policy"
	"assay.dev/assay/policy/source"
	"assay.dev/assay/report"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
	"assay.dev/assay/verify"
)

// The registry of this test is a real one (olareg), in this process.
const registryName = "localhost:5055"

func rules(t *testing.T, body string) string {
	t.Helper()
	dir := t.TempDir()
	head := "package main\n\n# METADATA\n# custom:\n#   short_name: name\ndeny contains {\"code\": \"main.name\", \"msg\": \"no\"} if "
	if err := os.WriteFile(filepath.Join(dir, "main.rego"), []byte(head+body+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestDiff records a passing image and asks policies about it that ask a registry, too.
func TestDiff(t *testing.T) {
	ctx := t.Context()
	rt := registry.Route(registryName, storetest.Transport(storetest.Registry(t, true)), http.DefaultTransport)
	key := storetest.NewKey(t)
	s := storetest.PushImage(t, rt, registryName, "app/good", "good")
	n, err := name.NewRepository(s.Repo)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := oci.New(n, rt, oci.Options{}).Put(ctx, s, storetest.Signature(t, key, s), storetest.Provenance(t, key, s, "good")); err != nil {
		t.Fatal(err)
	}
	asks := rules(t, `not ec.oci.image_manifest(input.image.ref).schemaVersion == 2`)
	g := &gate.Gate{
		Keys: []verify.Key{{Name: "test.pub", Public: key.Public()}}, Transport: rt, Embedded: registryName,
		At: time.Now().UTC(), Context: policy.Context{Now: time.Now().UTC().Round(time.Second)},
	}
	dir := filepath.Join(t.TempDir(), "all", "one")
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	rec, err := recording.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	g.Tap = rec.Tap
	set, err := g.Functions()
	if err != nil {
		t.Fatal(err)
	}
	if g.Policy, err = rec.Policy(ctx, asks, policy.Options{Sources: source.Local{}, Builtins: set}); err != nil {
		t.Fatal(err)
	}
	snapshot, err := gate.References([]string{s.Repo + "@" + s.Digest})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := g.Stream(ctx, snapshot, func(report.Entry) error { return nil }); err != nil || got.Passed != 1 {
		t.Fatal(got, err)
	}
	trust, err := g.Trust()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rec.Close(recording.Case{Trust: *trust, Snapshot: snapshot, Embedded: registryName, Now: g.Context.Now}); err != nil {
		t.Fatal(err)
	}
	dirs, err := policytool.Recordings(filepath.Dir(dir))
	if err != nil || !cmp.Equal(dirs, []string{dir}) {
		t.Fatal(dirs, err)
	}
	load := func(path string) *policy.Policy {
		p, err := policy.Load(ctx, path, policy.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	old := load(asks)
	for _, c := range []struct {
		reason, body     string
		fails, unchecked int
	}{
		{reason: "the same, answered from the recording", body: `not ec.oci.image_manifest(input.image.ref).schemaVersion == 2`},
		{reason: "it would now fail", body: `input.image.ref`, fails: 1},
		{reason: "what was not recorded is not known", body: `not ec.oci.image_manifest(sprintf("%s-other:1", [split(input.image.ref, "@")[0]])).schemaVersion == 2`, unchecked: 1},
	} {
		t.Run(c.reason, func(t *testing.T) {
			d, err := policytool.Diff(ctx, old, load(rules(t, c.body)), dirs, policytool.DiffOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if d.Images != 1 || len(d.Fails) != c.fails || len(d.Passes) != 0 || len(d.Unchecked) != c.unchecked {
				t.Errorf("%+v", d)
			}
			if c.fails == 1 && !cmp.Equal(d.Fails[0].Codes, []string{"main.name"}) {
				t.Errorf("%+v", d.Fails)
			}
			var b strings.Builder
			if err := d.WriteText(&b); err != nil || c.fails == 1 && !strings.Contains(b.String(), "1 of 1 images would now fail") {
				t.Error(err, b.String())
			}
		})
	}
	back, err := policytool.Diff(ctx, load(rules(t, `input.image.ref`)), old, dirs, policytool.DiffOptions{})
	if err != nil || len(back.Passes) != 1 {
		t.Errorf("%+v, %v", back, err)
	}
}
