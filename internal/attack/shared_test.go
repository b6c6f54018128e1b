package attack_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A folder that the user shares is written as its owner would, and cannot be
// used to leave a program behind that runs as its owner for others.
func TestSharedFolder(t *testing.T) {
	r := newRig(t)
	shared := func(owner int) string {
		dir := t.TempDir()
		for _, d := range []string{dir, filepath.Dir(dir)} {
			must(t, os.Chmod(d, 0o755))
		}
		must(t, os.WriteFile(filepath.Join(dir, "mine"), []byte("mine\n"), 0o644))
		must(t, os.WriteFile(filepath.Join(dir, "others"), []byte("others\n"), 0o600))
		must(t, os.Chown(filepath.Join(dir, "others"), 4321, 4321))
		must(t, os.Chown(filepath.Join(dir, "mine"), owner, owner))
		must(t, os.Chown(dir, owner, owner))
		return dir
	}
	for _, owner := range []int{0, 1500} {
		dir := shared(owner)
		k := task{
			spec: map[string]any{"workspaces": []any{map[string]any{"name": "shared"}}},
			steps: []string{`
				cd $(workspaces.shared.path)
				echo more >>mine && echo new >made && mkdir folder && echo wrote
				cat others && echo 'read a stranger'
				cp /bin/busybox program
				for mode in 4755 2755 6755; do chmod $mode program && echo "set $mode"; done
				chmod 2777 folder && echo 'set the folder'
				mkfifo -m 4644 pipe && echo 'made a set-id fifo'
				chmod 755 program && echo plain
			`},
		}
		o := r.run(t, k, "--workspace", "shared="+dir)
		o.has("wrote")
		o.has("plain")
		o.none(`read a stranger|set [2467]|set the folder|made a set-id`)
		err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			st, err := os.Lstat(p)
			if err != nil {
				return err
			}
			if st.Mode()&(os.ModeSetuid|os.ModeSetgid) != 0 {
				t.Errorf("owner %d: %s was left with mode %v", owner, p, st.Mode())
			}
			if uid := st.Sys().(*syscall.Stat_t).Uid; filepath.Base(p) != "others" && uid != uint32(owner) {
				t.Errorf("owner %d: %s belongs to %d", owner, p, uid)
			}
			return nil
		})
		must(t, err)
	}
}
