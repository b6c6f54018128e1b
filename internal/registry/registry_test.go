package registry_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sys/unix"

	"assay.dev/assay/internal/registry"
)

const host = "localhost:5055"

// runs is the observer's record, in memory.
type runs struct {
	mu   sync.Mutex
	open map[string]uint32
	err  error
}

func (r *runs) Executor(_ context.Context, run string) (uint32, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	uid, ok := r.open[run]
	return uid, ok, r.err
}

func (r *runs) close(run string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, run)
}

// rig is a server on a Unix socket, with the test's own uid as executor.
type rig struct {
	*registry.Server
	dir, socket string
	runs        *runs
	client      *registry.Client
	role        atomic.Uint32 // registry.Role of the test's own uid
}

var clock = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func start(t *testing.T, dir string, change ...func(*registry.Config)) *rig {
	t.Helper()
	sock, err := os.MkdirTemp("", "assay-reg-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sock) })
	if err := os.Chmod(sock, 0o755); err != nil {
		t.Fatal(err)
	}
	me := uint32(os.Getuid())
	g := &rig{dir: dir, socket: filepath.Join(sock, "s"), runs: &runs{open: map[string]uint32{"run1": me, "run2": me, "other": me + 1}}}
	c := registry.Config{
		Dir: dir, Name: host, Runs: g.runs, Clock: func() time.Time { return clock },
		Roles: func(uid uint32) registry.Role {
			if uid == me {
				return registry.Role(g.role.Load())
			}
			return 0
		},
	}
	for _, f := range change {
		f(&c)
	}
	if g.Server, err = registry.New(c); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", g.socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(g.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	g.client = registry.NewClient(g.socket, host)
	t.Cleanup(func() {
		g.client.Close()
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return g
}

func (g *rig) mint(t *testing.T, r registry.TokenRequest) string {
	t.Helper()
	tok, err := g.client.Mint(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func (g *rig) opts(token string) []remote.Option {
	o := []remote.Option{remote.WithTransport(g.client.HTTPTransport()), remote.WithRetryStatusCodes(), remote.WithRetryBackoff(remote.Backoff{Steps: 1})}
	if token != "" {
		o = append(o, remote.WithAuth(&authn.Basic{Username: "anyone", Password: token}))
	}
	return o
}

func ref(t *testing.T, s string) name.Reference {
	t.Helper()
	r, err := name.ParseReference(host + "/" + s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func image(t *testing.T) v1.Image {
	t.Helper()
	i, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func hash(t *testing.T, i interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	h, err := i.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

func status(err error) int {
	if e := new(transport.Error); errors.As(err, &e) {
		return e.StatusCode
	}
	return 0
}

func task(run string) registry.TokenRequest {
	return registry.TokenRequest{Run: run, Task: "build", Attempt: 1, Kind: registry.KindTask}
}

func TestPushPullByToken(t *testing.T) {
	g := start(t, t.TempDir())
	tok := g.mint(t, task("run1"))
	img := image(t)
	if err := remote.Write(ref(t, "staging/run1:v1"), img, g.opts(tok)...); err != nil {
		t.Fatal(err)
	}
	got, err := remote.Image(ref(t, "staging/run1:v1"), g.opts("")...)
	if err != nil {
		t.Fatal(err)
	}
	if hash(t, got) != hash(t, img) {
		t.Error("another image came back")
	}
	// An index, and a referrer of the image.
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img})
	if err := remote.WriteIndex(ref(t, "staging/run1:index"), index, g.opts(tok)...); err != nil {
		t.Fatal(err)
	}
	desc, err := remote.Get(ref(t, "staging/run1:v1"), g.opts("")...)
	if err != nil {
		t.Fatal(err)
	}
	sbom := mutate.Subject(image(t), desc.Descriptor).(v1.Image)
	if err := remote.Write(ref(t, "staging/run1@"+hash(t, sbom)), sbom, g.opts(tok)...); err != nil {
		t.Fatal(err)
	}
	digestRef := ref(t, "staging/run1@"+hash(t, img)).(name.Digest)
	refs, err := remote.Referrers(digestRef, g.opts("")...)
	if err != nil {
		t.Fatal(err)
	}
	m, err := refs.IndexManifest()
	if err != nil || len(m.Manifests) != 1 || m.Manifests[0].Digest.String() != hash(t, sbom) {
		t.Errorf("referrers %+v %v", m, err)
	}

	ups, err := registry.ReadUploads(g.dir, "run1")
	if err != nil {
		t.Fatal(err)
	}
	var manifests []registry.Upload
	blobs := 0
	for _, u := range ups {
		if u.MediaType == "" {
			blobs++
		} else {
			manifests = append(manifests, u)
		}
	}
	want := func(digest, tag, mt string) registry.Upload {
		return registry.Upload{Run: "run1", Task: "build", Attempt: 1, Kind: registry.KindTask, Repo: "staging/run1", Digest: digest, Tag: tag, MediaType: mt, Time: clock}
	}
	const dm, oi = "application/vnd.docker.distribution.manifest.v2+json", "application/vnd.oci.image.index.v1+json"
	if d := cmp.Diff([]registry.Upload{
		want(hash(t, img), "v1", dm), want(hash(t, index), "index", oi), want(hash(t, sbom), "", dm),
	}, manifests); d != "" {
		t.Errorf("uploads differ (-want +got):\n%s", d)
	}
	if blobs != 6 {
		t.Errorf("%d blobs remembered", blobs)
	}
	if ups, err := registry.ReadUploads(g.dir, "run2"); err != nil || ups != nil {
		t.Errorf("uploads of another run: %v %v", ups, err)
	}
}

func TestTokenWritesItsOwnRepositoryOnly(t *testing.T) {
	g := start(t, t.TempDir())
	tok := g.mint(t, task("run1"))
	g.mint(t, task("run2"))
	for _, repo := range []string{"staging/run2", "staging/run1/sub", "staging/run", "released/run1", "catalog/x", "run1", "staging/run1x"} {
		err := remote.Write(ref(t, repo+":v1"), image(t), g.opts(tok)...)
		if status(err) != http.StatusForbidden {
			t.Errorf("%s: %v", repo, err)
		}
		if err != nil && !strings.Contains(err.Error(), "staging/run1") {
			t.Errorf("%s: the message does not tell where to: %v", repo, err)
		}
	}
	if err := remote.Write(ref(t, "staging/run1:v1"), image(t), g.opts("")...); status(err) != http.StatusUnauthorized {
		t.Errorf("without credential: %v", err)
	}
	if err := remote.Write(ref(t, "staging/run1:v1"), image(t), g.opts("assay_guess")...); status(err) != http.StatusForbidden {
		t.Errorf("with a guessed token: %v", err)
	}
	if ups, err := registry.ReadUploads(g.dir, "run1"); err != nil || len(ups) != 0 {
		t.Errorf("%v %v", ups, err)
	}
}

func TestChallenge(t *testing.T) {
	g := start(t, t.TempDir())
	tok := g.mint(t, task("run1"))
	if err := remote.Write(ref(t, "staging/run2:v1"), image(t), g.opts(g.mint(t, task("run2")))...); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		header string
		method string
		path   string
		want   int
	}{
		{"ping without", "", "GET", "/v2/", 401},
		{"ping with an empty password, as skopeo sends", "Basic Og==", "GET", "/v2/", 401},
		{"ping by bearer", "Bearer " + tok, "GET", "/v2/", 200},
		{"upload by bearer", "Bearer " + tok, "POST", "/v2/staging/run1/blobs/uploads/", 202},
		{"upload without", "", "POST", "/v2/staging/run1/blobs/uploads/", 401},
		{"upload with an unknown scheme", "Digest x", "POST", "/v2/staging/run1/blobs/uploads/", 401},
		{"upload with a wrong token", "Bearer x", "POST", "/v2/staging/run1/blobs/uploads/", 403},
		{"delete manifest", "Bearer " + tok, "DELETE", "/v2/staging/run1/manifests/v1", 405},
		{"delete blob", "Bearer " + tok, "DELETE", "/v2/staging/run1/blobs/sha256:" + strings.Repeat("0", 64), 405},
		{"delete upload", "Bearer " + tok, "DELETE", "/v2/staging/run1/blobs/uploads/x", 405},
		{"path that climbs", "Bearer " + tok, "PUT", "/v2/staging/run1/../run2/manifests/v1", 400},
		{"path that doubles", "Bearer " + tok, "PUT", "/v2//staging/run1/manifests/v1", 400},
		{"encoded climb", "Bearer " + tok, "PUT", "/v2/staging/run1/%2e%2e/run2/manifests/v1", 400},
		{"nothing there", "", "GET", "/etc/passwd", 404},
		{"repository that is not there", "", "GET", "/v2/staging/nope/tags/list", 404},
		{"read needs nothing", "", "GET", "/v2/staging/run2/tags/list", 200},
		{"read ignores a revoked token", "Bearer x", "GET", "/v2/staging/run2/tags/list", 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, err := http.NewRequest(c.method, "http://"+host+c.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if c.header != "" {
				req.Header.Set("Authorization", c.header)
			}
			resp, err := g.client.HTTPTransport().RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != c.want {
				t.Errorf("status %d, want %d", resp.StatusCode, c.want)
			}
			if got := resp.Header.Get("WWW-Authenticate"); (got != "") != (c.want == 401) {
				t.Errorf("challenge %q", got)
			}
			if c.want >= 400 {
				var e struct {
					Errors []struct{ Code, Message string }
				}
				if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || len(e.Errors) != 1 || e.Errors[0].Code == "" || e.Errors[0].Message == "" {
					t.Errorf("error body %+v %v", e, err)
				}
			}
		})
	}
}

func TestMint(t *testing.T) {
	g := start(t, t.TempDir())
	ctx := context.Background()
	for _, c := range []struct {
		name string
		req  registry.TokenRequest
		says string
	}{
		{"unknown run", task("nope"), "not open"},
		{"other run's executor", task("other"), "not the executor"},
		{"no task", registry.TokenRequest{Run: "run1", Kind: registry.KindTask}, "one task"},
		{"unknown kind", registry.TokenRequest{Run: "run1", Task: "t", Kind: "x"}, "neither"},
		{"run that leaves its place", task("../released/x"), "cannot name a repository"},
		{"run with a folder", task("a/b"), "cannot name a repository"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tok, err := g.client.Mint(ctx, c.req)
			if err == nil || tok != "" || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %q, %v", tok, err)
			}
		})
	}
	t.Run("repository not empty at the first token", func(t *testing.T) {
		g.role.Store(uint32(registry.Observer))
		if err := remote.Write(ref(t, "staging/run2:x"), image(t), g.opts("")...); err != nil {
			t.Fatal(err)
		}
		if _, err := g.client.Mint(ctx, task("run2")); err == nil || !strings.Contains(err.Error(), "not empty") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("observer does not answer", func(t *testing.T) {
		g.runs.mu.Lock()
		g.runs.err = errors.New("down")
		g.runs.mu.Unlock()
		if _, err := g.client.Mint(ctx, task("run1")); err == nil {
			t.Error("minted")
		}
	})
}

func TestPeerOfAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("being another user needs root; run as root")
	}
	g := start(t, t.TempDir())
	g.role.Store(uint32(registry.Observer | registry.Releaser | registry.Operator))
	// Credentials are those of the thread that connects. It is not used again.
	dial := func(context.Context, string, string) (c net.Conn, err error) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, 54321, 54321, 54321); e != 0 {
				err = e
				return
			}
			fd, serr := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if serr != nil {
				err = serr
				return
			}
			f := os.NewFile(uintptr(fd), "socket")
			defer f.Close()
			if err = unix.Connect(fd, &unix.SockaddrUnix{Name: g.socket}); err == nil {
				c, err = net.FileConn(f)
			}
		}()
		<-done
		return c, err
	}
	tr := &http.Transport{DialContext: dial, DisableKeepAlives: true}
	do := func(method, path, body string) (int, string) {
		req, _ := http.NewRequest(method, "http://"+host+path, strings.NewReader(body))
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	if code, b := do("POST", "/assay/v1/tokens", `{"run":"run1","task":"t","attempt":0,"kind":"task"}`); code != 403 || !strings.Contains(b, "54321 is not the executor") {
		t.Errorf("mint: %d %s", code, b)
	}
	tok := g.mint(t, task("run1"))
	if code, b := do("DELETE", "/assay/v1/tokens/"+tok, ""); code != 403 {
		t.Errorf("revoke: %d %s", code, b)
	}
	if code, b := do("POST", "/v2/staging/run1/blobs/uploads/", ""); code != 401 {
		t.Errorf("write: %d %s", code, b)
	}
}

func TestRoles(t *testing.T) {
	g := start(t, t.TempDir())
	for role, may := range map[registry.Role]string{
		registry.Observer: "staging", registry.Releaser: "released", registry.Operator: "catalog", 0: "",
		registry.Observer | registry.Operator: "staging catalog",
	} {
		g.role.Store(uint32(role))
		for _, repo := range []string{"staging/x", "released/x", "catalog/x", "x", "stagingx/y"} {
			err := remote.Write(ref(t, repo+":t"), image(t), g.opts("")...)
			prefix, _, _ := strings.Cut(repo, "/")
			if ok := strings.Contains(may, prefix) && strings.HasSuffix(repo, "/x"); ok != (err == nil) {
				t.Errorf("role %b, %s: %v", role, repo, err)
			}
		}
	}
}

func TestRevoke(t *testing.T) {
	g := start(t, t.TempDir())
	ctx := context.Background()
	one := g.mint(t, task("run1"))
	second := task("run1")
	second.Attempt = 2
	two := g.mint(t, second)
	if err := g.client.Revoke(ctx, one); err != nil {
		t.Fatal(err)
	}
	if err := g.client.Revoke(ctx, one); err != nil {
		t.Errorf("revoking twice: %v", err)
	}
	if err := remote.Write(ref(t, "staging/run1:v1"), image(t), g.opts(one)...); status(err) != 403 {
		t.Errorf("after revoke: %v", err)
	}
	if err := remote.Write(ref(t, "staging/run1:v2"), image(t), g.opts(two)...); err != nil {
		t.Errorf("another token: %v", err)
	}
	if n, err := g.client.RevokeAttempt(ctx, "run1", "build", 2); n != 1 || err != nil {
		t.Errorf("by attempt: %d %v", n, err)
	}
	if err := remote.Write(ref(t, "staging/run1:v3"), image(t), g.opts(two)...); status(err) != 403 {
		t.Errorf("after revoke by attempt: %v", err)
	}
	three := g.mint(t, task("run1"))
	g.runs.close("run1")
	if err := remote.Write(ref(t, "staging/run1:v4"), image(t), g.opts(three)...); status(err) != 403 {
		t.Errorf("after the run's end: %v", err)
	}
}

// TestRevokeStopsWhatIsUnderWay holds a request open in the middle of its body.
func TestRevokeStopsWhatIsUnderWay(t *testing.T) {
	g := start(t, t.TempDir())
	tok := g.mint(t, task("run1"))
	for _, what := range []string{"blobs/uploads/?digest=" + digestOf("halfwhole"), "manifests/v1"} {
		t.Run(what, func(t *testing.T) {
			pr, pw := io.Pipe()
			method := http.MethodPut
			if strings.HasPrefix(what, "blobs") {
				method = http.MethodPost
			}
			req, err := http.NewRequest(method, "http://"+host+"/v2/staging/run1/"+what, pr)
			if err != nil {
				t.Fatal(err)
			}
			tok := tok
			if strings.HasPrefix(what, "manifests") {
				tok = g.mint(t, task("run1"))
			}
			req.SetBasicAuth("x", tok)
			req.Header.Set("Content-Type", "application/vnd.oci.image.index.v1+json")
			answer := make(chan int, 1)
			go func() {
				resp, err := g.client.HTTPTransport().RoundTrip(req)
				if err != nil {
					answer <- 0 // the connection was cut, which also is no
					return
				}
				resp.Body.Close()
				answer <- resp.StatusCode
			}()
			if _, err := pw.Write([]byte(`half`)); err != nil {
				t.Fatal(err)
			}
			if err := g.client.Revoke(context.Background(), tok); err != nil {
				t.Fatal(err)
			}
			go func() {
				_, _ = pw.Write([]byte(`whole`))
				pw.Close()
			}()
			if code := <-answer; code != 403 && code != 0 {
				t.Errorf("status %d", code)
			}
		})
	}
	if ups, err := registry.ReadUploads(g.dir, "run1"); err != nil || len(ups) != 0 {
		t.Errorf("remembered: %v %v", ups, err)
	}
	blobs, _ := filepath.Glob(filepath.Join(g.dir, "staging/run1/blobs/*/*"))
	if len(blobs) != 0 {
		t.Errorf("stored: %v", blobs)
	}
}

func digestOf(s string) string {
	h := sha256.Sum256([]byte(s))
	return "sha256:" + hex.EncodeToString(h[:])
}

func TestNoMountFrom(t *testing.T) {
	g := start(t, t.TempDir())
	tok := g.mint(t, task("run1"))
	other := g.mint(t, task("run2"))
	img := image(t)
	if err := remote.Write(ref(t, "staging/run2:v1"), img, g.opts(other)...); err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d := hash(t, layers[0])
	for _, q := range []string{"mount=" + d + "&from=staging/run2", "mount=" + d, "mount=" + d + "&from=staging/run2&digest=" + d} {
		req, _ := http.NewRequest("POST", "http://"+host+"/v2/staging/run1/blobs/uploads/?"+q, nil)
		req.SetBasicAuth("", tok)
		resp, err := g.client.HTTPTransport().RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusAccepted || !strings.Contains(resp.Header.Get("Location"), "/blobs/uploads/") {
			t.Errorf("%s: %d %s, want an upload to begin", q, resp.StatusCode, resp.Header.Get("Location"))
		}
	}
	if _, err := os.Stat(filepath.Join(g.dir, "staging/run1/blobs/sha256", strings.TrimPrefix(d, "sha256:"))); err == nil {
		t.Error("the blob was mounted")
	}
	// A client that asks for a mount falls back by itself.
	mountable := &remote.MountableLayer{Layer: layers[0], Reference: ref(t, "staging/run2:v1")}
	if err := remote.WriteLayer(ref(t, "staging/run1:v1").Context(), mountable, g.opts(tok)...); err != nil {
		t.Error(err)
	}
}

func TestBounds(t *testing.T) {
	g := start(t, t.TempDir(), func(c *registry.Config) { c.ManifestBytes, c.BlobBytes, c.RunBytes = 1000, 2000, 5000 })
	tok := g.mint(t, task("run1"))
	post := func(body io.Reader, path string) int {
		method := "POST"
		if strings.HasPrefix(path, "manifests") {
			method = "PUT"
		}
		req, _ := http.NewRequest(method, "http://"+host+"/v2/staging/run1/"+path, body)
		req.Header.Set("Authorization", "Bearer "+tok)
		resp, err := g.client.HTTPTransport().RoundTrip(req)
		if err != nil {
			return 413 // refused while it was still sent
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	blob := func(n int) (io.Reader, string) {
		b := bytes.Repeat([]byte{'a'}, n)
		return bytes.NewReader(b), "blobs/uploads/?digest=" + digestOf(string(b))
	}
	if code := post(blob(2001)); code != 413 {
		t.Errorf("blob with a length: %d", code)
	}
	r, p := blob(2001)
	if code := post(io.MultiReader(r), p); code != 413 {
		t.Errorf("blob without a length: %d", code)
	}
	if code := post(bytes.NewReader(make([]byte, 1001)), "manifests/v"); code != 413 {
		t.Errorf("manifest: %d", code)
	}
	if code := post(blob(1999)); code != 201 {
		t.Errorf("blob that fits: %d", code)
	}
	if code := post(blob(1998)); code != 413 {
		t.Errorf("beyond the run's bound: %d", code)
	}
}
