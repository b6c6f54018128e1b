package pubsub

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"assay.dev/assay/store"
)

// natsSender publishes to one subject. The connection is made at the first
// message, and anew at the next message after it broke: the client's own way of
// mending it hides why it does not succeed.
type natsSender struct {
	target  Target
	opts    nats.Options
	secrets []string // files that must be there when a connection is made

	mu   sync.Mutex
	conn *nats.Conn          // guarded by mu; nil before the first connection
	js   jetstream.JetStream // guarded by mu
	gone bool                // guarded by mu: closed for good
}

func openNATS(t Target) (sender, error) {
	s := &natsSender{target: t, opts: nats.GetDefaultOptions()}
	o := &s.opts
	o.Name = "assay-observer"
	for _, host := range t.Servers {
		o.Servers = append(o.Servers, "nats://"+host)
	}
	o.AllowReconnect = false
	// A server that vanished without a word is noticed within a minute.
	o.PingInterval = 20 * time.Second
	// Asynchronous errors are read from the connection; there is no log here.
	o.AsyncErrorCB = func(*nats.Conn, *nats.Subscription, error) {}
	var err error
	if o.TLSConfig, err = t.tls(); err != nil {
		return nil, err
	}
	o.Secure = o.TLSConfig != nil
	switch {
	case t.User != "":
		// Files are read at every connection, so that a changed Secret works
		// from then on; and once now, so that a missing one shows at the start.
		if _, err := t.secret("password-file"); err != nil {
			return nil, err
		}
		o.UserInfo = func() (string, string) {
			pass, _ := t.secret("password-file") // an empty one is refused by the server
			return t.User, pass
		}
	case t.options["token-file"] != "":
		if _, err := t.secret("token-file"); err != nil {
			return nil, err
		}
		o.TokenHandler = func() string {
			token, _ := t.secret("token-file")
			return token
		}
	case t.options["credentials"] != "":
		if _, err := t.secret("credentials"); err != nil {
			return nil, err
		}
		if err := nats.UserCredentials(t.options["credentials"])(o); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// connection returns the one connection, made now if there is none yet.
func (s *natsSender) connection(ctx context.Context) (*nats.Conn, jetstream.JetStream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return nil, nil, nats.ErrConnectionClosed
	}
	if s.conn != nil && !s.conn.IsClosed() {
		return s.conn, s.js, nil
	}
	opts := s.opts
	if deadline, ok := ctx.Deadline(); ok {
		opts.Timeout = max(min(opts.Timeout, time.Until(deadline)), time.Millisecond)
	}
	conn, err := opts.Connect()
	if err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(conn)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	s.conn, s.js = conn, js
	return conn, js, nil
}

func (s *natsSender) send(ctx context.Context, messages []Message) []result {
	conn, js, err := s.connection(ctx)
	if err != nil {
		return failAll(len(messages), s.fault(nil, err))
	}
	results := make([]result, len(messages))
	var group sync.WaitGroup
	for i, m := range messages {
		group.Go(func() {
			msg := &nats.Msg{Subject: s.target.Topic, Data: m.Body, Header: nats.Header{}}
			for name, value := range m.Metadata {
				msg.Header[name] = []string{url.QueryEscape(value)}
			}
			msg.Header.Set(nats.MsgIdHdr, m.ID)
			// The client checks the body alone; the server closes the
			// connection over what is larger as a whole.
			if limit := conn.MaxPayload(); limit > 0 && int64(msg.Size()) > limit {
				results[i].err = store.As(store.Permanent, fmt.Errorf("%w: the message has %d bytes, the server takes %d; raise max_payload of the server, or store large statements elsewhere", nats.ErrMaxPayload, msg.Size(), limit))
				return
			}
			if s.target.options["ack"] == "server" {
				if err := conn.PublishMsg(msg); err != nil {
					results[i].err = s.fault(conn, err)
				}
				return
			}
			ack, err := js.PublishMsg(ctx, msg)
			if err != nil {
				results[i].err = s.fault(conn, err)
				return
			}
			results[i] = result{
				where:    fmt.Sprintf("nats:%s, stream %s, sequence %d", s.target.Topic, ack.Stream, ack.Sequence),
				existing: ack.Duplicate,
			}
		})
	}
	group.Wait()
	if s.target.options["ack"] != "server" {
		return results
	}
	before := conn.LastError()
	err = conn.FlushWithContext(ctx)
	if last := conn.LastError(); err == nil && last != nil && (before == nil || last.Error() != before.Error()) {
		err = last // such as missing rights, which the server tells in passing
	}
	for i := range results {
		switch {
		case results[i].err != nil:
		case err != nil:
			results[i].err = s.fault(conn, err)
		default:
			results[i].where = fmt.Sprintf("nats:%s (received by the server; kept only by those who listened)", s.target.Topic)
		}
	}
	return results
}

func (s *natsSender) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
	if s.conn != nil {
		s.conn.Close()
	}
	return nil
}

// Codes of JetStream's errors that the client has no names for.
const (
	jsMessageTooLarge = 10054 // larger than the stream's max_msg_size
	jsHeaderTooLarge  = 10097
)

func (s *natsSender) fault(conn *nats.Conn, err error) error {
	// A publication without the right to it is answered by silence, and the
	// reason comes beside it.
	if conn != nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout)) {
		if last := conn.LastError(); last != nil && errors.Is(last, nats.ErrPermissionViolation) {
			err = fmt.Errorf("%w: %w", err, last)
		}
	}
	var api *jetstream.APIError
	switch {
	case errors.As(err, &api) && (api.ErrorCode == jsMessageTooLarge || api.ErrorCode == jsHeaderTooLarge):
		return store.As(store.Permanent, fmt.Errorf("%w: raise max_msg_size of the stream, or store large statements elsewhere", err))
	case errors.Is(err, nats.ErrMaxPayload):
		return store.As(store.Permanent, err)
	case errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, jetstream.ErrJetStreamNotEnabled),
		errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return store.As(store.Configuration, fmt.Errorf("no JetStream stream keeps subject %s: create one, or add ack=server to the URL to send to those who listen and keep nothing: %w", s.target.Topic, err))
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked),
		errors.Is(err, nats.ErrAccountAuthExpired), errors.Is(err, nats.ErrPermissionViolation),
		errors.Is(err, nats.ErrSecureConnRequired), errors.Is(err, nats.ErrSecureConnWanted),
		errors.Is(err, nats.ErrHeadersNotSupported), errors.Is(err, nats.ErrNkeysNotSupported),
		// The server's refusals that reach the client as text alone.
		strings.Contains(strings.ToLower(err.Error()), "authorization violation"):
		return store.As(store.Configuration, err)
	}
	return network(err)
}
