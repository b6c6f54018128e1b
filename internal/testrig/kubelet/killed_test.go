package kubelet_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/internal/testrig/kubelet"
	"assay.dev/assay/internal/testrig/kubetest"
)

// holding makes the test binary one that TestKilledTest kills.
const holding = "ASSAY_KUBELET_TEST_HOLD"

// marker is the argument by which the test finds a container's process.
const marker = "314159265"

func TestHold(t *testing.T) {
	if os.Getenv(holding) == "" {
		t.Skip("a part of TestKilledTest")
	}
	c := kubetest.Start(t)
	k := kubelet.Start(t, c)
	p := pods{t, c, k, c.Namespace(t)}
	p.make("hold", "sleep "+marker+" & wait", nil)
	p.running("hold")
	kubetest.Eventually(t, "the sleep", func() (bool, error) { return sleeping(), nil })
	fmt.Printf("\nholding %s\n", c.Dir)
	select {}
}

// A test binary that is killed leaves no process, mount or file.
func TestKilledTest(t *testing.T) {
	kubetest.Start(t) // or skip
	kubelet.Start(t, kubetest.Start(t))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run", "^TestHold$")
	cmd.Env = append(os.Environ(), holding+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dir := ""
	var said bytes.Buffer
	for lines := bufio.NewScanner(out); dir == "" && lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		dir, _ = strings.CutPrefix(lines.Text(), "holding ")
		if dir == lines.Text() {
			dir = ""
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	cmd.Wait()
	if dir == "" {
		t.Fatalf("it did not come to hold a pod:\n%s", said.String())
	}
	kubetest.Eventually(t, "everything to be gone", func() (bool, error) {
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			return false, err
		}
		_, err = os.Stat(dir)
		return os.IsNotExist(err) && !bytes.Contains(mounts, []byte(dir)) && !sleeping(), nil
	})
}

// sleeping says whether the container's process lives.
func sleeping() bool {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && string(b) == "sleep\x00"+marker+"\x00" {
			return true
		}
	}
	return false
}
