package watch

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"net/url"
	"os"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"assay.dev/assay/internal/watch/kubeapi"
)

// Election shares the work among replicas: it is dealt into buckets by the uid
// of the PipelineRun (a PipelineRun and its TaskRuns are always in one), each
// bucket has a Lease, and a replica works on the buckets whose leases it holds.
//
// Every replica also keeps a Lease that says it is alive, so each can count how
// many there are and hold its share: whoever holds more gives one up at a time,
// after the last run of it has ended its attempt. A replica that dies is
// replaced when its leases run out. No clocks are compared: a lease has run out
// when it was not renewed for its duration by the observer's own clock.
//
// Should two replicas ever hold one bucket, nothing is lost and nothing doubled:
// back ends tell what they have, and of two marks one conflicts.
type Election struct {
	// Buckets is how many shares there are; the most replicas that can work.
	// Default 1: one works, the others stand by.
	Buckets int
	// Duration of leases; default 15s. They are renewed three times in it.
	Duration time.Duration
}

// Labels of leases, by which they are found.
const (
	leaseLabel    = "assay.dev/observer"
	leaseReplica  = "replica"
	leaseOfBucket = "bucket"
	leasePrefix   = "assay-observer."
)

// lease is a coordination.k8s.io/v1 Lease.
type lease struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name            string            `json:"name"`
		Namespace       string            `json:"namespace"`
		ResourceVersion string            `json:"resourceVersion,omitempty"`
		Labels          map[string]string `json:"labels,omitempty"`
	} `json:"metadata"`
	Spec struct {
		HolderIdentity       string `json:"holderIdentity"`
		LeaseDurationSeconds int    `json:"leaseDurationSeconds,omitempty"`
		AcquireTime          string `json:"acquireTime,omitempty"`
		RenewTime            string `json:"renewTime,omitempty"`
		LeaseTransitions     int    `json:"leaseTransitions,omitempty"`
	} `json:"spec"`
}

// ballot takes part in an election.
type ballot struct {
	Election
	o  *Observer
	id string

	mu      sync.Mutex
	held    map[int]time.Time // buckets and until when they are surely ours
	leaving map[int]bool      // buckets no new work is begun in
	seen    map[string]sighting
}

// sighting is when, by our own clock, a lease was last seen to change.
type sighting struct {
	version string
	at      time.Time
}

func newBallot(e Election, o *Observer) (*ballot, error) {
	if e.Buckets <= 0 {
		e.Buckets = 1
	}
	if e.Duration == 0 {
		e.Duration = 15 * time.Second
	}
	if e.Buckets > 100 || e.Duration < time.Second {
		return nil, fmt.Errorf("making an observer: election with %d buckets and leases of %s; at most 100 buckets, at least 1s", e.Buckets, e.Duration)
	}
	return &ballot{Election: e, o: o, id: o.cfg.Identity, held: map[int]time.Time{}, leaving: map[int]bool{}, seen: map[string]sighting{}}, nil
}

// identity is a name that no other replica has.
func identity() string {
	host, err := os.Hostname()
	if err != nil {
		host = "observer"
	}
	random := make([]byte, 4)
	_, _ = rand.Read(random)
	return host + "_" + hex.EncodeToString(random)
}

func (b *ballot) bucket(group string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(group))
	return int(h.Sum32() % uint32(b.Buckets))
}

// owns says whether a group is ours to begin work on.
func (b *ballot) owns(group string) bool {
	n := b.bucket(group)
	b.mu.Lock()
	defer b.mu.Unlock()
	until, ok := b.held[n]
	return ok && !b.leaving[n] && time.Now().Before(until)
}

func (b *ballot) leaseName(n int) string {
	return fmt.Sprintf("%s%02d-of-%02d", leasePrefix, n, b.Buckets)
}

func (b *ballot) replicaName() string {
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(b.id))
	return leasePrefix + "replica-" + hex.EncodeToString(sum.Sum(nil))
}

// run takes part until ctx ends, and then gives up what it holds so that others
// need not wait.
func (b *ballot) run(ctx context.Context) {
	for {
		if err := b.round(ctx); err != nil && ctx.Err() == nil {
			b.o.log.Warn("taking part in the election", "error", err)
			b.o.health.set("leases", err.Error(), false)
		}
		b.expire()
		select {
		case <-ctx.Done():
			b.resign()
			return
		case <-time.After(b.Duration / 3):
		}
	}
}

// expire lets go of buckets whose leases could not be renewed in time.
func (b *ballot) expire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n, until := range b.held {
		if time.Now().After(until) {
			delete(b.held, n)
			delete(b.leaving, n)
			b.o.log.Warn("lost a bucket: its lease could not be renewed in time", "bucket", n)
		}
	}
	b.o.metrics.buckets.Set(float64(len(b.held)))
}

// round renews what we hold, counts who is alive, and takes or gives up a bucket.
func (b *ballot) round(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, b.Duration/3)
	defer cancel()
	began := time.Now()
	leases, err := b.list(ctx)
	if err != nil {
		return fmt.Errorf("listing leases in %s: %w", b.o.cfg.SystemNamespace, err)
	}
	if err := b.write(ctx, leases[b.replicaName()], b.replicaName(), leaseReplica); err != nil {
		return fmt.Errorf("renewing this replica's lease: %w", err)
	}
	replicas := 1
	for name, l := range leases {
		if l.Metadata.Labels[leaseLabel] == leaseReplica && name != b.replicaName() && !b.stale(l) {
			replicas++
		}
	}
	share := (b.Buckets + replicas - 1) / replicas
	var errs []error
	mine := b.mine()
	for _, n := range mine {
		l := leases[b.leaseName(n)]
		if l.Spec.HolderIdentity != b.id {
			b.lose(n)
			continue
		}
		if err := b.write(ctx, l, b.leaseName(n), leaseOfBucket); err != nil {
			if apierrors.IsConflict(err) {
				b.lose(n)
			}
			errs = append(errs, fmt.Errorf("renewing bucket %d: %w", n, err))
			continue
		}
		b.keep(n, began)
	}
	mine = b.mine()
	if len(mine) > share {
		b.giveUp(ctx, mine[len(mine)-1])
	}
	for n := 0; n < b.Buckets && len(b.mine()) < share; n++ {
		l, ok := leases[b.leaseName(n)]
		if slices.Contains(b.mine(), n) || ok && l.Spec.HolderIdentity != "" && l.Spec.HolderIdentity != b.id && !b.stale(l) {
			continue
		}
		err := b.write(ctx, l, b.leaseName(n), leaseOfBucket)
		switch {
		case err == nil:
			b.keep(n, began)
			b.o.log.Info("took a bucket", "bucket", n, "of", b.Buckets)
			b.o.rebalanced()
		case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
			// Another replica was quicker.
		default:
			errs = append(errs, fmt.Errorf("taking bucket %d: %w", n, err))
		}
	}
	if len(errs) == 0 {
		b.o.health.set("leases", fmt.Sprintf("%d of %d buckets held, %d replicas alive", len(b.mine()), b.Buckets, replicas), true)
	}
	return errors.Join(errs...)
}

func (b *ballot) mine() []int {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []int
	for n := range b.held {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

func (b *ballot) keep(n int, from time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	// A renewal counts from when it was asked for, and we stop before others start.
	b.held[n] = from.Add(b.Duration - b.Duration/6)
}

func (b *ballot) lose(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.held, n)
	delete(b.leaving, n)
	b.o.log.Warn("lost a bucket to another replica", "bucket", n)
}

// giveUp lets the runs in work end, then frees the bucket's lease. It is tried
// again next round where they take longer.
func (b *ballot) giveUp(ctx context.Context, n int) {
	b.mu.Lock()
	b.leaving[n] = true
	b.mu.Unlock()
	if b.o.table.busy(func(group string) bool { return b.bucket(group) == n }) {
		return
	}
	if err := b.free(ctx, n); err != nil {
		b.o.log.Warn("giving up a bucket", "bucket", n, "error", err)
		return
	}
	b.mu.Lock()
	delete(b.held, n)
	delete(b.leaving, n)
	b.mu.Unlock()
	b.o.log.Info("gave up a bucket to another replica", "bucket", n, "of", b.Buckets)
}

// resign frees everything.
func (b *ballot) resign() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, n := range b.mine() {
		b.mu.Lock()
		b.leaving[n] = true
		b.mu.Unlock()
	}
	// Workers end with the same context as we do; give their last marks a moment.
	for ctx.Err() == nil && b.o.table.busy(func(string) bool { return true }) {
		time.Sleep(20 * time.Millisecond)
	}
	for _, n := range b.mine() {
		if err := b.free(ctx, n); err != nil {
			b.o.log.Warn("giving up a bucket", "bucket", n, "error", err)
		}
	}
	_ = b.o.api.Delete(ctx, kubeapi.Leases, b.o.cfg.SystemNamespace, b.replicaName())
}

// free empties the holder of a bucket that we hold.
func (b *ballot) free(ctx context.Context, n int) error {
	var l lease
	ns := b.o.cfg.SystemNamespace
	err := b.o.api.Get(ctx, kubeapi.Leases, ns, b.leaseName(n), func(body []byte) error { return json.Unmarshal(body, &l) })
	if err != nil || l.Spec.HolderIdentity != b.id {
		return err
	}
	l.Spec.HolderIdentity = ""
	body, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return b.o.api.Update(ctx, kubeapi.Leases, ns, l.Metadata.Name, body, nil)
}

// list reads all leases of observers and takes note of which have changed.
func (b *ballot) list(ctx context.Context) (map[string]lease, error) {
	out := map[string]lease{}
	q := url.Values{"labelSelector": {leaseLabel}}
	err := b.o.api.List(ctx, kubeapi.Leases, b.o.cfg.SystemNamespace, q, func(body []byte) error {
		var l struct{ Items []lease }
		if err := json.Unmarshal(body, &l); err != nil {
			return err
		}
		for _, item := range l.Items {
			out[item.Metadata.Name] = item
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, l := range out {
		if s, ok := b.seen[name]; !ok || s.version != l.Metadata.ResourceVersion {
			b.seen[name] = sighting{l.Metadata.ResourceVersion, time.Now()}
		}
	}
	for name := range b.seen {
		if _, ok := out[name]; !ok {
			delete(b.seen, name)
		}
	}
	return out, nil
}

// stale says whether a lease has not been renewed for its duration, or ours if
// that is longer, since we first saw it as it is.
func (b *ballot) stale(l lease) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, ok := b.seen[l.Metadata.Name]
	return ok && time.Since(s.at) > max(time.Duration(l.Spec.LeaseDurationSeconds)*time.Second, b.Duration)
}

// write takes or renews a lease, provided that it is still as it was listed.
func (b *ballot) write(ctx context.Context, l lease, name, role string) error {
	ns := b.o.cfg.SystemNamespace
	now := b.o.cfg.Now().UTC().Format("2006-01-02T15:04:05.000000Z")
	fresh := l.Metadata.ResourceVersion == ""
	if l.Spec.HolderIdentity != b.id {
		l.Spec.AcquireTime = now
		l.Spec.LeaseTransitions++
	}
	l.APIVersion, l.Kind = kubeapi.Leases.APIVersion(), kubeapi.Leases.Kind
	l.Metadata.Name, l.Metadata.Namespace = name, ns
	l.Metadata.Labels = map[string]string{leaseLabel: role}
	l.Spec.HolderIdentity, l.Spec.RenewTime = b.id, now
	l.Spec.LeaseDurationSeconds = max(int(b.Duration/time.Second), 1)
	body, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if fresh {
		return b.o.api.Create(ctx, kubeapi.Leases, ns, body, nil)
	}
	return b.o.api.Update(ctx, kubeapi.Leases, ns, name, body, nil)
}
