package cgroup

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/sandbox/internal/osthread"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name, mounts, own string
		mode              string
		pids, unified     *hierarchy
	}{
		{
			name: "version 2 alone",
			mounts: "30 20 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n" +
				"31 20 0:27 / /proc rw - proc proc rw\n",
			own:     "0::/user.slice/session-1.scope\n",
			mode:    ModeV2,
			unified: &hierarchy{"/sys/fs/cgroup", "/sys/fs/cgroup/user.slice/session-1.scope"},
		},
		{
			name:   "version 1 with several controllers on one mount",
			mounts: "30 20 0:26 / /cg/cpu,pids rw - cgroup cgroup rw,cpu,pids\n",
			own:    "3:cpu,pids:/a\n",
			mode:   ModeV1,
			pids:   &hierarchy{"/cg/cpu,pids", "/cg/cpu,pids/a"},
		},
		{
			name: "in a container the mount shows the subtree only",
			mounts: "30 20 0:26 /docker/x /cg/pids ro - cgroup cgroup rw,pids\n" +
				"31 20 0:27 / /cg/unified rw - cgroup2 none rw\n",
			own:     "3:pids:/docker/x/job\n0::/\n",
			mode:    ModeHybrid,
			pids:    &hierarchy{"/cg/pids", "/cg/pids/job"},
			unified: &hierarchy{"/cg/unified", "/cg/unified"},
		},
		{
			name:   "own group outside what is mounted",
			mounts: "30 20 0:26 /docker/x /cg/pids ro - cgroup cgroup rw,pids\n",
			own:    "3:pids:/elsewhere\n",
			mode:   ModeV1,
			pids:   &hierarchy{"/cg/pids", "/cg/pids"},
		},
		{name: "nothing", mounts: "x\n30 20 - \n", own: "::\nnonsense\n", mode: ModeNone},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := parse(strings.NewReader(tt.mounts), strings.NewReader(tt.own))
			if err != nil {
				t.Fatal(err)
			}
			allow := cmp.AllowUnexported(hierarchy{})
			if d := cmp.Diff(tt.pids, l.pids, allow); d != "" {
				t.Errorf("pids (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tt.unified, l.unified, allow); d != "" {
				t.Errorf("unified (-want +got):\n%s", d)
			}
			if l.mode() != tt.mode {
				t.Errorf("mode %s, want %s", l.mode(), tt.mode)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add("30 20 0:26 /x /cg/pids ro - cgroup cgroup rw,pids\n", "3:pids:/x/y\n")
	f.Fuzz(func(t *testing.T, mounts, own string) {
		if len(mounts)+len(own) > 1<<14 {
			t.Skip("bounded")
		}
		l, err := parse(strings.NewReader(mounts), strings.NewReader(own))
		if err != nil {
			return
		}
		for _, h := range []*hierarchy{l.pids, l.memory, l.unified} {
			if h != nil && h.mount != "/" && !strings.HasPrefix(h.own, strings.TrimRight(h.mount, "/")) && strings.HasPrefix(h.mount, "/") && !strings.Contains(h.mount, "..") && !strings.Contains(h.mount, "//") && !strings.Contains(h.mount, "/.") {
				t.Errorf("own group %q is outside its mount %q", h.own, h.mount)
			}
		}
	})
}

// A child started from a thread in the group is in it; a limit on processes
// holds; Kill empties it; Remove leaves nothing.
func TestGroup(t *testing.T) {
	root := Find("assay-cgroup-test")
	if root.Mode == ModeNone {
		t.Skipf("no control groups here (%s): runs as root on a machine with the pids controller", root.Reason)
	}
	t.Cleanup(func() {
		if err := root.Remove(); err != nil {
			t.Error(err)
		}
		for _, dir := range root.folders() {
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Errorf("%s is left: %v", dir, err)
			}
		}
	})
	space, err := root.Group("space", Limits{Pids: 8})
	if err != nil {
		t.Fatal(err)
	}
	step, err := space.Group("step", Limits{Memory: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	// The shell gives up at the first fork that is refused; what it started stays.
	cmd := exec.Command("/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & done")
	if err := osthread.Run(func() error {
		if err := step.JoinThread(); err != nil {
			return err
		}
		return cmd.Start()
	}); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("twelve forks were let through by a limit of 8")
	}
	pids, err := step.Procs()
	if err != nil || len(pids) < 1 || len(pids) > 8 {
		t.Errorf("processes %v, %v; want at least one, at most 8", pids, err)
	}
	if err := step.Kill(); err != nil {
		t.Fatal(err)
	}
	if pids, _ := step.Procs(); len(pids) != 0 {
		t.Errorf("left alive: %v", pids)
	}
	if err := space.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := root.Group("../x", Limits{}); err == nil {
		t.Error("a name that climbs out was accepted")
	}
}
