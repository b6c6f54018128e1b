package kubelet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"assay.dev/assay/sandbox"
)

// Why a Pod or a container was ended.
var (
	errDeleted  = errors.New("the pod is deleted")
	errDeadline = errors.New("Pod was active on the node longer than the specified deadline")
	errReplaced = errors.New("the container's image was replaced")
)

// unsupported names what a Pod asks and this kubelet does not do.
type unsupported string

func (e unsupported) Error() string { return "the test kubelet does not do " + string(e) }

// pod is one Pod while it is carried out.
//
//	see ─▶ volumes ─▶ init containers, one by one ─▶ containers, all at once ─▶ over
type pod struct {
	k               *Kubelet
	namespace, name string
	uid             types.UID
	spec            corev1.PodSpec // as it was first seen
	dir             string
	ctx             context.Context
	cancel          context.CancelCauseFunc
	vols            []sandbox.Volume

	mu       sync.Mutex // guards the below
	obj      *corev1.Pod
	status   corev1.PodStatus
	downward []downward
	running  map[string]runningContainer

	pushing sync.Mutex // held while a status is on its way: they arrive in order
}

type runningContainer struct {
	image  string
	cancel context.CancelCauseFunc
}

func newPod(k *Kubelet, obj *corev1.Pod) *pod {
	p := &pod{
		k: k, namespace: obj.Namespace, name: obj.Name, uid: obj.UID, spec: *obj.Spec.DeepCopy(),
		dir: filepath.Join(k.dir, "pods", string(obj.UID)), obj: obj, running: map[string]runningContainer{},
	}
	p.ctx, p.cancel = context.WithCancelCause(k.ctx)
	now := metav1.Now()
	p.status = corev1.PodStatus{Phase: corev1.PodPending, StartTime: &now, QOSClass: obj.Status.QOSClass}
	for _, t := range []corev1.PodConditionType{corev1.PodScheduled, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady} {
		s := corev1.ConditionFalse
		if t == corev1.PodScheduled {
			s = corev1.ConditionTrue
		}
		p.status.Conditions = append(p.status.Conditions, corev1.PodCondition{Type: t, Status: s, LastTransitionTime: now})
	}
	waiting := func(cs []corev1.Container) (out []corev1.ContainerStatus) {
		for _, c := range cs {
			out = append(out, corev1.ContainerStatus{
				Name: c.Name, Image: c.Image,
				State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "PodInitializing"}},
			})
		}
		return out
	}
	p.status.InitContainerStatuses = waiting(p.spec.InitContainers)
	p.status.ContainerStatuses = waiting(p.spec.Containers)
	return p
}

// changed takes over what may change in a Pod.
func (p *pod) changed(obj *corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.obj = obj
	if obj.DeletionTimestamp != nil {
		p.cancel(errDeleted)
	}
	for _, d := range p.downward {
		if err := writeDownward(d.dir, d.items, obj); err != nil {
			p.cancel(fmt.Errorf("following the pod in its volume: %w", err))
		}
	}
	for _, c := range obj.Spec.Containers {
		if r, ok := p.running[c.Name]; ok && r.image != c.Image {
			r.cancel(errReplaced)
		}
	}
}

// run carries the Pod out and reports how it went.
func (p *pod) run() {
	if s := p.spec.ActiveDeadlineSeconds; s != nil {
		t := time.AfterFunc(time.Duration(*s)*time.Second, func() { p.cancel(errDeadline) })
		defer t.Stop()
	}
	ok, err := p.carry()
	if cause := context.Cause(p.ctx); cause != nil && !ok {
		err = cause
	}
	p.report(func(s *corev1.PodStatus) {
		s.Phase = corev1.PodSucceeded
		if !ok {
			s.Phase = corev1.PodFailed
		}
		condition(s, corev1.PodReady, false)
		condition(s, corev1.ContainersReady, false)
		var not unsupported
		switch {
		case err == nil:
		case errors.Is(err, errDeadline):
			s.Reason, s.Message = "DeadlineExceeded", errDeadline.Error()
		case errors.As(err, &not):
			s.Reason, s.Message = "Unsupported", err.Error()
		default:
			s.Reason, s.Message = "Error", err.Error()
		}
	})
	if errors.Is(context.Cause(p.ctx), errDeleted) {
		p.release()
	}
}

// release lets go of a Pod that waits for its kubelet to be deleted.
func (p *pod) release() {
	now := int64(0)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.k.ctx), 10*time.Second)
	defer cancel()
	err := p.k.client.CoreV1().Pods(p.namespace).Delete(ctx, p.name, metav1.DeleteOptions{
		GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &p.uid},
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		p.k.log.Warn("releasing a pod", "pod", p.name, "error", err)
	}
}

// carry says whether every container ended well.
func (p *pod) carry() (bool, error) {
	if err := refuse(&p.spec); err != nil {
		return false, err
	}
	if err := os.MkdirAll(p.dir, 0o711); err != nil {
		return false, err
	}
	var err error
	for {
		p.vols, err = p.volumes(p.ctx)
		// As on a cluster, what a volume is made of may come later.
		if !apierrors.IsNotFound(err) {
			break
		}
		select {
		case <-p.ctx.Done():
			return false, err
		case <-time.After(200 * time.Millisecond):
		}
	}
	if err != nil {
		return false, err
	}
	for i := range p.spec.InitContainers {
		if code := p.container(&p.spec.InitContainers[i], true, i); code != 0 {
			return false, nil
		}
	}
	p.mu.Lock()
	condition(&p.status, corev1.PodInitialized, true)
	p.mu.Unlock()
	codes := make([]int32, len(p.spec.Containers))
	var wg sync.WaitGroup
	for i := range p.spec.Containers {
		wg.Go(func() { codes[i] = p.container(&p.spec.Containers[i], false, i) })
	}
	wg.Wait()
	for _, c := range codes {
		if c != 0 {
			return false, nil
		}
	}
	return true, nil
}

// tidy removes what the Pod left on this machine.
func (p *pod) tidy() {
	p.cancel(nil)
	if err := os.RemoveAll(p.dir); err != nil {
		p.k.log.Warn("removing a pod", "pod", p.name, "error", err)
	}
}

// refuse names what would change a Pod's outcome and is not done here.
func refuse(s *corev1.PodSpec) error {
	switch {
	case s.RestartPolicy != corev1.RestartPolicyNever:
		return unsupported("restart policy " + string(s.RestartPolicy))
	case s.HostNetwork || s.HostPID || s.HostIPC:
		return unsupported("namespaces of the host")
	case s.OS != nil && s.OS.Name != corev1.Linux:
		return unsupported("pods for " + string(s.OS.Name))
	case len(s.EphemeralContainers) > 0:
		return unsupported("ephemeral containers")
	}
	for _, c := range s.InitContainers {
		if c.RestartPolicy != nil {
			return unsupported("init containers that stay")
		}
	}
	for _, c := range append(append([]corev1.Container{}, s.InitContainers...), s.Containers...) {
		if c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged {
			return unsupported("privileged containers")
		}
		if c.Stdin || c.TTY {
			return unsupported("containers with a terminal")
		}
		if c.Lifecycle != nil {
			return unsupported("lifecycle hooks")
		}
	}
	return nil
}

func condition(s *corev1.PodStatus, t corev1.PodConditionType, yes bool) {
	status := corev1.ConditionFalse
	if yes {
		status = corev1.ConditionTrue
	}
	for i := range s.Conditions {
		if c := &s.Conditions[i]; c.Type == t && c.Status != status {
			c.Status, c.LastTransitionTime = status, metav1.Now()
		}
	}
}

// report changes the status and sends it. It is sent until it arrives, the Pod is
// gone or the kubelet ends.
func (p *pod) report(change func(*corev1.PodStatus)) {
	p.pushing.Lock()
	defer p.pushing.Unlock()
	p.mu.Lock()
	change(&p.status)
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.uid}, "status": p.status})
	p.mu.Unlock()
	if err != nil {
		p.k.log.Error("encoding a status", "error", err)
		return
	}
	for p.k.ctx.Err() == nil {
		_, err := p.k.client.CoreV1().Pods(p.namespace).Patch(p.k.ctx, p.name, types.MergePatchType, body, metav1.PatchOptions{}, "status")
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsInvalid(err) {
			if apierrors.IsInvalid(err) {
				p.k.log.Error("reporting a pod", "pod", p.name, "error", err)
			}
			return
		}
		select {
		case <-p.k.ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}
