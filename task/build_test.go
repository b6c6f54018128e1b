package task_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestFailedBuildLeavesNoImage(t *testing.T) {
	proxy, sums := goProxy(t)
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	write(t, filepath.Join(source, "go.mod"), appMod)
	write(t, filepath.Join(source, "go.sum"), sums)
	write(t, filepath.Join(source, "main.go"), "package main\n\nimport \"example.com/dep\"\n\nfunc main() { println(dep.Word()) }\n")
	modules := filepath.Join(dir, "modules")
	goroot := goEnv(t, "GOROOT")
	newStep(t).run(0, "prefetch", "--input=gomod", "--goproxy="+proxy, "--goroot="+goroot, "--source="+source, "--output="+modules, "--work="+filepath.Join(dir, "work"))
	zipFile := filepath.Join(modules, "deps/gomod/pkg/mod/cache/download/example.com/dep/@v/v1.0.0.zip")
	for name, c := range map[string]struct {
		edit func()
		args []string
		says string
	}{
		"modules that were edited": {edit: func() {
			zipModule(t, zipFile, map[string]string{"go.mod": "module example.com/dep\n\ngo 1.21\n", "dep.go": "package dep\n\nfunc Word() string { return \"back door\" }\n"})
		}, says: "but go.sum pins"},
		"no modules":               {args: []string{"--modules=" + filepath.Join(dir, "none")}, says: "go build"},
		"platform of another os":   {args: []string{"--platform=windows/amd64"}, says: "only linux"},
		"platform nobody has":      {args: []string{"--platform=linux/vax"}, says: "vax"},
		"package that is a flag":   {args: []string{"--package=-toolexec=/bin/false"}, says: "not an import path"},
		"package that is outside":  {args: []string{"--package=../x"}, says: "leaves the source"},
		"package that is a file":   {args: []string{"--package=./main.go"}, says: "not an import path"},
		"several packages":         {args: []string{"--package=./..."}, says: "pattern"},
		"context outside":          {args: []string{"--context=.."}, says: "not a folder inside"},
		"context without go.mod":   {args: []string{"--context=sub"}, says: "no go.mod"},
		"url with a password":      {args: []string{"--source-url=http://u:secret@x/"}, says: "credentials"},
		"time that is no number":   {args: []string{"--source-date-epoch=today"}, says: "seconds since 1970"},
		"image without a registry": {args: []string{"--image=app"}, says: "registry"},
	} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "image")
			args := append([]string{"build-go-image", "--results=" + t.TempDir(), "--image=localhost:1/x", "--platform=linux/amd64", "--package=.", "--goroot=" + goroot,
				"--source=" + source, "--modules=" + modules, "--output=" + out, "--work=" + filepath.Join(dir, "work")}, c.args...)
			if c.edit != nil {
				kept := read(t, zipFile)
				c.edit()
				defer write(t, zipFile, kept)
			}
			cmd := exec.Command(program, args...)
			said, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("built:\n%s", said)
			}
			if !strings.Contains(string(said), c.says) || strings.Contains(string(said), "secret") {
				t.Errorf("it says %s", said)
			}
			if _, err := os.Stat(filepath.Join(out, "index.json")); err == nil {
				t.Error("there is an image all the same")
			}
		})
	}
}
