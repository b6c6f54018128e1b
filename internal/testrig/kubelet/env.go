package kubelet

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// field is the value of a field reference.
func field(p *corev1.Pod, path string) (string, error) {
	base, key, subscript := strings.Cut(strings.TrimSuffix(path, "']"), "['")
	switch base {
	case "metadata.annotations":
		if subscript {
			return p.Annotations[key], nil
		}
		return lines(p.Annotations), nil
	case "metadata.labels":
		if subscript {
			return p.Labels[key], nil
		}
		return lines(p.Labels), nil
	case "metadata.name":
		return p.Name, nil
	case "metadata.namespace":
		return p.Namespace, nil
	case "metadata.uid":
		return string(p.UID), nil
	case "spec.nodeName":
		return p.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return p.Spec.ServiceAccountName, nil
	case "status.podIP", "status.hostIP":
		return "127.0.0.1", nil
	}
	return "", unsupported("fieldRef " + path)
}

// lines are how a downwardAPI volume prints a map.
func lines(m map[string]string) string {
	var b strings.Builder
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s=%s", k, strconv.Quote(m[k]))
	}
	return b.String()
}

// environment is a container's, the image's variables first; the returned
// function looks a variable up, for $(NAME) in command and arguments.
func (p *pod) environment(ctx context.Context, c *corev1.Container, fromImage []string) ([]string, func(string) (string, bool), error) {
	p.mu.Lock()
	obj := p.obj
	p.mu.Unlock()
	values := map[string]string{}
	var order []string
	set := func(name, value string) {
		if _, ok := values[name]; !ok {
			order = append(order, name)
		}
		values[name] = value
	}
	lookup := func(name string) (string, bool) { v, ok := values[name]; return v, ok }
	for _, kv := range fromImage {
		name, v, _ := strings.Cut(kv, "=")
		set(name, v)
	}
	set("HOSTNAME", p.name)
	set("KUBERNETES_SERVICE_HOST", "127.0.0.1")
	set("KUBERNETES_SERVICE_PORT", p.k.apiPort)
	for _, e := range c.EnvFrom {
		m, err := p.envFrom(ctx, e)
		if err != nil {
			return nil, nil, err
		}
		for _, name := range slices.Sorted(maps.Keys(m)) {
			set(e.Prefix+name, m[name])
		}
	}
	for _, e := range c.Env {
		v := expand(e.Value, lookup)
		if e.ValueFrom != nil {
			var ok bool
			var err error
			if v, ok, err = p.valueFrom(ctx, obj, e.ValueFrom); err != nil {
				return nil, nil, fmt.Errorf("variable %s: %w", e.Name, err)
			}
			if !ok {
				continue
			}
		}
		set(e.Name, v)
	}
	out := make([]string, 0, len(order))
	for _, name := range order {
		out = append(out, name+"="+values[name])
	}
	return out, lookup, nil
}

func (p *pod) envFrom(ctx context.Context, e corev1.EnvFromSource) (map[string]string, error) {
	switch {
	case e.ConfigMapRef != nil:
		cm, err := p.k.client.CoreV1().ConfigMaps(p.namespace).Get(ctx, e.ConfigMapRef.Name, metav1.GetOptions{})
		if absent(err, e.ConfigMapRef.Optional) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return cm.Data, nil
	case e.SecretRef != nil:
		s, err := p.k.client.CoreV1().Secrets(p.namespace).Get(ctx, e.SecretRef.Name, metav1.GetOptions{})
		if absent(err, e.SecretRef.Optional) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		m := map[string]string{}
		for k, v := range s.Data {
			m[k] = string(v)
		}
		return m, nil
	}
	return nil, nil
}

// valueFrom is the value, and whether there is one: what is optional may be gone.
func (p *pod) valueFrom(ctx context.Context, obj *corev1.Pod, s *corev1.EnvVarSource) (string, bool, error) {
	switch {
	case s.FieldRef != nil:
		v, err := field(obj, s.FieldRef.FieldPath)
		return v, err == nil, err
	case s.ConfigMapKeyRef != nil:
		r := s.ConfigMapKeyRef
		cm, err := p.k.client.CoreV1().ConfigMaps(p.namespace).Get(ctx, r.Name, metav1.GetOptions{})
		if absent(err, r.Optional) {
			return "", false, nil
		}
		if err != nil {
			return "", false, err
		}
		return key(r.Key, r.Optional, cm.Data)
	case s.SecretKeyRef != nil:
		r := s.SecretKeyRef
		sec, err := p.k.client.CoreV1().Secrets(p.namespace).Get(ctx, r.Name, metav1.GetOptions{})
		if absent(err, r.Optional) {
			return "", false, nil
		}
		if err != nil {
			return "", false, err
		}
		return key(r.Key, r.Optional, sec.Data)
	}
	return "", false, unsupported("a variable from another source than fields, ConfigMaps and Secrets")
}

func key[V string | []byte](name string, optional *bool, data map[string]V) (string, bool, error) {
	v, ok := data[name]
	if !ok && (optional == nil || !*optional) {
		return "", false, fmt.Errorf("it has no key %q", name)
	}
	return string(v), ok, nil
}

// expand replaces $(NAME) where NAME is known; $$ is a dollar sign.
func expand(s string, lookup func(string) (string, bool)) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			name, _, closed := strings.Cut(s[i+2:], ")")
			v, known := lookup(name)
			if !closed || !known {
				b.WriteByte('$')
				continue
			}
			b.WriteString(v)
			i += 2 + len(name)
		default:
			b.WriteByte('$')
		}
	}
	return b.String()
}
