package launch

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/internal/service"
)

func TestWorkspaces(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	hosts, bindings, err := workspaces(map[string]string{"src": dir + ":ro"}, false)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]service.HostFolder{"ws-src": {Path: dir, ReadOnly: true}}, hosts); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff([]binding{{Name: "src", Host: "ws-src"}}, bindings); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if _, bindings, err := workspaces(map[string]string{"tmp": ""}, true); err != nil || len(bindings) != 1 || bindings[0].Host != "" {
		t.Errorf("an empty one: %+v %v", bindings, err)
	}
	for _, bad := range []string{"/nonexistent", file} {
		_, _, err := workspaces(map[string]string{"src": bad}, false)
		var in *InputError
		if !errors.As(err, &in) || !strings.Contains(err.Error(), "workspace src") {
			t.Errorf("%s: error %v, want wrong input that names the workspace", bad, err)
		}
	}
}

func TestReachable(t *testing.T) {
	dir, err := os.MkdirTemp("", "assay-reach-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	inner := filepath.Join(dir, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		outer, inner os.FileMode
		ok           bool
	}{{0o755, 0o755, true}, {0o711, 0o755, true}, {0o700, 0o755, false}, {0o755, 0o711, false}, {0o755, 0o700, false}} {
		if err := errors.Join(os.Chmod(inner, tc.inner), os.Chmod(dir, tc.outer)); err != nil {
			t.Fatal(err)
		}
		err := reachable(inner)
		if os.Geteuid() != 0 && tc.outer&0o100 == 0 {
			continue
		}
		if (err == nil) != tc.ok {
			t.Errorf("%o/%o: %v", tc.outer, tc.inner, err)
		}
		if err != nil && !strings.Contains(err.Error(), "chmod o+rx") {
			t.Errorf("no remedy: %v", err)
		}
	}
}

func TestFill(t *testing.T) {
	refs := map[string]string{"image/task": "r/task@sha256:" + strings.Repeat("1", 64)}
	if _, err := fill([]byte("image: assay.dev/image/task"), nil); err == nil || !strings.Contains(err.Error(), "assay catalog push") {
		t.Errorf("without a catalog: %v", err)
	}
	if _, err := fill([]byte("image: assay.dev/image/nope"), refs); err == nil || !strings.Contains(err.Error(), "image/nope") {
		t.Errorf("an unknown name: %v", err)
	}
	got, err := fill([]byte("nothing to fill"), nil)
	if err != nil || string(got) != "nothing to fill" {
		t.Errorf("%q %v", got, err)
	}
	got, err = fill([]byte("image: assay.dev/image/task\n"), refs)
	if err != nil || !strings.Contains(string(got), "r/task@sha256:1") {
		t.Errorf("%q %v", got, err)
	}
}

// Messages speak of the files that the user named.
func TestUnstage(t *testing.T) {
	st := &staged{names: map[string]string{"/h/plan-1/0/a.yaml": "./a.yaml"}}
	if got := st.unstage("/h/plan-1/0/a.yaml: document 1"); got != "./a.yaml: document 1" {
		t.Error(got)
	}
}
