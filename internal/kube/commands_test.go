package kube_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"assay.dev/assay/internal/kube"
)

type upResult struct {
	Server                         string
	PID, EtcdPid, KubeApiserverPid int
	Data, Kubeconfig               string
	Applied                        int
}

// run calls the command line and decodes what it prints.
func run(t testing.TB, v any, args ...string) (stderr string, err error) {
	t.Helper()
	cmd := command(t, args...)
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	err = cmd.Run()
	if err == nil && v != nil {
		if jerr := json.Unmarshal(out.Bytes(), v); jerr != nil {
			t.Fatalf("%v: %v: %s", args, jerr, out.Bytes())
		}
	}
	return errb.String(), err
}

func TestCommands(t *testing.T) {
	need(t)
	dir := folder(t)
	crd := filepath.Join(t.TempDir(), "crd.yaml")
	// The object of the new kind stands before its definition on purpose.
	if err := os.WriteFile(crd, []byte(`
apiVersion: test.assay.dev/v1
kind: Thing
metadata: {name: first, namespace: things}
---
apiVersion: v1
kind: Namespace
metadata: {name: things}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.test.assay.dev}
spec:
  group: test.assay.dev
  scope: Namespaced
  names: {kind: Thing, plural: things}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	var before struct{ Running bool }
	if e, err := run(t, &before, "status", "--data", dir, "-o", "json"); err != nil || before.Running {
		t.Fatalf("status before: %v %+v %s", err, before, e)
	}
	if e, err := run(t, nil, "kubeconfig", "--data", dir); err == nil || !strings.Contains(e, "assayd up") {
		t.Errorf("kubeconfig before up: %v: %s", err, e)
	}
	if e, err := run(t, nil, "up", "--data", dir, "--apply", filepath.Join(dir, "nothing")); err == nil || !strings.Contains(e, "nothing") {
		t.Errorf("manifests that are not there: %v: %s", err, e)
	}

	var up upResult
	if e, err := run(t, &up, "up", "--data", dir, "--detach", "--apply", crd, "-o", "json"); err != nil {
		t.Fatalf("up: %v: %s", err, e)
	}
	t.Cleanup(func() { run(t, nil, "down", "--data", dir) })
	if up.Applied != 3 || up.Server == "" {
		t.Errorf("up printed %+v", up)
	}
	if e, err := run(t, nil, "up", "--data", dir, "--detach"); err == nil || !strings.Contains(e, "assayd down") {
		t.Errorf("a second up: %v: %s", err, e)
	}
	var config struct{ Kubeconfig string }
	if e, err := run(t, &config, "kubeconfig", "--data", dir, "-o", "json"); err != nil {
		t.Fatalf("kubeconfig: %v: %s", err, e)
	}
	if out, err := kubectl(t, []byte(config.Kubeconfig), "get", "things", "-A", "-o", "name"); err != nil || !strings.Contains(out, "first") {
		t.Errorf("kubectl: %v: %s", err, out)
	}
	if os.Geteuid() == 0 {
		st, err := os.Stat(filepath.Join("/proc", port(up.EtcdPid)))
		if err != nil {
			t.Fatal(err)
		}
		if uid := st.Sys().(*syscall.Stat_t).Uid; uid == 0 {
			t.Error("etcd runs as root")
		}
	}
	if e, err := run(t, nil, "down", "--data", dir); err != nil {
		t.Fatalf("down: %v: %s", err, e)
	}
	for _, pid := range []int{up.PID, up.EtcdPid, up.KubeApiserverPid} {
		gone(t, pid)
	}
	if _, err := kube.Running(dir); !errors.Is(err, kube.ErrNotRunning) {
		t.Errorf("after down: %v", err)
	}
	if e, err := run(t, nil, "down", "--data", dir); err != nil {
		t.Errorf("down where none runs: %v: %s", err, e)
	}
}

// A killed parent leaves nothing behind, and the folder is free for the next.
func TestKilledParent(t *testing.T) {
	need(t)
	dir := folder(t)
	cmd := command(t, "up", "--data", dir, "-o", "json")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var up upResult
	if err := json.NewDecoder(bufio.NewReader(out)).Decode(&up); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(cmd.Process.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	gone(t, up.EtcdPid)
	gone(t, up.KubeApiserverPid)
	if _, err := kube.Running(dir); !errors.Is(err, kube.ErrNotRunning) {
		t.Errorf("after the kill: %v", err)
	}
	var again upResult
	if e, err := run(t, &again, "up", "--data", dir, "--detach", "-o", "json"); err != nil {
		t.Fatalf("up again: %v: %s", err, e)
	}
	if again.Server != up.Server {
		t.Errorf("it moved from %s to %s", up.Server, again.Server)
	}
	// An interrupt is a clean stop too.
	if err := unix.Kill(again.PID, unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	gone(t, again.EtcdPid)
	gone(t, again.PID)
}
