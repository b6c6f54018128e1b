package watch

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"assay.dev/assay/internal/watch/kubeapi"
)

// peerMemory is how long a sign of life of Chains' counts, at least.
const peerMemory = 2 * time.Minute

// electionConfigs are the names under which Chains' ConfigMap of leader election
// is installed: the release's own, and Knative's default.
var electionConfigs = [...]string{"tekton-chains-config-leader-election", "config-leader-election"}

// peer is what is known of a Tekton Chains beside us.
type peer struct {
	renewed map[string]sighting
	names   leaseNames
	since   time.Time // when we began to stand back; zero: we do not
}

// watchPeer looks out for Tekton Chains beside us. Two signers on one run do
// double work and write two signatures, so while Chains is at work we stand back,
// visibly, and go on by ourselves when it is gone; or go on all the same where
// assay.peer is take-over.
//
// Signs of Chains are its Deployment (or StatefulSet, as the operator makes of it)
// with replicas, its leases being renewed, under whatever names its own ConfigMap
// of leader election gives them, and marks that appear on runs which are ours to
// work on and which none of us marked (foreign.go): those tell of a Chains in
// another namespace, or of one without leader election.
func (o *Observer) watchPeer(ctx context.Context) {
	p := &peer{renewed: map[string]sighting{}}
	first := true
	for {
		sign, err := o.peerSign(ctx, p)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			o.log.Warn("looking for Tekton Chains", "error", err)
		}
		// Not being able to look at first means to wait; the API server is away.
		if err == nil || sign != "" || !first {
			o.standBack(p, sign)
			first = false
		}
		select {
		case <-ctx.Done():
			return
		case <-o.peerNews:
		case <-time.After(o.cfg.PeerInterval):
		}
	}
}

// standBack stops or resumes work as settings have it. sign says why; empty:
// there is no peer.
func (o *Observer) standBack(p *peer, sign string) {
	takeOver := false
	o.mu.Lock()
	if o.session != nil {
		takeOver = o.session.cfg.Own.Peer == "take-over"
	}
	o.mu.Unlock()
	switch {
	case sign == "":
		p.since = time.Time{}
		o.health.clear("peer")
		o.metrics.peer.Set(0)
		o.table.pause("peer", false)
		return
	case takeOver:
		p.since = time.Time{}
		o.health.set("peer", sign+"; assay.peer is take-over, so runs are signed all the same", true)
		o.metrics.peer.Set(0)
		o.table.pause("peer", false)
	default:
		if p.since.IsZero() {
			p.since = time.Now()
		}
		o.health.set("peer", sign+"; standing back until it is gone (scale it to 0, or set assay.peer: take-over)", false)
		o.metrics.peer.Set(1)
		o.table.pause("peer", true)
		o.tellOwners(p, sign)
	}
	o.log.Warn("Tekton Chains is at work beside us", "sign", sign, "takeOver", takeOver)
	if takeOver {
		o.events.warn(o.configMapObject(), reasonTakeOver, sign+"; assay.peer is take-over: runs are signed all the same")
		return
	}
	o.events.warn(o.configMapObject(), reasonPeer, sign)
}

// mostTold bounds how many runs' owners one look tells.
const mostTold = 100

// tellOwners says on runs that have waited for a while why nothing of ours
// happens to them. Chains, which they are left to, takes most of them at once, and
// those are not bothered. It is an event and no annotation: those are Chains'
// while Chains is at work.
func (o *Observer) tellOwners(p *peer, sign string) {
	patience := 4 * o.cfg.PeerInterval
	if time.Since(p.since) < patience {
		return
	}
	for _, h := range o.table.overdue(patience, mostTold) {
		o.events.warn(h.object(), reasonPeer, "this run is not signed by the observer, which stands back for Tekton Chains: "+sign)
	}
}

// overdue are runs that ended, and that nobody has worked on since they were noted
// so long ago.
func (t *table) overdue(age time.Duration, most int) []head {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []head
	for _, e := range t.runs {
		if e.done && !e.gone && !e.told && e.rests() && t.opts.owns(e.group()) && time.Since(e.noted) >= age {
			e.told = true
			if out = append(out, e.head); len(out) == most {
				break
			}
		}
	}
	return out
}

// peerSign looks once; empty: no sign of Chains.
func (o *Observer) peerSign(ctx context.Context, p *peer) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	ns := o.cfg.SystemNamespace
	configs := slices.Clone(electionConfigs[:])
	for _, kind := range []kubeapi.Resource{kubeapi.Deployments, kubeapi.StatefulSets} {
		var w workload
		err := o.api.Get(ctx, kind, ns, manager, func(body []byte) error { return json.Unmarshal(body, &w) })
		switch {
		case err == nil && (w.Spec.Replicas == nil || *w.Spec.Replicas > 0):
			return fmt.Sprintf("%s %s/%s has replicas", kind.Kind, ns, manager), nil
		case err != nil && !tolerable(err):
			return "", fmt.Errorf("reading %s %s/%s: %w", kind.Kind, ns, manager, err)
		}
		if name := w.electionConfig(); name != "" {
			configs = slices.Insert(configs, 0, name)
		}
	}
	if names, err := o.leaseNames(ctx, configs); err != nil {
		return "", err
	} else if names != nil {
		p.names = *names
	}
	var list struct{ Items []lease }
	err := o.api.List(ctx, kubeapi.Leases, ns, nil, func(body []byte) error { return json.Unmarshal(body, &list) })
	if err != nil && !tolerable(err) {
		return "", fmt.Errorf("listing leases in %s: %w", ns, err)
	}
	if sign := p.lease(list.Items, o.cfg.Now()); sign != "" {
		return sign, nil
	}
	if m := o.foreign.Load(); m != nil && time.Since(m.at) < peerMemory {
		return m.String(), nil
	}
	return "", nil
}

// lease is the sign of life in leases, if there is one. A lease counts while it
// keeps changing by our own clock; no two clocks are compared but at the first
// look, and there only to tell a lease left behind from one in use.
func (p *peer) lease(leases []lease, wall time.Time) string {
	memory := max(peerMemory, 2*p.names.duration)
	there := map[string]bool{}
	sign := ""
	for _, l := range leases {
		name := l.Metadata.Name
		there[name] = true
		if l.Metadata.Labels[leaseLabel] != "" || !p.names.chains(name) || l.Spec.HolderIdentity == "" {
			continue
		}
		s, known := p.renewed[name]
		if !known || s.version != l.Metadata.ResourceVersion {
			s = sighting{version: l.Metadata.ResourceVersion, at: time.Now()}
			if !known {
				at, err := time.Parse(time.RFC3339, l.Spec.RenewTime)
				if err != nil || wall.Sub(at) > memory {
					s.at = time.Time{}
				}
			}
			p.renewed[name] = s
		}
		if sign == "" && !s.at.IsZero() && time.Since(s.at) < memory {
			sign = fmt.Sprintf("Lease %s/%s is being renewed by %s", l.Metadata.Namespace, name, l.Spec.HolderIdentity)
		}
	}
	maps.DeleteFunc(p.renewed, func(name string, _ sighting) bool { return !there[name] })
	return sign
}

// workload is as much of a Deployment or StatefulSet as tells of Chains.
type workload struct {
	Spec struct {
		Replicas *int `json:"replicas"`
		Template struct {
			Spec struct {
				Containers []struct {
					Env []struct {
						Name  string `json:"name"`
						Value string `json:"value"`
					} `json:"env"`
				} `json:"containers"`
			} `json:"spec"`
		} `json:"template"`
	} `json:"spec"`
}

// electionConfig is the name of its ConfigMap of leader election.
func (w *workload) electionConfig() string {
	for _, c := range w.Spec.Template.Spec.Containers {
		for _, e := range c.Env {
			if e.Name == "CONFIG_LEADERELECTION_NAME" {
				return e.Value
			}
		}
	}
	return ""
}

// leaseNames are the names that Chains' controllers give their leases.
type leaseNames struct {
	prefixes []string      // that the ConfigMap maps to
	duration time.Duration // of leases; 0: the ConfigMap does not say
}

// leaseNames reads the first of the ConfigMaps that is there; nil: none is, or we
// may not read it, and the usual names are looked for.
func (o *Observer) leaseNames(ctx context.Context, configs []string) (*leaseNames, error) {
	for _, name := range configs {
		var c struct {
			Data map[string]string `json:"data"`
		}
		err := o.api.Get(ctx, kubeapi.ConfigMaps, o.cfg.SystemNamespace, name, func(body []byte) error { return json.Unmarshal(body, &c) })
		switch {
		case err == nil:
			names := namesOf(c.Data)
			return &names, nil
		case !tolerable(err):
			return nil, fmt.Errorf("reading ConfigMap %s/%s: %w", o.cfg.SystemNamespace, name, err)
		}
	}
	return nil, nil
}

// namesOf reads a ConfigMap of leader election as Knative does: what it maps is
// the part of a lease's name before the bucket.
func namesOf(data map[string]string) leaseNames {
	var n leaseNames
	for key, value := range data {
		if rest, ok := strings.CutPrefix(key, "map-lease-prefix."); ok && rest != "" && value != "" {
			n.prefixes = append(n.prefixes, strings.ToLower(value))
		}
	}
	slices.Sort(n.prefixes)
	for _, key := range []string{"leaseDuration", "lease-duration"} {
		if d, err := time.ParseDuration(data[key]); err == nil && d > 0 {
			n.duration = min(d, time.Hour)
		}
	}
	return n
}

// chains says whether a lease of that name is Chains'.
func (n leaseNames) chains(name string) bool {
	if strings.HasPrefix(name, manager+".") || strings.Contains(name, "tektoncd.chains.") || strings.Contains(name, "tektoncd-chains-") {
		return true
	}
	return slices.ContainsFunc(n.prefixes, func(prefix string) bool {
		rest, ok := strings.CutPrefix(name, prefix+".")
		return ok && isBucket(rest)
	})
}

// isBucket tells Knative's 00-of-01.
func isBucket(s string) bool {
	n, of, ok := strings.Cut(s, "-of-")
	digits := func(s string) bool {
		return s != "" && strings.Trim(s, "0123456789") == ""
	}
	return ok && digits(n) && digits(of)
}

// tolerable errors leave a sign unread: what is not there or not ours to see.
func tolerable(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.IsForbidden(err)
}
