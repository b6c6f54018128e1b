package pubsub_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"assay.dev/assay/store"
	"assay.dev/assay/store/pubsub"
	"assay.dev/assay/store/storetest"
)

func kafka(t testing.TB, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1), kfake.SeedTopics(3, "records")}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// kafkaArrived reads a topic from its beginning to where it ends now.
func kafkaArrived(t testing.TB, servers []string, topic string) (out []store.Kept) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	for _, r := range consume(ctx, t, servers, topic) {
		metadata := map[string]string{}
		for _, h := range r.Headers {
			metadata[h.Key] = string(h.Value)
		}
		out = append(out, arrived(t, r.Value, metadata)...)
	}
	return out
}

func consume(ctx context.Context, t testing.TB, servers []string, topic string) (out []*kgo.Record) {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(servers...), kgo.ConsumeTopics(topic), kgo.DisableClientMetrics(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// Where does it end?
	meta := kmsg.NewPtrMetadataRequest()
	name := topic
	meta.Topics = []kmsg.MetadataRequestTopic{{Topic: &name}}
	m, err := meta.RequestWith(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	ends := kmsg.NewPtrListOffsetsRequest()
	topics := kmsg.NewListOffsetsRequestTopic()
	topics.Topic = topic
	for _, p := range m.Topics[0].Partitions {
		part := kmsg.NewListOffsetsRequestTopicPartition()
		part.Partition, part.Timestamp = p.Partition, -1
		topics.Partitions = append(topics.Partitions, part)
	}
	ends.Topics = append(ends.Topics, topics)
	var want int64
	for _, shard := range c.RequestSharded(ctx, ends) {
		if shard.Err != nil {
			t.Fatal(shard.Err)
		}
		for _, p := range shard.Resp.(*kmsg.ListOffsetsResponse).Topics[0].Partitions {
			want += p.Offset
		}
	}
	for int64(len(out)) < want {
		fetches := c.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		out = append(out, fetches.Records()...)
	}
	return out
}

func TestKafkaSuite(t *testing.T) {
	t.Parallel()
	storetest.RunKeeper(t, func(t *testing.T) storetest.Keepers {
		// As a broker that people run: what it refuses is measured compressed.
		c := kafka(t, kfake.BrokerConfigs(map[string]string{"message.max.bytes": "200000"}))
		servers := c.ListenAddrs()
		var down, denied *kfake.FaultHandle
		return storetest.Keepers{
			Open: func(t testing.TB) store.Keeper {
				return open(t, pubsub.Options{URL: "kafka://" + strings.Join(servers, ",") + "/records", Name: "kafka", Timeout: 2 * time.Second})
			},
			Arrived: func(t testing.TB) []store.Kept { return kafkaArrived(t, servers, "records") },
			Repeats: true,
			Down: func(on bool) {
				if on {
					down = c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "records", Err: kerr.NotEnoughReplicas, Count: -1})
				} else {
					down.Remove()
				}
			},
			Deny: func(on bool) {
				if on {
					denied = c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "records", Err: kerr.TopicAuthorizationFailed, Count: -1})
				} else {
					denied.Remove()
				}
			},
		}
	})
}

// TestKafkaServer runs the suite against a broker of yours.
func TestKafkaServer(t *testing.T) {
	t.Parallel()
	address := os.Getenv("ASSAY_KAFKA")
	if address == "" {
		t.Skip("set ASSAY_KAFKA to a Kafka broker's host:port that creates topics by itself")
	}
	storetest.RunKeeper(t, func(t *testing.T) storetest.Keepers {
		topic := fmt.Sprint("assay-test-", time.Now().UnixNano())
		return storetest.Keepers{
			Open: func(t testing.TB) store.Keeper {
				return open(t, pubsub.Options{URL: "kafka://" + address + "/" + topic})
			},
			Arrived: func(t testing.TB) []store.Kept { return kafkaArrived(t, []string{address}, topic) },
			Repeats: true,
		}
	})
}

// noise does not compress.
func noise(t testing.TB, n int) string {
	t.Helper()
	b := make([]byte, n/2)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(b)
}

// TestKafkaSizes: the broker measures batches as they arrive, compressed. Small
// messages beside a large one must not suffer from it, and what is too large by
// itself is permanent.
func TestKafkaSizes(t *testing.T) {
	t.Parallel()
	c := kafka(t, kfake.BrokerConfigs(map[string]string{"message.max.bytes": "100000"}))
	k := open(t, pubsub.Options{URL: "kafka://" + c.ListenAddrs()[0] + "/records"})
	defer k.Close()
	var records []store.Record
	for range 12 { // together far beyond the limit, each below it
		records = append(records, statement(t, noise(t, 20_000)))
	}
	records = append(records, statement(t, strings.Repeat("x", 3<<20)), // shrinks
		statement(t, noise(t, 1_000_000)))
	out := k.Keep(t.Context(), records)
	for i, o := range out[:13] {
		if o.Err != nil {
			t.Errorf("record %d: %v", i, o.Err)
		}
	}
	if err := out[13].Err; err == nil || store.ClassOf(err) != store.Permanent || !strings.Contains(err.Error(), "max.message.bytes") {
		t.Errorf("too large: %v (%v); want a permanent error with the remedy", err, store.ClassOf(err))
	}
	if n := len(kafkaArrived(t, c.ListenAddrs(), "records")); n != 13 {
		t.Errorf("%d messages arrived; want 13", n)
	}
}

// TestKafkaRecord: key and headers, the acknowledgement of all replicas.
func TestKafkaRecord(t *testing.T) {
	t.Parallel()
	c := kafka(t)
	acks := make(chan int16, 10)
	c.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		acks <- r.(*kmsg.ProduceRequest).Acks
		return nil, nil, false
	})
	k := open(t, pubsub.Options{URL: "kafka://" + c.ListenAddrs()[0] + "/records"})
	defer k.Close()
	r := statement(t, "one")
	out := k.Keep(t.Context(), []store.Record{r})
	if out[0].Err != nil || !strings.HasPrefix(out[0].Where[0], "kafka:records/") {
		t.Fatalf("%+v", out[0])
	}
	if a := <-acks; a != -1 {
		t.Errorf("acks = %d; want all", a)
	}
	got := consume(t.Context(), t, c.ListenAddrs(), "records")
	if len(got) != 1 || string(got[0].Key) != r.Run.UID+"/"+r.Key {
		t.Fatalf("%d records, key %q", len(got), got[0].Key)
	}
	var names []string
	for _, h := range got[0].Headers {
		names = append(names, h.Key)
	}
	if s := strings.Join(names, " "); s != "format id key kind name namespace payload signature uid" {
		t.Errorf("headers %q", s)
	}
}

// TestKafkaOnce: an answer that gets lost makes the client send again, and the
// broker keep one.
func TestKafkaOnce(t *testing.T) {
	t.Parallel()
	c := kafka(t)
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "records", Err: kerr.RequestTimedOut, Count: 2})
	k := open(t, pubsub.Options{URL: "kafka://" + c.ListenAddrs()[0] + "/records"})
	defer k.Close()
	if out := k.Keep(t.Context(), []store.Record{statement(t, "once")}); out[0].Err != nil {
		t.Fatal(out[0].Err)
	}
	if n := len(kafkaArrived(t, c.ListenAddrs(), "records")); n != 1 {
		t.Errorf("%d messages; want 1", n)
	}
}

func TestKafkaRefusals(t *testing.T) {
	t.Parallel()
	user := kfake.User("SCRAM-SHA-256", "writer", "right", kfake.ACL{
		Resource: kmsg.ACLResourceTypeTopic, Name: "records", Pattern: kmsg.ACLResourcePatternTypeLiteral,
		Operation: kmsg.ACLOperationWrite, Allow: true,
	})
	c := kafka(t, kfake.EnableSASL(), kfake.EnableACLs(), user,
		kfake.User("PLAIN", "reader", "right", kfake.ACL{
			Resource: kmsg.ACLResourceTypeTopic, Name: "records", Pattern: kmsg.ACLResourcePatternTypeLiteral,
			Operation: kmsg.ACLOperationRead, Allow: true,
		}))
	dir := t.TempDir()
	for _, p := range []string{"right", "wrong"} {
		if err := os.WriteFile(filepath.Join(dir, p), []byte(p), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, url := range map[string]string{
		"":               "writer@%s/records?sasl=scram-sha-256&password-file=%s/right",
		"wrong password": "writer@%s/records?sasl=scram-sha-256&password-file=%s/wrong",
		"no right":       "reader@%s/records?password-file=%s/right",
		"unknown topic":  "writer@%s/other?sasl=scram-sha-256&password-file=%s/right",
	} {
		t.Run(name, func(t *testing.T) {
			k := open(t, pubsub.Options{URL: "kafka://" + fmt.Sprintf(url, c.ListenAddrs()[0], dir)})
			defer k.Close()
			if name == "wrong password" {
				// kfake hangs up where Kafka answers.
				defer c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.SASLAuthenticate}, TopLevel: true, Err: kerr.SaslAuthenticationFailed, Count: -1}).Remove()
			}
			out := k.Keep(t.Context(), []store.Record{statement(t, name)})
			if name == "" {
				if out[0].Err != nil {
					t.Error(out[0].Err)
				}
			} else if out[0].Err == nil || store.ClassOf(out[0].Err) != store.Configuration {
				t.Errorf("%v (%v); want a configuration error", out[0].Err, store.ClassOf(out[0].Err))
			}
		})
	}
}

func TestKafkaTLS(t *testing.T) {
	t.Parallel()
	certs := httptest.NewTLSServer(nil) // for its certificate
	certs.Close()
	c := kafka(t, kfake.TLS(&tls.Config{Certificates: certs.TLS.Certificates}))
	ca := writePEM(t, "ca.pem", "CERTIFICATE", certs.Certificate().Raw)
	for query, want := range map[string]string{"?ca=" + ca: "", "?tls=true": "configuration"} {
		k := open(t, pubsub.Options{URL: "kafka://" + c.ListenAddrs()[0] + "/records" + query})
		out := k.Keep(t.Context(), []store.Record{statement(t, query)})
		got := ""
		if out[0].Err != nil {
			got = store.ClassOf(out[0].Err).String()
		}
		if got != want {
			t.Errorf("%s: %v; want %q", query, out[0].Err, want)
		}
		_ = k.Close()
	}
}

// TestKafkaNotThere: nobody listens, then somebody does; and a name that does
// not exist.
func TestKafkaNotThere(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	k := open(t, pubsub.Options{URL: "kafka://127.0.0.1:" + strconv.Itoa(port) + "/records"})
	defer k.Close()
	r := []store.Record{statement(t, "later")}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if out := k.Keep(ctx, r); out[0].Err == nil || store.ClassOf(out[0].Err) != store.Transient {
		t.Errorf("%v; want a transient error", out[0].Err)
	}
	c := kafka(t, kfake.Ports(port))
	if out := k.Keep(t.Context(), r); out[0].Err != nil {
		t.Error(out[0].Err)
	}
	if n := len(kafkaArrived(t, c.ListenAddrs(), "records")); n < 1 {
		t.Errorf("%d messages; want one", n)
	}
	t.Run("hangs up on a login", func(t *testing.T) {
		c := kafka(t, kfake.EnableSASL(), kfake.Superuser("PLAIN", "u", "right"))
		file := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(file, []byte("wrong"), 0o600); err != nil {
			t.Fatal(err)
		}
		k := open(t, pubsub.Options{URL: "kafka://u@" + c.ListenAddrs()[0] + "/records?password-file=" + file, Timeout: 2 * time.Second})
		defer k.Close()
		if out := k.Keep(t.Context(), r); out[0].Err == nil || !strings.Contains(out[0].Err.Error(), "check user, password") {
			t.Errorf("%v; want an error that says what to look at", out[0].Err)
		}
		// The Secret changes; nothing is opened again.
		if err := os.WriteFile(file, []byte("right"), 0o600); err != nil {
			t.Fatal(err)
		}
		if out := k.Keep(t.Context(), r); out[0].Err != nil {
			t.Errorf("after the password's change: %v", out[0].Err)
		}
	})
	nowhere := open(t, pubsub.Options{URL: "kafka://broker.invalid/records"})
	defer nowhere.Close()
	if out := nowhere.Keep(t.Context(), r); out[0].Err == nil || store.ClassOf(out[0].Err) != store.Configuration {
		t.Errorf("%v (%v); want a configuration error", out[0].Err, store.ClassOf(out[0].Err))
	}
}

// BenchmarkKafka is a run of seven records at a time.
func BenchmarkKafka(b *testing.B) {
	c := kafka(b)
	k := open(b, pubsub.Options{URL: "kafka://" + c.ListenAddrs()[0] + "/records"})
	defer k.Close()
	records := []store.Record{statement(b, strings.Repeat("statement ", 20_000))}
	signer := storetest.NewRecordSigner(b)
	for i := range 6 {
		records = append(records, storetest.ImageRecord(b, records[0].Run, image(fmt.Sprint(i)), signer))
	}
	for b.Loop() {
		for _, o := range k.Keep(b.Context(), records) {
			if o.Err != nil {
				b.Fatal(o.Err)
			}
		}
	}
}
