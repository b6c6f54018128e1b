package watch

import (
	"fmt"
	"strings"
	"time"

	"assay.dev/assay/internal/watch/kubeapi"
	"assay.dev/assay/internal/watch/scan"
)

// Names that runs carry. They are Chains' own where Chains has them, so that
// whoever waits for one need not know who is at work.
const (
	annotationPrefix       = "chains.tekton.dev/"
	annotationSigned       = annotationPrefix + "signed"
	annotationRetries      = annotationPrefix + "retries"
	annotationTransparency = annotationPrefix + "transparency"
	annotationUpload       = annotationPrefix + "transparency-upload"

	ownPrefix              = "assay.dev/"
	annotationReason       = ownPrefix + "reason"
	annotationMissing      = ownPrefix + "missing-children"
	annotationHints        = ownPrefix + "hints"
	annotationSkipped      = ownPrefix + "skipped"
	annotationConfigError  = ownPrefix + "config-error"
	finalizerLegacy        = "chains.tekton.dev"
	labelPipelineRun       = "tekton.dev/pipelineRun"
	managedByTekton        = "tekton.dev/pipeline"
	manager                = "tekton-chains-controller"
	managerChainsFinalizer = "tekton-chains-controller/finalizers"
)

// finalizer is the one of a kind.
func finalizer(kind string) string { return annotationPrefix + strings.ToLower(kind) }

// head is what is known of every run: what decides whether there is anything to
// do. It is read from the watch without decoding the run.
type head struct {
	kind, namespace, name, uid, version string

	signed     string // chains.tekton.dev/signed
	reason     string // assay.dev/reason
	retries    string
	finalizers []string // those that are ours or Chains'
	deleting   bool
	managedBy  string
	// ownerUID and ownerName are of the PipelineRun that controls a TaskRun.
	ownerUID, ownerName string
	inPipeline          bool // has label tekton.dev/pipelineRun

	done    bool
	ended   time.Time // completionTime, else the condition's transition
	created time.Time
}

// marked says whether the run is finished with, as upstream has it.
func (h head) marked() bool { return h.signed == "true" || h.signed == "failed" }

// group is the uid that orders and shares out work: a PipelineRun and its
// TaskRuns are one group.
func (h head) group() string {
	if h.ownerUID != "" {
		return h.ownerUID
	}
	return h.uid
}

func (h head) String() string { return h.kind + " " + h.namespace + "/" + h.name }

func (h head) resource() kubeapi.Resource {
	if h.kind == "TaskRun" {
		return kubeapi.TaskRuns
	}
	return kubeapi.PipelineRuns
}

// readHead reads a run's head. It fails on what is no object of that shape.
func readHead(kind string, object []byte) (head, error) {
	h := head{kind: kind}
	c := scan.New(object)
	err := c.Object(func(key []byte) error {
		switch string(key) {
		case "metadata":
			return h.metadata(c)
		case "spec":
			return c.Object(func(key []byte) error {
				if string(key) == "managedBy" {
					return c.String(&h.managedBy)
				}
				return c.Skip()
			})
		case "status":
			return h.status(c)
		}
		return c.Skip()
	})
	switch {
	case err != nil:
		return head{}, fmt.Errorf("reading the head of a %s: %w", kind, err)
	case h.uid == "" || h.name == "" || h.namespace == "":
		return head{}, fmt.Errorf("reading the head of a %s: it has no uid, name or namespace", kind)
	}
	return h, nil
}

func (h *head) metadata(c *scan.Cursor) error {
	return c.Object(func(key []byte) error {
		switch string(key) {
		case "name":
			return c.String(&h.name)
		case "namespace":
			return c.String(&h.namespace)
		case "uid":
			return c.String(&h.uid)
		case "resourceVersion":
			return c.String(&h.version)
		case "creationTimestamp":
			return timestamp(c, &h.created)
		case "deletionTimestamp":
			h.deleting = true
			return c.Skip()
		case "annotations":
			return c.Object(func(key []byte) error {
				switch string(key) {
				case annotationSigned:
					return c.String(&h.signed)
				case annotationReason:
					return c.String(&h.reason)
				case annotationRetries:
					return c.String(&h.retries)
				}
				return c.Skip()
			})
		case "labels":
			return c.Object(func(key []byte) error {
				h.inPipeline = h.inPipeline || string(key) == labelPipelineRun
				return c.Skip()
			})
		case "finalizers":
			return c.Array(func() error {
				var f string
				err := c.String(&f)
				if f == finalizer(h.kind) || f == finalizerLegacy {
					h.finalizers = append(h.finalizers, f)
				}
				return err
			})
		case "ownerReferences":
			return c.Array(func() error { return h.owner(c) })
		}
		return c.Skip()
	})
}

func (h *head) owner(c *scan.Cursor) error {
	var kind, name, uid string
	var controls bool
	err := c.Object(func(key []byte) error {
		switch string(key) {
		case "kind":
			return c.String(&kind)
		case "name":
			return c.String(&name)
		case "uid":
			return c.String(&uid)
		case "controller":
			return c.Bool(&controls)
		}
		return c.Skip()
	})
	if controls && kind == "PipelineRun" && h.kind == "TaskRun" {
		h.ownerUID, h.ownerName = uid, name
	}
	return err
}

// status reads whether and when the run ended. Like Tekton it goes by the
// condition Succeeded alone.
func (h *head) status(c *scan.Cursor) error {
	var completed, turned time.Time
	err := c.Object(func(key []byte) error {
		switch string(key) {
		case "completionTime":
			return timestamp(c, &completed)
		case "conditions":
			return c.Array(func() error {
				var kind, status string
				var at time.Time
				err := c.Object(func(key []byte) error {
					switch string(key) {
					case "type":
						return c.String(&kind)
					case "status":
						return c.String(&status)
					case "lastTransitionTime":
						return timestamp(c, &at)
					}
					return c.Skip()
				})
				if kind == "Succeeded" {
					h.done, turned = status == "True" || status == "False", at
				}
				return err
			})
		}
		return c.Skip()
	})
	if h.ended = completed; h.ended.IsZero() {
		h.ended = turned
	}
	return err
}

// timestamp reads a time leniently: one that is malformed is none, since only
// the order of work depends on it.
func timestamp(c *scan.Cursor, to *time.Time) error {
	var s string
	if err := c.String(&s); err != nil {
		return err
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		*to = t
	}
	return nil
}
