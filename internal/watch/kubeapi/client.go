// Package kubeapi is a small client of a Kubernetes API server that hands out
// JSON as it came. What watches thousands of large objects and needs a few words
// of each cannot afford a client that decodes, copies and caches them all; what
// is left when that is taken away is a handful of HTTP requests, which is what
// this package is. Authentication, TLS, proxies and token refresh are client-go's.
//
// Errors of the API server are those of k8s.io/apimachinery/pkg/api/errors, so
// that callers ask apierrors.IsConflict and the like. Requests that the server
// puts off (429, and 503 with Retry-After) are repeated for as long as their
// context allows; nothing else is repeated here, since the callers know better
// what the answer to a failure is.
package kubeapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"
)

// MaxObject bounds one answer or watch event in bytes. A cluster stores 1.5 MB
// per object; a page of a list holds many.
const MaxObject = 64 << 20

// Resource is a kind of object by its path.
type Resource struct {
	Group, Version, Plural string
	// Kind as objects spell it; for messages and bodies.
	Kind string
}

// The resources an observer talks about.
var (
	TaskRuns     = Resource{"tekton.dev", "v1", "taskruns", "TaskRun"}
	PipelineRuns = Resource{"tekton.dev", "v1", "pipelineruns", "PipelineRun"}
	ConfigMaps   = Resource{"", "v1", "configmaps", "ConfigMap"}
	Events       = Resource{"", "v1", "events", "Event"}
	Leases       = Resource{"coordination.k8s.io", "v1", "leases", "Lease"}
	Deployments  = Resource{"apps", "v1", "deployments", "Deployment"}
	StatefulSets = Resource{"apps", "v1", "statefulsets", "StatefulSet"}
)

// APIVersion is group/version, or the version alone for the core group.
func (r Resource) APIVersion() string {
	if r.Group == "" {
		return r.Version
	}
	return r.Group + "/" + r.Version
}

func (r Resource) path(namespace, name string) string {
	var b strings.Builder
	if r.Group == "" {
		b.WriteString("/api/")
	} else {
		b.WriteString("/apis/" + r.Group + "/")
	}
	b.WriteString(r.Version)
	if namespace != "" {
		b.WriteString("/namespaces/" + url.PathEscape(namespace))
	}
	b.WriteString("/" + r.Plural)
	if name != "" {
		b.WriteString("/" + url.PathEscape(name))
	}
	return b.String()
}

// Options of a client; the zero value has no limits.
type Options struct {
	// QPS and Burst bound our own rate of requests; 0: no bound, since the API
	// server has its own fairness and says 429 when it has enough.
	QPS   float32
	Burst int
	// Observe is told of every answer; may be nil. Code 0 is a request without one.
	Observe func(verb, resource string, code int)
}

// Client talks to one API server. It is safe for concurrent use.
type Client struct {
	http    *http.Client
	base    *url.URL
	limit   flowcontrol.RateLimiter
	observe func(verb, resource string, code int)
	agent   string
	buffers sync.Pool
}

// New returns a client for what a kubeconfig says. It fails where the
// configuration does not make a usable HTTP client, and does not connect.
func New(cfg *rest.Config, opts Options) (*Client, error) {
	cfg = rest.CopyConfig(cfg)
	if onLoopback(cfg.Host) {
		cfg.DisableCompression = true
	}
	// The limit is ours, below, so that watches do not count.
	cfg.QPS = -1
	hc, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("making a client for the API server: %w", err)
	}
	base, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("reading the API server's address: %w", err)
	}
	agent := cfg.UserAgent
	if agent == "" {
		agent = "assayd-observer"
	}
	c := &Client{http: hc, base: base, observe: opts.Observe, agent: agent}
	if c.observe == nil {
		c.observe = func(string, string, int) {}
	}
	if opts.QPS > 0 {
		c.limit = flowcontrol.NewTokenBucketRateLimiter(opts.QPS, max(opts.Burst, 1))
	}
	c.buffers.New = func() any { return new(bytes.Buffer) }
	return c, nil
}

func onLoopback(host string) bool {
	if u, err := url.Parse(host); err == nil && u.Hostname() != "" {
		host = u.Hostname()
	} else if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// request is one call.
type request struct {
	method      string // HTTP's
	verb        string // Kubernetes', for metrics
	res         Resource
	namespace   string
	name        string
	query       url.Values
	body        []byte
	contentType string
	// metadataOnly asks for the object's metadata as answer, not all of it.
	metadataOnly bool
}

// Read is called with an answer's body, which is valid during the call only.
type Read func(body []byte) error

func (c *Client) url(r request) string {
	u := *c.base
	u.Path = strings.TrimSuffix(u.Path, "/") + r.res.path(r.namespace, r.name)
	u.RawPath = ""
	u.RawQuery = r.query.Encode()
	return u.String()
}

// send does the request until it is answered by more than "later", and returns
// an answer of 2xx or an error.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	for {
		if c.limit != nil && r.verb != "watch" {
			if err := c.limit.Wait(ctx); err != nil {
				return nil, fmt.Errorf("waiting for our own rate limit: %w", err)
			}
		}
		var body io.Reader
		if r.body != nil {
			body = bytes.NewReader(r.body)
		}
		req, err := http.NewRequestWithContext(ctx, r.method, c.url(r), body)
		if err != nil {
			return nil, fmt.Errorf("making a request: %w", err)
		}
		req.Header.Set("User-Agent", c.agent)
		req.Header.Set("Accept", "application/json")
		if r.metadataOnly {
			req.Header.Set("Accept", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json")
		}
		if r.contentType != "" {
			req.Header.Set("Content-Type", r.contentType)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			c.observe(r.verb, r.res.Plural, 0)
			return nil, fmt.Errorf("asking the API server to %s %s: %w", r.verb, r.res.Plural, err)
		}
		c.observe(r.verb, r.res.Plural, resp.StatusCode)
		if resp.StatusCode >= 200 && resp.StatusCode < 300 {
			return resp, nil
		}
		after, put := putOff(resp)
		err = statusError(resp, r)
		if !put {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, context.Cause(ctx))
		case <-time.After(after):
		}
	}
}

// putOff says whether the server asked to come back later, and when.
func putOff(resp *http.Response) (time.Duration, bool) {
	after, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	switch {
	case resp.StatusCode == http.StatusTooManyRequests && (err != nil || after < 0):
		return time.Second, true
	case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusServiceUnavailable && err == nil && after >= 0:
		return time.Duration(min(after, 60)) * time.Second, true
	}
	return 0, false
}

// statusError reads the body, a Status mostly, and closes it.
func statusError(resp *http.Response, r request) error {
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("reading the API server's answer %s: %w", resp.Status, err)
	}
	var s metav1.Status
	if json.Unmarshal(data, &s) == nil && s.Kind == "Status" && s.Code != 0 {
		return &apierrors.StatusError{ErrStatus: s}
	}
	return apierrors.NewGenericServerResponse(resp.StatusCode, r.verb,
		schema.GroupResource{Group: r.res.Group, Resource: r.res.Plural}, r.name, string(data[:min(len(data), 500)]), 0, true)
}

func (c *Client) do(ctx context.Context, r request, read Read) error {
	resp, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	buf := c.buffers.Get().(*bytes.Buffer)
	defer func() {
		// One huge answer must not be held for ever.
		if buf.Cap() <= 1<<20 {
			buf.Reset()
			c.buffers.Put(buf)
		}
	}()
	n, err := buf.ReadFrom(io.LimitReader(resp.Body, MaxObject+1))
	switch {
	case err != nil:
		return fmt.Errorf("reading the API server's answer to %s %s: %w", r.verb, r.res.Plural, err)
	case n > MaxObject:
		return fmt.Errorf("answer to %s %s has more than the %d bytes accepted", r.verb, r.res.Plural, MaxObject)
	case read == nil:
		return nil
	}
	return read(buf.Bytes())
}

// Get reads one object.
func (c *Client) Get(ctx context.Context, res Resource, namespace, name string, read Read) error {
	return c.do(ctx, request{method: "GET", verb: "get", res: res, namespace: namespace, name: name}, read)
}

// List reads a list in one request.
func (c *Client) List(ctx context.Context, res Resource, namespace string, query url.Values, read Read) error {
	return c.do(ctx, request{method: "GET", verb: "list", res: res, namespace: namespace, query: query}, read)
}

// Create adds an object.
func (c *Client) Create(ctx context.Context, res Resource, namespace string, body []byte, read Read) error {
	return c.do(ctx, request{method: "POST", verb: "create", res: res, namespace: namespace,
		body: body, contentType: "application/json"}, read)
}

// Update replaces an object; with the resourceVersion that body carries as
// precondition.
func (c *Client) Update(ctx context.Context, res Resource, namespace, name string, body []byte, read Read) error {
	return c.do(ctx, request{method: "PUT", verb: "update", res: res, namespace: namespace, name: name,
		body: body, contentType: "application/json"}, read)
}

// Delete removes an object.
func (c *Client) Delete(ctx context.Context, res Resource, namespace, name string) error {
	return c.do(ctx, request{method: "DELETE", verb: "delete", res: res, namespace: namespace, name: name}, nil)
}

// Patch types.
const (
	JSONPatch  = "application/json-patch+json"
	MergePatch = "application/merge-patch+json"
	applyPatch = "application/apply-patch+yaml"
)

// Patch changes an object and reads its metadata as it is afterwards.
func (c *Client) Patch(ctx context.Context, res Resource, namespace, name, kind string, body []byte, read Read) error {
	return c.do(ctx, request{method: "PATCH", verb: "patch", res: res, namespace: namespace, name: name,
		body: body, contentType: kind, metadataOnly: true}, read)
}

// Apply is a server-side apply that takes over fields which others own. Bodies
// must carry the uid, since applying to what is not there would create it.
func (c *Client) Apply(ctx context.Context, res Resource, namespace, name, manager string, body []byte, read Read) error {
	return c.do(ctx, request{method: "PATCH", verb: "apply", res: res, namespace: namespace, name: name,
		query: url.Values{"fieldManager": {manager}, "force": {"true"}},
		body:  body, contentType: applyPatch, metadataOnly: true}, read)
}

// Ready asks the server whether it is.
func (c *Client) Ready(ctx context.Context) error {
	u := *c.base
	u.Path = strings.TrimSuffix(u.Path, "/") + "/readyz"
	req, err := http.NewRequestWithContext(ctx, "GET", u.String(), nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("API server says %s", resp.Status)
	}
	return nil
}

// CloseIdle closes connections that nobody uses.
func (c *Client) CloseIdle() { c.http.CloseIdleConnections() }
