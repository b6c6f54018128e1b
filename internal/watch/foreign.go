package watch

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// A mark on a run that was ours to work on, and that none of us wrote, is a trace
// of another signer. Who it was cannot be told from the mark: ours has the name of
// Chains' field manager, so that either can take over from the other. But Chains
// leaves its finalizer on the run until the run is deleted, and observers take it
// off with the mark or right after. So the run is looked at once more a moment
// later: with the finalizer still there, it was Chains. A person's mark, and that
// of another observer, make nobody stand back.

// foreignMark is a mark of Chains' that was seen.
type foreignMark struct {
	run string
	at  time.Time
}

func (m *foreignMark) String() string {
	return "Tekton Chains, wherever it runs, marks runs: " + m.run + " was marked by it"
}

// markedElsewhere takes note that a run carries a mark which we did not write.
func (o *Observer) markedElsewhere(h head) {
	o.metrics.foreign.Inc()
	if !o.cfg.WatchPeer {
		return
	}
	// One look at a time is enough, and none while the last one is fresh.
	if m := o.foreign.Load(); m != nil && time.Since(m.at) < peerMemory/4 || !o.looking.CompareAndSwap(false, true) {
		return
	}
	time.AfterFunc(min(3*time.Second, o.cfg.PeerInterval), func() {
		o.chore(func(ctx context.Context) {
			defer o.looking.Store(false)
			o.whoMarked(ctx, h)
		})
	})
}

// whoMarked looks at a marked run again.
func (o *Observer) whoMarked(ctx context.Context, h head) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	chains := false
	err := o.api.Get(ctx, h.resource(), h.namespace, h.name, func(object []byte) error {
		now, err := readHead(h.kind, object)
		if err != nil || now.uid != h.uid || !now.marked() || len(now.finalizers) == 0 {
			return err
		}
		by, err := markedBy(object)
		chains = !strings.HasPrefix(by, "kubectl")
		return err
	})
	switch {
	case err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil:
		o.log.Warn("looking who marked a run", "run", h.String(), "error", err)
	case chains:
		o.foreign.Store(&foreignMark{run: h.String(), at: time.Now()})
		select {
		case o.peerNews <- struct{}{}:
		default:
		}
	}
}

// markedBy is the field manager that holds a run's mark; empty: nobody says.
func markedBy(object []byte) (string, error) {
	var u struct {
		Metadata struct {
			ManagedFields []struct {
				Manager string `json:"manager"`
				Fields  struct {
					Metadata struct {
						Annotations map[string]json.RawMessage `json:"f:annotations"`
					} `json:"f:metadata"`
				} `json:"fieldsV1"`
			} `json:"managedFields"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(object, &u); err != nil {
		return "", fmt.Errorf("reading who manages a run's fields: %w", err)
	}
	for _, f := range u.Metadata.ManagedFields {
		if _, ok := f.Fields.Metadata.Annotations["f:"+annotationSigned]; ok {
			return f.Manager, nil
		}
	}
	return "", nil
}

// rests says whether nobody works on a run that is not finished with.
func (e *entry) rests() bool {
	switch e.state {
	case idle, ready, blocked, waiting:
		return true
	}
	return false
}

// unclaimed says whether a run has ended, is this replica's, and nobody works or
// worked on it: a mark that appears on it is somebody else's. While we work on it
// the attempt itself finds out.
func (t *table) unclaimed(h head) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.runs[h.uid]
	return e != nil && (e.done || h.done) && e.rests() && t.opts.owns(h.group())
}
