package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"assay.dev/assay/internal/home"
	"assay.dev/assay/sandbox"
)

// give makes a path belong to root in containers.
func give(path string, mode fs.FileMode) error {
	return errors.Join(os.Lchown(path, home.UIDSteps, home.UIDSteps), os.Chmod(path, mode))
}

// volumes makes the folders of all volumes, and returns them as every container's
// space gets them. Names of spaces' own volumes cannot clash with the prefix.
func (p *pod) volumes(ctx context.Context) ([]sandbox.Volume, error) {
	var out []sandbox.Volume
	for _, v := range p.spec.Volumes {
		dir, readOnly, err := p.volume(ctx, v)
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", v.Name, err)
		}
		out = append(out, sandbox.Volume{Name: "v-" + v.Name, Host: dir, ReadOnly: readOnly})
	}
	return out, nil
}

func (p *pod) volume(ctx context.Context, v corev1.Volume) (dir string, readOnly bool, err error) {
	if c := v.PersistentVolumeClaim; c != nil {
		dir, err = p.k.claim(p.namespace, c.ClaimName)
		return dir, c.ReadOnly, err
	}
	dir = filepath.Join(p.dir, "volumes", v.Name)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return "", false, err
	}
	if err := give(dir, 0o777); err != nil {
		return "", false, err
	}
	var sources []corev1.VolumeProjection
	switch {
	case v.EmptyDir != nil:
		return dir, false, nil
	case v.ConfigMap != nil:
		s := v.ConfigMap
		sources = []corev1.VolumeProjection{{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: s.LocalObjectReference, Items: s.Items, Optional: s.Optional}}}
	case v.Secret != nil:
		s := v.Secret
		sources = []corev1.VolumeProjection{{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: s.SecretName}, Items: s.Items, Optional: s.Optional}}}
	case v.DownwardAPI != nil:
		sources = []corev1.VolumeProjection{{DownwardAPI: &corev1.DownwardAPIProjection{Items: v.DownwardAPI.Items}}}
	case v.Projected != nil:
		sources = v.Projected.Sources
	default:
		return "", false, unsupported("a volume that is neither emptyDir, configMap, secret, projected, downwardAPI nor persistentVolumeClaim")
	}
	for _, s := range sources {
		if err := p.project(ctx, dir, s); err != nil {
			return "", false, err
		}
	}
	return dir, true, nil
}

// project writes one source into a folder.
func (p *pod) project(ctx context.Context, dir string, s corev1.VolumeProjection) error {
	switch {
	case s.ConfigMap != nil:
		cm, err := p.k.client.CoreV1().ConfigMaps(p.namespace).Get(ctx, s.ConfigMap.Name, metav1.GetOptions{})
		if absent(err, s.ConfigMap.Optional) {
			return nil
		}
		if err != nil {
			return err
		}
		data := map[string][]byte{}
		for k, v := range cm.Data {
			data[k] = []byte(v)
		}
		for k, v := range cm.BinaryData {
			data[k] = v
		}
		return files(dir, data, s.ConfigMap.Items, s.ConfigMap.Optional)
	case s.Secret != nil:
		sec, err := p.k.client.CoreV1().Secrets(p.namespace).Get(ctx, s.Secret.Name, metav1.GetOptions{})
		if absent(err, s.Secret.Optional) {
			return nil
		}
		if err != nil {
			return err
		}
		return files(dir, sec.Data, s.Secret.Items, s.Secret.Optional)
	case s.DownwardAPI != nil:
		p.mu.Lock()
		p.downward = append(p.downward, downward{dir: dir, items: s.DownwardAPI.Items})
		obj := p.obj
		p.mu.Unlock()
		return writeDownward(dir, s.DownwardAPI.Items, obj)
	case s.ServiceAccountToken != nil:
		t := s.ServiceAccountToken
		req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			ExpirationSeconds: t.ExpirationSeconds,
			BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.name, UID: p.uid},
		}}
		if t.Audience != "" {
			req.Spec.Audiences = []string{t.Audience}
		}
		tok, err := p.k.client.CoreV1().ServiceAccounts(p.namespace).CreateToken(ctx, p.spec.ServiceAccountName, req, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		return file(dir, t.Path, []byte(tok.Status.Token))
	}
	return unsupported("a projected volume of another source than configMap, secret, downwardAPI and serviceAccountToken")
}

func absent(err error, optional *bool) bool {
	return apierrors.IsNotFound(err) && optional != nil && *optional
}

// files writes keys of an object, all or the listed ones.
func files(dir string, data map[string][]byte, items []corev1.KeyToPath, optional *bool) error {
	if len(items) == 0 {
		for k := range data {
			items = append(items, corev1.KeyToPath{Key: k, Path: k})
		}
	}
	for _, i := range items {
		b, ok := data[i.Key]
		if !ok {
			if optional != nil && *optional {
				continue
			}
			return fmt.Errorf("it has no key %q", i.Key)
		}
		if err := file(dir, i.Path, b); err != nil {
			return err
		}
	}
	return nil
}

// file replaces a file at once, as those who wait for it expect.
func file(dir, name string, b []byte) error {
	if !filepath.IsLocal(name) {
		return fmt.Errorf("file %q leaves its volume", name)
	}
	at := filepath.Join(dir, name)
	for d := filepath.Dir(at); d != dir; d = filepath.Dir(d) {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
		if err := give(d, 0o755); err != nil {
			return err
		}
	}
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Close(), give(f.Name(), 0o644)); err != nil {
		return err
	}
	return os.Rename(f.Name(), at)
}

// downward is a folder that follows the Pod.
type downward struct {
	dir   string
	items []corev1.DownwardAPIVolumeFile
}

func writeDownward(dir string, items []corev1.DownwardAPIVolumeFile, obj *corev1.Pod) error {
	for _, i := range items {
		if i.FieldRef == nil {
			return unsupported("a downwardAPI volume of resourceFieldRef")
		}
		v, err := field(obj, i.FieldRef.FieldPath)
		if err != nil {
			return err
		}
		if err := file(dir, i.Path, []byte(v)); err != nil {
			return err
		}
	}
	return nil
}

// mounts are a container's, with the file of its termination message.
func (p *pod) mounts(c *corev1.Container, env func(string) (string, bool)) ([]sandbox.Mount, error) {
	var out []sandbox.Mount
	for _, m := range c.VolumeMounts {
		known := slices.ContainsFunc(p.spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		if !known {
			return nil, fmt.Errorf("it mounts %q, which is no volume of the pod", m.Name)
		}
		sub := m.SubPath
		if m.SubPathExpr != "" {
			sub = expand(m.SubPathExpr, env)
		}
		out = append(out, sandbox.Mount{Volume: "v-" + m.Name, SubPath: sub, Path: filepath.Clean(m.MountPath), ReadOnly: m.ReadOnly})
	}
	if len(c.VolumeDevices) > 0 {
		return nil, unsupported("volumeDevices")
	}
	if at := terminationPath(c); at != "" {
		out = append(out, sandbox.Mount{Volume: "termination", SubPath: "message", Path: at})
	}
	return out, nil
}

// terminationPath is where a container finds its message file. The default lies
// in /dev, which the sandbox keeps to itself: such a container has no file, and
// nothing is read from it.
func terminationPath(c *corev1.Container) string {
	p := filepath.Clean(c.TerminationMessagePath)
	if p == "." || p == "/dev" || filepath.Dir(p) == "/dev" {
		return ""
	}
	return p
}
