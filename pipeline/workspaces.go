package pipeline

import (
	"fmt"
	"slices"
	"strings"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
)

// Workspace binds a workspace of the run from the command line.
type Workspace struct {
	// Name is the workspace's.
	Name string `json:"name"`
	// Host is the launcher's name for a folder of this machine; the executor
	// knows which folder that is. Empty: a fresh empty folder for every task.
	Host string `json:"host,omitempty"`
}

// hostClaimPrefix marks the claims that stand for folders. A folder of this
// machine is to Tekton what a PersistentVolumeClaim is, something that outlives
// the tasks and that several share, so it is bound as one: every rule on
// claims then holds, and the finished run shows it.
const hostClaimPrefix = "assay-host-"

// bind replaces or adds the workspaces that the command line gives, and
// returns, by claim, the launcher's names.
func bind(bindings []v1.WorkspaceBinding, given []Workspace) ([]v1.WorkspaceBinding, map[string]string, error) {
	out := slices.Clone(bindings)
	hosts := map[string]string{}
	seen := map[string]bool{}
	for _, g := range given {
		if g.Name == "" || seen[g.Name] {
			return nil, nil, fmt.Errorf("workspace %q is given twice or without a name", g.Name)
		}
		seen[g.Name] = true
		b := v1.WorkspaceBinding{Name: g.Name}
		if g.Host == "" {
			b.EmptyDir = &corev1.EmptyDirVolumeSource{}
		} else {
			claim := hostClaimPrefix + strings.ToLower(g.Name)
			hosts[claim] = g.Host
			b.PersistentVolumeClaim = &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}
		}
		at := slices.IndexFunc(out, func(w v1.WorkspaceBinding) bool { return w.Name == g.Name })
		if at < 0 {
			out = append(out, b)
		} else {
			b.SubPath = out[at].SubPath
			out[at] = b
		}
	}
	// A claim of that name that nobody bound would look like one.
	for _, b := range out {
		if b.PersistentVolumeClaim != nil && !seen[b.Name] {
			return nil, nil, &InputError{Path: "spec.workspaces", Problem: fmt.Sprintf("persistentVolumeClaim of workspace %s is not supported", b.Name), Remedy: "give a folder of this machine as --workspace " + b.Name + "=path, or use emptyDir"}
		}
	}
	return out, hosts, nil
}
