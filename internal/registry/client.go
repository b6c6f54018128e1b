package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Client speaks to a Server through its Unix socket.
type Client struct {
	name string
	http *http.Transport
}

// NewClient makes a client of the registry that references call name, whose
// socket is at the path socket. It does not connect yet.
func NewClient(socket, name string) *Client {
	return &Client{name: name, http: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "unix", socket)
			if err != nil {
				return nil, fmt.Errorf("connecting to the registry: %w", err)
			}
			return c, nil
		},
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     30 * time.Second,
		DisableCompression:  true,
	}}
}

// HTTPTransport dials the socket for requests to the registry's name, in plain
// HTTP, and refuses all others; Route adds what serves those.
func (c *Client) HTTPTransport() http.RoundTripper { return Route(c.name, c.http, nil) }

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Mint asks for a token for a task attempt. It fails with the registry's reason
// if the run is not open, the caller is not its executor, or the repository of
// the run was not empty at its first token.
func (c *Client) Mint(ctx context.Context, r TokenRequest) (string, error) {
	var reply tokenResponse
	if err := c.control(ctx, http.MethodPost, "tokens", r, &reply); err != nil {
		return "", fmt.Errorf("minting a registry token for task %s: %w", r.Task, err)
	}
	return reply.Token, nil
}

// Revoke ends a token. When it returns nil, no request with it is under way and
// none will be. A token that is not known is revoked already.
func (c *Client) Revoke(ctx context.Context, token string) error {
	if token == "" {
		return fmt.Errorf("revoking a registry token: it is empty")
	}
	if err := c.control(ctx, http.MethodDelete, "tokens/"+url.PathEscape(token), nil, &revokeResponse{}); err != nil {
		return fmt.Errorf("revoking a registry token: %w", err)
	}
	return nil
}

// RevokeAttempt ends all tokens of a task attempt, as Revoke does, and says how
// many there were.
func (c *Client) RevokeAttempt(ctx context.Context, run, task string, attempt int) (int, error) {
	q := url.Values{"run": {run}, "task": {task}, "attempt": {strconv.Itoa(attempt)}}
	return c.revoke(ctx, q)
}

// RevokeRun ends all tokens of a run, as Revoke does, and says how many there
// were.
func (c *Client) RevokeRun(ctx context.Context, run string) (int, error) {
	return c.revoke(ctx, url.Values{"run": {run}})
}

func (c *Client) revoke(ctx context.Context, q url.Values) (int, error) {
	var reply revokeResponse
	if err := c.control(ctx, http.MethodDelete, "tokens?"+q.Encode(), nil, &reply); err != nil {
		return 0, fmt.Errorf("revoking registry tokens: %w", err)
	}
	return reply.Revoked, nil
}

func (c *Client) control(ctx context.Context, method, what string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+c.name+controlPrefix+what, body)
	if err != nil {
		return err
	}
	resp, err := c.http.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		var e errorBody
		if json.Unmarshal(b, &e) == nil && len(e.Errors) > 0 {
			return fmt.Errorf("the registry refuses: %s", e.Errors[0].Message)
		}
		return fmt.Errorf("the registry answered %s", resp.Status)
	}
	return json.Unmarshal(b, out)
}

// Route sends requests to the registry's name to embedded and all others to
// other. Where other is nil, they are refused: a process that should speak to
// the embedded registry alone does not reach the network by a wrong name.
func Route(name string, embedded, other http.RoundTripper) http.RoundTripper {
	return route{name, embedded, other}
}

type route struct {
	name            string
	embedded, other http.RoundTripper
}

func (r route) RoundTrip(req *http.Request) (*http.Response, error) {
	if strings.EqualFold(req.URL.Host, r.name) {
		if req.URL.Scheme != "http" {
			return nil, fmt.Errorf("asking registry %s: it is reached by http, not %s", r.name, req.URL.Scheme)
		}
		return r.embedded.RoundTrip(req)
	}
	if r.other == nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, fmt.Errorf("asking %s: only registry %s is reachable here", req.URL.Host, r.name)
	}
	return r.other.RoundTrip(req)
}
