package kube

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func downCommand() *cobra.Command {
	o := &common{}
	wait := 90 * time.Second
	c := &cobra.Command{
		Use:   "down",
		Short: "Stop this machine's own Kubernetes API",
		Long: `Stop the control plane that runs on the data folder and wait until both its
processes are gone. Everything is kept for the next up. It succeeds where none runs.`,
		Example: "  assayd down",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			js, err := asJSON(c)
			if err != nil {
				return err
			}
			dir, _, err := o.dir()
			if err != nil {
				return err
			}
			pid, err := Down(dir, wait)
			if err != nil && !errors.Is(err, ErrNotRunning) {
				return err
			}
			if js {
				return printJSON(c.OutOrStdout(), map[string]any{"stopped": err == nil, "pid": pid, "data": dir})
			}
			if err != nil {
				_, err = fmt.Fprintf(c.OutOrStdout(), "no control plane runs on %s\n", dir)
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "stopped; everything is kept in %s\n", dir)
			return err
		},
	}
	o.flags(c)
	c.Flags().DurationVar(&wait, "wait", wait, "how `long` to wait for the end")
	addOutput(c)
	return c
}

// Down ends the control plane that runs on a folder, in whatever process, and
// waits until the folder is free. It returns the process that held it;
// ErrNotRunning where there was none, and an error if it does not end in time,
// which leaves it ending.
func Down(dir string, wait time.Duration) (pid int, err error) {
	f := folder{dir: dir, uid: -1}
	pid, err = f.holding()
	if err != nil {
		return 0, err
	}
	// The descriptor means that process and no later one of its number; asked
	// again, the lock says that it still is the holder.
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return pid, f.freed(pid, wait) // it died; its children are dying
	}
	if err != nil {
		return pid, fmt.Errorf("stopping process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if again, err := f.holding(); err != nil || again != pid {
		return pid, err
	}
	if err := unix.PidfdSendSignal(fd, syscall.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return pid, fmt.Errorf("stopping process %d: %w", pid, err)
	}
	return pid, f.freed(pid, wait)
}

// freed waits until nobody holds the folder.
func (f folder) freed(pid int, wait time.Duration) error {
	for deadline := time.Now().Add(wait); ; time.Sleep(20 * time.Millisecond) {
		_, err := f.holding()
		if errors.Is(err, ErrNotRunning) {
			return nil
		}
		if err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d has not ended within %s: its logs are in %s", pid, wait, f.path("logs"))
		}
	}
}

// statusResult is what `status` prints as JSON.
type statusResult struct {
	Running bool `json:"running"`
	*State
	Data       string `json:"data"`
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// Reason is why it is not running or not ready.
	Reason string `json:"reason,omitempty"`
}

func statusCommand() *cobra.Command {
	o := &common{}
	c := &cobra.Command{
		Use:   "status",
		Short: "Say whether this machine's own Kubernetes API runs, and where",
		Long: `Say whether a control plane runs on the data folder, where it answers and which
processes it is. It succeeds either way; read the answer.`,
		Example: "  assayd status -o json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			js, err := asJSON(c)
			if err != nil {
				return err
			}
			dir, _, err := o.dir()
			if err != nil {
				return err
			}
			r := statusResult{Data: dir}
			r.State, err = Running(dir)
			switch {
			case err == nil:
				r.Running, r.Kubeconfig = true, KubeconfigFile(dir)
			case errors.Is(err, os.ErrPermission):
				return err // not known is not "not running"
			default:
				r.Reason = err.Error()
			}
			if js {
				return printJSON(c.OutOrStdout(), r)
			}
			if !r.Running {
				_, err := fmt.Fprintln(c.OutOrStdout(), r.Reason)
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "running at %s since %s\nprocess %d, etcd %d, kube-apiserver %d\ndata %s\nkubeconfig %s\n",
				r.Server, r.Started.Format(time.RFC3339), r.PID, r.Etcd, r.APIServer, dir, r.Kubeconfig)
			return err
		},
	}
	o.flags(c)
	addOutput(c)
	return c
}

func kubeconfigCommand() *cobra.Command {
	o := &common{}
	var path bool
	c := &cobra.Command{
		Use:   "kubeconfig",
		Short: "Print the administrator's kubeconfig of this machine's own Kubernetes API",
		Long: `Print the kubeconfig of the control plane that runs on the data folder. It holds
the administrator's key: keep it closed. --output json prints the file's name and
its content in one object; --path prints its name alone.`,
		Example: `  export KUBECONFIG=$(assayd kubeconfig --path)
  kubectl get namespaces`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			js, err := asJSON(c)
			if err != nil {
				return err
			}
			dir, _, err := o.dir()
			if err != nil {
				return err
			}
			if _, err := Running(dir); err != nil {
				return err
			}
			if path && !js {
				_, err := fmt.Fprintln(c.OutOrStdout(), KubeconfigFile(dir))
				return err
			}
			b, err := os.ReadFile(KubeconfigFile(dir))
			if err != nil {
				return fmt.Errorf("reading the kubeconfig: %w", err)
			}
			if js {
				return printJSON(c.OutOrStdout(), map[string]string{"file": KubeconfigFile(dir), "kubeconfig": string(b)})
			}
			_, err = c.OutOrStdout().Write(b)
			return err
		},
	}
	o.flags(c)
	c.Flags().BoolVar(&path, "path", false, "print the name of the file instead of what is in it")
	addOutput(c)
	return c
}
