package watch

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"assay.dev/assay/internal/watch/kubeapi"
)

// peerMemory is how long a sign of life of Chains' counts.
const peerMemory = 2 * time.Minute

// watchPeer looks out for Tekton Chains beside us. Two signers on one run do
// double work and write two signatures, so while Chains is at work we stand back,
// visibly, and go on by ourselves when it is gone; or go on all the same where
// assay.peer is take-over.
//
// Signs of Chains are its Deployment with replicas, its leases being renewed, and
// marks appearing on runs that carry its finalizer.
func (o *Observer) watchPeer(ctx context.Context) {
	renewed := map[string]sighting{}
	first := true
	for {
		sign, err := o.peerSign(ctx, renewed)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			o.log.Warn("looking for Tekton Chains", "error", err)
		}
		// Not being able to look at first means to wait; the API server is away.
		if err == nil || sign != "" || !first {
			o.standBack(sign)
			first = false
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(o.cfg.PeerInterval):
		}
	}
}

// standBack stops or resumes work as settings have it. sign says why; empty:
// there is no peer.
func (o *Observer) standBack(sign string) {
	takeOver := false
	o.mu.Lock()
	if o.session != nil {
		takeOver = o.session.cfg.Own.Peer == "take-over"
	}
	o.mu.Unlock()
	switch {
	case sign == "":
		o.health.clear("peer")
		o.metrics.peer.Set(0)
		o.table.pause("peer", false)
		return
	case takeOver:
		o.health.set("peer", sign+"; assay.peer is take-over, so runs are signed all the same", true)
		o.metrics.peer.Set(0)
		o.table.pause("peer", false)
	default:
		o.health.set("peer", sign+"; standing back until it is gone (scale it to 0, or set assay.peer: take-over)", false)
		o.metrics.peer.Set(1)
		o.table.pause("peer", true)
	}
	o.log.Warn("Tekton Chains is at work beside us", "sign", sign, "takeOver", takeOver)
	o.events.warn(o.configMapObject(), reasonPeer, sign)
}

// peerSign looks once; empty: no sign of Chains.
func (o *Observer) peerSign(ctx context.Context, renewed map[string]sighting) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	ns := o.cfg.SystemNamespace
	var d struct {
		Spec struct {
			Replicas *int `json:"replicas"`
		} `json:"spec"`
	}
	err := o.api.Get(ctx, kubeapi.Deployments, ns, manager, func(body []byte) error { return json.Unmarshal(body, &d) })
	switch {
	case err == nil && (d.Spec.Replicas == nil || *d.Spec.Replicas > 0):
		return fmt.Sprintf("Deployment %s/%s has replicas", ns, manager), nil
	case err != nil && !tolerable(err):
		return "", fmt.Errorf("reading Deployment %s/%s: %w", ns, manager, err)
	}
	var list struct{ Items []lease }
	err = o.api.List(ctx, kubeapi.Leases, ns, nil, func(body []byte) error { return json.Unmarshal(body, &list) })
	if err != nil && !tolerable(err) {
		return "", fmt.Errorf("listing leases in %s: %w", ns, err)
	}
	for _, l := range list.Items {
		name := l.Metadata.Name
		if l.Metadata.Labels[leaseLabel] != "" || !chainsLease(name) || l.Spec.HolderIdentity == "" {
			continue
		}
		s, known := renewed[name]
		if !known || s.version != l.Metadata.ResourceVersion {
			s = sighting{version: l.Metadata.ResourceVersion, at: time.Now()}
			if !known {
				// The first look tells by the lease's own clock only, roughly.
				at, err := time.Parse(time.RFC3339, l.Spec.RenewTime)
				if err != nil || time.Since(at) > peerMemory {
					s.at = time.Time{}
				}
			}
			renewed[name] = s
		}
		if time.Since(s.at) < peerMemory {
			return fmt.Sprintf("Lease %s/%s is being renewed by %s", ns, name, l.Spec.HolderIdentity), nil
		}
	}
	if at := o.foreign.Load(); at != 0 && time.Since(time.Unix(0, at)) < peerMemory {
		return "runs are being marked that carry the finalizer of Chains", nil
	}
	return "", nil
}

// tolerable errors leave a sign unread: what is not there or not ours to see.
func tolerable(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.IsForbidden(err)
}

// chainsLease tells the names that Chains' controllers give their leases.
func chainsLease(name string) bool {
	return strings.HasPrefix(name, manager+".") || strings.Contains(name, "tektoncd.chains.") || strings.Contains(name, "tektoncd-chains-")
}
