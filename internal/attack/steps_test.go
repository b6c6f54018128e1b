package attack_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/internal/testrig"
	"assay.dev/assay/ledger"
)

// TestStep: what one step can see, reach and use up.
func TestStep(t *testing.T) {
	r := newRig(t)

	t.Run("reads host files", func(t *testing.T) {
		// World-readable on purpose: permissions must not be what hides it.
		marker := filepath.Join(filepath.Dir(r.Home), "marker")
		must(t, os.WriteFile(marker, []byte("host secret 4711\n"), 0o644))
		for _, network := range []string{"none", "registry", "open"} {
			o := r.run(t, task{network: network, steps: []string{`
				for p in "" /proc/1/root /proc/self/root /proc/1/cwd /dev/fd/0/.. /workspace/../../../.. /tekton/home/../../..; do
					for f in /etc/shadow ` + marker + ` ` + r.Home + ` ` + r.Home + `/observer/executed.key ` + r.Home + `/public/executed.pub \
						/root/.docker/config.json /var/lib/assay /var/lib/dpkg/status /boot /lib/modules; do
						test -e "$p$f" && echo "found $p$f"
					done
				done
				ln -s ` + marker + ` /workspace/link && cat /workspace/link
				cp -r ` + filepath.Dir(r.Home) + ` /workspace/ && echo copied
				find / -xdev \( -name '*.key' -o -name 'executed*' -o -name shadow \) 2>/dev/null | sed 's/^/found /'
				grep -rl 'secret 47[1]1' /proc/[0-9]*/environ /proc/[0-9]*/cmdline /dev/shm /tmp /run 2>/dev/null | sed 's/^/found /'
				strings /proc/1/environ | sed 's/^/env /'
				echo done`}})
			o.ended(ledger.Succeeded)
			o.has(`^done$`)
			o.none(`found|host secret|copied|ASSAY_|nonce`)
		}
	})

	t.Run("reads other tasks' workspaces", func(t *testing.T) {
		o := r.pipeline(t, []link{
			{name: "owner", task: task{steps: []string{`
				for d in /workspace /tekton/home /tekton/results /tekton/steps /dev/shm /tmp; do echo private-4712 >$d/secret || echo "not in $d"; done
				sleep 2`}}},
			{name: "thief", task: task{steps: []string{`
				sleep 1
				find / -xdev -type f -name secret 2>/dev/null | sed 's/^/found /'
				for d in /workspace /tekton/home /tekton/results /tekton/steps /dev/shm /tmp; do cat $d/secret $d/../*/secret 2>/dev/null; done
				cat /proc/[0-9]*/root/workspace/secret 2>/dev/null
				grep -c . /proc/1/mountinfo >/dev/null && echo done`}}},
			{name: "later", after: []string{"owner"}, task: task{steps: []string{
				`find / -xdev -type f -name secret 2>/dev/null | sed 's/^/found /'; echo done later`}}},
		}, nil)
		o.ended(ledger.Succeeded)
		o.has(`^done$`)
		o.has(`^done later$`)
		o.none(`found|private-4712`)
	})

	t.Run("reads the runtime's and the executor's memory and descriptors", func(t *testing.T) {
		o := r.run(t, task{network: "open", steps: []string{`
			echo fds; probe fds; echo end
			ls /proc/1/fd /proc/1/map_files >/dev/null 2>&1
			for p in /proc/[0-9]*; do echo "proc $p $(cat $p/comm)"; done
			find / -xdev -type s 2>/dev/null | sed 's/^/socket /'
			cat /proc/net/unix | tail -n +2 | sed 's/^/unix /'`}})
		o.ended(ledger.Succeeded)
		_, fds, _ := strings.Cut(o.said(), "fds\n")
		fds, _, _ = strings.Cut(fds, "end\n")
		if fds != "0 pipe\n1 pipe\n2 pipe\n" {
			t.Errorf("inherited descriptors:\n%s", fds)
		}
		o.none(`runc|assay-exec|^socket|^unix .*(sock|/)`)
	})

	t.Run("asks the kernel for more", func(t *testing.T) {
		// mount, ptrace, namespaces, modules, bpf, keys …
		o := r.run(t, task{steps: []string{`
			probe calls | sed 's/^/call /'
			grep -E '^(Seccomp|NoNewPrivs|CapEff):' /proc/self/status
			mount -t tmpfs none /workspace && echo GOT mount
			mount -o bind / /workspace && echo GOT bind
			mount -t proc none /workspace && echo GOT proc
			umount /tekton/scripts && echo GOT umount
			mount -o remount,rw /tekton/scripts && echo GOT remount
			echo x >/tekton/scripts/script-0 && echo GOT script
			unshare -Ur true && echo GOT userns
			unshare -n true && echo GOT netns
			chroot / true && echo GOT chroot
			insmod /bin/busybox && echo GOT insmod
			mknod /workspace/disk b 254 0 && echo GOT disk
			mknod /workspace/mem c 1 1 && echo GOT mem
			echo core >/proc/sys/kernel/core_pattern && echo GOT core
			echo b >/proc/sysrq-trigger && echo GOT sysrq
			echo 1 >/proc/sys/net/ipv4/ip_forward && echo GOT forward
			cp /bin/busybox /workspace/su && chmod 4755 /workspace/su
			nsenter -t 1 -a true 2>/dev/null && echo GOT nsenter
			dmesg >/dev/null 2>&1 && echo GOT dmesg
			echo done`}})
		o.ended(ledger.Succeeded)
		o.has(`^done$`)
		o.has(`^Seccomp:\s+2$`)
		o.has(`^NoNewPrivs:\s+1$`)
		o.none(`GOT`)
		n := 0
		for line := range strings.Lines(o.said()) {
			if name, ok := strings.CutPrefix(line, "call "); ok {
				n++
				if f := strings.Fields(name); len(f) != 2 || f[1] != "EPERM" && f[1] != "ENOSYS" {
					t.Errorf("%s", line)
				}
			}
		}
		if n < 50 {
			t.Errorf("only %d calls were tried", n)
		}
	})

	t.Run("fork bomb", func(t *testing.T) {
		// Bounded, and over when the step is.
		o := r.run(t, task{steps: []string{`
			n=0; while [ $n -lt 400 ]; do sleep 600 & n=$((n+1)); echo $n >/workspace/n; done`,
			`echo unreached`}}, "--max-pids", "64")
		o.ended(ledger.Failed)
		o.none(`unreached`)
		o = r.run(t, task{steps: []string{`
			bomb() { bomb | bomb & }
			bomb 2>/dev/null; sleep 1; exit 0`}}, "--max-pids", "64")
		if o.rec == nil || o.rec.Ending == nil || o.rec.Ending.Outcome == ledger.Lost {
			t.Errorf("the run ended %+v", o.rec)
		}
		o.unsigned()
		r.clean(t)
	})

	t.Run("fills the disk", func(t *testing.T) {
		for _, dir := range []string{"/workspace", "/tmp", "/tekton/results", "/tekton/home", "/dev/shm"} {
			o := r.run(t, task{steps: []string{`mkdir -p ` + dir + `; attack fill ` + dir + `/big; rm -f ` + dir + `/big; echo done`}}, "--max-write", "64Mi")
			o.ended(ledger.Succeeded)
			o.has(`^filled \d+ MiB: .*no space left`)
			o.has(`^done$`)
		}
		// Full when the task ends: its end is recorded all the same.
		o := r.run(t, task{results: []string{"out"}, steps: []string{`attack fill /workspace/big; echo x >/tekton/results/out; exit 0`}}, "--max-write", "64Mi")
		if o.rec.Ending == nil || o.rec.Ending.Outcome == ledger.Lost {
			t.Errorf("the run ended %+v\n%s", o.rec.Ending, o.Stderr)
		}
		// Full of files rather than bytes.
		o = r.run(t, task{steps: []string{`i=0; while [ $i -lt 100000 ]; do touch /workspace/$i 2>/dev/null || { echo "stopped at $i"; exit 0; }; i=$((i+1)); done; echo without an end`}}, "--max-write", "8Mi")
		o.ended(ledger.Succeeded)
		o.none(`without an end`)
		r.clean(t)
	})

	t.Run("floods its log", func(t *testing.T) {
		o := r.run(t, task{steps: []string{`head -c 50000000 /dev/zero; echo; echo done`}}, "--quiet")
		o.ended(ledger.Succeeded)
	})

	t.Run("eats memory", func(t *testing.T) {
		o := r.run(t, task{steps: []string{`probe memory 1024; echo "code $?"`}}, "--max-memory", "128Mi")
		if o.rec.Ending.Outcome == ledger.Lost {
			t.Errorf("%+v", o.rec.Ending)
		}
		o.none(`^touched`)
		r.clean(t)
	})

	// After all of this an honest run in the same home works and is recorded.
	o := &outcome{Result: r.RunFile(filepath.Join(testrig.Root(), "examples/run/hello.yaml")), t: t}
	if o.Code != 0 || !o.Succeeded {
		t.Errorf("an honest run afterwards: exit %d\n%s", o.Code, o.Stderr)
	}
	r.clean(t)
}
