package provenance

import (
	"maps"
	"slices"
	"strings"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
)

// order lists the tasks that st came after: those it says, then those whose
// results it uses. A finally task that says nothing came after the last task.
func order(st stage, last string) []string {
	after := slices.Clone(st.task.RunAfter)
	tasksUsed(st.task, func(task string) {
		if !slices.Contains(after, task) {
			after = append(after, task)
		}
	})
	if len(after) == 0 && st.finally && last != "" {
		after = append(after, last)
	}
	return after
}

// tasksUsed calls do for every reference to a task's result, wherever
// v1.PipelineTaskResultRefs looks for one and in its order. That function would
// do, were it not that it ranges over maps, appends to slices of the object it
// reads, and runs a regular expression over every script.
func tasksUsed(pt *v1.PipelineTask, do func(task string)) {
	params(pt.Params, do)
	if pt.Matrix != nil {
		params(pt.Matrix.Params, do)
		for i := range pt.Matrix.Include {
			params(pt.Matrix.Include[i].Params, do)
		}
	}
	for i := range pt.When {
		w := &pt.When[i]
		references(w.Input, do)
		references(w.CEL, do)
		for _, v := range w.Values {
			references(v, do)
		}
	}
	if pt.TaskSpec == nil {
		return
	}
	for i := range pt.TaskSpec.Steps {
		s := &pt.TaskSpec.Steps[i]
		for _, text := range []string{s.Name, s.Image, string(s.ImagePullPolicy), s.Script, s.WorkingDir} {
			references(text, do)
		}
		container(s.Command, s.Args, s.Env, do)
	}
	for i := range pt.TaskSpec.Sidecars {
		s := &pt.TaskSpec.Sidecars[i]
		for _, text := range []string{s.Name, s.Image, string(s.ImagePullPolicy), s.Script, s.WorkingDir} {
			references(text, do)
		}
		container(s.Command, s.Args, s.Env, do)
	}
}

func container(command, args []string, env []corev1.EnvVar, do func(task string)) {
	for _, text := range command {
		references(text, do)
	}
	for _, text := range args {
		references(text, do)
	}
	for i := range env {
		references(env[i].Value, do)
		from := env[i].ValueFrom
		if from == nil {
			continue
		}
		if s := from.SecretKeyRef; s != nil {
			references(s.Key, do)
			references(s.Name, do)
		}
		if c := from.ConfigMapKeyRef; c != nil {
			references(c.Key, do)
			references(c.Name, do)
		}
	}
}

// params reads objects in the order of their keys.
func params(list []v1.Param, do func(task string)) {
	for i := range list {
		switch v := &list[i].Value; v.Type {
		case v1.ParamTypeString:
			references(v.StringVal, do)
		case v1.ParamTypeArray:
			for _, text := range v.ArrayVal {
				references(text, do)
			}
		case v1.ParamTypeObject:
			for _, key := range slices.Sorted(maps.Keys(v.ObjectVal)) {
				references(v.ObjectVal[key], do)
			}
		}
	}
}

// references calls do for each $(tasks.<task>.results.<result>) in text, with an
// index in brackets or a key behind a further dot, or none; finally stands for
// tasks as well.
func references(text string, do func(task string)) {
	for {
		_, rest, found := strings.Cut(text, "$(")
		if !found {
			return
		}
		text = rest
		end := 0
		for end < len(text) && isName(text[end]) {
			end++
		}
		expression, tail := text[:end], text[end:]
		if end == 0 || !closes(tail) {
			continue
		}
		kind, rest, _ := strings.Cut(expression, ".")
		task, rest, _ := strings.Cut(rest, ".")
		results, result, found := strings.Cut(rest, ".")
		if found && (kind == v1.ResultTaskPart || kind == v1.ResultFinallyPart) && results == v1.ResultResultPart && strings.Count(result, ".") < 2 {
			do(task)
		}
	}
}

func isName(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || c == '-'
}

// closes says whether text begins with the end of an expression: an index in
// brackets, or none, and the parenthesis.
func closes(text string) bool {
	if index, ok := strings.CutPrefix(text, "["); ok {
		digits := 0
		for digits < len(index) && index[digits] >= '0' && index[digits] <= '9' {
			digits++
		}
		switch {
		case digits > 0:
			text = index[digits:]
		case strings.HasPrefix(index, "*"):
			text = index[1:]
		default:
			return false
		}
		text, ok = strings.CutPrefix(text, "]")
		if !ok {
			return false
		}
	}
	return strings.HasPrefix(text, ")")
}
