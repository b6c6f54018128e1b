package kubelet_test

import (
	"context"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"assay.dev/assay/internal/testrig/kubelet"
	"assay.dev/assay/internal/testrig/kubetest"
)

// pods is one kubelet with a namespace, for tests of plain Pods.
type pods struct {
	t  *testing.T
	c  *kubetest.Cluster
	k  *kubelet.Kubelet
	ns string
}

// make creates a Pod of one container that runs a script in the shell image.
func (p pods) make(name, script string, change func(*corev1.Pod)) {
	p.t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever,
			Containers: []corev1.Container{{
				Name: "main", Image: p.k.Shell, Command: []string{"sh", "-ec", script}, TerminationMessagePath: "/said",
			}},
		},
	}
	if change != nil {
		change(pod)
	}
	if _, err := p.c.Client.CoreV1().Pods(p.ns).Create(p.t.Context(), pod, metav1.CreateOptions{}); err != nil {
		p.t.Fatal(err)
	}
}

func (p pods) get(name string) *corev1.Pod {
	p.t.Helper()
	pod, err := p.c.Client.CoreV1().Pods(p.ns).Get(p.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	return pod
}

// over waits for a Pod's end.
func (p pods) over(name string) *corev1.Pod {
	p.t.Helper()
	var pod *corev1.Pod
	kubetest.Eventually(p.t, "pod "+name+" to end", func() (bool, error) {
		pod = p.get(name)
		return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed, nil
	})
	return pod
}

func (p pods) running(name string) {
	p.t.Helper()
	kubetest.Eventually(p.t, "pod "+name+" to run", func() (bool, error) {
		pod := p.get(name)
		return len(pod.Status.ContainerStatuses) > 0 && pod.Status.ContainerStatuses[0].State.Running != nil, nil
	})
}

func TestPods(t *testing.T) {
	c := kubetest.Start(t)
	k := kubelet.Start(t, c)
	ns := c.Namespace(t)
	with := func(t *testing.T) pods { return pods{t, c, k, ns} }

	t.Run("containers share volumes and see the pod, ConfigMaps, Secrets and a token", func(t *testing.T) {
		p := with(t)
		c.Apply(t, `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: `+ns+`}
data: {mode: fast}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden, namespace: `+ns+`}
stringData: {word: xyzzy}
`)
		p.make("shares", `
[ "$MODE" = fast ]; [ "$word" = xyzzy ]; [ "$NAME" = "I am shares" ]
[ "$(cat /config/mode)" = fast ]
token=$(cat /var/run/secrets/kubernetes.io/serviceaccount/token)
[ "$(cat /var/run/secrets/kubernetes.io/serviceaccount/namespace)" = `+ns+` ]
[ -n "$token" ] && [ -s /var/run/secrets/kubernetes.io/serviceaccount/ca.crt ]
nc 127.0.0.1 $KUBERNETES_SERVICE_PORT </dev/null
while [ ! -s /shared/from-side ]; do sleep 0.05; done
cat /shared/from-init /shared/from-side > /said; echo -n ",$token" >> /said
`, func(pod *corev1.Pod) {
			pod.Spec.Volumes = []corev1.Volume{
				{Name: "shared", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
				{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}},
			}
			shared := []corev1.VolumeMount{{Name: "shared", MountPath: "/shared"}}
			m := &pod.Spec.Containers[0]
			m.VolumeMounts = append([]corev1.VolumeMount{{Name: "config", MountPath: "/config"}}, shared...)
			m.EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "hidden"}}}}
			m.Env = []corev1.EnvVar{
				{Name: "POD", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
				{Name: "NAME", Value: "I am $(POD)"},
				{Name: "MODE", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}, Key: "mode"}}},
			}
			// They are open to a user that is not root, too.
			uid := int64(65532)
			pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{
				Name: "side", Image: k.Shell, Command: []string{"sh", "-c", "echo -n side > /shared/from-side"}, VolumeMounts: shared,
				SecurityContext: &corev1.SecurityContext{RunAsUser: &uid},
			})
			pod.Spec.InitContainers = []corev1.Container{{Name: "init", Image: k.Shell, Command: []string{"sh", "-c", "echo -n init, > /shared/from-init"}, VolumeMounts: shared}}
		})
		pod := p.over("shares")
		s := pod.Status.ContainerStatuses[0]
		token, said := strings.CutPrefix(s.State.Terminated.Message, "init,side,")
		if pod.Status.Phase != corev1.PodSucceeded || !said {
			log, _ := k.Log(ns, "shares", "main")
			t.Errorf("%s: %+v\n%s", pod.Status.Phase, s.State.Terminated, log)
		}
		review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}
		review, err := c.Client.AuthenticationV1().TokenReviews().Create(t.Context(), review, metav1.CreateOptions{})
		if err != nil || review.Status.User.Username != "system:serviceaccount:"+ns+":default" {
			t.Errorf("the pod's token is of %+v: %v", review.Status, err)
		}
		if !strings.HasPrefix(s.ImageID, k.Registry+"/shell@sha256:") {
			t.Errorf("image id %q", s.ImageID)
		}
	})

	t.Run("a failing container says code and log", func(t *testing.T) {
		p := with(t)
		p.make("fails", "echo it broke >&2; exit 7", func(pod *corev1.Pod) {
			pod.Spec.Containers[0].TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
		})
		pod := p.over("fails")
		end := pod.Status.ContainerStatuses[0].State.Terminated
		if pod.Status.Phase != corev1.PodFailed || end.ExitCode != 7 || end.Message != "it broke" || end.Reason != "Error" {
			t.Errorf("%s: %+v", pod.Status.Phase, end)
		}
	})

	t.Run("a command that is not there is a StartError", func(t *testing.T) {
		p := with(t)
		p.make("absent", "", func(pod *corev1.Pod) { pod.Spec.Containers[0].Command = []string{"/no/such/program"} })
		end := p.over("absent").Status.ContainerStatuses[0].State.Terminated
		if end.ExitCode != 128 || end.Reason != "StartError" {
			t.Errorf("%+v", end)
		}
	})

	t.Run("an image that is not there keeps it waiting", func(t *testing.T) {
		p := with(t)
		p.make("unpulled", "true", func(pod *corev1.Pod) { pod.Spec.Containers[0].Image = k.Registry + "/none:latest" })
		kubetest.Eventually(t, "ImagePullBackOff", func() (bool, error) {
			s := p.get("unpulled").Status.ContainerStatuses
			return len(s) > 0 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "ImagePullBackOff", nil
		})
	})

	t.Run("annotations reach the downward volume", func(t *testing.T) {
		p := with(t)
		p.make("follows", "while [ ! -s /pod/ready ]; do sleep 0.05; done; cat /pod/ready > /said", func(pod *corev1.Pod) {
			pod.Spec.Volumes = []corev1.Volume{{Name: "pod", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{
				Items: []corev1.DownwardAPIVolumeFile{{Path: "ready", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.annotations['tekton.dev/ready']"}}},
			}}}}
			pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "pod", MountPath: "/pod"}}
		})
		p.running("follows")
		patch := `{"metadata":{"annotations":{"tekton.dev/ready":"READY"}}}`
		if _, err := c.Client.CoreV1().Pods(ns).Patch(t.Context(), "follows", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		if pod := p.over("follows"); pod.Status.ContainerStatuses[0].State.Terminated.Message != "READY" {
			t.Errorf("%+v", pod.Status.ContainerStatuses)
		}
	})

	t.Run("a sidecar whose image is replaced ends well", func(t *testing.T) {
		p := with(t)
		p.make("sidecar", "sleep 1000", nil)
		p.running("sidecar")
		patch := `[{"op":"replace","path":"/spec/containers/0/image","value":"` + k.Tekton + `"}]`
		if _, err := c.Client.CoreV1().Pods(ns).Patch(t.Context(), "sidecar", types.JSONPatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		if pod := p.over("sidecar"); pod.Status.Phase != corev1.PodSucceeded {
			t.Errorf("%+v", pod.Status)
		}
	})

	t.Run("the deadline ends it", func(t *testing.T) {
		p := with(t)
		p.make("late", "sleep 1000", func(pod *corev1.Pod) { one := int64(1); pod.Spec.ActiveDeadlineSeconds = &one })
		if pod := p.over("late"); pod.Status.Phase != corev1.PodFailed || pod.Status.Reason != "DeadlineExceeded" {
			t.Errorf("%+v", pod.Status)
		}
	})

	t.Run("deletion ends it, held by a finalizer or not", func(t *testing.T) {
		p := with(t)
		p.make("deleted", "sleep 1000", nil)
		p.make("held", "sleep 1000", func(pod *corev1.Pod) { pod.Finalizers = []string{"assay.dev/test"} })
		p.running("deleted")
		p.running("held")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for _, name := range []string{"deleted", "held"} {
			if err := c.Client.CoreV1().Pods(ns).Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if pod := p.over("held"); pod.Status.Phase != corev1.PodFailed {
			t.Errorf("held: %s", pod.Status.Phase)
		}
		if _, err := c.Client.CoreV1().Pods(ns).Patch(ctx, "held", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"deleted", "held"} {
			kubetest.Eventually(t, name+" to be gone", func() (bool, error) {
				_, err := c.Client.CoreV1().Pods(ns).Get(ctx, name, metav1.GetOptions{})
				if apierrors.IsNotFound(err) {
					return true, nil
				}
				return false, err
			})
		}
	})

	t.Run("what is not done is named", func(t *testing.T) {
		p := with(t)
		for name, change := range map[string]func(*corev1.Pod){
			"hostpath": func(pod *corev1.Pod) {
				pod.Spec.Volumes = []corev1.Volume{{Name: "x", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}}}
			},
			"hostnetwork": func(pod *corev1.Pod) { pod.Spec.HostNetwork = true },
			"lifecycle": func(pod *corev1.Pod) {
				pod.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}}
			},
		} {
			p.make(name, "true", change)
			if pod := p.over(name); pod.Status.Phase != corev1.PodFailed || pod.Status.Reason != "Unsupported" || pod.Status.Message == "" {
				t.Errorf("%s: %+v", name, pod.Status)
			}
		}
	})
}
