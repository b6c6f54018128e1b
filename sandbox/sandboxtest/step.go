package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/sandbox"
)

// step: what a step is given and gives back.
func (c *suite) step(t *testing.T) {
	b := c.open(t, sandbox.SpaceSpec{})
	o := b.run(sandbox.StepSpec{Argv: []string{"/bin/sh", "-c", "echo out; echo err >&2; exit 7"}})
	if o.ExitCode != 7 || o.Stdout != "out\n" || o.Stderr != "err\n" || o.Killed || o.OOMKilled {
		t.Errorf("exit code, output: %+v %q %q", o.Result, o.Stdout, o.Stderr)
	}
	if !o.Finished.After(o.Started) || o.CPU <= 0 || o.MaxRSS <= 0 || !strings.HasPrefix(o.Seccomp, "sha256:") {
		t.Errorf("measurements missing: %+v", o.Result)
	}
	if o := b.run(sandbox.StepSpec{Argv: []string{"/bin/sh", "-c", "sh -c 'kill -9 $$'; exit $?"}}); o.ExitCode != 137 || o.Killed {
		t.Errorf("killed by itself: %+v, want exit code 137 and not Killed", o.Result)
	}
	o = b.run(sandbox.StepSpec{Argv: []string{"env"}, Env: []string{"A=1", "B=two words", "PATH=/bin"}})
	for _, kv := range []string{"A=1", "B=two words", "PATH=/bin"} {
		if !strings.Contains(o.Stdout, kv+"\n") || !slices.Contains(o.Env, kv) {
			t.Errorf("environment lacks %q: %q, reported %q", kv, o.Stdout, o.Env)
		}
	}
	if got := b.run(sandbox.StepSpec{Argv: []string{"pwd"}, WorkingDir: "/home/user"}).Stdout; got != "/home/user\n" {
		t.Errorf("working folder %q", got)
	}
	if got := b.run(sandbox.StepSpec{Argv: []string{"/bin/pwd"}}).Stdout; got != "/\n" {
		t.Errorf("working folder by default %q", got)
	}
	if got := b.sh("id -u; id -g"); got != "0\n0\n" {
		t.Errorf("user by default: %q", got)
	}
	if got := b.sh("cat /opt/both; ls /opt"); got != "upper\nboth\n" {
		t.Errorf("layers: %q", got)
	}
	if got := b.sh("hostname; cat /etc/hostname"); got != "assay\nassay\n" {
		t.Errorf("host name %q", got)
	}
	if got := b.sh("echo x >/opt/new && echo y >>/opt/both && rm /etc/group && mkdir /a && cat /opt/new /opt/both"); got != "x\nupper\ny\n" {
		t.Errorf("writing: %q", got)
	}
	if got := b.sh("test ! -e /opt/new && cat /opt/both && cat /etc/group | wc -l"); got != "upper\n2\n" {
		t.Errorf("the next step sees the last one's root: %q", got)
	}
	if got := b.sh("cat; echo end"); got != "end\n" {
		t.Errorf("standard input: %q", got)
	}
	o = b.run(sandbox.StepSpec{Argv: []string{"/bin/sh", "-c", "touch /x; touch /workspace/y && echo ok"}, ReadOnlyRoot: true})
	if o.Stdout != "ok\n" || !strings.Contains(o.Stderr, "Read-only") {
		t.Errorf("read-only root: %q %q", o.Stdout, o.Stderr)
	}
	big := b.run(sandbox.StepSpec{Argv: []string{"dd", "if=/dev/zero", "bs=1048576", "count=20"}})
	if len(big.Stdout) != 20<<20 {
		t.Errorf("%d bytes of output, want %d", len(big.Stdout), 20<<20)
	}
	// A script as the planner makes it.
	must(t, os.WriteFile(filepath.Join(b.Dir("scripts"), "script-0"), []byte("#!/bin/sh\necho from script $1\necho -n v > /tekton/results/r\n"), 0o755))
	must(t, b.Chown(filepath.Join(b.Dir("scripts"), "script-0")))
	o = b.run(sandbox.StepSpec{Argv: []string{"/tekton/scripts/script-0", "arg"}})
	if o.Stdout != "from script arg\n" {
		t.Errorf("script: %+v %q %q", o.Result, o.Stdout, o.Stderr)
	}
	if v, err := os.ReadFile(filepath.Join(b.Dir("results"), "r")); err != nil || string(v) != "v" {
		t.Errorf("result: %q, %v", v, err)
	}
	if c.IDSize > 1000 {
		o = b.run(sandbox.StepSpec{Argv: []string{"/bin/sh", "-c", "id -u; id -g; touch /workspace/mine /tekton/results/mine && echo ok; touch /root/x /etc/x"}, UID: 1000, GID: 1001})
		if !strings.HasPrefix(o.Stdout, "1000\n1001\nok\n") || strings.Count(o.Stderr, "Permission denied") != 2 || len(o.Capabilities) != 0 {
			t.Errorf("another user: %q %q %v", o.Stdout, o.Stderr, o.Capabilities)
		}
		// Root in the step has its ids' files, whoever of them owns them.
		b.sh("chown 1234:1234 /workspace/mine && chmod 600 /workspace/mine && echo x > /workspace/mine && su user -c id >/dev/null")
	}
}

// errors: what is refused, and how.
func (c *suite) errors(t *testing.T) {
	b := c.open(t, sandbox.SpaceSpec{})
	for name, step := range map[string]sandbox.StepSpec{
		"command not in the image": {Argv: []string{"/bin/nonesuch"}},
		"command not on the path":  {Argv: []string{"nonesuch"}},
		"not executable":           {Argv: []string{"/etc/passwd"}},
		"working folder is a file": {Argv: []string{"true"}, WorkingDir: "/etc/passwd"},
	} {
		var start *sandbox.StartError
		if o, err := b.try(t.Context(), step); !errors.As(err, &start) {
			t.Errorf("%s: %v (%+v), want a StartError", name, err, o)
		} else if start.Reason == "" {
			t.Errorf("%s: no reason", name)
		}
	}
	for name, step := range map[string]sandbox.StepSpec{
		"no command":              {},
		"no layers":               {Argv: []string{"true"}, Layers: []string{}},
		"layer missing":           {Argv: []string{"true"}, Layers: []string{"/nonesuch"}},
		"no such user":            {Argv: []string{"true"}, UID: uint32(c.IDSize)},
		"no such group":           {Argv: []string{"true"}, GID: uint32(c.IDSize)},
		"relative working folder": {Argv: []string{"true"}, WorkingDir: "x"},
		"unknown volume":          {Argv: []string{"true"}, Mounts: []sandbox.Mount{{Volume: "x", Path: "/x"}}},
		"mount over /proc":        {Argv: []string{"true"}, Mounts: []sandbox.Mount{{Volume: "workspace", Path: "/proc/sys"}}},
		"mount over root":         {Argv: []string{"true"}, Mounts: []sandbox.Mount{{Volume: "workspace", Path: "/"}}},
		"mount path with dots":    {Argv: []string{"true"}, Mounts: []sandbox.Mount{{Volume: "workspace", Path: "/a/../proc"}}},
		"sub-path leaves":         {Argv: []string{"true"}, Mounts: []sandbox.Mount{{Volume: "workspace", SubPath: "../x", Path: "/x"}}},
		"two mounts at one place": {Argv: []string{"true"}, Mounts: []sandbox.Mount{{Volume: "workspace", Path: "/x"}, {Volume: "home", Path: "/x"}}},
	} {
		if o, err := b.try(t.Context(), step); err == nil {
			t.Errorf("%s: accepted (%+v)", name, o.Result)
		}
	}
	for name, spec := range map[string]sandbox.SpaceSpec{
		"no id":          {Network: "none"},
		"id with slash":  {ID: "a/b", Network: "none"},
		"id with dots":   {ID: "..", Network: "none"},
		"no network":     {ID: "x"},
		"host network":   {ID: "x", Network: "host"},
		"volume missing": {ID: "x", Network: "none", Volumes: []sandbox.Volume{{Name: "v", Host: "/nonesuch"}}},
		"volume name":    {ID: "x", Network: "none", Volumes: []sandbox.Volume{{Name: "../v"}}},
		"volume twice":   {ID: "x", Network: "none", Volumes: []sandbox.Volume{{Name: "v"}, {Name: "v"}}},
		"space open now": {ID: "taken", Network: "none"},
	} {
		if name == "space open now" {
			c.open(t, sandbox.SpaceSpec{ID: "taken"})
		}
		if s, err := c.d.Open(t.Context(), spec); err == nil {
			t.Errorf("%s: accepted", name)
			_ = s.Close()
		}
	}
	if err := b.Chown("/etc/passwd"); err == nil {
		t.Error("Chown outside the volumes was accepted")
	}
	if err := b.Chown(filepath.Join(b.Dir("results"), "../../etc")); err == nil {
		t.Error("Chown outside the volumes by .. was accepted")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.try(ctx, sandbox.StepSpec{Argv: []string{"true"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("context over before the start: %v", err)
	}
}

// volumes: mounts of all kinds.
func (c *suite) volumes(t *testing.T) {
	host := filepath.Join(c.Dir, "host-"+c.d.Name())
	must(t, os.Mkdir(host, 0o777))
	defer os.RemoveAll(host)
	must(t, os.Chmod(host, 0o777))
	write(t, filepath.Join(host, "seen"), "host\n")
	secret := filepath.Join(c.Dir, "secret-"+c.d.Name())
	write(t, secret, "secret\n")
	defer os.Remove(secret)
	b := c.open(t, sandbox.SpaceSpec{Volumes: []sandbox.Volume{
		{Name: "data"}, {Name: "host", Host: host}, {Name: "ro", Host: host, ReadOnly: true},
	}})
	o := b.run(sandbox.StepSpec{
		Argv: []string{"/bin/sh", "-c", `cat /mnt/host/seen; echo a > /mnt/host/written; echo b > /data/file; echo c > /ro/file; echo d > /data-ro/file
cat /data-ro/file; echo e > /sub/file; cat /one`},
		Mounts: []sandbox.Mount{
			{Volume: "host", Path: "/mnt/host"}, {Volume: "ro", Path: "/ro"}, {Volume: "data", Path: "/data"},
			{Volume: "data", Path: "/data-ro", ReadOnly: true}, {Volume: "data", SubPath: "deep/er", Path: "/sub"},
			{Volume: "host", SubPath: "seen", Path: "/one", ReadOnly: true},
		},
	})
	if o.Stdout != "host\nb\nhost\n" || strings.Count(o.Stderr, "Read-only file system") != 2 {
		t.Errorf("mounts: %q %q", o.Stdout, o.Stderr)
	}
	for _, want := range []string{"/data-ro (ro)", "/data (rw)", "/ro (ro)", "/one (ro)", "/workspace (rw)", "/tekton/scripts (ro)", "/tekton/results (rw)"} {
		if !slices.Contains(o.Mounts, want) {
			t.Errorf("mounts as reported lack %s: %q", want, o.Mounts)
		}
	}
	for path, want := range map[string]string{filepath.Join(b.Dir("data"), "deep/er/file"): "e\n", filepath.Join(host, "written"): "a\n", filepath.Join(b.Dir("data"), "file"): "b\n"} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", path, got, err, want)
		}
	}
	// Links that a step made lead nowhere but inside.
	b.sh("mkdir /workspace/in && ln -s in /workspace/good && ln -s / /workspace/abs && ln -s ../../../../.. /workspace/rel && ln -s /proc/self/root /workspace/magic")
	for sub, ok := range map[string]bool{"good": true, "abs": false, "rel": false, "magic": false, "abs/etc": false, "rel/etc/new": false} {
		_, err := b.try(t.Context(), sandbox.StepSpec{Argv: []string{"true"}, Mounts: []sandbox.Mount{{Volume: "workspace", SubPath: sub, Path: "/x"}}})
		if (err == nil) != ok {
			t.Errorf("sub-path through %s: %v, want ok %v", sub, err, ok)
		}
	}
	// A mount replaces what is at a standard place by default.
	o = b.run(sandbox.StepSpec{Argv: []string{"/bin/sh", "-c", "cat /workspace/file"}, Mounts: []sandbox.Mount{{Volume: "data", Path: "/workspace", ReadOnly: true}}})
	if o.Stdout != "b\n" || !slices.Contains(o.Mounts, "/workspace (ro)") {
		t.Errorf("own mount at /workspace: %q %q %q", o.Stdout, o.Stderr, o.Mounts)
	}
}

// life: everything ends when it should.
func (c *suite) life(t *testing.T) {
	b := c.open(t, sandbox.SpaceSpec{})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(300*time.Millisecond, cancel)
	o, err := b.try(ctx, sandbox.StepSpec{Argv: []string{"/bin/sh", "-c", "trap '' TERM INT HUP; echo started; sleep 1000 & sleep 1000; sleep 1000"}})
	if err != nil || !o.Killed || o.ExitCode != 137 {
		t.Errorf("killed by context: %+v, %v", o.Result, err)
	}
	for _, d := range []time.Duration{0, 5, 10, 15, 20, 30} { // at any moment of its start
		ctx, cancel := context.WithTimeout(t.Context(), d*time.Millisecond)
		o, err := b.try(ctx, sandbox.StepSpec{Argv: []string{"sleep", "1000"}})
		cancel()
		if err == nil && !o.Killed {
			t.Errorf("killed after %d ms: %+v", d, o.Result)
		}
	}
	// What a step leaves running dies with it, also when it holds on to output.
	b.sh("(setsid sh -c 'while true; do echo x >> /workspace/ticks; sleep 0.01; done' &) ; sleep 0.1; echo done")
	ticks := filepath.Join(b.Dir("workspace"), "ticks")
	first, err := os.ReadFile(ticks)
	must(t, err)
	time.Sleep(100 * time.Millisecond)
	second, err := os.ReadFile(ticks)
	must(t, err)
	if len(first) == 0 || !slices.Equal(first, second) {
		t.Errorf("a background process outlived its step: %d, then %d bytes", len(first), len(second))
	}
	if got := b.sh("ps | grep -c '[s]leep' || true"); got != "0\n" {
		t.Errorf("sees processes of other steps: %q", b.sh("ps"))
	}
	sealed, err := b.Seal(t.Context())
	if err != nil || len(sealed.Interfaces) != 0 || len(sealed.Network) != 0 {
		t.Errorf("sealed: %+v, %v", sealed, err)
	}
	if again, err := b.Seal(t.Context()); err != nil || cmp.Diff(sealed, again) != "" {
		t.Errorf("sealed again: %+v, %v", again, err)
	}
	if _, err := b.try(t.Context(), sandbox.StepSpec{Argv: []string{"true"}}); err == nil {
		t.Error("a step ran in a sealed space")
	}
	if _, err := os.Stat(b.Dir("workspace")); err != nil {
		t.Errorf("volumes are gone after Seal: %v", err)
	}
	dir := b.Dir("workspace")
	must(t, b.Close())
	must(t, b.Close())
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("volume is there after Close: %v", err)
	}
	// Several spaces at a time.
	t.Run("parallel", func(t *testing.T) {
		for i := range 4 {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				b := c.open(t, sandbox.SpaceSpec{})
				for j := range 3 {
					if got := b.sh(fmt.Sprintf("echo %d >> /workspace/x; cat /workspace/x | wc -l", j)); got != fmt.Sprintln(j+1) {
						t.Errorf("step %d: %q", j, got)
					}
				}
			})
		}
	})
}
