package watch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"assay.dev/assay/internal/watch/kubeapi"
)

// Reasons of events. InternalError is what upstream says of every failure.
const (
	reasonError     = "InternalError"
	reasonRefused   = "ProvenanceRefused"
	reasonMissing   = "MissingChildren"
	reasonHints     = "MalformedHints"
	reasonSkipped   = "SubjectSkipped"
	reasonElsewhere = "StoredElsewhere"
	reasonSettings  = "InvalidSettings"
	reasonPeer      = "StandingBack"
	reasonTakeOver  = "TakingOver"
	reasonTaken     = "MarkedElsewhere"
)

// events tells the owners of runs what went wrong, as Kubernetes events. They go
// out beside the work and never hold it up: when too many wait, further ones are
// dropped, for the same is in annotations, metrics and the log. The same event is
// not sent twice, so that a store that is down for an hour costs one event a run
// and not one an attempt.
type events struct {
	api   *kubeapi.Client
	log   *slog.Logger
	now   func() time.Time
	queue chan *event

	mu   sync.Mutex
	sent map[[32]byte]struct{}
}

// event is core/v1's, as far as we fill it in.
type event struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"metadata"`
	InvolvedObject object `json:"involvedObject"`
	Reason         string `json:"reason"`
	Message        string `json:"message"`
	Source         struct {
		Component string `json:"component"`
	} `json:"source"`
	FirstTimestamp     time.Time `json:"firstTimestamp"`
	LastTimestamp      time.Time `json:"lastTimestamp"`
	Count              int       `json:"count"`
	Type               string    `json:"type"`
	ReportingComponent string    `json:"reportingComponent"`
}

// object is what an event is about.
type object struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace"`
	Name       string `json:"name"`
	UID        string `json:"uid,omitempty"`
}

const component = "assay-observer"

func newEvents(api *kubeapi.Client, log *slog.Logger, now func() time.Time) *events {
	return &events{api: api, log: log, now: now, queue: make(chan *event, 1000), sent: map[[32]byte]struct{}{}}
}

func (h head) object() object {
	return object{APIVersion: "tekton.dev/v1", Kind: h.kind, Namespace: h.namespace, Name: h.name, UID: h.uid}
}

// warn sends a Warning about an object, unless it was sent before.
func (e *events) warn(about object, reason, message string) {
	const most = 1000 // Kubernetes takes 1,024 bytes
	if len(message) > most {
		message = message[:most] + "…"
	}
	id := sha256.Sum256([]byte(about.UID + "\x00" + about.Name + "\x00" + reason + "\x00" + message))
	e.mu.Lock()
	_, known := e.sent[id]
	if len(e.sent) > 20_000 {
		clear(e.sent)
	}
	e.sent[id] = struct{}{}
	e.mu.Unlock()
	if known {
		return
	}
	now := e.now().UTC().Truncate(time.Second)
	ev := &event{APIVersion: "v1", Kind: "Event", InvolvedObject: about, Reason: reason, Message: message,
		FirstTimestamp: now, LastTimestamp: now, Count: 1, Type: "Warning", ReportingComponent: component}
	ev.Source.Component = component
	ev.Metadata.Namespace = about.Namespace
	ev.Metadata.Name = about.Name[:min(len(about.Name), 200)] + "." + hex.EncodeToString(id[:8])
	select {
	case e.queue <- ev:
	default:
	}
}

// run sends until ctx ends.
func (e *events) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case ev := <-e.queue:
			body, err := json.Marshal(ev)
			if err == nil {
				err = e.api.Create(ctx, kubeapi.Events, ev.Metadata.Namespace, body, nil)
			}
			if err != nil && !apierrors.IsAlreadyExists(err) && !apierrors.IsNotFound(err) && ctx.Err() == nil {
				e.log.Warn("sending an event", "error", err, "reason", ev.Reason, "about", ev.InvolvedObject.Name)
			}
		}
	}
}
