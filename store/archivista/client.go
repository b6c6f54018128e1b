package archivista

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"assay.dev/assay/store"
)

const (
	// maxHits is how many envelopes a search may find.
	maxHits = 1000
	// maxAnswer is the size in bytes of the largest answer that is read, but for
	// envelopes.
	maxAnswer = 4 << 20
)

// errNoGraphQL says that the server does not answer queries.
var errNoGraphQL = errors.New("the server answers no queries: GraphQL is switched off (ARCHIVISTA_ENABLE_GRAPHQL), or this is no Archivista")

// client speaks Archivista's HTTP interface, version 1.
type client struct {
	base      *url.URL
	http      *http.Client
	tokenFile string
}

// where is the address of an envelope.
func (c *client) where(gitoid string) string {
	return c.base.JoinPath("v1", "download", gitoid).String()
}

// upload returns the gitoid under which the server stored the envelope.
func (c *client) upload(ctx context.Context, data []byte) (string, error) {
	body, err := c.do(ctx, http.MethodPost, c.base.JoinPath("v1", "upload"), data, maxAnswer)
	if err != nil {
		return "", err
	}
	var answer struct {
		Gitoid string `json:"gitoid"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Gitoid == "" {
		return "", store.As(store.Configuration, fmt.Errorf("%s answered the upload with something else than a gitoid; is it an Archivista?", c.base))
	}
	return answer.Gitoid, nil
}

var gitoidForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// download returns the envelope with this gitoid, whose bytes match it.
func (c *client) download(ctx context.Context, id string) (envelope, error) {
	if !gitoidForm.MatchString(id) {
		return envelope{}, store.As(store.Permanent, fmt.Errorf("%q is no gitoid", id))
	}
	data, err := c.do(ctx, http.MethodGet, c.base.JoinPath("v1", "download", id), nil, maxEnvelope)
	if err != nil {
		return envelope{}, err
	}
	if got := gitoid(data); got != id {
		return envelope{}, store.As(store.Transient, fmt.Errorf("the server gave other bytes for %s: theirs are %s", id, got))
	}
	return decode(data)
}

// hit is an envelope that a search found.
type hit struct {
	gitoid  string
	digests []string // of its payload
}

// query lists envelopes page by page.
const query = `query($where: DsseWhereInput!, $after: Cursor) {
  dsses(where: $where, first: 100, after: $after) {
    pageInfo { hasNextPage endCursor }
    edges { node { gitoidSha256 payloadDigests { algorithm value } } }
  }
}`

// search returns the envelopes whose payloads (hasPayloadDigestsWith) or one of
// whose subjects (hasStatementWith) have one of these digests; empty ones do not
// count. store.ErrTooMuch says that there are more than maxHits.
func (c *client) search(ctx context.Context, by string, digests []string) ([]hit, error) {
	var in []string
	for _, d := range digests {
		if d != "" {
			in = append(in, d)
		}
	}
	where := map[string]any{"hasPayloadDigestsWith": []any{map[string]any{"algorithm": "sha256", "valueIn": in}}}
	if by == "hasStatementWith" {
		where = map[string]any{"hasStatementWith": []any{map[string]any{"hasSubjectsWith": []any{
			map[string]any{"hasSubjectDigestsWith": []any{map[string]any{"algorithm": "sha256", "valueIn": in}}},
		}}}}
	}
	var hits []hit
	for after := any(nil); ; {
		body, err := json.Marshal(map[string]any{"query": query, "variables": map[string]any{"where": where, "after": after}})
		if err != nil {
			return nil, err
		}
		data, err := c.do(ctx, http.MethodPost, c.base.JoinPath("v1", "query"), body, maxAnswer)
		var status *statusError
		if errors.As(err, &status) && (status.code == http.StatusNotFound || status.code == http.StatusMethodNotAllowed) {
			return nil, store.As(store.Configuration, errNoGraphQL)
		}
		if err != nil {
			return nil, err
		}
		page, next, err := answer(data)
		if err != nil {
			return nil, store.As(store.Transient, err)
		}
		if hits = append(hits, page...); len(hits) > maxHits {
			return nil, fmt.Errorf("%w: more than %d envelopes match", store.ErrTooMuch, maxHits)
		}
		if next == "" || len(page) == 0 {
			return hits, nil
		}
		after = next
	}
}

// answer reads a page of hits and where the next one begins, if there is one.
func answer(data []byte) (hits []hit, next string, err error) {
	var a struct {
		Data struct {
			Dsses struct {
				PageInfo struct {
					HasNextPage bool            `json:"hasNextPage"`
					EndCursor   json.RawMessage `json:"endCursor"`
				} `json:"pageInfo"`
				Edges []struct {
					Node struct {
						Gitoid  string `json:"gitoidSha256"`
						Digests []struct {
							Algorithm string `json:"algorithm"`
							Value     string `json:"value"`
						} `json:"payloadDigests"`
					} `json:"node"`
				} `json:"edges"`
			} `json:"dsses"`
		} `json:"data"`
		Errors []struct {
			Message string `json:"message"`
		} `json:"errors"`
	}
	if err := json.Unmarshal(data, &a); err != nil {
		return nil, "", fmt.Errorf("parsing the answer to a query: %w", err)
	}
	if len(a.Errors) > 0 {
		return nil, "", fmt.Errorf("the server could not answer a query: %s", clip(a.Errors[0].Message))
	}
	for _, e := range a.Data.Dsses.Edges {
		h := hit{gitoid: e.Node.Gitoid}
		for _, d := range e.Node.Digests {
			if d.Algorithm == "sha256" {
				h.digests = append(h.digests, d.Value)
			}
		}
		hits = append(hits, h)
	}
	if p := a.Data.Dsses.PageInfo; p.HasNextPage {
		if err := json.Unmarshal(p.EndCursor, &next); err != nil {
			return nil, "", fmt.Errorf("parsing the answer to a query: reading endCursor: %w", err)
		}
	}
	return hits, next, nil
}

// statusError is an answer other than 200.
type statusError struct {
	code int
	said string
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("the server answered %d %s", e.code, http.StatusText(e.code))
	if e.said != "" {
		s += ": " + e.said
	}
	return s
}

// do sends a request and reads the answer, limit bytes at most. Its errors have
// their class.
func (c *client) do(ctx context.Context, method string, u *url.URL, body []byte, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, store.As(store.Configuration, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json")
	if c.tokenFile != "" {
		token, err := os.ReadFile(c.tokenFile)
		if err != nil {
			return nil, store.As(store.Configuration, fmt.Errorf("reading the token for Archivista: %w", err))
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, network(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, limit+1))
	if err != nil {
		return nil, store.As(store.Transient, err)
	}
	if res.StatusCode != http.StatusOK {
		return nil, status(res, data)
	}
	if int64(len(data)) > limit {
		return nil, store.As(store.Permanent, fmt.Errorf("the answer to %s %s has more than %d bytes", method, u.Path, limit))
	}
	return data, nil
}

// status classifies an answer other than 200.
func status(res *http.Response, body []byte) error {
	err := &statusError{res.StatusCode, clip(strings.TrimSpace(string(body)))}
	f := &store.Fault{Class: store.Transient, Err: err}
	switch code := res.StatusCode; {
	case code == http.StatusRequestEntityTooLarge:
		f.Class = store.Permanent
		f.Err = fmt.Errorf("%w: raise the limit of the proxy before Archivista, or store large statements elsewhere", err)
	case code == http.StatusBadRequest, code == http.StatusUnprocessableEntity:
		f.Class = store.Permanent
	case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code == http.StatusTooEarly:
	case code >= 300 && code < 500:
		// 401 and 403; 404, 405 and redirections: the URL leads elsewhere.
		f.Class = store.Configuration
	case code == http.StatusInternalServerError && strings.Contains(err.said, "object store unavailable"):
		f.Class = store.Configuration
		f.Err = fmt.Errorf("%w: the server keeps what it indexes but no envelopes: set ARCHIVISTA_STORAGE_BACKEND", err)
	}
	if seconds, aerr := strconv.Atoi(res.Header.Get("Retry-After")); aerr == nil && seconds > 0 {
		f.RetryAfter = min(time.Duration(seconds)*time.Second, time.Hour)
	}
	return f
}

// network classifies errors of connecting: names that do not exist and
// certificates that are not trusted stay so until somebody changes something.
func network(err error) error {
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	if errors.As(err, &dns) && dns.IsNotFound || errors.As(err, &cert) {
		return store.As(store.Configuration, err)
	}
	return store.As(store.Transient, err)
}

// clip keeps what strangers say short.
func clip(s string) string {
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}
