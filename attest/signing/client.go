package signing

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/store"
)

// Client asks a signer behind a Unix socket. It is safe for concurrent use.
type Client struct {
	socket    string
	http      *http.Client
	transport *http.Transport

	mu   sync.Mutex // guards keys
	keys map[string]dsse.PublicKey
}

var _ Service = (*Client)(nil)

// Times of a client.
const (
	// callTimeout bounds a request whose context has no deadline. Key services
	// take seconds at their worst.
	callTimeout = time.Minute
	// restart is how long a signer that is not there is waited for: it may just
	// be starting again.
	restart = 3 * time.Second
)

// maxPathUnix is the longest path that a Unix socket can have on Linux.
const maxPathUnix = 107

// Dial makes a client of the signer at a socket. It does not connect: the signer
// may start later, and calls connect, and connect again, as they need. It fails on
// a path that cannot be a socket's.
func Dial(socket string) (*Client, error) {
	if !filepath.IsAbs(socket) {
		return nil, store.As(store.Configuration, fmt.Errorf("dialling the signer: %q is no absolute path", socket))
	}
	if len(socket) > maxPathUnix {
		return nil, store.As(store.Configuration, fmt.Errorf("dialling the signer: the path of a socket has at most %d bytes, %s has %d", maxPathUnix, socket, len(socket)))
	}
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		DisableCompression:  true,
		MaxIdleConns:        32,
		MaxIdleConnsPerHost: 32,
		IdleConnTimeout:     2 * time.Minute,
		WriteBufferSize:     64 << 10,
	}
	return &Client{socket: socket, http: &http.Client{Transport: t}, transport: t, keys: map[string]dsse.PublicKey{}}, nil
}

// Close ends idle connections. Calls that run are not ended.
func (c *Client) Close() error {
	c.transport.CloseIdleConnections()
	return nil
}

// Sign implements Service. Settings travel once and by digest from then on. A
// signer that does not answer is store.Transient.
func (c *Client) Sign(ctx context.Context, set Settings, message []byte) ([]store.Signature, error) {
	if err := set.Check(); err != nil {
		return nil, err
	}
	if len(message) > MaxMessage {
		return nil, store.As(store.Permanent, fmt.Errorf("refusing to sign this message: it has %d bytes, at most %d are signed", len(message), MaxMessage))
	}
	data, digest, err := set.Encode()
	if err != nil {
		return nil, store.As(store.Configuration, err)
	}
	header := http.Header{HeaderSettings: {digest}}
	answer, status, err := c.call(ctx, http.MethodPost, PathSign, header, message)
	// The signer forgets settings when it starts again.
	if err == nil && status == http.StatusPreconditionRequired {
		if answer, status, err = c.call(ctx, http.MethodPut, PathSettings, nil, data); err == nil && status < 400 {
			answer, status, err = c.call(ctx, http.MethodPost, PathSign, header, message)
		}
	}
	if err != nil {
		return nil, err
	}
	if status >= 400 {
		return nil, decodeFailure(answer)
	}
	sigs, err := decodeSignatures(answer, c.key)
	if err != nil {
		return nil, err
	}
	if len(sigs) != len(set.Kinds) {
		return nil, fmt.Errorf("reading signatures: %d keys were to sign, %d did", len(set.Kinds), len(sigs))
	}
	return sigs, nil
}

// Keys are the keys that signed, the current ones first. Keyless identities have
// none.
func (c *Client) Keys(ctx context.Context) ([]Key, error) {
	answer, err := c.get(ctx, PathKeys)
	if err != nil {
		return nil, err
	}
	return decodeKeys(answer)
}

// Health returns an error only if the signer does not answer; what is wrong with
// single keys is among its Faults.
func (c *Client) Health(ctx context.Context) (Health, error) {
	answer, err := c.get(ctx, PathHealth)
	if err != nil {
		return Health{}, err
	}
	// Not strict: a newer signer may say more.
	var h Health
	if err := json.Unmarshal(answer, &h); err != nil {
		return Health{}, fmt.Errorf("reading the signer's health: %w", err)
	}
	return h, nil
}

func (c *Client) get(ctx context.Context, path string) ([]byte, error) {
	answer, status, err := c.call(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return nil, err
	}
	if status >= 400 {
		return nil, decodeFailure(answer)
	}
	return answer, nil
}

// call makes a request, and makes it again while nobody listens. Every request
// may be repeated: a signature too many hurts nobody.
func (c *Client) call(ctx context.Context, method, path string, header http.Header, body []byte) ([]byte, int, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	pause, waited := 10*time.Millisecond, time.Duration(0)
	for {
		answer, status, err := c.once(ctx, method, path, header, body)
		if err == nil {
			return answer, status, nil
		}
		var op *net.OpError
		gone := errors.As(err, &op) && op.Op == "dial" || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if ctx.Err() != nil || !gone || waited >= restart {
			return nil, 0, store.As(store.Transient, fmt.Errorf("asking the signer at %s: %w", c.socket, err))
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		waited += pause
		pause = min(2*pause, 500*time.Millisecond)
	}
}

func (c *Client) once(ctx context.Context, method, path string, header http.Header, body []byte) ([]byte, int, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://signer"+path, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	// Not sent; it tells the transport that a request may be repeated on a new
	// connection when the signer closed an idle one.
	req.Header["Idempotency-Key"] = nil
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, 0, err
	}
	if len(answer) > maxAnswer {
		return nil, 0, fmt.Errorf("an answer of more than %d bytes", maxAnswer)
	}
	if resp.StatusCode >= 400 && resp.StatusCode != http.StatusPreconditionRequired && !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		return nil, 0, fmt.Errorf("it answers %s: %s; is this the socket of assay-observer signer?", resp.Status, bytes.TrimSpace(answer[:min(len(answer), 200)]))
	}
	return answer, resp.StatusCode, nil
}

// key parses a public key, each once.
func (c *Client) key(pem string) (dsse.PublicKey, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k, ok := c.keys[pem]; ok {
		return k, nil
	}
	k, err := dsse.ParsePublicKey([]byte(pem))
	if err != nil {
		return dsse.PublicKey{}, err
	}
	// Keyless signing has a new key every few minutes.
	if len(c.keys) >= 64 {
		clear(c.keys)
	}
	c.keys[pem] = k
	return k, nil
}
