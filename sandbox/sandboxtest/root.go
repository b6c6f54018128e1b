package sandboxtest

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Runtime finds a runtime's binary: the environment variable ASSAY_<NAME>, or
// bin/<name> in the repository. The test is skipped if there is neither.
func Runtime(t testing.TB, name, env string) string {
	t.Helper()
	if p := os.Getenv(env); p != "" {
		return p
	}
	if p := filepath.Join(moduleRoot(t), "bin", name); exec.Command(p, "--version").Run() == nil {
		return p
	}
	t.Skipf("no %s: set %s to its path, or build it as bin/%s (make build); runs on a machine with root", name, env, name)
	return ""
}

func moduleRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	t.Fatal("no go.mod above the working folder")
	return ""
}

// Probe builds the probe, statically, and returns its path. Building needs the
// Go toolchain that runs the test.
func Probe(t testing.TB) string {
	t.Helper()
	if p := os.Getenv(envProbe); p != "" {
		return p
	}
	out := filepath.Join(t.TempDir(), "probe")
	cmd := exec.Command("go", "build", "-o", out, "assay.dev/assay/sandbox/sandboxtest/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building probe: %v\n%s", err, b)
	}
	return out
}

// Layers makes the layers of a small image: busybox with its commands and the
// probe below, and one layer above that hides a file of the lower one. All
// belongs to id base. The test is skipped without a static busybox.
func Layers(t testing.TB, dir, probe string, base int) []string {
	t.Helper()
	const busybox = "/bin/busybox"
	if _, err := os.Stat(busybox); err != nil {
		t.Skip("no /bin/busybox: install Debian's busybox-static")
	}
	lower, upper := filepath.Join(dir, "lower"), filepath.Join(dir, "upper:with,odd name")
	for _, d := range []string{"bin", "etc", "tmp", "root", "home/user", "opt"} {
		must(t, os.MkdirAll(filepath.Join(lower, d), 0o755))
	}
	must(t, os.MkdirAll(filepath.Join(upper, "opt"), 0o755))
	copyFile(t, busybox, filepath.Join(lower, "bin/busybox"))
	copyFile(t, probe, filepath.Join(lower, "bin/probe"))
	for _, a := range []string{"sh", "cat", "ls", "echo", "id", "pwd", "env", "sleep", "dd", "touch", "mkdir", "rm", "ps", "grep", "wc", "chown", "chmod",
		"stat", "hostname", "nslookup", "ln", "readlink", "kill", "true", "false", "setsid", "su", "mknod", "find", "head", "df", "seq", "test", "ulimit"} {
		must(t, os.Symlink("busybox", filepath.Join(lower, "bin", a)))
	}
	write(t, filepath.Join(lower, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
	write(t, filepath.Join(lower, "etc/group"), "root:x:0:\nuser:x:1000:\n")
	write(t, filepath.Join(lower, "opt/hidden"), "lower\n")
	write(t, filepath.Join(lower, "opt/both"), "lower\n")
	write(t, filepath.Join(upper, "opt/both"), "upper\n")
	must(t, unix.Mknod(filepath.Join(upper, "opt/hidden"), unix.S_IFCHR|0o600, 0)) // a white-out
	must(t, os.Chmod(filepath.Join(lower, "tmp"), 0o777|os.ModeSticky))
	for _, l := range []string{lower, upper} {
		must(t, filepath.WalkDir(l, func(p string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(p, base, base)
		}))
	}
	return []string{lower, upper}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, b, 0o755))
}
