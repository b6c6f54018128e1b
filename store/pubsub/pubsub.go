// Package pubsub sends records to a message queue: Kafka, NATS with JetStream,
// Google Cloud Pub/Sub or, for experiments, the memory of the process. It is the back end that
// chains-config calls kafka and that upstream registers as pubsub, so that it
// can never be reached there.
//
// A message is what upstream sends: the body is the record's signature (the
// DSSE envelope of a statement, the bare signature of an image), the metadata
// payload and signature repeat payload and signature; see Message for what we
// add. Kafka carries metadata as record headers, NATS as message headers with
// their values escaped as in a URL, since such headers are lines of text. Both
// are what gocloud.dev's pubsub package, which upstream uses, reads back.
//
// Google's Pub/Sub has attributes of 1,024 bytes at most for metadata. Of what is
// longer, payload and signature of a statement are left out there, since the body is
// the envelope and holds both, and everything else comes in parts: cert.0, cert.1.
// Upstream's library sends them whole, which the service refuses.
//
// A message counts as kept when the broker has acknowledged it: all in-sync
// replicas for Kafka, a JetStream stream for NATS, the service itself for Google.
// That is why brokers are spoken to directly: gocloud.dev acknowledges nothing on NATS and only by
// the leader on Kafka, and upstream opens a topic for each message, where this
// package keeps its connections. A NATS subject that no stream listens to keeps
// nothing, so sending there is refused unless the URL says ack=server.
//
// Queues cannot be searched: Find returns store.ErrWriteOnly, and a run that is
// tried again, after a crash say, is sent again. Consumers recognise the copy
// by the metadata id, which depends on run, key and payload alone. JetStream
// recognises it itself within the stream's duplicate window; compacted Kafka
// topics keep the last, since key is the record's.
package pubsub

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"assay.dev/assay/store"
)

// defaultTimeout is Options.Timeout where it is not set.
const defaultTimeout = 30 * time.Second

// Options say where messages go.
type Options struct {
	// URL names broker and topic; see ParseURL.
	URL string
	// Name is the word that chains-config calls this back end by: kafka, or our
	// own pubsub. Empty: pubsub.
	Name string
	// Memory receives what is sent to mem:// and is needed for that alone.
	Memory *Memory
	// Timeout bounds one call of Keep, which must not hang on a broker that
	// neither answers nor refuses. 0: thirty seconds.
	Timeout time.Duration
}

// Keeper sends records to one topic. It is safe for concurrent use.
type Keeper struct {
	name    string
	to      sender
	timeout time.Duration
}

var _ store.Keeper = (*Keeper)(nil)

// sender is a topic of some broker.
type sender interface {
	// send returns a result for each message, in the order given.
	send(ctx context.Context, messages []Message) []result
	close() error
}

type result struct {
	where    string
	existing bool
	err      error
}

// Open returns a keeper for the topic that the options name. It opens the files
// that the URL names but connects nowhere: that happens at the first Keep, once,
// so that a broker that is down delays records and does not stop the program.
// It fails on a URL that ParseURL refuses, on files that cannot be read, and on
// mem:// without Memory.
func Open(o Options) (*Keeper, error) {
	t, err := ParseURL(o.URL)
	if err != nil {
		return nil, store.As(store.Configuration, err)
	}
	k := &Keeper{name: o.Name, timeout: o.Timeout}
	if k.name == "" {
		k.name = "pubsub"
	}
	if k.timeout <= 0 {
		k.timeout = defaultTimeout
	}
	switch t.Scheme {
	case "kafka":
		k.to, err = openKafka(t, k.timeout)
	case "nats":
		k.to, err = openNATS(t)
	case "gcppubsub":
		k.to, err = openGoogle(t)
	case "mem":
		if o.Memory == nil {
			err = errors.New("mem:// is for tests and needs a Memory to send to")
			break
		}
		k.to = &memorySender{to: o.Memory, topic: t.Topic}
	}
	if err != nil {
		return nil, store.As(store.Configuration, fmt.Errorf("opening %s: %w", t, err))
	}
	return k, nil
}

// ChainsURL is the URL for what chains-config sets under storage.pubsub.
// Servers may be several, between commas; upstream takes one. It fails on a
// provider that is neither kafka nor inmemory, and without topic or servers.
func ChainsURL(provider, topic, servers string) (string, error) {
	if topic == "" {
		return "", errors.New("storage.pubsub.topic is not set; name the topic that messages go to")
	}
	switch provider {
	case "kafka":
		if servers == "" {
			return "", errors.New("storage.pubsub.kafka.bootstrap.servers is not set; name brokers as host:port, between commas")
		}
		return "kafka://" + servers + "/" + url.PathEscape(topic), nil
	case "inmemory":
		return "mem:///" + url.PathEscape(topic), nil
	case "":
		return "", errors.New("storage.pubsub.provider is not set; accepted: kafka, inmemory")
	}
	return "", fmt.Errorf("unknown storage.pubsub.provider %q; accepted: kafka, inmemory", provider)
}

// Name implements store.Keeper.
func (k *Keeper) Name() string { return k.name }

// Keep sends one message for each record and waits for the broker's
// acknowledgement. Messages larger than the broker takes are Permanent faults
// that name the limit and its setting; refused credentials, missing rights and
// missing topics are Configuration faults; all else is Transient.
func (k *Keeper) Keep(ctx context.Context, records []store.Record) []store.Outcome {
	ctx, cancel := context.WithTimeout(ctx, k.timeout)
	defer cancel()
	outcomes := make([]store.Outcome, len(records))
	var messages []Message
	var of []int // the record that a message is made of
	for i, r := range records {
		m, err := NewMessage(r)
		if err != nil {
			outcomes[i].Err = store.As(store.Permanent, fmt.Errorf("making a message: %w", err))
			continue
		}
		messages, of = append(messages, m), append(of, i)
	}
	if len(messages) == 0 {
		return outcomes
	}
	results := failAll(len(messages), ctx.Err())
	if ctx.Err() == nil {
		results = k.to.send(ctx, messages)
	}
	for j, res := range results {
		o := &outcomes[of[j]]
		if res.err != nil {
			o.Err = fmt.Errorf("sending record %s: %w", records[of[j]].Key, res.err)
			continue
		}
		o.Where, o.Existing = []string{res.where}, res.existing
	}
	return outcomes
}

// Find returns store.ErrWriteOnly, always.
func (k *Keeper) Find(context.Context, store.Run, string) ([]store.Kept, error) {
	return nil, fmt.Errorf("searching a message queue: %w", store.ErrWriteOnly)
}

// Close ends the connections. Calls of Keep that are under way fail.
func (k *Keeper) Close() error { return k.to.close() }

// failAll is the same trouble for every message.
func failAll(n int, err error) []result {
	results := make([]result, n)
	for i := range results {
		results[i].err = err
	}
	return results
}
