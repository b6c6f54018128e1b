package tlog

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"assay.dev/assay/store"
)

// TileOptions say how to reach a log of `assay log serve`.
type TileOptions struct {
	// URL is http://, https:// or unix:///SOCKET; LogKey the log's verifier key.
	URL    string
	LogKey string
	// Witnesses are verifier keys of the witnesses of which Quorum (0: one, if there
	// are any) must have cosigned the checkpoint of every proof.
	Witnesses []string
	Quorum    int
	// TokenFile holds the secret that lets us add entries. It is read anew for each
	// request. Not needed on a Unix socket.
	TokenFile string
	// Transport for the requests; nil: http.DefaultTransport.
	Transport http.RoundTripper
	// Timeout of one request; 0: a minute.
	Timeout time.Duration
}

// Tile is a tile log of ours. Make one with NewTile.
type Tile struct {
	endpoint *endpoint
	trust    Trust
	token    string
}

var _ Log = (*Tile)(nil)

// NewTile makes a client of a tile log. It fails for a bad address or key; the log
// itself is not asked.
func NewTile(o TileOptions) (*Tile, error) {
	e, err := newEndpoint(o.URL, o.Transport, o.Timeout)
	if err != nil {
		return nil, store.As(store.Configuration, err)
	}
	t := &Tile{endpoint: e, token: o.TokenFile, trust: Trust{Quorum: o.Quorum}}
	key, err := ParseLogKey(o.LogKey)
	if err != nil {
		return nil, store.As(store.Configuration, err)
	}
	t.trust.Logs = []LogKey{key}
	for _, w := range o.Witnesses {
		k, err := ParseWitnessKey(w)
		if err != nil {
			return nil, store.As(store.Configuration, err)
		}
		t.trust.Witnesses = append(t.trust.Witnesses, k)
	}
	if err := t.trust.Check(); err != nil {
		return nil, store.As(store.Configuration, err)
	}
	return t, nil
}

// MediaTypeLeaf is the content type of what is posted to /add.
const MediaTypeLeaf = "application/vnd.assay.log-entry.v1"

// Upload implements Log: all signatures of one payload as one entry, so one for a
// statement and, where an image is signed in both forms, two for an image.
func (t *Tile) Upload(ctx context.Context, r store.Record) ([]store.LogEntry, error) {
	leaves, err := RecordLeaves(r)
	if err != nil {
		return nil, store.As(store.Permanent, err)
	}
	return t.addAll(ctx, leaves)
}

func (t *Tile) addAll(ctx context.Context, leaves []*Leaf) ([]store.LogEntry, error) {
	var out []store.LogEntry
	for _, l := range leaves {
		entry, err := t.Add(ctx, l)
		if err != nil {
			return nil, err
		}
		out = append(out, entry)
	}
	return out, nil
}

// Add puts a leaf into the log and returns once it is under a signed, and where
// witnesses are known cosigned, checkpoint. The proof is verified before it is
// returned. The same leaf again gives the entry that is there.
func (t *Tile) Add(ctx context.Context, leaf *Leaf) (store.LogEntry, error) {
	text := leaf.Bytes()
	if _, err := ParseLeaf(text); err != nil {
		return store.LogEntry{}, store.As(store.Permanent, err)
	}
	header := http.Header{"Content-Type": {MediaTypeLeaf}}
	if t.token != "" {
		token, err := os.ReadFile(t.token)
		if err != nil {
			return store.LogEntry{}, store.As(store.Configuration, fmt.Errorf("reading the log's token: %w", err))
		}
		header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	a, err := t.endpoint.do(ctx, http.MethodPost, "add", header, string(text), MaxProof)
	if err != nil {
		return store.LogEntry{}, err
	}
	if a.status != http.StatusOK {
		return store.LogEntry{}, t.endpoint.fault(a, "adding a log entry")
	}
	p, err := ParseProof(a.body)
	if err == nil && p.Extra != nil {
		err = errors.New("the proof carries data of the log's own")
	}
	if err == nil {
		_, err = p.verify(text, t.trust)
	}
	if err != nil {
		return store.LogEntry{}, store.As(store.Configuration, fmt.Errorf("adding a log entry: log %s gave a proof that does not hold; do its key and witnesses match the settings? %w", t.endpoint.name, err))
	}
	p.Extra = text
	return store.LogEntry{URL: fmt.Sprintf("%s/entry/%d", t.endpoint.name, p.Index), Proof: p.Bytes()}, nil
}

// AddEvidence adds a piece of evidence of a run that we executed, one entry for each
// form that is signed. All of them, as FormatProofs writes them, belong into
// AnnotationProof of every form: a verifier takes the one that is about what he
// reads.
func (t *Tile) AddEvidence(ctx context.Context, e store.Evidence) ([]store.LogEntry, error) {
	leaves, err := EvidenceLeaves(e)
	if err != nil {
		return nil, store.As(store.Permanent, err)
	}
	return t.addAll(ctx, leaves)
}
