package render

import (
	"fmt"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"

	"assay.dev/assay/plan"
)

// volumes makes the executor's volumes of a spec's. A claim is the folder that
// the user gave for it; what else Kubernetes can mount, we do not.
func volumes(spec *v1.TaskSpec, ofWorkspaces map[string]corev1.Volume, src Sources) ([]plan.Volume, error) {
	workspaceOf := map[string]string{}
	// In the order of declaration, so that of two workspaces on one claim the
	// first gives the name.
	for _, w := range spec.Workspaces {
		if v, ok := ofWorkspaces[w.Name]; ok && workspaceOf[v.Name] == "" {
			workspaceOf[v.Name] = w.Name
		}
	}
	var out []plan.Volume
	for _, v := range spec.Volumes {
		p := plan.Volume{Name: v.Name, Workspace: workspaceOf[v.Name]}
		var err error
		switch {
		case v.EmptyDir != nil:
			p.Kind = plan.VolumeEmpty
			p.Memory = v.EmptyDir.Medium == corev1.StorageMediumMemory
		case v.ConfigMap != nil:
			p.Kind, p.ReadOnly = plan.VolumeFiles, true
			var data map[string][]byte
			if data, err = src.configMap(v.ConfigMap.Name, v.ConfigMap.Optional); err == nil {
				p.Files, err = files(data, v.ConfigMap.Items, v.ConfigMap.Optional)
			}
		case v.Secret != nil:
			p.Kind, p.ReadOnly, p.Secret = plan.VolumeFiles, true, true
			if src.Opaque {
				break
			}
			var data map[string][]byte
			if data, err = src.secret(v.Secret.SecretName, v.Secret.Optional); err == nil {
				p.Files, err = files(data, v.Secret.Items, v.Secret.Optional)
			}
		case v.PersistentVolumeClaim != nil:
			p.Kind, p.ReadOnly = plan.VolumeHost, v.PersistentVolumeClaim.ReadOnly
			var ok bool
			if src.Host != nil {
				p.Host, ok = src.Host(v.PersistentVolumeClaim.ClaimName)
			}
			if !ok {
				err = fmt.Errorf("no folder stands for PersistentVolumeClaim %q: give one with --workspace name=path", v.PersistentVolumeClaim.ClaimName)
			}
		default:
			err = fmt.Errorf("only emptyDir, configMap and secret can be mounted")
		}
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", v.Name, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// files selects keys of a ConfigMap or Secret; without items, all under their
// own names.
func files(data map[string][]byte, items []corev1.KeyToPath, optional *bool) (map[string][]byte, error) {
	if len(items) == 0 {
		return data, nil
	}
	out := map[string][]byte{}
	for _, item := range items {
		content, ok := data[item.Key]
		if !ok {
			if optional != nil && *optional {
				continue
			}
			return nil, fmt.Errorf("no key %q", item.Key)
		}
		out[item.Path] = content
	}
	return out, nil
}
