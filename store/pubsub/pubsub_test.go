// The tests send to real servers where there is one for Go: NATS' own server,
// with JetStream, in this process. Kafka is written in Java and is in none of
// the places that our tests' parts come from, so its wire protocol is spoken by
// kfake, the broker in memory by the authors of the client (Google's Pub/Sub by
// pstest, likewise); ASSAY_KAFKA, a real
// broker's host:port that creates topics by itself, runs the suite there too.
package pubsub_test

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/store"
	"assay.dev/assay/store/pubsub"
	"assay.dev/assay/store/storetest"
)

func image(say string) string {
	return "registry.example/team/app@" + storetest.Digest([]byte(say))
}

func statement(t testing.TB, say string, signers ...*storetest.RecordSigner) store.Record {
	t.Helper()
	if len(signers) == 0 {
		signers = append(signers, storetest.NewRecordSigner(t))
	}
	return storetest.StatementRecord(t, storetest.NewRun("PipelineRun"), say,
		[]intoto.Subject{storetest.ImageSubject(image(say))}, signers...)
}

func open(t testing.TB, o pubsub.Options) *pubsub.Keeper {
	t.Helper()
	k, err := pubsub.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// arrived is what a message says, as a consumer reads it: one for each
// signature.
func arrived(t testing.TB, body []byte, metadata map[string]string) []store.Kept {
	t.Helper()
	decode := func(s string) []byte {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			t.Errorf("metadata %q: %v", s, err)
		}
		return b
	}
	first := store.Kept{
		Where: metadata["id"], Payload: decode(metadata["payload"]), Signature: body,
		Cert: []byte(metadata["cert"]), Chain: []byte(metadata["chain"]),
	}
	if len(first.Cert) == 0 {
		first.Cert = nil
	}
	if len(first.Chain) == 0 {
		first.Chain = nil
	}
	if metadata["image"] == "" {
		if metadata["signature"] != string(body) {
			t.Error("metadata signature is not the body")
		}
		return []store.Kept{first}
	}
	if string(decode(metadata["signature"])) != string(body) {
		t.Error("metadata signature is not the body")
	}
	var all []struct{ Sig []byte }
	if list := metadata["signatures"]; list != "" {
		if err := json.Unmarshal([]byte(list), &all); err != nil {
			t.Error(err)
		}
	}
	out := []store.Kept{first}
	for i, s := range all {
		if i > 0 {
			out = append(out, store.Kept{Where: metadata["id"], Payload: first.Payload, Signature: s.Sig})
		}
	}
	return out
}

func TestMemorySuite(t *testing.T) {
	storetest.RunKeeper(t, func(*testing.T) storetest.Keepers {
		memory := pubsub.NewMemory(1000)
		return storetest.Keepers{
			Open: func(t testing.TB) store.Keeper {
				return open(t, pubsub.Options{URL: "mem:///topic", Memory: memory})
			},
			Arrived: func(t testing.TB) (out []store.Kept) {
				for _, m := range memory.Messages("topic") {
					out = append(out, arrived(t, m.Body, m.Metadata)...)
				}
				return out
			},
		}
	})
}

func TestMemoryIsBounded(t *testing.T) {
	memory := pubsub.NewMemory(2)
	k := open(t, pubsub.Options{URL: "mem://topic", Name: "kafka", Memory: memory})
	if k.Name() != "kafka" {
		t.Errorf("Name = %q", k.Name())
	}
	for _, say := range []string{"a", "b", "c"} {
		out := k.Keep(t.Context(), []store.Record{statement(t, say)})
		if out[0].Err != nil || !strings.Contains(out[0].Where[0], "gone when this process ends") {
			t.Fatalf("%+v", out[0])
		}
	}
	if n := len(memory.Messages("topic")); n != 2 {
		t.Errorf("%d messages; want the last 2", n)
	}
	if _, err := k.Find(t.Context(), store.Run{}, ""); !errors.Is(err, store.ErrWriteOnly) {
		t.Errorf("Find: %v; want ErrWriteOnly", err)
	}
}

func TestMessage(t *testing.T) {
	run := store.Run{APIVersion: "tekton.dev/v1", Kind: "TaskRun", Namespace: "ns", Name: "run", UID: "uid"}
	cert := storetest.NewCertSigner(t)
	r := storetest.ImageRecord(t, run, image("x"), cert, storetest.NewRecordSigner(t))
	m, err := pubsub.NewMessage(r)
	if err != nil {
		t.Fatal(err)
	}
	signatures := m.Metadata["signatures"]
	delete(m.Metadata, "signatures")
	want := pubsub.Message{
		ID: m.ID, Key: "uid/" + r.Key, Body: r.Signatures[0].Sig,
		Metadata: map[string]string{
			"payload": base64.StdEncoding.EncodeToString(r.Payload), "signature": base64.StdEncoding.EncodeToString(r.Signatures[0].Sig),
			"id": m.ID, "key": r.Key, "format": "simplesigning", "kind": "TaskRun", "namespace": "ns", "name": "run", "uid": "uid",
			"image": r.Image, "cert": string(cert.Cert), "chain": string(cert.Chain),
		},
	}
	if diff := cmp.Diff(want, m); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
	var list []map[string]any
	if err := json.Unmarshal([]byte(signatures), &list); err != nil || len(list) != 2 ||
		list[1]["keyid"] != r.Signatures[1].KeyID || list[0]["cert"] != string(cert.Cert) {
		t.Errorf("signatures = %s (%v); want both", signatures, err)
	}
	again, err := pubsub.NewMessage(storetest.ImageRecord(t, run, image("x"), storetest.NewRecordSigner(t)))
	if err != nil || again.ID != m.ID {
		t.Errorf("the same record, signed again, has id %s, not %s (%v)", again.ID, m.ID, err)
	}
	run.UID = "other"
	other, err := pubsub.NewMessage(storetest.ImageRecord(t, run, image("x"), cert))
	if err != nil || other.ID == m.ID {
		t.Errorf("another run's record has the same id (%v)", err)
	}
	// A statement's signature is its envelope, as text.
	s := statement(t, "s")
	m, err = pubsub.NewMessage(s)
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := s.SignatureBytes(); string(want) != string(m.Body) || m.Metadata["signature"] != string(want) || m.Metadata["signatures"] != "" {
		t.Errorf("statement's message: %+v", m)
	}
}

func TestChainsURL(t *testing.T) {
	for _, c := range []struct{ provider, topic, servers, want, err string }{
		{"kafka", "chains", "a:9092,b", "kafka://a:9092,b/chains", ""},
		{"inmemory", "chains", "", "mem:///chains", ""},
		{"kafka", "chains", "", "", "bootstrap.servers"},
		{"kafka", "", "a", "", "storage.pubsub.topic"},
		{"", "chains", "", "", "accepted: kafka, inmemory"},
		{"nats", "chains", "", "", "accepted: kafka, inmemory"},
	} {
		got, err := pubsub.ChainsURL(c.provider, c.topic, c.servers)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("ChainsURL(%q, %q, %q) = %q, %v; want %q, %q", c.provider, c.topic, c.servers, got, err, c.want, c.err)
		}
		if err == nil {
			if _, err := pubsub.ParseURL(got); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestParseURL(t *testing.T) {
	for url, want := range map[string]pubsub.Target{
		"kafka://a,b:1, c /topic":            {Scheme: "kafka", Servers: []string{"a:9092", "b:1", "c:9092"}, Topic: "topic"},
		"kafka://[::1]:7/t%20opic":           {}, // a space
		"kafka://[::1]/topic":                {Scheme: "kafka", Servers: []string{"[::1]:9092"}, Topic: "topic"},
		"nats://h/a.b?ack=server":            {Scheme: "nats", Servers: []string{"h:4222"}, Topic: "a.b"},
		"kafka://u%40x@h/t?password-file=/p": {Scheme: "kafka", Servers: []string{"h:9092"}, Topic: "t", User: "u@x"},
		"mem:///t":                           {Scheme: "mem", Topic: "t"},
		"mem://t":                            {Scheme: "mem", Topic: "t"},
		"":                                   {},
		"sqs://x/y":                          {},
		"kafka:///topic":                     {},
		"kafka://h":                          {},
		"kafka://h/":                         {},
		"kafka://h,/t":                       {},
		"nats://h/a.*":                       {},
		"nats://h/a..b":                      {},
		"nats://h/.a":                        {},
		"kafka://u:secret@h/t":               {},
		"kafka://u@h/t":                      {},
		"kafka://h/t?password-file=/p":       {},
		"kafka://h/t?sasl=plain":             {},
		"kafka://u@h/t?password-file=/p&sasl=gssapi":   {},
		"kafka://h/t?ack=server":                       {},
		"kafka://h/t?tls=yes":                          {},
		"kafka://h/t?tls=false&ca=/c":                  {},
		"kafka://h/t?cert=/c":                          {},
		"kafka://h/t?tls=true&tls=true":                {},
		"kafka://h/t?tls=":                             {},
		"kafka://h/t?%zz":                              {},
		"nats://h/t?credentials=/a&token-file=/b":      {},
		"nats://u@h/t?credentials=/a&password-file=/b": {},
		"mem:///t?tls=true":                            {},
		"gcppubsub://project-1/t.opic":                 {Scheme: "gcppubsub", Servers: []string{"project-1"}, Topic: "t.opic"},
		"gcppubsub://projects/example.com:p/topics/topic?endpoint=europe-west1-pubsub.googleapis.com:443": {
			Scheme: "gcppubsub", Servers: []string{"example.com:p"}, Topic: "topic"},
		"gcppubsub://projects/project-1/topic":                    {},
		"gcppubsub://project-1/goog-topic":                        {},
		"gcppubsub://project-1/a/b":                               {},
		"gcppubsub://u@project-1/topic?password-file=/p":          {},
		"gcppubsub://project-1/topic?emulator=h":                  {},
		"gcppubsub://project-1/topic?emulator=h:1&credentials=/c": {},
		"gcppubsub://project-1/topic?sasl=plain":                  {},
		"gcppubsub:///topic":                                      {},
		"nats://" + strings.Repeat("@", 3) + "h/t":                {},
		"kafka://h\x00/t":                                         {},
	} {
		got, err := pubsub.ParseURL(url)
		if (err != nil) != (want.Scheme == "") {
			t.Errorf("ParseURL(%q) = %+v, %v", url, got, err)
		}
		if err == nil && (got.Scheme != want.Scheme || got.Topic != want.Topic || got.User != want.User || !cmp.Equal(got.Servers, want.Servers)) {
			t.Errorf("ParseURL(%q) = %+v; want %+v", url, got, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("ParseURL(%q) repeats the password: %v", url, err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	empty, junk := file("empty", "\n"), file("junk", "no PEM")
	for _, url := range []string{
		"",
		"mem:///topic",
		"kafka://u@h/t?password-file=" + dir + "/none",
		"kafka://u@h/t?password-file=" + empty,
		"kafka://h/t?ca=" + junk,
		"kafka://h/t?ca=" + dir + "/none",
		"kafka://h/t?cert=" + junk + "&key=" + junk,
		"nats://u@h/t?password-file=" + empty,
		"nats://h/t?token-file=" + dir + "/none",
		"nats://h/t?credentials=" + dir + "/none",
		"nats://h/t?ca=" + junk,
	} {
		if k, err := pubsub.Open(pubsub.Options{URL: url}); err == nil || store.ClassOf(err) != store.Configuration {
			t.Errorf("Open(%q) = %v, %v; want a configuration error", url, k, err)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	f.Add("kafka://u@a:1,b/topic?password-file=/p&tls=true")
	f.Add("nats://[::1]:4222/a.b?ack=server")
	f.Add("mem:///t")
	f.Fuzz(func(t *testing.T, s string) {
		target, err := pubsub.ParseURL(s)
		if err != nil {
			return
		}
		if target.Topic == "" || (target.Scheme != "mem") != (len(target.Servers) > 0) {
			t.Errorf("%q: %+v", s, target)
		}
	})
}

// writePEM writes what a TLS client needs.
func writePEM(t testing.TB, name, kind string, der []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
