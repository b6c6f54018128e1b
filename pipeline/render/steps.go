package render

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/tektoncd/pipeline/pkg/apis/pipeline"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"

	"assay.dev/assay/plan"
)

// shebang is what Tekton puts before a script that has none.
const shebang = "#!/bin/sh\nset -e\n"

// steps makes the executor's steps out of a spec whose workspaces are mounted.
func steps(spec *v1.TaskSpec, run *v1.TaskRun, src Sources) ([]plan.Step, error) {
	list, err := v1.MergeStepsWithStepTemplate(spec.StepTemplate, spec.Steps)
	if err != nil {
		return nil, fmt.Errorf("merging the stepTemplate: %w", err)
	}
	if list, err = v1.MergeStepsWithSpecs(list, run.Spec.StepSpecs); err != nil {
		return nil, fmt.Errorf("merging stepSpecs: %w", err)
	}
	out := make([]plan.Step, 0, len(list))
	for i := range list {
		// A limit for the whole TaskRun is every step's limit: one runs at a time.
		if r := run.Spec.ComputeResources; r != nil && (r.Limits != nil || r.Requests != nil) {
			list[i].ComputeResources.Limits = r.Limits
		}
		step, err := oneStep(&list[i], i, src)
		if err != nil {
			return nil, fmt.Errorf("step %s: %w", StepName(list[i].Name, i), err)
		}
		out = append(out, *step)
	}
	return out, nil
}

func oneStep(s *v1.Step, index int, src Sources) (*plan.Step, error) {
	env, fromEnv, err := environment(s, src)
	if err != nil {
		return nil, err
	}
	out := &plan.Step{
		Name:       StepName(s.Name, index),
		Image:      s.Image,
		Args:       expandAll(s.Args, fromEnv),
		Env:        env,
		WorkingDir: workingDir(s.WorkingDir),
		Continue:   s.OnError == v1.Continue,
		Memory:     s.ComputeResources.Limits.Memory().Value(),
	}
	if s.Script != "" {
		out.Script = s.Script
		if !strings.HasPrefix(strings.TrimSpace(s.Script), "#!") {
			out.Script = shebang + s.Script
		}
	} else {
		out.Command = expandAll(s.Command, fromEnv)
	}
	for _, m := range s.VolumeMounts {
		out.Mounts = append(out.Mounts, plan.Mount{Volume: m.Name, Path: m.MountPath, SubPath: m.SubPath, ReadOnly: m.ReadOnly})
	}
	if c := s.SecurityContext; c != nil {
		out.User, out.Group = c.RunAsUser, c.RunAsGroup
		out.ReadOnlyRoot = c.ReadOnlyRootFilesystem != nil && *c.ReadOnlyRootFilesystem
	}
	for _, r := range s.Results {
		out.Results = append(out.Results, r.Name)
	}
	if s.Timeout != nil {
		out.Timeout = s.Timeout.Duration
	}
	return out, nil
}

// workingDir makes a relative directory one below /workspace, as Tekton does.
func workingDir(dir string) string {
	if dir == "" || path.IsAbs(dir) {
		return dir
	}
	return path.Join(pipeline.WorkspaceDir, dir)
}

// environment makes the variables of a step as the kubelet would: those of
// envFrom first, in order; then env, each of which may use the ones of env
// before it; a later one of the same name wins. The second result is what
// $(NAME) in command and args stands for.
func environment(s *v1.Step, src Sources) ([]plan.Env, map[string]string, error) {
	var order []string
	values := map[string]plan.Env{}
	set := func(e plan.Env) {
		if _, ok := values[e.Name]; !ok {
			order = append(order, e.Name)
		}
		values[e.Name] = e
	}
	for _, from := range s.EnvFrom {
		data, secret, err := envSource(from, src)
		if err != nil {
			return nil, nil, err
		}
		for _, key := range slices.Sorted(maps.Keys(data)) {
			name := from.Prefix + key
			set(plan.Env{Name: name, Value: src.show(name, data[key], secret), Secret: secret})
		}
	}
	own, ownSecrets := map[string]string{}, map[string]string{}
	for _, e := range s.Env {
		value, secret := "", false
		switch {
		case e.Value != "":
			value = expand(e.Value, own)
			// A variable into which a secret was expanded is one too.
			secret = expand(e.Value, ownSecrets) != expand(e.Value, nil)
		case e.ValueFrom != nil:
			v, isSecret, ok, err := envValue(e.Name, e.ValueFrom, src)
			if err != nil {
				return nil, nil, fmt.Errorf("variable %s: %w", e.Name, err)
			}
			if !ok {
				continue
			}
			value, secret = v, isSecret
		}
		own[e.Name] = value
		delete(ownSecrets, e.Name)
		if secret {
			ownSecrets[e.Name] = "«secret:" + e.Name + "»"
		}
		set(plan.Env{Name: e.Name, Value: value, Secret: secret})
	}
	out := make([]plan.Env, 0, len(order))
	all := map[string]string{}
	for _, name := range order {
		out = append(out, values[name])
		all[name] = values[name].Value
	}
	if len(out) == 0 {
		out = nil
	}
	return out, all, nil
}

// show is a value as the caller may see it.
func (src Sources) show(name string, value []byte, secret bool) string {
	if secret && src.Opaque {
		return "«secret:" + name + "»"
	}
	return string(value)
}

func envSource(from corev1.EnvFromSource, src Sources) (data map[string][]byte, secret bool, err error) {
	switch {
	case from.ConfigMapRef != nil:
		data, err = src.configMap(from.ConfigMapRef.Name, from.ConfigMapRef.Optional)
		return data, false, err
	case from.SecretRef != nil:
		if src.Opaque {
			return nil, true, fmt.Errorf("envFrom of Secret %q: its keys are not known to someone who may not read it", from.SecretRef.Name)
		}
		data, err = src.secret(from.SecretRef.Name, from.SecretRef.Optional)
		return data, true, err
	}
	return nil, false, fmt.Errorf("envFrom names neither a ConfigMap nor a Secret")
}

func envValue(name string, from *corev1.EnvVarSource, src Sources) (value string, secret, ok bool, err error) {
	var data map[string][]byte
	var key, kind, object string
	var optional *bool
	switch {
	case from.ConfigMapKeyRef != nil:
		r := from.ConfigMapKeyRef
		key, kind, object, optional = r.Key, "ConfigMap", r.Name, r.Optional
		data, err = src.configMap(r.Name, r.Optional)
	case from.SecretKeyRef != nil:
		r := from.SecretKeyRef
		key, kind, object, optional, secret = r.Key, "Secret", r.Name, r.Optional, true
		if src.Opaque {
			return src.show(name, nil, true), true, true, nil
		}
		data, err = src.secret(r.Name, r.Optional)
	default:
		return "", false, false, fmt.Errorf("valueFrom names neither a configMapKeyRef nor a secretKeyRef")
	}
	if err != nil {
		return "", secret, false, err
	}
	raw, found := data[key]
	if !found && (optional == nil || !*optional) {
		return "", secret, false, fmt.Errorf("%s %q has no key %q", kind, object, key)
	}
	return string(raw), secret, found, nil
}

func (src Sources) configMap(name string, optional *bool) (map[string][]byte, error) {
	return lookUp("ConfigMap", name, optional, src.ConfigMap)
}

func (src Sources) secret(name string, optional *bool) (map[string][]byte, error) {
	return lookUp("Secret", name, optional, src.Secret)
}

func lookUp(kind, name string, optional *bool, get func(string) (map[string][]byte, bool)) (map[string][]byte, error) {
	if get != nil {
		if data, ok := get(name); ok {
			return data, nil
		}
	}
	if optional != nil && *optional {
		return nil, nil
	}
	return nil, fmt.Errorf("%s %q not found: give a file that holds it", kind, name)
}

// expand replaces $(NAME) by a variable's value, as Kubernetes does: an unknown
// name stays as it stands and $$ is a literal dollar.
func expand(in string, vars map[string]string) string {
	var out strings.Builder
	for i := 0; i < len(in); i++ {
		if in[i] != '$' || i+1 == len(in) {
			out.WriteByte(in[i])
			continue
		}
		switch in[i+1] {
		case '$':
			out.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(in[i+2:], ')')
			if end < 0 {
				// Without its end a reference is none.
				out.WriteString("$(")
				i++
				continue
			}
			name := in[i+2 : i+2+end]
			if value, ok := vars[name]; ok {
				out.WriteString(value)
			} else {
				out.WriteString(in[i : i+3+end])
			}
			i += 2 + end
		default:
			out.WriteByte('$')
			out.WriteByte(in[i+1])
			i++
		}
	}
	return out.String()
}

func expandAll(in []string, vars map[string]string) []string {
	if in == nil {
		return nil
	}
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = expand(s, vars)
	}
	return out
}
