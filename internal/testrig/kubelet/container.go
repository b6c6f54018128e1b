package kubelet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"assay.dev/assay/image"
	"assay.dev/assay/sandbox"
)

// Bounds on termination messages, as kubelets have them.
const (
	maxMessage  = 4096
	maxFallback = 2048
)

// exitStartError is what Kubernetes reports for a container that cannot start.
const exitStartError = 128

// container runs one container to its end and returns its exit code.
func (p *pod) container(c *corev1.Container, init bool, index int) int32 {
	ctx, cancel := context.WithCancelCause(p.ctx)
	defer cancel(nil)
	p.mu.Lock()
	p.running[c.Name] = runningContainer{image: c.Image, cancel: cancel}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.running, c.Name)
		p.mu.Unlock()
	}()
	set := func(change func(*corev1.ContainerStatus)) {
		p.report(func(s *corev1.PodStatus) {
			list := s.ContainerStatuses
			if init {
				list = s.InitContainerStatuses
			}
			change(&list[index])
			settle(s)
		})
	}
	wait := func(reason, message string) {
		set(func(s *corev1.ContainerStatus) {
			s.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
		})
	}
	end := func(t corev1.ContainerStateTerminated) int32 {
		set(func(s *corev1.ContainerStatus) {
			no := false
			s.Ready, s.Started = false, &no
			s.State = corev1.ContainerState{Terminated: &t}
		})
		return t.ExitCode
	}
	began := metav1.Now()
	killed := func() int32 {
		// The replacement of a sidecar does nothing and ends well.
		if errors.Is(context.Cause(ctx), errReplaced) {
			return end(corev1.ContainerStateTerminated{Reason: "Completed", StartedAt: began, FinishedAt: metav1.Now()})
		}
		return end(corev1.ContainerStateTerminated{ExitCode: 137, Reason: "Error", StartedAt: began, FinishedAt: metav1.Now()})
	}

	img, err := p.k.pull(ctx, c.Image)
	if err != nil {
		if ctx.Err() == nil {
			wait("ImagePullBackOff", err.Error())
		}
		<-ctx.Done() // a kubelet tries on and on; tests end it
		return killed()
	}
	step, err := p.step(ctx, c, img)
	for apierrors.IsNotFound(err) { // a ConfigMap or Secret that may come later
		wait("CreateContainerConfigError", err.Error())
		select {
		case <-ctx.Done():
			return killed()
		case <-time.After(200 * time.Millisecond):
		}
		step, err = p.step(ctx, c, img)
	}
	if err != nil {
		return end(corev1.ContainerStateTerminated{ExitCode: exitStartError, Reason: reason(err), Message: err.Error(), StartedAt: began, FinishedAt: metav1.Now()})
	}
	log, err := os.OpenFile(p.k.logFile(p.namespace, p.name, c.Name), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return end(corev1.ContainerStateTerminated{ExitCode: exitStartError, Reason: "Error", Message: err.Error(), StartedAt: began, FinishedAt: metav1.Now()})
	}
	defer log.Close()
	set(func(s *corev1.ContainerStatus) {
		yes := true
		s.Image, s.ImageID, s.ContainerID = c.Image, img.Repository+"@"+img.Digest, "assay://"+p.spaceID(init, index)
		s.Ready, s.Started = !init, &yes
		s.State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: began}}
	})
	res, message, err := p.sandboxed(ctx, p.spaceID(init, index), step, &sharedWriter{w: log})
	var start *sandbox.StartError
	switch {
	case errors.As(err, &start):
		return end(corev1.ContainerStateTerminated{ExitCode: exitStartError, Reason: "StartError", Message: start.Reason, StartedAt: began, FinishedAt: metav1.Now()})
	case err != nil && ctx.Err() == nil:
		return end(corev1.ContainerStateTerminated{ExitCode: exitStartError, Reason: "ContainerCannotRun", Message: err.Error(), StartedAt: began, FinishedAt: metav1.Now()})
	case err != nil || res.Killed:
		return killed()
	}
	t := corev1.ContainerStateTerminated{
		ExitCode: int32(res.ExitCode), Reason: "Completed", Message: message,
		StartedAt: metav1.NewTime(res.Started), FinishedAt: metav1.NewTime(res.Finished),
		ContainerID: "assay://" + p.spaceID(init, index),
	}
	if res.ExitCode != 0 {
		t.Reason = "Error"
	}
	if res.OOMKilled {
		t.Reason = "OOMKilled"
	}
	if t.ExitCode != 0 && t.Message == "" && c.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError {
		t.Message = lastOf(log.Name(), maxFallback)
	}
	return end(t)
}

// settle derives the Pod's phase and conditions from its containers while it runs.
func settle(s *corev1.PodStatus) {
	running, ready := false, true
	for _, c := range s.ContainerStatuses {
		running = running || c.State.Running != nil || c.State.Terminated != nil
		ready = ready && c.Ready
	}
	if running && s.Phase == corev1.PodPending {
		s.Phase = corev1.PodRunning
	}
	condition(s, corev1.PodReady, ready)
	condition(s, corev1.ContainersReady, ready)
}

func reason(err error) string {
	var not unsupported
	if errors.As(err, &not) {
		return "Unsupported"
	}
	return "CreateContainerError"
}

func (p *pod) spaceID(init bool, index int) string {
	if init {
		return fmt.Sprintf("%s-i%d", p.uid, index)
	}
	return fmt.Sprintf("%s-c%d", p.uid, index)
}

// step translates a container.
func (p *pod) step(ctx context.Context, c *corev1.Container, img *image.Image) (sandbox.StepSpec, error) {
	s := sandbox.StepSpec{Name: c.Name, Layers: img.Dirs(), WorkingDir: c.WorkingDir}
	env, lookup, err := p.environment(ctx, c, img.Config.Env)
	if err != nil {
		return s, err
	}
	s.Env = env
	if s.Mounts, err = p.mounts(c, lookup); err != nil {
		return s, err
	}
	command, args := c.Command, c.Args
	if len(command) == 0 {
		command = img.Config.Entrypoint
		if len(args) == 0 {
			args = img.Config.Cmd
		}
	}
	for _, a := range slices.Concat(command, args) {
		s.Argv = append(s.Argv, expand(a, lookup))
	}
	if len(s.Argv) == 0 {
		return s, errors.New("no command specified")
	}
	if s.WorkingDir == "" {
		s.WorkingDir = img.Config.WorkingDir
	}
	return s, p.user(c, img, &s)
}

// user decides as whom a container runs: what it says, what the Pod says, what
// the image says.
func (p *pod) user(c *corev1.Container, img *image.Image, s *sandbox.StepSpec) error {
	uid, gid, err := image.User(img.Dirs(), img.Config.User)
	if err != nil {
		return err
	}
	take := func(u, g *int64) error {
		for _, x := range []struct {
			from *int64
			to   *uint32
		}{{u, &uid}, {g, &gid}} {
			if x.from == nil {
				continue
			}
			if *x.from < 0 || *x.from >= idSize {
				return unsupported(fmt.Sprintf("user and group ids such as %d: they end at %d", *x.from, idSize-1))
			}
			*x.to = uint32(*x.from)
		}
		return nil
	}
	if sc := p.spec.SecurityContext; sc != nil {
		if err := take(sc.RunAsUser, sc.RunAsGroup); err != nil {
			return err
		}
	}
	if sc := c.SecurityContext; sc != nil {
		if err := take(sc.RunAsUser, sc.RunAsGroup); err != nil {
			return err
		}
		s.ReadOnlyRoot = sc.ReadOnlyRootFilesystem != nil && *sc.ReadOnlyRootFilesystem
	}
	s.UID, s.GID = uid, gid
	return nil
}

// sandboxed runs a step in a space of its own and reads its message.
func (p *pod) sandboxed(ctx context.Context, id string, step sandbox.StepSpec, log io.Writer) (_ *sandbox.Result, message string, err error) {
	dir := filepath.Join(p.dir, "termination-"+id)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, "", err
	}
	file := filepath.Join(dir, "message")
	if err := errors.Join(os.WriteFile(file, nil, 0o666), give(file, 0o666), give(dir, 0o755)); err != nil {
		return nil, "", err
	}
	space, err := p.k.driver.Open(ctx, sandbox.SpaceSpec{
		ID: id, Network: "registry", Forward: p.k.forward,
		Volumes: append(slices.Clone(p.vols), sandbox.Volume{Name: "termination", Host: dir}),
	})
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, space.Close()) }()
	res, err := space.Run(ctx, step, log, log)
	if err != nil {
		return nil, "", err
	}
	// What the container left there may be a link by now, or anything else.
	b, err := message0(file)
	if err != nil {
		return nil, "", err
	}
	return res, string(b), nil
}

// message0 reads a termination message, at most as much as a kubelet would.
func message0(path string) ([]byte, error) {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !st.Mode().IsRegular() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxMessage))
}

// lastOf is the end of a log.
func lastOf(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	if len(b) > n {
		b = b[len(b)-n:]
	}
	return strings.ToValidUTF8(string(bytes.TrimSpace(b)), "�")
}

// sharedWriter takes both streams.
type sharedWriter struct {
	mu sync.Mutex // guards w
	w  io.Writer
}

func (s *sharedWriter) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(b)
}
