package pubsub

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"assay.dev/assay/store"
)

const (
	// kafkaSmall is how large a batch of messages may be: just below a broker's
	// default max.message.bytes, which counts whole batches.
	kafkaSmall = 1_000_000
	// kafkaLarge is the largest single message that is tried. It is compressed
	// on its way, and brokers measure what arrives.
	kafkaLarge = 64 << 20
)

// kafkaSender produces to one topic through two clients: one that gathers
// messages into batches, and one that sends a message at a time. A broker takes
// or refuses a batch as a whole, so that a large message would take the small
// ones beside it along.
type kafkaSender struct {
	topic          string
	login          bool
	batches, alone *kgo.Client
	trouble        *lastTrouble
}

func openKafka(t Target, timeout time.Duration) (sender, error) {
	trouble := &lastTrouble{patience: len(t.Servers), news: make(chan struct{})}
	opts := []kgo.Opt{
		kgo.SeedBrokers(t.Servers...),
		kgo.ClientID("assay-observer"),
		kgo.DefaultProduceTopic(t.Topic),
		// The producer is idempotent by default: what it retries by itself is
		// there once.
		kgo.RequiredAcks(kgo.AllISRAcks()),
		// The caller tries again, so an outcome in time is worth more here than
		// one that is certain; consumers tell copies by the id.
		kgo.AllowIdempotentProduceCancellation(),
		kgo.RecordDeliveryTimeout(max(timeout*5/6, time.Second)),
		kgo.ProducerLinger(0),
		// Body, payload and signature say the same thing three times.
		kgo.ProducerBatchCompression(kgo.ZstdCompression(), kgo.SnappyCompression(), kgo.NoCompression()),
		// Upstream's client lets a broker make the topic if it is set to.
		kgo.AllowAutoTopicCreation(),
		// A broker that is back is noticed after a second.
		kgo.MetadataMinAge(time.Second),
		kgo.DisableClientMetrics(),
		kgo.WithHooks(trouble),
	}
	c, err := t.tls()
	if err != nil {
		return nil, err
	}
	if c != nil {
		opts = append(opts, kgo.DialTLSConfig(c))
	}
	if t.User != "" {
		// Read at every login, so that a changed Secret works from then on; and
		// once now, so that a missing one shows at the start.
		if _, err := t.secret("password-file"); err != nil {
			return nil, err
		}
		login := func(context.Context) (scram.Auth, error) {
			pass, err := t.secret("password-file")
			return scram.Auth{User: t.User, Pass: pass}, err
		}
		switch t.options["sasl"] {
		case "scram-sha-256":
			opts = append(opts, kgo.SASL(scram.Sha256(login)))
		case "scram-sha-512":
			opts = append(opts, kgo.SASL(scram.Sha512(login)))
		default:
			opts = append(opts, kgo.SASL(plain.Plain(func(context.Context) (plain.Auth, error) {
				pass, err := t.secret("password-file")
				return plain.Auth{User: t.User, Pass: pass}, err
			})))
		}
	}
	s := &kafkaSender{topic: t.Topic, login: t.User != "", trouble: trouble}
	if s.batches, err = kgo.NewClient(append(opts, kgo.ProducerBatchMaxBytes(kafkaSmall))...); err != nil {
		return nil, err
	}
	// One buffered record at most makes batches of one.
	s.alone, err = kgo.NewClient(append(opts, kgo.ProducerBatchMaxBytes(kafkaLarge), kgo.MaxBufferedRecords(1))...)
	if err != nil {
		s.batches.Close()
		return nil, err
	}
	return s, nil
}

func (s *kafkaSender) send(ctx context.Context, messages []Message) []result {
	results := make([]result, len(messages))
	var group sync.WaitGroup
	for i, m := range messages {
		group.Go(func() {
			r := s.record(m)
			err := error(kerr.MessageTooLarge)
			// Headers and the frame of a batch take some room beside the parts.
			if m.size() < kafkaSmall-1024 {
				err = s.produce(ctx, s.batches, r)
			}
			if errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.RecordListTooLarge) {
				r = s.record(m)
				err = s.produce(ctx, s.alone, r)
			}
			if err != nil {
				results[i].err = s.fault(m, err)
				return
			}
			results[i].where = fmt.Sprintf("kafka:%s/%d@%d", s.topic, r.Partition, r.Offset)
		})
	}
	group.Wait()
	return results
}

func (s *kafkaSender) record(m Message) *kgo.Record {
	r := &kgo.Record{Key: []byte(m.Key), Value: m.Body}
	for _, name := range m.names() {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: name, Value: []byte(m.Metadata[name])})
	}
	return r
}

// produce returns when the brokers have acknowledged the record, when ctx ends,
// or when connections fail for reasons that waiting does not mend, which the
// client would go on to try. When time runs out for one record, the client gives
// up all that wait for the same partition, also those of calls that have more
// time: these begin again.
func (s *kafkaSender) produce(ctx context.Context, c *kgo.Client, r *kgo.Record) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // takes the record out of the client's hands
	for {
		again := *r
		hopeless := s.trouble.watch()
		done := make(chan error, 1)
		c.Produce(ctx, &again, func(_ *kgo.Record, err error) { done <- err })
		var err error
		for waiting := true; waiting; {
			select {
			case err = <-done:
				waiting = false
			case <-hopeless:
				if cause := s.trouble.last(); cause != nil {
					return fmt.Errorf("connecting: %w", cause)
				}
				hopeless = s.trouble.watch() // a connection has worked since
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		others := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, kgo.ErrRecordTimeout)
		if !others || ctx.Err() != nil {
			r.Partition, r.Offset = again.Partition, again.Offset
			return err
		}
	}
}

func (s *kafkaSender) close() error {
	s.batches.Close()
	s.alone.Close()
	return nil
}

// fault classifies an error, for which the client's own last trouble with a
// connection is often the reason: it only says that time ran out.
func (s *kafkaSender) fault(m Message, err error) error {
	if errors.Is(err, kgo.ErrRecordTimeout) || errors.Is(err, context.DeadlineExceeded) {
		if cause := s.trouble.last(); cause != nil {
			err = fmt.Errorf("%w: the last attempt to connect: %w", err, cause)
			if s.login && errors.Is(cause, io.EOF) {
				err = fmt.Errorf("%w (some brokers hang up on a login that they refuse: check user, password and sasl)", err)
			}
		}
	}
	switch {
	case errors.Is(err, kerr.MessageTooLarge), errors.Is(err, kerr.RecordListTooLarge):
		return store.As(store.Permanent, fmt.Errorf("%w: the message has %d bytes before compression; raise max.message.bytes of topic %s (or message.max.bytes of the brokers), and fetch sizes of consumers, or store large statements elsewhere", err, m.size(), s.topic))
	case errors.Is(err, kerr.InvalidRecord):
		return store.As(store.Permanent, err)
	case errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.InvalidTopicException):
		return store.As(store.Configuration, fmt.Errorf("%w: create topic %s, or name another", err, s.topic))
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed):
		return store.As(store.Configuration, fmt.Errorf("%w: allow the user to write to topic %s (operations Write and Describe)", err, s.topic))
	case errors.Is(err, kerr.InvalidRequiredAcks), refused(err):
		return store.As(store.Configuration, err)
	}
	return network(err)
}

// refused says whether a broker refused a login.
func refused(err error) bool {
	return errors.Is(err, kerr.SaslAuthenticationFailed) || errors.Is(err, kerr.UnsupportedSaslMechanism) ||
		errors.Is(err, kerr.IllegalSaslState)
}

// network classifies errors of connecting: names that do not exist and
// certificates that are not trusted stay so until somebody changes something.
func network(err error) error {
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var header tls.RecordHeaderError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound, errors.As(err, &cert),
		errors.As(err, &authority), errors.As(err, &header):
		return store.As(store.Configuration, err)
	}
	return store.As(store.Transient, err)
}

// lastTrouble remembers why the client could not connect.
type lastTrouble struct {
	patience int // failures in a row that may be one broker's alone

	mu   sync.Mutex
	err  error         // guarded by mu; nil after a connection that worked
	row  int           // guarded by mu; failures since then
	news chan struct{} // guarded by mu; closed when there is no hope
}

var _ kgo.HookBrokerConnect = (*lastTrouble)(nil)

// OnBrokerConnect implements kgo.HookBrokerConnect.
func (l *lastTrouble) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err = err; err == nil {
		l.row = 0
		return
	}
	if l.row++; l.row > l.patience && (refused(err) || store.ClassOf(network(err)) == store.Configuration) {
		close(l.news)
		l.news, l.row = make(chan struct{}), 0
	}
}

// watch returns what is closed when connections next turn out to be hopeless.
func (l *lastTrouble) watch() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.news
}

func (l *lastTrouble) last() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
