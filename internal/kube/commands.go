package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/home"
)

// userPlane is the user that etcd and kube-apiserver run as where we are root: a
// number beside the other processes' (package home).
const userPlane = home.UIDPlane

// startTimeout bounds how long a start may take on a slow machine.
const startTimeout = 3 * time.Minute

// Commands returns up, down, status and kubeconfig. Each prints text, or one JSON
// object with --output json; the caller's root command may define that flag as a
// persistent one, otherwise each gets its own.
func Commands() []*cobra.Command {
	return []*cobra.Command{upCommand(), downCommand(), statusCommand(), kubeconfigCommand()}
}

// common are the flags that all four have.
type common struct {
	data string
}

func (o *common) flags(c *cobra.Command) {
	c.Flags().StringVar(&o.data, "data", "", "data `folder` of the control plane (default: kube below $ASSAY_HOME)")
}

// addOutput defines --output on a command unless a parent has it.
func addOutput(c *cobra.Command) {
	if c.InheritedFlags().Lookup("output") == nil && c.Flags().Lookup("output") == nil {
		c.Flags().StringP("output", "o", "text", "how to print: text or json")
	}
}

// asJSON says whether to print JSON.
func asJSON(c *cobra.Command) (bool, error) {
	f := c.Flag("output")
	if f == nil {
		return false, nil
	}
	switch v := f.Value.String(); v {
	case "text", "":
		return false, nil
	case "json":
		return true, nil
	default:
		return false, fmt.Errorf("invalid argument %q for --output: this command prints text or json", v)
	}
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// dir is the data folder, and whether root's separate users are used on it.
func (o *common) dir() (dir string, root bool, err error) {
	h, err := home.Find()
	if err != nil {
		return "", false, err
	}
	if o.data == "" {
		return h.Path("kube"), h.Root, nil
	}
	dir, err = filepath.Abs(o.data)
	if err != nil {
		return "", false, fmt.Errorf("resolving --data: %w", err)
	}
	return dir, h.Root, nil
}

// upOptions are of `up`.
type upOptions struct {
	common
	port    int
	apply   []string
	detach  bool
	readyFD int
}

func upCommand() *cobra.Command {
	o := &upOptions{}
	c := &cobra.Command{
		Use:   "up",
		Short: "Start this machine's own Kubernetes API",
		Long: `Start etcd and kube-apiserver as children of this process, with certificates, data
and ports of their own, and stay until interrupted. Both are looked for where
ASSAY_ETCD and ASSAY_KUBE_APISERVER say, beside this program, in PATH, and among
what tools/peers of a checkout has built.

Objects, certificates and the port are kept in the data folder: the next up goes
on where this one ended. Nothing here runs Pods.`,
		Example: `  assayd up
  assayd up --detach --apply crds/ --apply namespaces.yaml
  kubectl --kubeconfig <(assayd kubeconfig) get namespaces`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return o.run(c) },
	}
	o.flags(c)
	c.Flags().IntVar(&o.port, "port", 0, "`port` of the API server on loopback (default: as at the last start, at first a free one)")
	c.Flags().StringArrayVar(&o.apply, "apply", nil, "`file` or folder of manifests to apply when it is ready, definitions of custom resources first; repeatable")
	c.Flags().BoolVar(&o.detach, "detach", false, "return when it is ready and leave it running; `assayd down` ends it")
	c.Flags().IntVar(&o.readyFD, "ready-fd", 0, "")
	_ = c.Flags().MarkHidden("ready-fd") // it was defined a line above
	addOutput(c)
	return c
}

func (o *upOptions) run(c *cobra.Command) error {
	js, err := asJSON(c)
	if err != nil {
		return err
	}
	if o.port < 0 || o.port > 65535 {
		return fmt.Errorf("invalid argument %d for --port: want 1 to 65535", o.port)
	}
	dir, root, err := o.dir()
	if err != nil {
		return err
	}
	if o.detach {
		return o.background(c, dir, js)
	}
	if o.readyFD != 0 {
		syscall.CloseOnExec(o.readyFD)
	}
	// Read before anything is started: a typing error costs no start.
	objects, err := ReadManifests(o.apply...)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	start, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("it took longer than %s", startTimeout))
	defer cancel()
	opts := Options{Dir: dir, Port: o.port, Log: slog.New(slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))}
	if root {
		opts.UID = userPlane
	}
	p, err := Start(start, opts)
	if err != nil {
		return err
	}
	defer p.Stop() //nolint:errcheck // a second one; the first is below
	if err := Apply(start, p.RESTConfig(), objects...); err != nil {
		return errors.Join(err, p.Stop())
	}
	if err := o.said(c, dir, p.State(), js, len(objects)); err != nil {
		return errors.Join(err, p.Stop())
	}
	select {
	case <-p.Done():
		return fmt.Errorf("the control plane died: %w", p.Err())
	case <-ctx.Done():
	}
	stop() // a second interrupt kills, and the children with us
	if !js && o.readyFD == 0 {
		fmt.Fprintln(c.ErrOrStderr(), "assayd: stopping")
	}
	return p.Stop()
}

// upResult is what `up` prints as JSON.
type upResult struct {
	State
	Data       string `json:"data"`
	Kubeconfig string `json:"kubeconfig"`
	Applied    int    `json:"applied"`
}

// said tells that it is ready: whoever waits on --ready-fd, or the terminal.
func (o *upOptions) said(c *cobra.Command, dir string, s State, js bool, applied int) error {
	r := upResult{State: s, Data: dir, Kubeconfig: KubeconfigFile(dir), Applied: applied}
	if o.readyFD != 0 {
		f := os.NewFile(uintptr(o.readyFD), "ready")
		return errors.Join(json.NewEncoder(f).Encode(r), f.Close())
	}
	return r.print(c, js, false)
}

func (r upResult) print(c *cobra.Command, js, detached bool) error {
	if js {
		return printJSON(c.OutOrStdout(), r)
	}
	w := c.OutOrStdout()
	fmt.Fprintf(w, "Kubernetes API ready in %.1f s at %s\n", r.ReadySeconds, r.Server)
	if r.Applied > 0 {
		fmt.Fprintf(w, "applied %d objects\n", r.Applied)
	}
	fmt.Fprintf(w, "\n  export KUBECONFIG=%s\n  kubectl get namespaces\n\n", r.Kubeconfig)
	if detached {
		_, err := fmt.Fprintln(w, "`assayd down` stops it; everything is kept.")
		return err
	}
	_, err := fmt.Fprintln(w, "Interrupt (Ctrl-C) or `assayd down` stops it; everything is kept.")
	return err
}

// background starts `up` once more without a terminal and waits for its word.
func (o *upOptions) background(c *cobra.Command, dir string, js bool) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	defer w.Close()
	said, err := os.CreateTemp("", "assayd-up-*.log")
	if err != nil {
		return fmt.Errorf("making a file for its messages: %w", err)
	}
	defer os.Remove(said.Name())
	defer said.Close()
	args := []string{c.Name(), "--data", dir, "--ready-fd", "3", "--port", fmt.Sprint(o.port)}
	for _, a := range o.apply {
		args = append(args, "--apply", a)
	}
	cmd := exec.Command(self, args...)
	cmd.Stdout, cmd.Stderr = said, said
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting it in the background: %w", err)
	}
	w.Close()
	var res upResult
	if err := json.NewDecoder(r).Decode(&res); err != nil {
		// It ended without a word on the pipe; its words are in the file.
		_ = cmd.Wait()
		b, rerr := os.ReadFile(said.Name())
		if rerr != nil {
			return errors.Join(fmt.Errorf("starting it in the background: %w", err), rerr)
		}
		return fmt.Errorf("starting it in the background: %s", strings.TrimPrefix(strings.TrimSpace(string(b)), "assayd: "))
	}
	if err := cmd.Process.Release(); err != nil {
		return fmt.Errorf("leaving it in the background: %w", err)
	}
	return res.print(c, js, true)
}
