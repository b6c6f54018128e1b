// Package cgroup puts processes into control groups that bound their number and
// their memory, on whatever the machine has: version 1 (also beside an empty
// version 2, called hybrid), version 2, or nothing.
//
// Two processes use it. The launcher, with root's rights, makes a place and
// gives it to the executor's user (Delegate); the executor, which has no rights
// outside that place, makes a group per space and per step below it (Open,
// Group). Only the pids and memory controllers are used: they are the ones
// whose absence lets a step take the machine down.
//
//	Delegate ─▶ Root ══(handed over as JSON)══▶ Root.Group(space) ─▶ Group.Group(step)
//
// A process is put into a group by being started there, never by being moved
// later, so there is no moment at which it is unbounded: in version 1 the thread
// that starts it enters the group first (JoinThread), in version 2 clone does it
// (CloneFD).
//
// Where a controller is missing or not ours to use, its field in Root is empty
// and the limit is not in force. Root says so; the caller has to pass that on.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Modes, as the run's record has them.
const (
	ModeV1     = "v1"
	ModeHybrid = "hybrid" // version 1 controllers, version 2 mounted beside them
	ModeV2     = "v2"
	ModeNone   = "none"
)

// Limits bound a group; 0 means no bound.
type Limits struct {
	Pids   int64
	Memory int64 // bytes; includes files on tmpfs that the group's processes wrote
}

// Root is a place in each hierarchy below which groups may be made. The zero
// Root is the machine without control groups: its groups do nothing.
type Root struct {
	Mode    string `json:"mode"`
	Pids    string `json:"pids,omitempty"`    // folder in the version 1 hierarchy
	Memory  string `json:"memory,omitempty"`  // folder in the version 1 hierarchy
	Unified string `json:"unified,omitempty"` // folder in version 2, pids and memory enabled for its children
	Reason  string `json:"reason,omitempty"`  // why a controller is missing
}

// Group is one group in each hierarchy that Root has.
type Group struct {
	root Root // folders of this group
}

// folders lists the group's folders, one per hierarchy.
func (r Root) folders() []string {
	var out []string
	for _, f := range []string{r.Pids, r.Memory, r.Unified} {
		if f != "" {
			out = append(out, f)
		}
	}
	return out
}

// HasPids and HasMemory say whether that limit can be in force.
func (r Root) HasPids() bool   { return r.Pids != "" || r.Unified != "" }
func (r Root) HasMemory() bool { return r.Memory != "" || r.Unified != "" }

// Group makes a group below r. It is an error if one of that name exists with
// processes in it; an empty leftover is taken over.
func (r Root) Group(name string, l Limits) (*Group, error) {
	if name == "" || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
		return nil, fmt.Errorf("making control group %q: not a file name", name)
	}
	g := &Group{root: Root{Mode: r.Mode, Reason: r.Reason}}
	for _, h := range []struct {
		from string
		to   *string
	}{{r.Pids, &g.root.Pids}, {r.Memory, &g.root.Memory}, {r.Unified, &g.root.Unified}} {
		if h.from == "" {
			continue
		}
		dir := filepath.Join(h.from, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			_ = g.Remove()
			return nil, fmt.Errorf("making control group: %w", err)
		}
		*h.to = dir
	}
	if pids, err := g.Procs(); err != nil || len(pids) > 0 {
		return nil, errors.Join(fmt.Errorf("making control group %s: it exists and holds %d processes", name, len(pids)), err)
	}
	if err := g.limit(l); err != nil {
		_ = g.Remove()
		return nil, err
	}
	return g, nil
}

// Group makes a group inside g, bounded by g's limits and its own.
func (g *Group) Group(name string, l Limits) (*Group, error) {
	if g.root.Unified != "" {
		if err := write(g.root.Unified, "cgroup.subtree_control", "+pids +memory"); err != nil {
			return nil, fmt.Errorf("making control group %s: %w", name, err)
		}
	}
	return g.root.Group(name, l)
}

func (g *Group) limit(l Limits) error {
	n := func(v int64) string { return strconv.FormatInt(v, 10) }
	r := g.root
	if l.Pids > 0 {
		for _, dir := range []string{r.Pids, r.Unified} {
			if dir == "" {
				continue
			}
			if err := write(dir, "pids.max", n(l.Pids)); err != nil {
				return fmt.Errorf("limiting processes: %w", err)
			}
		}
	}
	if l.Memory <= 0 {
		return nil
	}
	if r.Memory != "" {
		if err := write(r.Memory, "memory.limit_in_bytes", n(l.Memory)); err != nil {
			return fmt.Errorf("limiting memory: %w", err)
		}
		// Without swap accounting the file is missing; then there is nothing to bound.
		if err := write(r.Memory, "memory.memsw.limit_in_bytes", n(l.Memory)); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("limiting swap: %w", err)
		}
	}
	if r.Unified != "" {
		if err := write(r.Unified, "memory.max", n(l.Memory)); err != nil {
			return fmt.Errorf("limiting memory: %w", err)
		}
		if err := write(r.Unified, "memory.swap.max", "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("limiting swap: %w", err)
		}
	}
	return nil
}

// JoinThread moves the calling thread, which must be locked to its goroutine,
// into the version 1 groups, so that what it starts is in them from its first
// instruction. The thread must not be given back: see sandbox/internal/osthread.
func (g *Group) JoinThread() error {
	tid := strconv.Itoa(unix.Gettid())
	for _, dir := range []string{g.root.Pids, g.root.Memory} {
		if dir == "" {
			continue
		}
		if err := write(dir, "tasks", tid); err != nil {
			return fmt.Errorf("entering control group: %w", err)
		}
	}
	return nil
}

// CloneFD opens the version 2 folder for clone's CLONE_INTO_CGROUP; nil where
// there is none. The caller closes it.
func (g *Group) CloneFD() (*os.File, error) {
	if g.root.Unified == "" {
		return nil, nil
	}
	return os.Open(g.root.Unified)
}

// Add moves a whole process into the group.
func (g *Group) Add(pid int) error {
	for _, dir := range g.root.folders() {
		if err := write(dir, "cgroup.procs", strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("entering control group: %w", err)
		}
	}
	return nil
}

// Procs lists the processes in the group itself, not in groups below it. This
// process is left out: a thread of it that starts something is there for a while.
func (g *Group) Procs() ([]int, error) {
	seen := map[int]bool{}
	var out []int
	for _, dir := range g.root.folders() {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("listing control group: %w", err)
		}
		for f := range strings.FieldsSeq(string(b)) {
			// A process outside our pid namespace shows as 0.
			pid, err := strconv.Atoi(f)
			if err != nil || pid == 0 || pid == os.Getpid() || seen[pid] {
				continue
			}
			seen[pid] = true
			out = append(out, pid)
		}
	}
	return out, nil
}

// OOMKills counts the processes of the group that the kernel killed for want of
// memory; 0 where there is no memory controller.
func (g *Group) OOMKills() int64 {
	if g.root.Memory != "" {
		return field(filepath.Join(g.root.Memory, "memory.oom_control"), "oom_kill")
	}
	if g.root.Unified != "" {
		return field(filepath.Join(g.root.Unified, "memory.events"), "oom_kill")
	}
	return 0
}

// Kill kills every process in the group and waits until it is empty. It gives
// up with an error after ten seconds, which only a process stuck in the kernel
// can take.
func (g *Group) Kill() error {
	if g.root.Unified != "" {
		_ = write(g.root.Unified, "cgroup.kill", "1") // since Linux 5.14; the loop below does without
	}
	deadline := time.Now().Add(10 * time.Second)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		pids, err := g.Procs()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("killing control group: processes %v do not die", pids)
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		time.Sleep(wait)
	}
}

// Remove removes the group and those below it, which must hold no process.
// A group that is already gone is no error.
func (g *Group) Remove() error {
	var errs []error
	for _, dir := range g.root.folders() {
		errs = append(errs, removeTree(dir))
	}
	return errors.Join(errs...)
}

// removeTree removes a folder of groups, leaves first. The kernel empties a
// group a moment after its last process was reaped, hence the short patience.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing control group: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	for i := 0; ; i++ {
		err = unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || i == 100 {
			return fmt.Errorf("removing control group %s: %w", dir, err)
		}
		time.Sleep(time.Duration(min(i+1, 20)) * time.Millisecond)
	}
}

func write(dir, name, value string) error {
	// No O_CREATE: a missing file means a missing controller, not a new file.
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// field reads one "name value" line; 0 if it is not there.
func field(path, name string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), " ")
		if k == name {
			n, _ := strconv.ParseInt(v, 10, 64)
			return n
		}
	}
	return 0
}
