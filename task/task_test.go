package task_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/olareg/olareg"
	"github.com/olareg/olareg/config"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"
	orasremote "oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"

	"assay.dev/assay/sbom"
)

// program is assay-task, built once for all tests of this package.
var program string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "assay-task-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "assay-task")
	cmd := exec.Command("go", "build", "-o", program, "assay.dev/assay/cmd/assay-task")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building assay-task: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// step runs one command of assay-task as a process, with an environment that
// would change the outcome if anything of it were listened to.
type step struct {
	t       *testing.T
	results string
	env     []string
}

func newStep(t *testing.T, env ...string) *step {
	return &step{t: t, results: t.TempDir(), env: append([]string{
		"PATH=/nowhere", "GOFLAGS=-toolexec=/bin/false", "GOPROXY=http://192.0.2.1", "GOROOT=/nowhere", "GOTOOLCHAIN=go1.99",
	}, env...)}
}

func (s *step) run(want int, args ...string) string {
	s.t.Helper()
	// Flags have to precede positional arguments.
	cmd := exec.Command(program, append([]string{args[0], "--results=" + s.results}, args[1:]...)...)
	if args[0] == "apply-tags" || args[0] == "show-sbom" {
		cmd = exec.Command(program, args...)
	}
	cmd.Env = s.env
	cmd.Dir = s.t.TempDir()
	out, err := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != want {
		s.t.Fatalf("assay-task %s: exit code %d, want %d (%v)\n%s", strings.Join(args, " "), got, want, err, out)
	}
	return string(out)
}

func (s *step) result(name string) string {
	s.t.Helper()
	data, err := os.ReadFile(filepath.Join(s.results, name))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(data)
}

func write(t *testing.T, path, s string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(s), 0o644); err != nil {
		t.Fatal(err)
	}
}

func goEnv(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("go", "env", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// serve makes a git repository of files and serves it over http.
func serve(t *testing.T, files map[string]string) (url, commit string) {
	t.Helper()
	core, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Skipf("no git on this machine, which serves the source of this test: %v", err)
	}
	root := t.TempDir()
	for name, s := range files {
		write(t, filepath.Join(root, "app", name), s)
	}
	git := func(args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Dir = filepath.Join(root, "app")
		cmd.Env = append(os.Environ(), "HOME="+root, "GIT_CONFIG_NOSYSTEM=1",
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_AUTHOR_DATE=2024-01-02T03:04:05Z",
			"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com", "GIT_COMMITTER_DATE=2024-01-02T03:04:05Z")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "-q", "-b", "main")
	git("add", "-A")
	git("commit", "-q", "-m", "first")
	srv := httptest.NewServer(&cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(core)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + root},
	})
	t.Cleanup(srv.Close)
	return srv.URL + "/app/.git", git("rev-parse", "HEAD")
}

// staging is a registry in memory that wants a login, and the folder of the
// docker configuration that has it.
func staging(t *testing.T) (repo, dockerConfig string) {
	t.Helper()
	reg := olareg.New(config.Config{Storage: config.ConfigStorage{StoreType: config.StoreMem}})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "run" || p != "token" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		reg.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { srv.Close(); _ = reg.Close() })
	host := strings.TrimPrefix(srv.URL, "http://")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "config.json"), `{"auths":{"`+host+`":{"auth":"`+base64.StdEncoding.EncodeToString([]byte("run:token"))+`"}}}`)
	return host + "/staging/run", dir
}

func open(t *testing.T, name string) *orasremote.Repository {
	t.Helper()
	repo, err := orasremote.NewRepository(name)
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP = true
	repo.Client = &auth.Client{Credential: auth.StaticCredential(repo.Reference.Host(), auth.Credential{Username: "run", Password: "token"})}
	return repo
}

// export does what the executor does with an image output.
func export(t *testing.T, dir, name string) (image digest.Digest) {
	t.Helper()
	ctx := context.Background()
	data, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		t.Fatal(err)
	}
	store, err := oci.NewFromFS(ctx, os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	repo := open(t, name)
	for _, m := range index.Manifests {
		if err := oras.CopyGraph(ctx, store, repo, m, oras.DefaultCopyGraphOptions); err != nil {
			t.Fatal(err)
		}
	}
	return index.Manifests[0].Digest
}

// goProxy is a module proxy with one module, and its go.sum lines.
func goProxy(t *testing.T) (url, sums string) {
	t.Helper()
	dir := t.TempDir()
	const mod = "module example.com/dep\n\ngo 1.21\n"
	v := filepath.Join(dir, "example.com/dep/@v")
	write(t, filepath.Join(v, "v1.0.0.info"), `{"Version":"v1.0.0"}`)
	write(t, filepath.Join(v, "v1.0.0.mod"), mod)
	zipModule(t, filepath.Join(v, "v1.0.0.zip"), map[string]string{
		"go.mod": mod, "dep.go": "package dep\n\nfunc Word() string { return \"from a module\" }\n",
	})
	// The go command itself says what go.sum should hold.
	app := t.TempDir()
	write(t, filepath.Join(app, "go.mod"), appMod)
	cmd := exec.Command("go", "mod", "download", "example.com/dep@v1.0.0")
	cmd.Dir = app
	cmd.Env = append(os.Environ(), "GOPROXY=file://"+dir, "GOSUMDB=off", "GOFLAGS=-mod=mod -modcacherw", "GOMODCACHE="+t.TempDir(), "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go mod download: %v\n%s", err, out)
	}
	data, err := os.ReadFile(filepath.Join(app, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	return "file://" + dir, string(data)
}

const appMod = "module example.com/app\n\ngo 1.21\n\nrequire example.com/dep v1.0.0\n"

func TestFromCommitToIndex(t *testing.T) {
	proxy, sums := goProxy(t)
	git, commit := serve(t, map[string]string{
		"go.mod": appMod, "go.sum": sums,
		"cmd/hello/main.go": "package main\n\nimport \"example.com/dep\"\n\nfunc main() { println(dep.Word()) }\n",
		// Nothing of these may be used.
		"vendor/modules.txt": "# example.com/dep v1.0.0\n## explicit\nexample.com/dep\n", "vendor/example.com/dep/dep.go": "package dep\n\nfunc Word() string { return \"vendored\" }\n",
		"go.work": "go 1.21\n\nuse .\n",
	})
	repo, docker := staging(t)
	goroot := goEnv(t, "GOROOT")

	// once is the hermetic part of one run, from clone to image, in its own
	// folders; it returns the image layouts by platform.
	once := func(name string) (source string, clone *step, layouts map[string]string) {
		dir := filepath.Join(t.TempDir(), name)
		source, work := filepath.Join(dir, "source"), filepath.Join(dir, "work")
		clone = newStep(t)
		clone.run(0, "git-clone", "--url="+git, "--revision=main", "--basic-auth=", "--output="+source, "--commit="+filepath.Join(dir, "commit"), "--work="+work)
		modules := filepath.Join(dir, "cachi2")
		out := newStep(t).run(0, "prefetch", `--input={"type": "gomod", "path": "."}`, "--goproxy="+proxy, "--source-date-epoch="+clone.result("commit-timestamp"),
			"--goroot="+goroot, "--source="+source, "--output="+modules, "--work="+work)
		if !strings.Contains(out, "1 modules fetched") {
			t.Errorf("prefetch says %s", out)
		}
		layouts = map[string]string{}
		for _, platform := range []string{"linux/amd64", "linux/arm64"} {
			image := filepath.Join(dir, strings.ReplaceAll(platform, "/", "-"))
			s := newStep(t)
			s.run(0, "build-go-image", "--image="+repo, "--platform="+platform, "--package=./cmd/hello", "--commit-sha="+commit, "--source-url="+git,
				"--source-date-epoch="+clone.result("commit-timestamp"), "--goroot="+goroot, "--source="+source, "--modules="+modules, "--output="+image, "--work="+work, "--", "team=a")
			if !regexp.MustCompile(`^` + regexp.QuoteMeta(repo) + `@sha256:[0-9a-f]{64}$`).MatchString(s.result("SBOM_BLOB_URL")) {
				t.Errorf("SBOM_BLOB_URL is %s", s.result("SBOM_BLOB_URL"))
			}
			layouts[platform] = image
		}
		if left, _ := os.ReadDir(work); len(left) > 0 {
			t.Errorf("the work folder still holds %s", left[0].Name())
		}
		return source, clone, layouts
	}

	source, clone, layouts := once("one")
	for name, want := range map[string]string{
		"commit": commit, "short-commit": commit[:7], "url": git, "commit-timestamp": "1704164645",
		"CHAINS-GIT_URL": git, "CHAINS-GIT_COMMIT": commit,
	} {
		if got := clone.result(name); got != want {
			t.Errorf("result %s is %q, want %q", name, got, want)
		}
	}
	_, _, again := once("two-with-another-path")
	for platform, dir := range layouts {
		if diff := cmp.Diff(read(t, filepath.Join(dir, "index.json")), read(t, filepath.Join(again[platform], "index.json"))); diff != "" {
			t.Errorf("%s: a second build of the same commit differs:\n%s", platform, diff)
		}
	}
	if runtime.GOARCH == "amd64" {
		checkImage(t, layouts["linux/amd64"], commit, git)
	}

	arm, amd := export(t, layouts["linux/arm64"], repo), export(t, layouts["linux/amd64"], repo)
	index := newStep(t, "DOCKER_CONFIG="+docker)
	index.run(0, "build-image-index", "--image="+repo+":v1", "--commit-sha="+commit, "--source-date-epoch=1704164645", "--", repo+"@"+arm.String(), repo+"@"+amd.String())
	if got, want := index.result("IMAGES"), repo+"@"+amd.String()+","+repo+"@"+arm.String(); got != want {
		t.Errorf("IMAGES is %s, want %s", got, want)
	}
	top := index.result("IMAGE_DIGEST")
	if index.result("IMAGE_URL") != repo+":v1" || index.result("IMAGE_REF") != repo+":v1@"+top {
		t.Errorf("IMAGE_URL %s, IMAGE_REF %s", index.result("IMAGE_URL"), index.result("IMAGE_REF"))
	}

	newStep(t, "DOCKER_CONFIG="+docker).run(0, "apply-tags", "--image="+repo, "--digest="+top, "--", "latest", "", "latest", "v1.0")
	if d, err := open(t, repo).Resolve(context.Background(), "v1.0"); err != nil || d.Digest.String() != top {
		t.Errorf("tag v1.0 is %s, %v", d.Digest, err)
	}
	dockerfile := newStep(t, "DOCKER_CONFIG="+docker)
	dockerfile.run(0, "push-dockerfile", "--image="+repo, "--digest="+top, "--dockerfile=go.mod", "--source="+source)
	d, err := open(t, repo).Resolve(context.Background(), strings.Replace(top, ":", "-", 1)+".dockerfile")
	if err != nil || dockerfile.result("IMAGE_REF") != repo+"@"+d.Digest.String() {
		t.Errorf("IMAGE_REF is %s, the tag %s, %v", dockerfile.result("IMAGE_REF"), d.Digest, err)
	}
	shown := newStep(t, "DOCKER_CONFIG="+docker).run(0, "show-sbom", "--image="+repo, "--digest="+top)
	for _, want := range []string{"linux/amd64", "linux/arm64", "pkg:golang/example.com/dep@v1.0.0", "pkg:golang/stdlib@"} {
		if !strings.Contains(shown, want) {
			t.Errorf("show-sbom does not show %s:\n%s", want, shown)
		}
	}

	// Without the token nothing works.
	newStep(t).run(1, "apply-tags", "--image="+repo, "--digest="+top, "--", "x")
	newStep(t, "HOME="+t.TempDir()).run(1, "build-image-index", "--image="+repo, "--", repo+"@"+amd.String())
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// checkImage looks at a layout as a stranger would.
func checkImage(t *testing.T, dir, commit, url string) {
	t.Helper()
	blob := func(d digest.Digest) []byte {
		data := []byte(read(t, filepath.Join(dir, "blobs", "sha256", d.Encoded())))
		if digest.FromBytes(data) != d {
			t.Errorf("blob %s has other content", d)
		}
		return data
	}
	parse := func(data []byte, v any) {
		if err := json.Unmarshal(data, v); err != nil {
			t.Fatal(err)
		}
	}
	var index ocispec.Index
	parse([]byte(read(t, filepath.Join(dir, "index.json"))), &index)
	if len(index.Manifests) != 2 {
		t.Fatalf("%d manifests in the layout", len(index.Manifests))
	}
	var image, bill ocispec.Manifest
	parse(blob(index.Manifests[0].Digest), &image)
	parse(blob(index.Manifests[1].Digest), &bill)
	if bill.Subject == nil || bill.Subject.Digest != index.Manifests[0].Digest || bill.ArtifactType != "text/spdx+json" {
		t.Errorf("the bill's manifest is %+v", bill)
	}
	var config ocispec.Image
	parse(blob(image.Config.Digest), &config)
	want := map[string]string{"org.opencontainers.image.revision": commit, "org.opencontainers.image.source": url, "org.opencontainers.image.title": "hello", "team": "a"}
	if diff := cmp.Diff(want, config.Config.Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	if config.Created.Unix() != 1704164645 || config.Architecture != "amd64" || config.Config.User != "65532:65532" {
		t.Errorf("configuration %+v", config)
	}
	files := untar(t, blob(image.Layers[0].Digest), config.RootFS.DiffIDs[0])
	if diff := cmp.Diff([]string{"etc/", "etc/group", "etc/passwd", "tmp/", "usr/", "usr/bin/", "usr/bin/hello"}, files.names); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	// It runs, and is made of the pinned module, not of the vendored one.
	exe := filepath.Join(t.TempDir(), "hello")
	if err := os.WriteFile(exe, files.content["usr/bin/hello"], 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(exe).CombinedOutput(); err != nil || string(out) != "from a module\n" {
		t.Errorf("the program says %q, %v", out, err)
	}
	if bytes.Contains(files.content["usr/bin/hello"], []byte(t.TempDir()[:12])) {
		t.Error("the program holds a path of this machine")
	}
	doc, err := sbom.ReadSPDX(blob(bill.Layers[0].Digest))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, p := range doc.Packages {
		got[p.Name] = p.PURL
	}
	v := strings.TrimPrefix(strings.Fields(goEnv(t, "GOVERSION"))[0], "go")
	wantPkgs := map[string]string{
		"hello":           "pkg:oci/hello@" + index.Manifests[0].Digest.String() + "?arch=amd64",
		"example.com/app": "pkg:golang/example.com/app@" + commit,
		"example.com/dep": "pkg:golang/example.com/dep@v1.0.0",
		"stdlib":          "pkg:golang/stdlib@" + v,
	}
	if diff := cmp.Diff(wantPkgs, got); diff != "" {
		t.Errorf("packages (-want +got):\n%s", diff)
	}
}

func TestUnicodeCheckNeverFails(t *testing.T) {
	type output struct {
		Result                        string
		Timestamp                     string
		Successes, Failures, Warnings *int
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "clean/a.go"), "package a\n")
	write(t, filepath.Join(dir, "bad/a.go"), "package a // \u202e\u200b\n")
	write(t, filepath.Join(dir, "odd/a.go"), "package a // \u200b\n")
	for name, want := range map[string]string{"clean": "SUCCESS", "bad": "FAILURE", "odd": "WARNING", "gone": "ERROR"} {
		s := newStep(t)
		s.run(0, "sast-unicode-check", "--source="+filepath.Join(dir, name))
		var got output
		if err := json.Unmarshal([]byte(s.result("TEST_OUTPUT")), &got); err != nil {
			t.Fatal(err)
		}
		if got.Result != want || got.Timestamp == "" || got.Successes == nil || got.Failures == nil || got.Warnings == nil {
			t.Errorf("%s: TEST_OUTPUT is %s", name, s.result("TEST_OUTPUT"))
		}
	}
}

func TestInit(t *testing.T) {
	s := newStep(t, "HTTP_PROXY=http://proxy:3128", "NO_PROXY=localhost")
	s.run(0, "init", "--image=x")
	if s.result("http-proxy") != "" || s.result("no-proxy") != "" {
		t.Error("the proxy was passed on unasked")
	}
	s.run(0, "init", "--enable-cache-proxy=true")
	if s.result("http-proxy") != "http://proxy:3128" || s.result("no-proxy") != "localhost" {
		t.Errorf("proxy %q, none for %q", s.result("http-proxy"), s.result("no-proxy"))
	}
	newStep(t, "HTTP_PROXY=http://u:p@proxy:3128").run(1, "init", "--enable-cache-proxy=true")
	newStep(t).run(2, "init", "--enable-cache-proxy=maybe")
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"nope"}, {"init", "--nope"}, {"init", "x"}, {"git-clone"}, {"git-clone", "--url=http://localhost/x"}} {
		newStep(t).run(2, args...)
	}
	if out := newStep(t).run(0, "help"); !strings.Contains(out, "usage:") {
		t.Errorf("help says %q", out)
	}
}
