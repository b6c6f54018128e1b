package attack_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The users of runs: observer to the last step; see internal/home.
const (
	firstUser = 1_900_000_000
	lastUser  = firstUser + 2*65536
)

// clean asserts that nothing of this home is running, mounted or half-written.
// What was just killed gets a moment.
func (r *rig) clean(t *testing.T) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if left = r.leftovers(); len(left) == 0 {
			return
		}
	}
	t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
}

func (r *rig) leftovers() (left []string) {
	add := func(format string, a ...any) { left = append(left, fmt.Sprintf(format, a...)) }
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, filepath.Dir(r.Home)) {
			add("mount %s", strings.TrimSpace(line))
		}
	}
	for _, p := range r.processes() {
		add("process %s", p)
	}
	for _, pattern := range []string{"run/x-*", "run/plan-*", "cache/tmp/*", "runs/*.tmp", "public/*.tmp"} {
		list, _ := filepath.Glob(filepath.Join(r.Home, pattern))
		for _, p := range list {
			add("file %s", p)
		}
	}
	known := r.known()
	_ = filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // groups come and go
		}
		if name, ok := strings.CutPrefix(d.Name(), "assay-"); ok {
			if known[name] {
				add("cgroup %s", p)
			}
			return filepath.SkipDir
		}
		return nil
	})
	return left
}

func (r *rig) known() map[string]bool {
	out := map[string]bool{}
	_ = filepath.WalkDir(filepath.Join(r.Home, "ledger"), func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, _, _ := strings.Cut(d.Name(), ".")
			out[name] = true
		}
		return nil
	})
	return out
}

// process is one of this home's.
type process struct {
	pid  int
	uid  int
	args []string
	// parent is its parent's pid.
	parent int
}

func (p process) String() string { return fmt.Sprintf("%d (user %d): %q", p.pid, p.uid, p.args) }

// processes finds what runs for this home: by its binaries and their users, in
// the network or mount namespace of which nothing else of the machine runs.
// Other homes' runs may be under way on this machine at the same time, so a
// process counts when its environment, root or open files lead here, or when it
// descends from one that does.
func (r *rig) processes() (out []process) {
	all := map[int]process{}
	mine := map[int]bool{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		status, err := os.ReadFile(filepath.Join(d, "status"))
		if err != nil || pid == os.Getpid() {
			continue
		}
		p := process{pid: pid}
		for line := range strings.Lines(string(status)) {
			f := strings.Fields(line)
			if len(f) < 2 {
				continue
			}
			switch f[0] {
			case "Uid:":
				p.uid, _ = strconv.Atoi(f[1])
			case "PPid:":
				p.parent, _ = strconv.Atoi(f[1])
			case "State:":
				if f[1] == "Z" {
					p.uid = -1
				}
			}
		}
		if p.uid == -1 {
			continue
		}
		b, _ := os.ReadFile(filepath.Join(d, "cmdline"))
		p.args = strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		all[pid] = p
		if p.uid < firstUser || p.uid > lastUser {
			exe, _ := os.Readlink(filepath.Join(d, "exe"))
			if filepath.Dir(exe) != r.Bin {
				continue
			}
		}
		if r.leadsHere(d) {
			mine[pid] = true
		}
	}
	for changed := true; changed; {
		changed = false
		for pid := range all {
			if !mine[pid] && mine[all[pid].parent] {
				mine[pid], changed = true, true
			}
		}
	}
	for pid := range mine {
		out = append(out, all[pid])
	}
	return out
}

// leadsHere looks for this home's name in what a process was given.
func (r *rig) leadsHere(proc string) bool {
	dir := filepath.Dir(r.Home)
	env, _ := os.ReadFile(filepath.Join(proc, "environ"))
	mounts, _ := os.ReadFile(filepath.Join(proc, "mountinfo"))
	if strings.Contains(string(env), dir) || strings.Contains(string(mounts), dir) {
		return true
	}
	fds, _ := filepath.Glob(filepath.Join(proc, "fd/*"))
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, dir) {
			return true
		}
	}
	return false
}
