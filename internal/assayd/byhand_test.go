package assayd_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"

	"assay.dev/assay/internal/testrig"
	"assay.dev/assay/internal/testrig/kubetest"
	"assay.dev/assay/internal/testrig/peer"
	"assay.dev/assay/internal/watch/watchtest"
)

// block is the first shell block below a heading of a document.
func block(t *testing.T, doc, heading string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(testrig.Root(), "docs", doc))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "\n## "+heading+"\n")
	if ok {
		_, rest, ok = strings.Cut(rest, "```sh\n")
	}
	code, _, ok2 := strings.Cut(rest, "```")
	if !ok || !ok2 {
		t.Fatalf("docs/%s has no shell block below %q", doc, heading)
	}
	return strings.Split(strings.TrimSpace(code), "\n")
}

// TestOnOneMachine does, line by line, what docs/observer.md tells: a control plane
// of one's own, settings, a key, the observer.
func TestOnOneMachine(t *testing.T) {
	peer.Need(t, "ASSAY_ETCD")
	kubectl, crds := peer.Need(t, "ASSAY_KUBECTL"), peer.Need(t, "ASSAY_TEKTON_CONFIG")
	// Not t.TempDir: users of their own pass through it.
	dir, err := os.MkdirTemp("", "assay-test-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Symlink(filepath.Join(crds, "300-crds"), filepath.Join(dir, "crds")); err != nil {
		t.Fatal(err)
	}
	tools := filepath.Join(dir, "tools")
	if err := os.Mkdir(tools, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(kubectl, filepath.Join(tools, "kubectl")); err != nil {
		t.Fatal(err)
	}
	lines := block(t, "observer.md", "On one machine")
	// What `make build control-plane` makes is there; the test's own PATH has it.
	if lines[0] = strings.TrimSpace(strings.SplitN(lines[0], "#", 2)[0]); lines[0] != "make build control-plane" {
		t.Fatalf("the first line is %q", lines[0])
	}
	lines[0] = "true"
	last := len(lines) - 1
	if !strings.HasPrefix(lines[last], "assayd observer ") {
		t.Fatalf("the last line is %q", lines[last])
	}
	port := kubetest.FreePort(t)
	lines[last] = "exec " + lines[last] + fmt.Sprintf(" --metrics-addr 127.0.0.1:%d", port)
	env := append(os.Environ(), "PATH="+testrig.Binaries(t)+":"+tools+":"+os.Getenv("PATH"), "ASSAY_HOME="+filepath.Join(dir, "home"), "HOME="+dir)
	logFile, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer logFile.Close()
	cmd := exec.Command("bash", "-euxc", strings.Join(lines, "\n"))
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	call := func(args ...string) ([]byte, error) {
		c := exec.Command(args[0], args[1:]...)
		c.Dir, c.Env = dir, env
		var errb bytes.Buffer
		c.Stderr = &errb
		out, err := c.Output()
		if err != nil {
			err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, errb.String())
		}
		return out, err
	}
	assayd := filepath.Join(testrig.Binaries(t), "assayd")
	t.Cleanup(func() {
		_ = syscall.Kill(cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-ended
		}
		if _, err := call(assayd, "down"); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(kubetest.Tail(logFile.Name()))
		}
	})
	o := &observer{Process: &kubetest.Process{PID: cmd.Process.Pid, Log: logFile.Name()}, t: t, address: fmt.Sprintf("127.0.0.1:%d", port)}
	kubetest.Eventually(t, "the observer to be ready", func() (bool, error) {
		select {
		case err := <-ended:
			ended <- err
			return false, fmt.Errorf("the commands of the documentation ended: %v", err)
		default:
		}
		code, _ := o.get("/readyz")
		return code == 200, nil
	})

	path, err := call(assayd, "kubeconfig", "--path")
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", strings.TrimSpace(string(path)))
	if err != nil {
		t.Fatal(err)
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	// A run that made nothing, so that no registry is needed.
	run := watchtest.Generate(1, watchtest.Options{Namespace: "default", TaskRunBytes: 6000}).PipelineRun
	run.Status.ChildReferences, run.Status.Results = nil, nil
	if err := watchtest.Load(t.Context(), client, watchtest.Run{PipelineRun: run}); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, "the run to be signed", func() (bool, error) {
		out, err := call(kubectl, "--kubeconfig", strings.TrimSpace(string(path)), "get", "pipelinerun", run.Name,
			"-o", `jsonpath={.metadata.annotations.chains\.tekton\.dev/signed}`)
		return string(out) == "true", err
	})
}
