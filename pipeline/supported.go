package pipeline

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// shape is what of an object's fields we execute. Lists are looked through. A
// field that a shape does not have is refused.
type shape struct {
	// fields of an object; nil with a nil check: anything goes.
	fields map[string]*shape
	// check returns a problem and a remedy, or two empty strings.
	check func(value any) (problem, remedy string)
}

var anything = &shape{}

// object makes a shape out of names, all leaves, and further shapes by name.
func object(leaves string, nested map[string]*shape) *shape {
	s := &shape{fields: map[string]*shape{}}
	for _, name := range strings.Fields(leaves) {
		s.fields[name] = anything
	}
	maps.Copy(s.fields, nested)
	return s
}

func checked(check func(any) (string, string)) *shape { return &shape{check: check} }

// remedies for the fields that people meet most.
var remedies = map[string]string{
	"sidecars":              "sidecars are not run yet: start what the step needs in the step itself",
	"sidecarSpecs":          "sidecars are not run yet",
	"podTemplate":           "there is no pod: remove it",
	"debug":                 "breakpoints need a cluster: remove it",
	"pipelineRef":           "pipelines in pipelines are not run yet: list the tasks themselves",
	"pipelineSpec":          "pipelines in pipelines are not run yet: list the tasks themselves",
	"hostPath":              "give a folder of this machine as --workspace name=path",
	"persistentVolumeClaim": "give a folder of this machine as --workspace name=path, or use emptyDir",
	"volumeClaimTemplate":   "give a folder of this machine as --workspace name=path, or use emptyDir",
	"csi":                   "use a Secret or ConfigMap",
	"projected":             "use one workspace or volume for each source",
	"when":                  "steps are not skipped by expressions yet: test in the script",
	"stdoutConfig":          "redirect in the script",
	"stderrConfig":          "redirect in the script",
	"fieldRef":              "there is no pod: use $(context.taskRun.name) and its like",
	"resourceFieldRef":      "there is no pod: write the value",
	"status":                "a run is given without status and is cancelled by an interrupt",
	"subPathExpr":           "use subPath",
	"add":                   "steps get no capabilities beyond the default set",
}

// supportedStep is one container; the same for steps, stepTemplate and, less
// some, a StepAction.
func supportedStep() map[string]*shape {
	return map[string]*shape{
		"env": object("name value", map[string]*shape{
			"valueFrom": object("configMapKeyRef secretKeyRef", nil),
		}),
		"envFrom":          object("prefix configMapRef secretRef", nil),
		"volumeMounts":     object("name mountPath subPath readOnly", nil),
		"computeResources": object("limits requests", nil),
		"imagePullPolicy": checked(func(v any) (string, string) {
			return refuseIf(v == "Never", "Never is not supported", "images are pulled once and kept by digest")
		}),
		"script": checked(func(v any) (string, string) {
			s, _ := v.(string)
			return refuseIf(strings.HasPrefix(strings.TrimSpace(s), "#!win"), "Windows scripts are not supported", "")
		}),
		"securityContext": {
			fields: map[string]*shape{
				"runAsUser": anything, "runAsGroup": anything, "readOnlyRootFilesystem": anything,
				"runAsNonRoot": anything,
				"privileged": checked(func(v any) (string, string) {
					return refuseIf(v != false, "privileged steps are not supported", "steps never get rights on the machine")
				}),
				"allowPrivilegeEscalation": checked(func(v any) (string, string) {
					return refuseIf(v != false, "privilege escalation is not supported", "steps run with no-new-privileges: remove it")
				}),
				"capabilities": object("drop", nil),
				"seccompProfile": object("", map[string]*shape{"type": checked(func(v any) (string, string) {
					return refuseIf(v != "RuntimeDefault", "only RuntimeDefault is supported", "")
				})}),
			},
			check: func(v any) (string, string) {
				c, _ := v.(map[string]any)
				user, given := c["runAsUser"].(float64)
				return refuseIf(c["runAsNonRoot"] == true && (!given || user == 0), "runAsNonRoot without a runAsUser other than 0 is not supported", "give runAsUser")
			},
		},
	}
}

func refuseIf(bad bool, problem, remedy string) (string, string) {
	if bad {
		return problem, remedy
	}
	return "", ""
}

// reference allows the bundles resolver and names.
func reference(leaves string) *shape {
	return object(leaves, map[string]*shape{
		"resolver": checked(func(v any) (string, string) {
			return refuseIf(v != "bundles", fmt.Sprintf("resolver %q is not supported", v), "push the object with assay bundle push and use the bundles resolver, or give its file and use its name")
		}),
		"apiVersion": checked(func(v any) (string, string) {
			s, _ := v.(string)
			return refuseIf(s != "" && !strings.HasPrefix(s, "tekton.dev/"), "custom tasks are not supported", "use a Task")
		}),
		"kind": checked(func(v any) (string, string) {
			s, _ := v.(string)
			return refuseIf(!strings.EqualFold(s, "Task") && s != "", fmt.Sprintf("kind %v is not supported", v), "refer to a Task")
		}),
	})
}

func supportedTask() *shape {
	step := supportedStep()
	step["ref"] = reference("name params")
	return object("displayName description params results workspaces", map[string]*shape{
		"steps":        object("name displayName image command args workingDir results timeout onError params workspaces", step),
		"stepTemplate": object("image command args workingDir", supportedStep()),
		"volumes": object("name", map[string]*shape{
			"emptyDir":  object("medium sizeLimit", nil),
			"configMap": object("name items optional defaultMode", nil),
			"secret":    object("secretName items optional defaultMode", nil),
		}),
	})
}

func supportedStepAction() *shape {
	return object("description image command args workingDir params results", supportedStep())
}

func supportedPipeline() *shape {
	embedded := supportedTask()
	embedded.fields["metadata"] = anything
	embedded.fields["apiVersion"] = reference("").fields["apiVersion"]
	embedded.fields["kind"] = reference("").fields["kind"]
	task := object("name displayName description when retries runAfter params matrix workspaces timeout onError", map[string]*shape{
		"taskRef":  reference("name params"),
		"taskSpec": embedded,
	})
	return object("displayName description params workspaces results", map[string]*shape{"tasks": task, "finally": task})
}

// supportedBindings are the volumes a workspace may be bound to. Those that the
// user binds to a folder on the command line have been replaced before this.
func supportedBindings() *shape {
	return object("name subPath emptyDir configMap secret", map[string]*shape{
		"persistentVolumeClaim": object("", map[string]*shape{"claimName": checked(func(v any) (string, string) {
			s, _ := v.(string)
			return refuseIf(!strings.HasPrefix(s, hostClaimPrefix), "persistentVolumeClaim is not supported", remedies["persistentVolumeClaim"])
		})}),
	})
}

func supportedPipelineRun() *shape {
	ref := reference("name params")
	delete(ref.fields, "kind")
	return object("params timeouts managedBy", map[string]*shape{
		"pipelineRef":     ref,
		"pipelineSpec":    supportedPipeline(),
		"taskRunTemplate": object("serviceAccountName", nil),
		"workspaces":      supportedBindings(),
		"taskRunSpecs": object("pipelineTaskName serviceAccountName metadata timeout", map[string]*shape{
			"stepSpecs":        anything,
			"computeResources": object("limits requests", nil),
		}),
	})
}

func supportedTaskRun() *shape {
	return object("params retries timeout serviceAccountName stepSpecs managedBy", map[string]*shape{
		"taskRef":          reference("name params"),
		"taskSpec":         supportedTask(),
		"workspaces":       supportedBindings(),
		"computeResources": object("limits requests", nil),
	})
}

// variables that only mean something with parts of Tekton that we do not have.
var unsupportedVariable = regexp.MustCompile(`\$\((step\.artifacts\.path|artifacts\.path|credentials\.path|(steps|tasks)\.[^.)\s]+\.(inputs|outputs)[.)\[][^)]*)`)

// unsupported returns the first thing in spec that we do not execute.
func unsupported(spec any, s *shape) *InputError {
	raw, err := json.Marshal(spec)
	if err != nil {
		return &InputError{Path: "spec", Problem: "writing it as JSON: " + err.Error(), Err: err}
	}
	var tree any
	if err := json.Unmarshal(raw, &tree); err != nil {
		return &InputError{Path: "spec", Problem: "reading it as JSON: " + err.Error(), Err: err}
	}
	return walk("spec", tree, s)
}

func walk(path string, value any, s *shape) *InputError {
	if list, ok := value.([]any); ok {
		for i, v := range list {
			if e := walk(fmt.Sprintf("%s[%d]", path, i), v, s); e != nil {
				return e
			}
		}
		return nil
	}
	if text, ok := value.(string); ok {
		if m := unsupportedVariable.FindString(text); m != "" {
			return &InputError{Path: path, Problem: fmt.Sprintf("the variable %s) is not supported", m), Remedy: "pass files as results or workspaces, or declare them by annotation"}
		}
	}
	if s.check != nil {
		if problem, remedy := s.check(value); problem != "" {
			return &InputError{Path: path, Problem: problem, Remedy: remedy}
		}
	}
	fields, ok := value.(map[string]any)
	if !ok {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		inner := anything
		if s.fields != nil {
			if inner = s.fields[name]; inner == nil {
				if isEmpty(fields[name]) {
					continue
				}
				remedy := remedies[name]
				if remedy == "" {
					remedy = "remove it"
				}
				return &InputError{Path: path + "." + name, Problem: "field " + name + " is not supported", Remedy: remedy}
			}
		}
		if e := walk(path+"."+name, fields[name], inner); e != nil {
			return e
		}
	}
	return nil
}

// isEmpty: a field that says nothing cannot be ignored either.
func isEmpty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}
