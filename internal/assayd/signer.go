package assayd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"assay.dev/assay/internal/launch"
)

// startSigner starts assay-observer signer for a folder of keys and returns its
// socket once it serves. It ends with us, however we end.
func startSigner(ctx context.Context, secrets string, stderr io.Writer) (socket string, stop func() error, err error) {
	if st, err := os.Stat(secrets); err != nil {
		return "", nil, fmt.Errorf("finding the signing secrets: %w", err)
	} else if !st.IsDir() {
		return "", nil, fmt.Errorf("--secrets %s is no folder; name the folder that x509.pem or cosign.key is in", secrets)
	}
	program, err := launch.Binary("assay-observer")
	if err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp("", "assayd-signer-")
	if err != nil {
		return "", nil, fmt.Errorf("making a place for the signer's socket: %w", err)
	}
	remove := func() error { return os.RemoveAll(dir) }
	socket = filepath.Join(dir, "signer.sock")
	c := exec.Command(program, "signer", "--socket", socket, "--secrets", secrets, "--lifeline")
	c.Stderr = stderr
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	lifeline, err := c.StdinPipe()
	if err != nil {
		return "", nil, errors.Join(err, remove())
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return "", nil, errors.Join(err, remove())
	}
	if err := c.Start(); err != nil {
		return "", nil, errors.Join(fmt.Errorf("starting the signer: %w", err), remove())
	}
	stop = func() error {
		_ = lifeline.Close()
		kill := time.AfterFunc(10*time.Second, func() { _ = c.Process.Kill() })
		defer kill.Stop()
		return errors.Join(c.Wait(), remove())
	}
	ready := make(chan error, 1)
	go func() {
		_, err := bufio.NewReader(out).ReadString('\n')
		ready <- err
	}()
	select {
	case err = <-ready:
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(30 * time.Second):
		err = errors.New("it does not answer")
	}
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("starting the signer: %w", err), stop())
	}
	return socket, stop, nil
}
