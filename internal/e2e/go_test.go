package e2e_test

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/mod/zip"

	"assay.dev/assay/internal/testrig"
)

// proxy makes a module proxy in a folder with one version of one module, and
// returns its go.sum.
func proxy(t *testing.T, dir, path, version, source string) string {
	t.Helper()
	mod := "module " + path + "\n\ngo 1.26\n"
	src := t.TempDir()
	must(t, os.WriteFile(filepath.Join(src, "go.mod"), []byte(mod), 0o644))
	must(t, os.WriteFile(filepath.Join(src, "lib.go"), []byte(source), 0o644))
	at := filepath.Join(dir, path, "@v")
	must(t, os.MkdirAll(at, 0o755))
	must(t, os.WriteFile(filepath.Join(at, version+".info"), []byte(fmt.Sprintf(`{"Version":%q,"Time":"2026-01-01T00:00:00Z"}`, version)), 0o644))
	must(t, os.WriteFile(filepath.Join(at, version+".mod"), []byte(mod), 0o644))
	must(t, os.WriteFile(filepath.Join(at, "list"), []byte(version+"\n"), 0o644))
	f, err := os.Create(filepath.Join(at, version+".zip"))
	must(t, err)
	must(t, zip.CreateFromDir(f, module.Version{Path: path, Version: version}, src))
	must(t, f.Close())
	h, err := dirhash.HashZip(f.Name(), dirhash.Hash1)
	must(t, err)
	// The go.mod's hash is that of a list with this one file.
	inner := sha256.Sum256([]byte(mod))
	outer := sha256.Sum256(fmt.Appendf(nil, "%x  go.mod\n", inner))
	return fmt.Sprintf("%s %s %s\n%s %s/go.mod h1:%s\n", path, version, h, path, version, base64.StdEncoding.EncodeToString(outer[:]))
}

// TestGoPipeline runs the built-in pipeline on a small Go program that needs one
// module, under the example policies as they are.
func TestGoPipeline(t *testing.T) {
	r := newRig(t)
	modules := t.TempDir()
	sums := proxy(t, modules, "example.com/words", "v1.2.3", "// Package words has one.\npackage words\n\nconst Hello = \"hello\"\n")
	more := proxy(t, modules, "example.com/zoo", "v1.0.0", "// Package zoo has one.\npackage zoo\n\nconst Hello = \"roar\"\n")
	r.serve(8081, modules)
	repos := t.TempDir()
	commit := r.repository(repos, "prog", map[string]string{
		"go.mod":  "module example.com/prog\n\ngo 1.26\n\nrequire (\n\texample.com/words v1.2.3\n\texample.com/zoo v1.0.0\n)\n",
		"go.sum":  sums + more,
		"main.go": "package main\n\nimport (\n\t\"example.com/words\"\n\t\"example.com/zoo\"\n)\n\nfunc main() { println(words.Hello, zoo.Hello) }\n",
	})
	addr, err := testrig.GitServer(t.Context(), repos)
	must(t, err)
	r.forwards = append(r.forwards, "8082="+addr)

	run := func(bundle string, more map[string]any) *built {
		t.Helper()
		params := map[string]any{
			"git-url": "http://localhost:8082/prog.git", "revision": "main", "output-image": stagingRepo,
			"go-proxy": "http://localhost:8081", "build-platforms": []string{"linux/amd64"}, "additional-tags": []string{"v1"},
		}
		maps.Copy(params, more)
		var list []any
		for _, n := range slices.Sorted(maps.Keys(params)) {
			list = append(list, param(n, params[n]))
		}
		return r.pipelineRun(map[string]any{
			"pipelineRef": map[string]any{"resolver": "bundles", "params": []any{
				param("name", bundle), param("bundle", r.refs["bundle/"+bundle]), param("kind", "pipeline"),
			}},
			"params": list,
		})
	}
	var list []trusted
	for _, ref := range r.Catalog.Tasks {
		list = append(list, trusted{ref, longAgo})
	}
	// The example policies, untouched but for the list of trusted tasks.
	policies := t.TempDir()
	must(t, os.CopyFS(policies, os.DirFS(filepath.Join(testrig.Root(), "examples", "policy"))))
	r.trust(t, filepath.Join(policies, "release", "trusted_tasks.json"), list)
	release, prototype := filepath.Join(policies, "release"), filepath.Join(policies, "prototype")

	good := run("build-go", nil).attested(t)

	t.Run("passes and is hermetic", func(t *testing.T) {
		v := r.passes(t, good.image, release)
		if n := len(v.Components); n != 2 {
			t.Errorf("%d images were judged, want the index and its one image", n)
		}
		for _, c := range v.Components {
			for _, q := range c.Assay.Questions {
				if want := map[string]string{"scanned": "no", "trusted_build": "yes", "untouched_source": "yes"}[q.Question]; q.Answer != want {
					t.Errorf("%s: %s is %s, want %s", c.ContainerImage, q.Question, q.Answer, want)
				}
			}
		}
	})
	t.Run("what users ask of the attestation", func(t *testing.T) {
		st := r.envelopes(t, good.image)
		if len(st) != 1 {
			t.Fatalf("%d statements", len(st))
		}
		predicate := st[0]["predicate"]
		var names []string
		var bundle any
		tasks, _ := at(predicate, "buildConfig", "tasks").([]any) //nolint:errcheck // fails below
		for _, k := range tasks {
			name, _ := at(k, "name").(string) //nolint:errcheck // empty then
			names = append(names, name)
			if name != "prefetch-dependencies" {
				continue
			}
			params, _ := at(k, "ref", "params").([]any) //nolint:errcheck // empty then
			for _, p := range params {
				if at(p, "name") == "bundle" {
					bundle = at(p, "value")
				}
			}
			if got := at(k, "invocation", "parameters", "GOPROXY"); got != "http://localhost:8081" {
				t.Errorf("prefetch-dependencies: GOPROXY is %v", got)
			}
		}
		slices.Sort(names)
		want := []string{"apply-tags", "build-image-index", "build-images", "clone-repository", "init", "prefetch-dependencies", "push-dockerfile", "sast-unicode-check", "show-sbom"}
		if diff := cmp.Diff(want, names); diff != "" {
			t.Errorf("tasks (-want +got):\n%s", diff)
		}
		if bundle != r.Catalog.Tasks["prefetch-dependencies-oci-ta"] {
			t.Errorf("prefetch-dependencies: bundle %v", bundle)
		}
		found := map[string]bool{}
		materials, _ := at(predicate, "materials").([]any) //nolint:errcheck // fails below
		for _, m := range materials {
			uri, _ := at(m, "uri").(string) //nolint:errcheck // empty then
			for what, want := range map[string]string{
				"commit": "git+http://localhost:8082/prog.git sha1:" + commit,
				"task":   "oci://" + strings.Replace(r.Catalog.Images["task"], "@sha256:", " sha256:", 1),
				"go":     "oci://" + strings.Replace(r.Catalog.Images["go"], "@sha256:", " sha256:", 1),
			} {
				for _, alg := range []string{"sha1", "sha256"} {
					hex, _ := at(m, "digest", alg).(string) //nolint:errcheck // empty then
					found[what] = found[what] || uri+" "+alg+":"+hex == want
				}
			}
		}
		if !found["commit"] || !found["task"] || !found["go"] {
			t.Errorf("materials: %v\n%v", found, materials)
		}
	})
	t.Run("the released index", func(t *testing.T) {
		dest := registryName + "/released/prog"
		out, errout, code := r.Run("release", good.image, "--key", r.key(), "--policy", release, "--to", dest, "--tag", "v1")
		if code != 0 {
			t.Fatalf("exit %d\n%s%s", code, out, errout)
		}
		v := r.passes(t, dest+":v1", release)
		if len(v.Components) != 2 || digestOf(v.Components[0].ContainerImage) != digestOf(good.image) {
			t.Errorf("at the destination: %+v", v.Components)
		}
	})
	t.Run("flags in a parameter", func(t *testing.T) {
		b := run("build-go", map[string]any{"package": "-toolexec=/bin/true"})
		// The built-in task takes no flag for a package; build.params, which would
		// refuse it too, has its control among those without a compiler.
		if b.Code != 1 || b.Succeeded || b.Stated != nil {
			t.Errorf("exit %d, succeeded %t, stated %+v", b.Code, b.Succeeded, b.Stated)
		}
	})
	t.Run("a module in another's place", func(t *testing.T) {
		edited := r.file("../../catalog/pipelines/build-go.yaml")
		edited = strings.Replace(edited, "  name: build-go\n", "  name: build-go-prefetch\n", 1)
		edited = strings.Replace(edited, "value: $(tasks.prefetch-dependencies.results.CACHI2_ARTIFACT)", "value: $(tasks.tidy.results.CACHI2_ARTIFACT)", 1)
		edited = strings.Replace(edited, "  - name: build-images\n", `  - name: tidy
    taskRef:
      resolver: bundles
      params:
      - {name: name, value: edit-prefetch}
      - {name: bundle, value: `+r.refs["bundle/edit-prefetch"]+`}
      - {name: kind, value: task}
    params:
    - name: EDIT
      value: EDITED
    - name: CACHI2_ARTIFACT
      value: $(tasks.prefetch-dependencies.results.CACHI2_ARTIFACT)
  - name: build-images
`, 1)
		r.bundle("build-go-prefetch", strings.Replace(edited, "EDITED", "module", 1))
		if b := run("build-go-prefetch", nil); b.Code != 1 || b.Succeeded || b.Stated != nil {
			t.Errorf("the build did not notice: exit %d %s", b.Code, b.Message)
		}
		r.bundle("build-go-prefetch", strings.Replace(edited, "EDITED", "extra", 1))
		b := run("build-go-prefetch", nil).attested(t)
		if digestOf(b.image) != digestOf(good.image) {
			t.Logf("a file that no build looks at changed the image")
		}
		r.refuses(t, b.image, prototype, "source.dependencies_untouched")
	})
	leftovers(t, r)
}
