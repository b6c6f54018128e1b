package pubsub_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crypto/tls"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"assay.dev/assay/store"
	"assay.dev/assay/store/pubsub"
	"assay.dev/assay/store/storetest"
)

// natsServer starts NATS' server with JetStream on a free port.
func natsServer(t testing.TB, change func(o *server.Options)) *server.Server {
	t.Helper()
	o := &server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true,
	}
	if change != nil {
		change(o)
	}
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(30 * time.Second) {
		t.Fatal("NATS is not ready")
	}
	return s
}

func hostPort(s *server.Server) string { return s.Addr().String() }

// stream creates a JetStream stream for the subject records.
func stream(t testing.TB, s *server.Server, config jetstream.StreamConfig, opts ...nats.Option) jetstream.Stream {
	t.Helper()
	conn, err := nats.Connect(s.ClientURL(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	config.Name, config.Subjects = "RECORDS", []string{"records"}
	st, err := js.CreateStream(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// natsArrived reads all messages of a stream.
func natsArrived(t testing.TB, st jetstream.Stream) (out []store.Kept) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	info, err := st.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
		m, err := st.GetMsg(ctx, seq)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, arrived(t, m.Data, metadata(t, m.Header))...)
	}
	return out
}

// metadata reads headers as gocloud.dev's natspubsub does.
func metadata(t testing.TB, h nats.Header) map[string]string {
	t.Helper()
	out := map[string]string{}
	for name, values := range h {
		k, err := url.QueryUnescape(name)
		if err != nil {
			t.Fatal(err)
		}
		if out[k], err = url.QueryUnescape(values[0]); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestNATSSuite(t *testing.T) {
	t.Parallel()
	storetest.RunKeeper(t, func(t *testing.T) storetest.Keepers {
		var s *server.Server
		port, dir := server.RANDOM_PORT, t.TempDir()
		up := func() {
			s = natsServer(t, func(o *server.Options) {
				o.Port, o.StoreDir, o.MaxPayload = port, dir, 256<<10
				o.Users = []*server.User{{Username: "u", Password: "right"}}
			})
		}
		up()
		password := filepath.Join(t.TempDir(), "password")
		write := func(s string) {
			if err := os.WriteFile(password, []byte(s+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("right")
		_, p, _ := strings.Cut(hostPort(s), ":")
		if _, err := fmt.Sscan(p, &port); err != nil {
			t.Fatal(err)
		}
		st := stream(t, s, jetstream.StreamConfig{}, nats.UserInfo("u", "right"), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
		return storetest.Keepers{
			Open: func(t testing.TB) store.Keeper {
				return open(t, pubsub.Options{URL: fmt.Sprintf("nats://u@127.0.0.1:%d/records?password-file=%s", port, password)})
			},
			Arrived: func(t testing.TB) []store.Kept { return natsArrived(t, st) },
			Down: func(on bool) {
				if on {
					s.Shutdown()
					s.WaitForShutdown()
					return
				}
				up()
			},
			TooLarge: 300 << 10,
		}
	})
}

func TestNATSRefusals(t *testing.T) {
	t.Parallel()
	s := natsServer(t, func(o *server.Options) {
		o.Users = []*server.User{
			{Username: "u", Password: "right"},
			{Username: "reader", Password: "right", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Allow: []string{"$JS.>"}}}},
		}
	})
	stream(t, s, jetstream.StreamConfig{}, nats.UserInfo("u", "right"))
	dir := t.TempDir()
	for _, p := range []string{"right", "wrong"} {
		if err := os.WriteFile(filepath.Join(dir, p), []byte(p), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct{ user, password, query, say string }{
		"wrong password":     {"u", "wrong", "", "Authorization"},
		"no right":           {"reader", "right", "", "ermission"},
		"no right, no ack":   {"reader", "right", "&ack=server", "ermission"},
		"encryption refused": {"u", "right", "&tls=true", "secure connection"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			k := open(t, pubsub.Options{URL: fmt.Sprintf("nats://%s@%s/records?password-file=%s%s", c.user, hostPort(s), filepath.Join(dir, c.password), c.query)})
			defer k.Close()
			out := k.Keep(ctx, []store.Record{statement(t, name)})
			if out[0].Err == nil || store.ClassOf(out[0].Err) != store.Configuration || !strings.Contains(out[0].Err.Error(), c.say) {
				t.Errorf("%v (%v); want a configuration error with %q", out[0].Err, store.ClassOf(out[0].Err), c.say)
			}
		})
	}
}

func TestNATSToken(t *testing.T) {
	t.Parallel()
	s := natsServer(t, func(o *server.Options) { o.Authorization = "t0ken" })
	stream(t, s, jetstream.StreamConfig{}, nats.Token("t0ken"))
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	k := open(t, pubsub.Options{URL: fmt.Sprintf("nats://%s/records?token-file=%s", hostPort(s), file)})
	defer k.Close()
	r := []store.Record{statement(t, "token")}
	if out := k.Keep(t.Context(), r); store.ClassOf(out[0].Err) != store.Configuration {
		t.Fatalf("%v; want a configuration error", out[0].Err)
	}
	// The Secret changes; nothing is opened again.
	if err := os.WriteFile(file, []byte("t0ken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := k.Keep(t.Context(), r); out[0].Err != nil {
		t.Errorf("after the token's change: %v", out[0].Err)
	}
}

func TestNATSTLS(t *testing.T) {
	t.Parallel()
	certs := httptest.NewTLSServer(nil) // for its certificate
	certs.Close()
	s := natsServer(t, func(o *server.Options) { o.TLSConfig = &tls.Config{Certificates: certs.TLS.Certificates} })
	stream(t, s, jetstream.StreamConfig{}, nats.Secure(&tls.Config{InsecureSkipVerify: true})) //nolint:gosec // the test's own connection
	ca := writePEM(t, "ca.pem", "CERTIFICATE", certs.Certificate().Raw)
	for query, want := range map[string]string{"?ca=" + ca: "", "?tls=true": "configuration"} {
		k := open(t, pubsub.Options{URL: "nats://" + hostPort(s) + "/records" + query})
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

func TestNATSWithoutStream(t *testing.T) {
	t.Parallel()
	for name, jetStream := range map[string]bool{"no stream": true, "no JetStream": false} {
		t.Run(name, func(t *testing.T) {
			s := natsServer(t, func(o *server.Options) { o.JetStream = jetStream })
			conn, err := nats.Connect(s.ClientURL())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			listener, err := conn.SubscribeSync("records")
			if err != nil {
				t.Fatal(err)
			}
			if err := conn.Flush(); err != nil {
				t.Fatal(err)
			}
			base := "nats://" + hostPort(s) + "/records"
			r := statement(t, name)
			silent := open(t, pubsub.Options{URL: "nats://" + hostPort(s) + "/nobody"})
			defer silent.Close()
			out := silent.Keep(t.Context(), []store.Record{r})
			if out[0].Err == nil || store.ClassOf(out[0].Err) != store.Configuration || !strings.Contains(out[0].Err.Error(), "ack=server") {
				t.Errorf("%v; want a configuration error that names the remedy", out[0].Err)
			}
			k := open(t, pubsub.Options{URL: base + "?ack=server"})
			defer k.Close()
			out = k.Keep(t.Context(), []store.Record{r})
			if out[0].Err != nil || !strings.Contains(out[0].Where[0], "kept only by those who listened") {
				t.Fatalf("%+v; want it sent, and said so", out[0])
			}
			m, err := listener.NextMsg(30 * time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if got := arrived(t, m.Data, metadata(t, m.Header)); string(got[0].Payload) != string(r.Payload) {
				t.Errorf("another payload arrived: %s", got[0].Payload)
			}
		})
	}
}

// TestNATSStreamLimits: what the stream refuses, and what it has room for later.
func TestNATSStreamLimits(t *testing.T) {
	t.Parallel()
	s := natsServer(t, nil)
	stream(t, s, jetstream.StreamConfig{MaxMsgSize: 20 << 10, MaxMsgs: 1, Discard: jetstream.DiscardNew})
	k := open(t, pubsub.Options{URL: "nats://" + hostPort(s) + "/records"})
	defer k.Close()
	out := k.Keep(t.Context(), []store.Record{statement(t, strings.Repeat("x", 20<<10))})
	if out[0].Err == nil || store.ClassOf(out[0].Err) != store.Permanent || !strings.Contains(out[0].Err.Error(), "max_msg_size") {
		t.Errorf("too large for the stream: %v (%v); want a permanent error with the remedy", out[0].Err, store.ClassOf(out[0].Err))
	}
	for i, want := range []bool{true, false} {
		out := k.Keep(t.Context(), []store.Record{statement(t, fmt.Sprint(i))})
		if (out[0].Err == nil) != want || !want && store.ClassOf(out[0].Err) != store.Transient {
			t.Errorf("message %d of a stream of one: %v; want kept %t, else a transient error", i, out[0].Err, want)
		}
	}
}

func TestNATSClosed(t *testing.T) {
	t.Parallel()
	s := natsServer(t, nil)
	stream(t, s, jetstream.StreamConfig{})
	k := open(t, pubsub.Options{URL: "nats://" + hostPort(s) + "/records"})
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	if out := k.Keep(t.Context(), []store.Record{statement(t, "late")}); out[0].Err == nil {
		t.Error("kept after Close")
	}
}
