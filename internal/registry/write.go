package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ServeHTTP answers the distribution API and, for peers of the Unix socket, the
// control API.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, controlPrefix) {
		s.control(w, r)
		return
	}
	t, ok := parse(r.URL.Path)
	switch {
	case !ok:
		errPath.write(w)
	case t.op == opPing && t.reads(r.Method):
		// Clients learn here how to show their credential: if the ping passes
		// without, they never send it.
		if _, no := s.identify(r); no != nil {
			w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
			no.write(w)
			return
		}
		s.store.ServeHTTP(w, r)
	case t.reads(r.Method):
		s.read(w, r)
	case t.writes(r.Method):
		if no := s.write(w, r, t); no != nil {
			no.write(w)
		}
	case t.op == opOther:
		refuse(http.StatusNotFound, "UNSUPPORTED", "there is nothing at this path; the distribution API is below /v2/").write(w)
	default:
		errMethod(r.Method).write(w)
	}
}

// read answers what anyone may ask. olareg remembers for ever every repository
// that it was asked for, so it only hears of those that are there.
func (s *Server) read(w http.ResponseWriter, r *http.Request) {
	if t, _ := parse(r.URL.Path); t.op != opPing {
		if _, err := os.Lstat(filepath.Join(s.conf.Dir, filepath.FromSlash(t.repo), "index.json")); err != nil {
			if t.op == opReferrers {
				// The specification has no "not found" for them.
				w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
				_, _ = io.WriteString(w, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)
				return
			}
			refuse(http.StatusNotFound, "NAME_UNKNOWN", "there is no repository %s", t.repo).write(w)
			return
		}
	}
	s.store.ServeHTTP(w, r)
}

// write authorizes a request, lets olareg do it, makes it last and answers.
func (s *Server) write(w http.ResponseWriter, r *http.Request, t target) *refusal {
	who, no := s.identify(r)
	if no == nil {
		no = checkRepo(t.repo)
	}
	if no == nil {
		no = s.may(r, who, t.repo)
	}
	if no != nil {
		return no
	}
	if !s.begin() {
		return refuse(http.StatusServiceUnavailable, "UNKNOWN", "the registry is closing; try again")
	}
	defer s.busy.Done()
	bound := s.conf.BlobBytes
	if t.op == opManifest {
		bound = s.conf.ManifestBytes
	}
	if r.ContentLength > bound {
		return errTooLarge(bound)
	}
	g := &guard{body: r.Body, left: bound, bound: bound, rc: http.NewResponseController(w)}
	if tok := who.token; tok != nil {
		g.spent, g.budget = tok.spent, s.conf.RunBytes
		if !tok.begin(g) {
			return errRevoked
		}
		defer tok.end(g)
	}
	if err := s.prepare(t.repo); err != nil {
		s.conf.Log.Error("preparing a repository", "repo", t.repo, "err", err)
		return errStore
	}
	in := r.Clone(r.Context())
	in.Body = g
	in.URL.Path = strings.TrimSuffix(in.URL.Path, "/")
	in.URL.RawPath = ""
	in.URL.RawQuery = withoutMount(in.URL.Query())
	var out answer
	if t.op == opManifest {
		// olareg adds a manifest to its repository's index and to the list of its
		// subject's referrers by reading, changing and writing: one at a time, or
		// one is lost. What is sent is read before, so that nobody is kept
		// waiting by a slow sender.
		body, err := io.ReadAll(g)
		if no := g.refused(); no != nil {
			return no
		}
		if err != nil {
			return refuse(http.StatusBadRequest, "MANIFEST_INVALID", "the body ended early: %v; push again", err)
		}
		in.Body, in.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		unlock := s.lockManifests(t.repo)
		defer unlock()
		if no := s.precondition(in); no != nil {
			return no
		}
	}
	s.hand(&out, in, t)
	if no := g.refused(); no != nil && out.status != http.StatusCreated {
		return no
	}
	if out.status == http.StatusCreated {
		if no := s.keep(t, who, r, &out); no != nil {
			return no
		}
	}
	out.send(w)
	return nil
}

// hand lets olareg do a request. It keeps what arrived of an upload that it
// could not take to its end, disk full or client gone, for an hour; here such an
// upload is over, and its bytes go at once.
func (s *Server) hand(out *answer, in *http.Request, t target) {
	session := in.URL
	switch {
	case t.op == opUploads && in.URL.Query().Has("digest"):
		// An upload in one request becomes a begin and an end, to know its session.
		q := in.URL.Query()
		digest := q.Get("digest")
		q.Del("digest")
		begin := in.Clone(in.Context())
		begin.URL.RawQuery, begin.Body, begin.ContentLength = q.Encode(), http.NoBody, 0
		begin.Header.Del("Content-Length")
		var begun answer
		s.store.ServeHTTP(&begun, begin)
		location, err := url.Parse(begun.header.Get("Location"))
		if begun.status != http.StatusAccepted || err != nil {
			*out = begun
			return
		}
		end := in.Clone(in.Context())
		end.Method, end.Body, end.ContentLength = http.MethodPut, in.Body, in.ContentLength
		q = location.Query()
		q.Set("digest", digest)
		location.RawQuery = q.Encode()
		end.URL, session = location, location
		s.store.ServeHTTP(out, end)
	case t.op == opUpload && in.Method != http.MethodDelete:
		s.store.ServeHTTP(out, in)
	default:
		s.store.ServeHTTP(out, in)
		return
	}
	if out.status >= http.StatusInternalServerError {
		cancel := in.Clone(context.WithoutCancel(in.Context()))
		cancel.Method, cancel.URL, cancel.Body, cancel.ContentLength = http.MethodDelete, session, http.NoBody, 0
		s.store.ServeHTTP(new(answer), cancel)
	}
}

var errStore = refuse(http.StatusInternalServerError, "UNKNOWN", "what was sent could not be kept; see to the disk of the registry and push again")

func errTooLarge(bound int64) *refusal {
	return refuse(http.StatusRequestEntityTooLarge, "SIZE_INVALID", "the body has more than %d bytes; make it smaller, or raise the registry's bound", bound)
}

// withoutMount turns a mount from another repository into an upload, which is
// what the specification has clients fall back to.
func withoutMount(q url.Values) string {
	if q.Has("mount") || q.Has("from") {
		q.Del("mount")
		q.Del("from")
		q.Del("digest")
	}
	return q.Encode()
}

// keep makes what was stored durable and readable, and remembers it if it came
// by a token – all before the client hears of it.
func (s *Server) keep(t target, who writer, r *http.Request, out *answer) *refusal {
	fail := func(err error) *refusal {
		s.conf.Log.Error("keeping what was stored", "repo", t.repo, "err", err)
		return errStore
	}
	repo := filepath.Join(s.conf.Dir, filepath.FromSlash(t.repo))
	digest := r.URL.Query().Get("digest")
	if t.op == opManifest {
		digest = out.header.Get("Docker-Content-Digest")
	}
	blob, err := blobPath(repo, digest)
	if err != nil {
		return fail(err)
	}
	if err := sync1(blob); err != nil {
		return fail(err)
	}
	u := Upload{Repo: t.repo, Digest: digest}
	if t.op == opManifest {
		if err := s.keepIndex(repo); err != nil {
			return fail(err)
		}
		if !strings.Contains(t.ref, ":") {
			u.Tag = t.ref
		}
		if u.MediaType, err = mediaType(r, blob); err != nil {
			return fail(err)
		}
	}
	if who.token == nil {
		return nil
	}
	u.Run, u.Task, u.Attempt, u.Kind = who.token.Run, who.token.Task, who.token.Attempt, who.token.Kind
	u.Time = s.conf.Clock().UTC()
	if err := s.uploads.add(u); err != nil {
		return fail(err)
	}
	return nil
}

var blobDigestRE = regexp.MustCompile(`^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$`)

func blobPath(repo, digest string) (string, error) {
	if !blobDigestRE.MatchString(digest) {
		return "", fmt.Errorf("finding blob %q: not a sha256 or sha512 digest", digest)
	}
	algorithm, hex, _ := strings.Cut(digest, ":")
	return filepath.Join(repo, "blobs", algorithm, hex), nil
}

// keepIndex makes the index and every manifest it lists durable and readable:
// olareg writes lists of referrers as blobs of their own.
func (s *Server) keepIndex(repo string) error {
	name := filepath.Join(repo, "index.json")
	if err := sync1(name); err != nil {
		return err
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var index struct {
		Manifests []struct {
			Digest string `json:"digest"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(b, &index); err != nil {
		return fmt.Errorf("reading index of %s: %w", repo, err)
	}
	for _, m := range index.Manifests {
		p, err := blobPath(repo, m.Digest)
		if err != nil {
			return err
		}
		i, err := os.Stat(p)
		if errors.Is(err, os.ErrNotExist) {
			continue // a child of an index that was never pushed
		}
		if err != nil {
			return err
		}
		if i.Mode().Perm() == 0o600 {
			// A list of referrers may have been replaced meanwhile.
			if err := sync1(p); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// sync1 makes one file, and its name, durable, and the file readable.
func sync1(p string) error {
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(p))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// mediaType is the manifest's, as the client said or the manifest itself does.
func mediaType(r *http.Request, blob string) (string, error) {
	if mt, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err == nil {
		return mt, nil
	}
	b, err := os.ReadFile(blob)
	if err != nil {
		return "", err
	}
	var m struct {
		MediaType string `json:"mediaType"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return "", err
	}
	return m.MediaType, nil
}

// guard is the body of a request that writes: it ends with an error when its
// token is revoked or a bound is reached, and the end of the body is not seen
// after that.
type guard struct {
	body        io.ReadCloser
	left, bound int64
	spent       *atomic.Int64 // of the run; nil without a token
	budget      int64
	rc          *http.ResponseController

	mu sync.Mutex // guards no
	no *refusal
}

// stop fails the body's reads, also one that waits.
func (g *guard) stop(no *refusal) {
	g.mu.Lock()
	if g.no == nil {
		g.no = no
	}
	g.mu.Unlock()
	// Not every connection has deadlines; then the next read fails.
	_ = g.rc.SetReadDeadline(time.Unix(1, 0))
}

func (g *guard) refused() *refusal {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.no
}

func (g *guard) Read(b []byte) (int, error) {
	if no := g.refused(); no != nil {
		return 0, no
	}
	n, err := g.body.Read(b)
	g.left -= int64(n)
	if g.left < 0 {
		g.stop(errTooLarge(g.bound))
	}
	if g.spent != nil && g.spent.Add(int64(n)) > g.budget {
		g.stop(refuse(http.StatusRequestEntityTooLarge, "DENIED", "this run has sent more than %d bytes; make its images smaller, or raise the registry's bound", g.budget))
	}
	if no := g.refused(); no != nil {
		return 0, no
	}
	return n, err
}

func (g *guard) Close() error { return g.body.Close() }

// answer holds olareg's response back until it is known to last. Bodies of
// answers to writes are short.
type answer struct {
	live   http.Header
	header http.Header // as it was when the status was written
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header {
	if a.live == nil {
		a.live = http.Header{}
	}
	return a.live
}

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status, a.header = status, a.Header().Clone()
	}
}

func (a *answer) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(b)
}

func (a *answer) send(w http.ResponseWriter) {
	a.WriteHeader(http.StatusOK)
	for k, v := range a.header {
		w.Header()[k] = v
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body.Bytes())
}
