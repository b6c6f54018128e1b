package pubsub_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/store"
	"assay.dev/assay/store/pubsub"
	"assay.dev/assay/store/storetest"
)

// Google Cloud Pub/Sub is no program that anybody can run. Its wire protocol is
// spoken by pstest, the server in memory by the authors of the client; the limits
// that it does not keep, of attributes, are kept here.

// refusals answers calls of Publish by an error while it is set.
type refusals struct{ with atomic.Pointer[status.Status] }

// React implements pstest.Reactor.
func (r *refusals) React(any) (bool, any, error) {
	if s := r.with.Load(); s != nil {
		return true, &pubsubpb.PublishResponse{}, s.Err()
	}
	return false, nil, nil
}

func (r *refusals) set(code codes.Code) {
	if code == codes.OK {
		r.with.Store(nil)
		return
	}
	r.with.Store(status.New(code, "as the test wants it"))
}

// google is a Pub/Sub that can be stopped, and starts again at its place.
type google struct {
	refusals
	srv  *pstest.Server
	port int
	past []*pstest.Message // of servers that were stopped
}

func startGoogle(t testing.TB) *google {
	t.Helper()
	g := &google{}
	g.up(t)
	t.Cleanup(func() { _ = g.srv.Close() })
	return g
}

func (g *google) up(t testing.TB) {
	t.Helper()
	g.srv = pstest.NewServerWithPort(g.port, pstest.ServerReactorOption{FuncName: "Publish", Reactor: &g.refusals})
	_, port, err := net.SplitHostPort(g.srv.Addr)
	if err == nil {
		g.port, err = strconv.Atoi(port)
	}
	if err == nil {
		_, err = g.srv.GServer.CreateTopic(context.WithoutCancel(t.Context()), &pubsubpb.Topic{Name: "projects/project-1/topics/records"})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (g *google) down() {
	g.past = append(g.past, g.srv.Messages()...)
	_ = g.srv.Close()
}

func (g *google) url(topic string) string {
	return fmt.Sprintf("gcppubsub://project-1/%s?emulator=127.0.0.1:%d", topic, g.port)
}

// arrived is what a consumer makes of the messages: attributes in parts are joined,
// and what a statement's envelope says is taken from there.
func (g *google) arrived(t testing.TB) (out []store.Kept) {
	t.Helper()
	for _, m := range append(g.past[:len(g.past):len(g.past)], g.srv.Messages()...) {
		out = append(out, arrived(t, m.Data, joined(t, m))...)
	}
	return out
}

func joined(t testing.TB, m *pstest.Message) map[string]string {
	t.Helper()
	if len(m.Attributes) > 100 {
		t.Errorf("a message has %d attributes; Pub/Sub takes 100", len(m.Attributes))
	}
	all := map[string]string{}
	for name, value := range m.Attributes {
		if len(value) > 1024 || len(name) > 256 {
			t.Errorf("attribute %s has %d bytes; Pub/Sub takes 1024", name, len(value))
		}
		first, part, _ := strings.Cut(name, ".")
		if part == "" {
			all[name] = value
			continue
		}
		if part != "0" {
			continue
		}
		for i := 0; m.Attributes[fmt.Sprint(first, ".", i)] != ""; i++ {
			all[first] += m.Attributes[fmt.Sprint(first, ".", i)]
		}
	}
	if all["image"] == "" && all["payload"] == "" {
		all["payload"] = envelopePayload(t, m.Data)
	}
	if all["image"] == "" && all["signature"] == "" {
		all["signature"] = string(m.Data)
	}
	return all
}

func TestGoogleSuite(t *testing.T) {
	storetest.RunKeeper(t, func(t *testing.T) storetest.Keepers {
		g := startGoogle(t)
		return storetest.Keepers{
			Open:    func(t testing.TB) store.Keeper { return open(t, pubsub.Options{URL: g.url("records")}) },
			Arrived: g.arrived, Repeats: true,
			Down: func(on bool) {
				if on {
					g.down()
				} else {
					g.up(t)
				}
			},
			Deny: func(on bool) {
				g.set(codes.OK)
				if on {
					g.set(codes.PermissionDenied)
				}
			},
			TooLarge: 8 << 20, // in base64 more than a request may have
		}
	})
}

// TestGoogleFaults: what the service answers decides who has to do something.
func TestGoogleFaults(t *testing.T) {
	g := startGoogle(t)
	k := open(t, pubsub.Options{URL: g.url("records")})
	defer k.Close()
	r := []store.Record{statement(t, "faults"), statement(t, "more")}
	for code, want := range map[codes.Code]store.Class{
		codes.Unauthenticated: store.Configuration, codes.PermissionDenied: store.Configuration, codes.NotFound: store.Configuration,
		codes.FailedPrecondition: store.Configuration, codes.InvalidArgument: store.Permanent,
		codes.Unavailable: store.Transient, codes.ResourceExhausted: store.Transient, codes.Internal: store.Transient,
	} {
		g.set(code)
		for i, o := range k.Keep(t.Context(), r) {
			if o.Err == nil || store.ClassOf(o.Err) != want {
				t.Errorf("%s: record %d: %v (%v); want %v", code, i, o.Err, store.ClassOf(o.Err), want)
			}
		}
	}
	g.set(codes.OK)
	for i, o := range k.Keep(t.Context(), r) {
		if o.Err != nil || len(o.Where) != 1 || !strings.HasPrefix(o.Where[0], "gcppubsub:projects/project-1/topics/records, message ") {
			t.Errorf("record %d: %+v", i, o)
		}
	}
	none := open(t, pubsub.Options{URL: g.url("nothing")})
	defer none.Close()
	if o := none.Keep(t.Context(), r[:1]); store.ClassOf(o[0].Err) != store.Configuration || !strings.Contains(o[0].Err.Error(), "create it") {
		t.Errorf("no such topic: %v", o[0].Err)
	}
}

// TestGoogleEmulatorVariable: the variable that every client of Pub/Sub knows.
func TestGoogleEmulatorVariable(t *testing.T) {
	g := startGoogle(t)
	t.Setenv("PUBSUB_EMULATOR_HOST", fmt.Sprintf("127.0.0.1:%d", g.port))
	k := open(t, pubsub.Options{URL: "gcppubsub://projects/project-1/topics/records"})
	defer k.Close()
	if o := k.Keep(t.Context(), []store.Record{statement(t, "variable")}); o[0].Err != nil {
		t.Fatal(o[0].Err)
	}
	if n := len(g.srv.Messages()); n != 1 {
		t.Errorf("%d messages arrived", n)
	}
}

// TestGoogleLong: long certificates and long statements arrive whole.
func TestGoogleLong(t *testing.T) {
	g := startGoogle(t)
	k := open(t, pubsub.Options{URL: g.url("records")})
	defer k.Close()
	long := statement(t, strings.Repeat("x", 300_000), storetest.NewCertSigner(t), storetest.NewCertSigner(t), storetest.NewCertSigner(t))
	if o := k.Keep(t.Context(), []store.Record{long}); o[0].Err != nil {
		t.Fatal(o[0].Err)
	}
	m := g.srv.Messages()[0]
	all := joined(t, m)
	if all["payload"] != base64Of(long.Payload) || all["cert"] != string(long.Signatures[0].Cert) || strings.Count(all["signatures"], `"keyid"`) != 3 {
		t.Errorf("payload, certificate or signatures did not arrive: %d bytes, %q, %.200q", len(all["payload"]), all["cert"], all["signatures"])
	}
	if _, whole := m.Attributes["signatures"]; whole {
		t.Error("the test has no long attribute")
	}
}

// envelopePayload is the payload of an envelope, in base64 as it is written there.
func envelopePayload(t testing.TB, envelope []byte) string {
	t.Helper()
	e, err := dsse.Parse(envelope)
	if err != nil {
		t.Error(err)
		return ""
	}
	return base64Of(e.Payload)
}

func base64Of(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
