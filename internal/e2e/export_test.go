package e2e_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"assay.dev/assay/ledger"
)

// TestRegistryFailsMidway lets the registry answer 500 in the middle of an
// executor's export: its folder for staging is a file system with room for the
// first output and not for the second, which it finds out while the bytes arrive.
func TestRegistryFailsMidway(t *testing.T) {
	r := newRig(t)
	two := task{
		name: "make", results: []string{"SMALL_ARTIFACT", "BIG_ARTIFACT"},
		outputs: "artifact SMALL_ARTIFACT=/var/workdir/small\nartifact BIG_ARTIFACT=/var/workdir/big",
		script: `mkdir /var/workdir/small /var/workdir/big
echo small > /var/workdir/small/file
head -c 6000000 /dev/urandom > /var/workdir/big/file
`,
	}
	use := task{
		name: "use", network: "none", declared: []string{"IN"}, inputs: "IN=/var/workdir/in",
		params: map[string]any{"IN": "$(tasks.make.results.BIG_ARTIFACT)"},
		script: "test $(wc -c < /var/workdir/in/file) = 6000000 && echo the big one arrived\n",
	}
	staging := filepath.Join(r.Home, "registry", "staging")
	registry, err := os.Stat(filepath.Join(r.Home, "registry"))
	must(t, err)
	owner := registry.Sys().(*syscall.Stat_t)
	must(t, os.MkdirAll(staging, 0o755))
	own := func() {
		must(t, os.Chown(staging, int(owner.Uid), int(owner.Gid)))
		must(t, os.Chmod(staging, registry.Mode().Perm()))
	}
	own()
	must(t, syscall.Mount("tmpfs", staging, "tmpfs", 0, "size=2m"))
	mounted := true
	t.Cleanup(func() {
		if mounted {
			syscall.Unmount(staging, syscall.MNT_DETACH) //nolint:errcheck // best effort
		}
	})
	own()

	bad := r.run(nil, two, use)
	if bad.Code != 1 || bad.Succeeded || bad.Stated != nil {
		t.Errorf("exit %d, succeeded %t, stated %+v", bad.Code, bad.Succeeded, bad.Stated)
	}
	for _, part := range []string{"BIG_ARTIFACT", "500"} {
		if !strings.Contains(bad.Message+bad.Stderr, part) {
			t.Errorf("it does not say %q: %s\n%s", part, bad.Message, bad.Stderr)
		}
	}
	if strings.Contains(bad.Stderr, "the big one arrived") {
		t.Error("the next task ran with half an artifact")
	}
	// What is there of the big one is nobody's: no manifest names it, and the
	// room it took is free again.
	var left int64
	must(t, filepath.WalkDir(staging, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		st, err := d.Info()
		left += st.Size()
		return err
	}))
	if left > 1<<20 {
		t.Errorf("%d bytes of an output that failed are left in the registry", left)
	}
	list, err := ledger.List(filepath.Join(r.Home, "ledger"))
	must(t, err)
	for _, s := range list {
		if s.Run == bad.Run && s.Outcome != "failed" {
			t.Errorf("the ledger has it as %s", s.Outcome)
		}
	}
	must(t, syscall.Unmount(staging, 0))
	mounted = false

	if good := r.run(nil, two, use); good.Code != 0 || !strings.Contains(good.Stderr, "the big one arrived") {
		t.Errorf("with room again: exit %d %s\n%s", good.Code, good.Message, good.Stderr)
	}
	leftovers(t, r)
}
