package e2e_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"assay.dev/assay/ledger"
)

const hello = `
apiVersion: tekton.dev/v1
kind: TaskRun
metadata: {generateName: hello-}
spec:
  taskSpec:
    steps:
    - name: greet
      image: assay.dev/image/task
      script: |
        #!/bin/sh
        echo hello from the step
`

// TestDamage injects failures from outside into real homes.
func TestDamage(t *testing.T) {
	r := newRig(t)
	file := r.Write("hello.yaml", hello)
	if res := r.RunFile(file); res.Code != 0 {
		t.Fatalf("before: %s", res.Stderr)
	}
	t.Run("an altered file of an unpacked layer", func(t *testing.T) {
		busybox := layerFile(t, r, "bin/busybox")
		before, err := os.ReadFile(busybox)
		must(t, err)
		must(t, os.WriteFile(busybox, []byte("#!/bin/sh\necho somebody else\n"), 0o755))
		res := r.RunFile(file)
		if res.Code != 0 || !strings.Contains(res.Stderr, "hello from the step") {
			t.Errorf("it was not mended: exit %d %s\n%s", res.Code, res.Message, res.Stderr)
		}
		after, err := os.ReadFile(layerFile(t, r, "bin/busybox"))
		must(t, err)
		if !slices.Equal(before, after) {
			t.Error("the altered file is still in the cache")
		}
	})
	t.Run("a truncated layer and a truncated blob", func(t *testing.T) {
		// The layer cannot be unpacked from the blob that is kept either; both are
		// fetched again.
		must(t, os.Truncate(layerFile(t, r, "bin/busybox"), 100))
		n := 0
		must(t, filepath.WalkDir(filepath.Join(r.Home, "cache", "blobs"), func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			n++
			return os.Truncate(p, 10)
		}))
		res := r.RunFile(file)
		if n == 0 || res.Code != 0 || !strings.Contains(res.Stderr, "hello from the step") {
			t.Errorf("%d blobs were truncated: exit %d %s\n%s", n, res.Code, res.Message, res.Stderr)
		}
	})
	t.Run("a layer that cannot be had again", func(t *testing.T) {
		// Cache and registry are both damaged: there is nothing to run.
		must(t, os.Truncate(layerFile(t, r, "bin/busybox"), 100))
		for _, dir := range []string{"cache/blobs", "registry/catalog/task/blobs"} {
			must(t, filepath.WalkDir(filepath.Join(r.Home, dir), func(p string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				if st, err := d.Info(); err != nil || st.Size() < 100_000 {
					return err // keep the manifests
				}
				return os.Truncate(p, 10)
			}))
		}
		res := r.RunFile(file)
		if res.Code != 1 || res.Succeeded || !strings.Contains(res.Message+res.Stderr, "layer") {
			t.Errorf("exit %d, succeeded %t: %s\n%s", res.Code, res.Succeeded, res.Message, res.Stderr)
		}
		if strings.Contains(res.Stderr, "hello from the step") {
			t.Error("the damaged image was run")
		}
	})
	leftovers(t, r)
}

// layerFile finds a file among the unpacked layers.
func layerFile(t *testing.T, r *rig, name string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(r.Home, "cache", "layers", "*", "*", "fs", name))
	must(t, err)
	if len(found) == 0 {
		found, err = filepath.Glob(filepath.Join(r.Home, "cache", "layers", "*", "fs", name))
		must(t, err)
	}
	if len(found) == 0 {
		t.Fatalf("no %s below %s/cache/layers", name, r.Home)
	}
	return found[0]
}

// TestDiskFull runs in a home on a file system that is full.
func TestDiskFull(t *testing.T) {
	r := newRig(t)
	file := r.Write("hello.yaml", hello)
	small := filepath.Join(filepath.Dir(r.Home), "small")
	must(t, os.Mkdir(small, 0o755))
	must(t, syscall.Mount("tmpfs", small, "tmpfs", 0, "size=1g,mode=755"))
	mounted := true
	t.Cleanup(func() {
		if mounted {
			syscall.Unmount(small, syscall.MNT_DETACH) //nolint:errcheck // best effort
		}
	})
	if out, err := exec.Command("cp", "-a", r.Home, small+"/home").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	home := r.Home
	r.Home = filepath.Join(small, "home")
	defer func() { r.Home = home }()
	filler := filepath.Join(small, "filler")
	for _, left := range []int64{0, 64 << 10, 4 << 20} {
		fill(t, filler, left)
		res := r.RunFile(file)
		if res.Code != 1 || res.Succeeded || res.Stated != nil {
			t.Errorf("with %d bytes left: exit %d, succeeded %t, stated %+v\n%s", left, res.Code, res.Succeeded, res.Stated, res.Stderr)
		}
		if !strings.Contains(res.Stderr+res.Message, "no space left") {
			t.Errorf("with %d bytes left it does not say that the disk is full: %s\n%s", left, res.Message, res.Stderr)
		}
		must(t, os.Remove(filler))
		// What was opened is recorded as soon as there is room for it.
	}
	if res := r.RunFile(file); res.Code != 0 {
		t.Errorf("with room again: exit %d %s\n%s", res.Code, res.Message, res.Stderr)
	}
	list, err := ledger.List(filepath.Join(r.Home, "ledger"))
	must(t, err)
	for _, s := range list {
		if s.Outcome == "" || s.Outcome == "open" {
			t.Errorf("run %s is still open: %+v", s.Run, s)
		}
	}
	leftovers(t, r)
	must(t, syscall.Unmount(small, 0))
	mounted = false
}

// fill writes zeros until no more than left bytes are free.
func fill(t *testing.T, file string, left int64) {
	t.Helper()
	var st syscall.Statfs_t
	must(t, syscall.Statfs(filepath.Dir(file), &st))
	f, err := os.Create(file)
	must(t, err)
	defer f.Close()
	must(t, syscall.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-left))
}
