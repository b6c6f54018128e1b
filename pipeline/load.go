package pipeline

import (
	"bufio"
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

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"github.com/tektoncd/pipeline/pkg/apis/pipeline/v1alpha1"
	"github.com/tektoncd/pipeline/pkg/apis/pipeline/v1beta1"
	corev1 "k8s.io/api/core/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"knative.dev/pkg/apis"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Bounds on what Load reads.
const (
	maxFileBytes = 8 << 20
	maxFiles     = 1000
	maxDocuments = 1000
)

// Load reads the files, and in folders every *.yaml, *.yml and *.json below
// them. Each document is decoded strictly (an unknown or repeated field, or an
// unknown kind, is an error), converted to Tekton's v1, and held to Tekton's
// validation and to what we execute. The error is an *InputError where it is
// about what a file says, and then nothing is loaded.
func Load(paths ...string) (*Objects, error) {
	if len(paths) == 0 {
		return nil, errors.New("no file given: name a file or folder that holds a PipelineRun or TaskRun")
	}
	files, err := expandPaths(paths)
	if err != nil {
		return nil, err
	}
	o := NewObjects()
	for _, file := range files {
		data, err := readBounded(file)
		if err != nil {
			return nil, &InputError{Origin: Origin{File: file}, Problem: "reading it: " + err.Error(), Err: err}
		}
		if err := o.Add(file, data); err != nil {
			return nil, err
		}
	}
	return o, nil
}

func expandPaths(paths []string) ([]string, error) {
	var files []string
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return nil, &InputError{Origin: Origin{File: p}, Problem: err.Error(), Remedy: "name a file or folder that is there", Err: err}
		}
		if !info.IsDir() {
			files = append(files, p)
			continue
		}
		before := len(files)
		err = filepath.WalkDir(p, func(at string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if ext := filepath.Ext(at); d.Type().IsRegular() && (ext == ".yaml" || ext == ".yml" || ext == ".json") {
				files = append(files, at)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("looking through %s: %w", p, err)
		}
		if len(files) == before {
			return nil, &InputError{Origin: Origin{File: p}, Problem: "the folder holds no *.yaml, *.yml or *.json file"}
		}
	}
	if len(files) > maxFiles {
		return nil, fmt.Errorf("%d files are more than the %d that are read at once", len(files), maxFiles)
	}
	return files, nil
}

func readBounded(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("it has more than %d bytes", maxFileBytes)
	}
	return data, nil
}

// Add reads the documents of one file. file only names it in messages.
func (o *Objects) Add(file string, data []byte) error {
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for n := 1; ; n++ {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		origin := Origin{File: file, Document: n}
		if err != nil {
			return &InputError{Origin: origin, Problem: "splitting documents: " + err.Error(), Err: err}
		}
		if n > maxDocuments {
			return &InputError{Origin: origin, Problem: fmt.Sprintf("more than %d documents", maxDocuments)}
		}
		if isBlank(document) {
			continue
		}
		if err := o.decode(origin, document); err != nil {
			return err
		}
	}
}

// isBlank tells a document of comments from one that says something.
func isBlank(document []byte) bool {
	for _, line := range strings.Split(string(document), "\n") {
		line = strings.TrimSpace(line)
		if line != "" && line != "---" && !strings.HasPrefix(line, "#") {
			return false
		}
	}
	return true
}

// knownKinds is for messages; decode has the cases.
const knownKinds = "tekton.dev/v1 and v1beta1 PipelineRun, TaskRun, Pipeline, Task; tekton.dev/v1beta1 and v1alpha1 StepAction; v1 ConfigMap, Secret"

// otherKinds are what people's files also hold, with what to do instead.
var otherKinds = map[string]string{
	"PersistentVolumeClaim": "remove it and give a folder of this machine as --workspace name=path",
	"ServiceAccount":        "remove it: a run needs none here, and credentials come from Secrets that steps mount or from the docker configuration",
	"CustomRun":             "custom tasks need a controller of their own: use a Task",
	"List":                  "write its items as documents of their own, separated by ---",
}

func (o *Objects) decode(origin Origin, document []byte) error {
	raw, err := yaml.YAMLToJSONStrict(document)
	if err != nil {
		return &InputError{Origin: origin, Problem: "reading YAML: " + strings.ReplaceAll(err.Error(), "\n", " "), Remedy: "check indentation and quotes", Err: err}
	}
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			Name         string `json:"name"`
			GenerateName string `json:"generateName"`
		} `json:"metadata"`
	}
	if err := yaml.Unmarshal(raw, &head); err != nil {
		return &InputError{Origin: origin, Problem: "reading apiVersion, kind and metadata: " + err.Error(), Err: err}
	}
	if head.Kind == "" || head.APIVersion == "" {
		return &InputError{Origin: origin, Problem: "apiVersion or kind is missing", Remedy: "this reads " + knownKinds}
	}
	l := &loading{objects: o, origin: origin, raw: raw, name: head.Kind + " " + head.Metadata.Name + head.Metadata.GenerateName}
	if remedy, ok := otherKinds[head.Kind]; ok {
		return l.fail("", fmt.Sprintf("%s %s is not supported", head.APIVersion, head.Kind), remedy)
	}
	known := strings.HasPrefix(head.APIVersion, "tekton.dev/") || head.APIVersion == "v1"
	if known && head.Metadata.Name == "" && (head.Metadata.GenerateName == "" || !strings.HasSuffix(head.Kind, "Run")) {
		return l.fail("metadata.name", "is missing", "name the object")
	}
	switch head.APIVersion + " " + head.Kind {
	case "tekton.dev/v1 PipelineRun":
		return load(l, &v1.PipelineRun{}, l.pipelineRun)
	case "tekton.dev/v1 TaskRun":
		return load(l, &v1.TaskRun{}, l.taskRun)
	case "tekton.dev/v1 Pipeline":
		return load(l, &v1.Pipeline{}, l.pipeline)
	case "tekton.dev/v1 Task":
		return load(l, &v1.Task{}, l.task)
	case "tekton.dev/v1beta1 PipelineRun":
		return convert(l, &v1beta1.PipelineRun{}, &v1.PipelineRun{}, l.pipelineRun)
	case "tekton.dev/v1beta1 TaskRun":
		return convert(l, &v1beta1.TaskRun{}, &v1.TaskRun{}, l.taskRun)
	case "tekton.dev/v1beta1 Pipeline":
		return convert(l, &v1beta1.Pipeline{}, &v1.Pipeline{}, l.pipeline)
	case "tekton.dev/v1beta1 Task":
		return convert(l, &v1beta1.Task{}, &v1.Task{}, l.task)
	case "tekton.dev/v1beta1 StepAction":
		return load(l, &v1beta1.StepAction{}, l.stepAction)
	case "tekton.dev/v1alpha1 StepAction":
		return convert(l, &v1alpha1.StepAction{}, &v1beta1.StepAction{}, l.stepAction)
	case "v1 ConfigMap":
		return l.configMap(&corev1.ConfigMap{})
	case "v1 Secret":
		return l.secret(&corev1.Secret{})
	}
	return l.fail("", fmt.Sprintf("%s %s is not supported", head.APIVersion, head.Kind), "this reads "+knownKinds)
}

// loading is one document on its way into Objects.
type loading struct {
	objects *Objects
	origin  Origin
	name    string
	raw     []byte
}

func (l *loading) fail(path, problem, remedy string) error {
	return &InputError{Origin: l.origin, Object: l.name, Path: path, Problem: problem, Remedy: remedy}
}

func (l *loading) located(e *InputError) error {
	e.Origin, e.Object = l.origin, l.name
	return e
}

// strict decodes with the case of field names respected, unlike encoding/json.
func (l *loading) strict(into any) error {
	problems, err := kjson.UnmarshalStrict(l.raw, into, kjson.DisallowUnknownFields, kjson.DisallowDuplicateFields)
	if err != nil {
		return &InputError{Origin: l.origin, Object: l.name, Problem: err.Error(), Remedy: "check the type of the field", Err: err}
	}
	if len(problems) > 0 {
		var list []string
		for _, p := range problems {
			list = append(list, p.Error())
		}
		slices.Sort(list)
		return &InputError{Origin: l.origin, Object: l.name, Problem: strings.Join(list, "; "), Remedy: "check spelling and indentation", Err: problems[0]}
	}
	return nil
}

type tektonObject interface {
	apis.Defaultable
	apis.Validatable
}

// load decodes, shows the object as it was written to keep, which refuses what
// we do not execute, and then validates a defaulted copy.
func load[T tektonObject](l *loading, obj T, keep func(T) error) error {
	if err := l.strict(obj); err != nil {
		return err
	}
	return keep(obj)
}

// convert does what Tekton's webhook does with an older version: default and
// validate as written, then convert.
func convert[Old interface {
	tektonObject
	apis.Convertible
}, New tektonObject](l *loading, old Old, obj New, keep func(New) error) error {
	if err := l.strict(old); err != nil {
		return err
	}
	ctx := tektonContext(context.Background(), nil)
	old.SetDefaults(ctx)
	if err := old.Validate(ctx); err != nil {
		return l.invalid(err)
	}
	c, ok := any(obj).(apis.Convertible)
	if !ok {
		return l.fail("", "cannot be converted", "write it in tekton.dev/v1")
	}
	if err := old.ConvertTo(ctx, c); err != nil {
		return &InputError{Origin: l.origin, Object: l.name, Problem: "converting to v1: " + err.Error(), Remedy: "write it in tekton.dev/v1", Err: err}
	}
	return keep(obj)
}

func (l *loading) invalid(err *apis.FieldError) error {
	return &InputError{Origin: l.origin, Object: l.name, Problem: strings.ReplaceAll(err.Error(), "\n", "; "), Err: err}
}
