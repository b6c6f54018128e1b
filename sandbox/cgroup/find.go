package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// hierarchy is one mounted cgroup file system and where this process is in it.
type hierarchy struct {
	mount string // mount point
	own   string // folder of this process's own group
}

// layout is what the machine has mounted.
type layout struct {
	pids, memory, unified *hierarchy
}

// mode names the layout; controllers of version 2 count only if version 1 has
// not taken them.
func (l layout) mode() string {
	switch v1 := l.pids != nil || l.memory != nil; {
	case v1 && l.unified != nil:
		return ModeHybrid
	case v1:
		return ModeV1
	case l.unified != nil:
		return ModeV2
	}
	return ModeNone
}

// Delegate makes a folder for an executor in each hierarchy and gives it to
// the user and group ids. It needs root's rights. What cannot be had is left
// out and named in Root.Reason; that is no error. Call Root.Remove when the
// executor has ended, however it ended.
func Delegate(name string, uid, gid int) Root {
	l, err := read()
	if err != nil {
		return Root{Mode: ModeNone, Reason: err.Error()}
	}
	r := l.place(name)
	for _, dir := range r.folders() {
		// The folder, to make groups in it, and the files by which processes
		// enter and leave and controllers are enabled; never the limits that
		// the launcher may set on it.
		for _, f := range []string{"", "cgroup.procs", "tasks", "cgroup.threads", "cgroup.subtree_control"} {
			if err := os.Chown(filepath.Join(dir, f), uid, gid); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return Root{Mode: ModeNone, Reason: err.Error()}
			}
		}
	}
	return r
}

// Find makes a folder for this process's own use: Delegate without the giving.
func Find(name string) Root {
	l, err := read()
	if err != nil {
		return Root{Mode: ModeNone, Reason: err.Error()}
	}
	return l.place(name)
}

// Discard kills and removes what Delegate or Find made under a name, when the
// Root that they returned is lost with the process that held it. It is no error
// if there is nothing.
func Discard(name string) error {
	l, err := read()
	if err != nil {
		return fmt.Errorf("removing control group %s: %w", name, err)
	}
	var errs []error
	for _, h := range []*hierarchy{l.pids, l.memory, l.unified} {
		if h == nil {
			continue
		}
		for _, parent := range slices.Compact([]string{h.own, h.mount}) {
			dir := filepath.Join(parent, name)
			if _, err := os.Stat(dir); err == nil {
				errs = append(errs, Root{Pids: dir}.Remove())
			}
		}
	}
	return errors.Join(errs...)
}

// Remove kills what still lives below r and removes the folders.
func (r Root) Remove() error {
	var errs []error
	for _, dir := range r.folders() {
		errs = append(errs, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				return err
			}
			if !d.IsDir() {
				return nil
			}
			return (&Group{root: Root{Pids: path}}).Kill()
		}))
		errs = append(errs, removeTree(dir))
	}
	return errors.Join(errs...)
}

// place makes the folder in each hierarchy and forgets those that refuse.
func (l layout) place(name string) Root {
	r := Root{Mode: l.mode()}
	var reasons []string
	put := func(h *hierarchy, to *string, what string, prepare func(parent string) error) {
		if h == nil {
			return
		}
		var last error
		// Below our own group, so that bounds on us hold for what we start; the
		// hierarchy's root only where our own group cannot have children.
		for _, parent := range slices.Compact([]string{h.own, h.mount}) {
			if last = prepare(parent); last != nil {
				continue
			}
			dir := filepath.Join(parent, name)
			if last = os.MkdirAll(dir, 0o755); last == nil {
				*to = dir
				return
			}
		}
		reasons = append(reasons, fmt.Sprintf("%s: %v", what, last))
	}
	none := func(string) error { return nil }
	if r.Mode == ModeV2 {
		put(l.unified, &r.Unified, "version 2", enable)
		if r.Unified != "" {
			if err := enable(r.Unified); err != nil {
				_ = os.Remove(r.Unified)
				reasons, r.Unified = append(reasons, "version 2: "+err.Error()), ""
			}
		}
	} else {
		put(l.pids, &r.Pids, "pids", none)
		put(l.memory, &r.Memory, "memory", none)
	}
	if len(r.folders()) == 0 {
		r.Mode = ModeNone
		if len(reasons) == 0 {
			reasons = []string{"no pids or memory controller is mounted"}
		}
	}
	r.Reason = strings.Join(reasons, "; ")
	return r
}

// enable lets children of a version 2 group have the two controllers. A group
// that holds processes refuses unless it is the hierarchy's root; when this
// process is the only one there, it steps aside into a child.
func enable(dir string) error {
	on := func() error { return write(dir, "cgroup.subtree_control", "+pids +memory") }
	err := on()
	if err == nil {
		return nil
	}
	b, rerr := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if rerr != nil || strings.TrimSpace(string(b)) != strconv.Itoa(os.Getpid()) {
		return fmt.Errorf("enabling controllers in %s: %w", dir, err)
	}
	self := filepath.Join(dir, "self")
	if merr := os.Mkdir(self, 0o755); merr != nil && !errors.Is(merr, fs.ErrExist) {
		return fmt.Errorf("enabling controllers in %s: %w", dir, err)
	}
	if werr := write(self, "cgroup.procs", strconv.Itoa(os.Getpid())); werr != nil {
		return fmt.Errorf("enabling controllers in %s: %w", dir, err)
	}
	return on()
}

// read finds the hierarchies of this machine as this process sees them.
func read() (layout, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return layout{}, fmt.Errorf("finding control groups: %w", err)
	}
	defer mounts.Close()
	own, err := os.Open("/proc/self/cgroup")
	if errors.Is(err, fs.ErrNotExist) {
		return layout{}, nil
	}
	if err != nil {
		return layout{}, fmt.Errorf("finding control groups: %w", err)
	}
	defer own.Close()
	return parse(mounts, own)
}

// parse reads the formats of proc_pid_mountinfo(5) and cgroups(7).
func parse(mountinfo, cgroup io.Reader) (layout, error) {
	paths := map[string]string{} // controller → path of our own group; "" is version 2
	for s := bufio.NewScanner(cgroup); s.Scan(); {
		f := strings.SplitN(s.Text(), ":", 3)
		if len(f) != 3 {
			continue
		}
		for c := range strings.SplitSeq(f[1], ",") {
			paths[c] = f[2]
		}
	}
	var l layout
	s := bufio.NewScanner(mountinfo)
	for s.Scan() {
		before, after, ok := strings.Cut(s.Text(), " - ")
		b, a := strings.Fields(before), strings.Fields(after)
		if !ok || len(b) < 5 || len(a) < 3 {
			continue
		}
		root, mount := unescape(b[3]), unescape(b[4])
		at := func(controller string) *hierarchy {
			h := &hierarchy{mount: mount, own: mount}
			// A mount can show a subtree only; our own group may lie outside it.
			if rel, err := filepath.Rel(root, paths[controller]); err == nil && filepath.IsLocal(rel) {
				h.own = filepath.Join(mount, rel)
			}
			return h
		}
		switch a[0] {
		case "cgroup":
			options := strings.Split(a[2], ",")
			if slices.Contains(options, "pids") {
				l.pids = at("pids")
			}
			if slices.Contains(options, "memory") {
				l.memory = at("memory")
			}
		case "cgroup2":
			l.unified = at("")
		}
	}
	if err := s.Err(); err != nil {
		return layout{}, fmt.Errorf("reading mounts: %w", err)
	}
	return l, nil
}

// unescape undoes mountinfo's octal escapes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// Sweep kills and removes every group below r, as a process that died left them.
func (r Root) Sweep() error {
	var errs []error
	for _, dir := range r.folders() {
		entries, err := os.ReadDir(dir)
		if err != nil {
			errs = append(errs, fmt.Errorf("clearing control groups: %w", err))
			continue
		}
		for _, e := range entries {
			if e.IsDir() {
				errs = append(errs, Root{Pids: filepath.Join(dir, e.Name())}.Remove())
			}
		}
	}
	return errors.Join(errs...)
}
