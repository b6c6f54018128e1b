// Tests of the real thing: etcd and kube-apiserver built from their modules by
// tools/peers, and kubectl where a test says what a user sees. Nothing is faked;
// what needs these programs runs with ASSAY_SLOW=1 and skips otherwise.
package kube_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"assay.dev/assay/internal/kube"
)

// asCommand makes the test binary the command line, for tests of whole processes.
const asCommand = "ASSAY_KUBE_TEST_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		root := &cobra.Command{Use: "assayd", SilenceUsage: true, SilenceErrors: true}
		root.AddCommand(kube.Commands()...)
		if err := root.Execute(); err != nil {
			fmt.Fprintf(os.Stderr, "assayd: %v\n", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// need skips unless the slow tests are wanted and their programs are here.
func need(t testing.TB) {
	t.Helper()
	if os.Getenv("ASSAY_SLOW") == "" {
		t.Skip("starts a control plane: set ASSAY_SLOW=1; make test-all does")
	}
	if _, err := kube.Find(); err != nil {
		t.Skipf("%v", err)
	}
}

func context3m(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// start brings a plane up that is stopped with the test.
func start(t testing.TB, o kube.Options) *kube.Plane {
	t.Helper()
	o.Ephemeral = true
	p, err := kube.Start(context3m(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// folder is a data folder that another user can pass to.
func folder(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "kube")
}

// kubectl runs kubectl with a kubeconfig and returns what it prints.
func kubectl(t testing.TB, kubeconfig []byte, args ...string) (string, error) {
	t.Helper()
	bin := os.Getenv("ASSAY_KUBECTL")
	if bin == "" {
		t.Skip(`needs kubectl: eval "$(tools/peers kubectl)"`)
	}
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, kubeconfig, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context3m(t), bin, args...)
	cmd.Env = []string{"KUBECONFIG=" + file, "HOME=" + t.TempDir()}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// gone waits until a process is.
func gone(t testing.TB, pid int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			return
		}
		// A zombie that nobody reaps, where tests run without an init.
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && bytes.Contains(b, []byte(") Z ")) {
			return
		}
	}
	t.Fatalf("process %d lives", pid)
}

// command prepares a call of the command line.
func command(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context3m(t), self, args...)
	cmd.Env = append(os.Environ(), asCommand+"=1", "ASSAY_HOME="+filepath.Join(t.TempDir(), "home"))
	cmd.WaitDelay = 10 * time.Second
	return cmd
}
