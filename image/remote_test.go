package image_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"assay.dev/assay/image"
)

func sum(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

func opener(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

// referrer is a manifest about subject.
func referrer(t testing.TB, subject v1.Descriptor, artifactType string) []byte {
	t.Helper()
	emptyJSON := []byte("{}")
	h, _ := v1.NewHash(sum(emptyJSON))
	raw, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": types.OCIManifestSchema1, "artifactType": artifactType,
		"config":  v1.Descriptor{MediaType: "application/vnd.oci.empty.v1+json", Digest: h, Size: 2},
		"layers":  []v1.Descriptor{{MediaType: "application/vnd.oci.empty.v1+json", Digest: h, Size: 2}},
		"subject": subject,
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestRemoteRoundTrip(t *testing.T) {
	for _, api := range []bool{true, false} {
		t.Run(fmt.Sprintf("referrers API %v", api), func(t *testing.T) {
			r := newRigReferrers(t, api)
			ctx := context.Background()
			rem := r.remote(t)
			img := makeImage(t, archive(t, file("a", "b")))
			ref := r.host + "/team/app"
			digest, err := rem.PushImage(ctx, ref+":v1", img)
			if err != nil {
				t.Fatal(err)
			}
			if want, _ := img.Digest(); digest != want.String() {
				t.Errorf("digest %s, want %s", digest, want)
			}
			m, err := rem.Manifest(ctx, ref+":v1")
			if err != nil {
				t.Fatal(err)
			}
			head, err := rem.Head(ctx, ref+"@"+digest)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(m.Descriptor, head); diff != "" {
				t.Errorf("Head and Manifest differ: %s", diff)
			}
			if err := rem.Tag(ctx, ref+"@"+digest, "v2"); err != nil {
				t.Fatal(err)
			}
			tags, err := rem.Tags(ctx, ref)
			if err != nil {
				t.Fatal(err)
			}
			if len(tags) != 2 {
				t.Errorf("tags %v", tags)
			}
			if got, err := rem.Referrers(ctx, ref+"@"+digest, ""); err != nil || len(got) != 0 {
				t.Errorf("referrers of a fresh image: %v, %v", got, err)
			}
			if err := rem.PushBlob(ctx, ref, sum([]byte("{}")), 2, opener([]byte("{}"))); err != nil {
				t.Fatal(err)
			}
			for _, typ := range []string{"application/x.one", "application/x.two", "application/x.two"} {
				raw := referrer(t, m.Descriptor, typ)
				if _, err := rem.PushManifest(ctx, ref+"@"+sum(raw), types.OCIManifestSchema1, raw); err != nil {
					t.Fatal(err)
				}
			}
			got, err := rem.Referrers(ctx, ref+"@"+digest, "application/x.two")
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != 1 || got[0].ArtifactType != "application/x.two" {
				t.Errorf("referrers %+v", got)
			}
			config, err := rem.BlobBytes(ctx, ref+"@"+mustConfig(t, img), 0)
			if err != nil {
				t.Fatal(err)
			}
			if want, _ := img.RawConfigFile(); !bytes.Equal(config, want) {
				t.Error("configuration differs")
			}
		})
	}
}

func mustConfig(t testing.TB, img v1.Image) string {
	t.Helper()
	h, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

func TestPushBlobEconomy(t *testing.T) {
	r := newRig(t)
	rem := r.remote(t)
	ctx := context.Background()
	big := bytes.Repeat([]byte("x"), 1<<20)
	for _, c := range []struct {
		name string
		blob []byte
		want []string
	}{
		{"small is two requests", []byte("small"), []string{"POST", "PUT"}},
		{"empty too", nil, []string{"POST", "PUT"}},
		{"big is three", big, []string{"HEAD", "POST", "PUT"}},
		{"big and there is one", big, []string{"HEAD"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.seen()
			if err := rem.PushBlob(ctx, r.host+"/a", sum(c.blob), int64(len(c.blob)), opener(c.blob)); err != nil {
				t.Fatal(err)
			}
			got := r.seen()
			if len(got) != len(c.want) {
				t.Fatalf("requests %v, want %v", got, c.want)
			}
			for i, w := range c.want {
				if !strings.HasPrefix(got[i], w) {
					t.Errorf("request %d is %s, want %s", i, got[i], w)
				}
			}
			b, err := rem.BlobBytes(ctx, r.host+"/a@"+sum(c.blob), 0)
			if err != nil || !bytes.Equal(b, c.blob) {
				t.Errorf("read back %d bytes: %v", len(b), err)
			}
		})
	}
}

func TestPushBlobRefusesOtherContent(t *testing.T) {
	r := newRig(t)
	rem := r.remote(t)
	for _, size := range []int{10, 1 << 20} {
		right, wrong := bytes.Repeat([]byte("a"), size), bytes.Repeat([]byte("b"), size)
		for name, c := range map[string][]byte{"other": wrong, "short": right[1:], "long": append(bytes.Clone(right), 'c')} {
			err := rem.PushBlob(context.Background(), r.host+"/a", sum(right), int64(size), opener(c))
			if !errors.Is(err, image.ErrBadImage) {
				t.Errorf("%d bytes, %s content: %v", size, name, err)
			}
		}
		if _, err := rem.BlobBytes(context.Background(), r.host+"/a@"+sum(right), 0); !errors.Is(err, image.ErrNotFound) {
			t.Errorf("%d bytes: the registry has something: %v", size, err)
		}
	}
}

func TestRemoteFailures(t *testing.T) {
	blob := bytes.Repeat([]byte("content "), 1<<15)
	always := func(status int) func(http.ResponseWriter, *http.Request, int) bool {
		return func(w http.ResponseWriter, _ *http.Request, _ int) bool { w.WriteHeader(status); return true }
	}
	truncate := func(w http.ResponseWriter) {
		w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
		_, _ = w.Write(blob[:1000])
		panic(http.ErrAbortHandler)
	}
	for _, c := range []struct {
		name string
		hook func(w http.ResponseWriter, r *http.Request, n int) bool // n: how manieth
		want error                                                    // nil: works
		says string
	}{
		{"500 once", func(w http.ResponseWriter, _ *http.Request, n int) bool {
			if n == 0 {
				w.WriteHeader(500)
			}
			return n == 0
		}, nil, ""},
		{"500 always", always(500), image.ErrUnreachable, "try again later"},
		{"401", always(401), image.ErrUnauthorized, "log in to 127.0.0.1"},
		{"403", always(403), image.ErrUnauthorized, "credential"},
		{"404", always(404), image.ErrNotFound, "check the name"},
		{"429", always(429), image.ErrUnreachable, "limits requests"},
		{"breaks off once", func(w http.ResponseWriter, _ *http.Request, n int) bool {
			if n == 0 {
				truncate(w)
			}
			return false
		}, nil, ""},
		{"breaks off always", func(w http.ResponseWriter, _ *http.Request, _ int) bool { truncate(w); return true }, image.ErrUnreachable, "running and reachable"},
		{"other content", func(w http.ResponseWriter, _ *http.Request, _ int) bool {
			_, _ = w.Write(bytes.ToUpper(blob))
			return true
		}, image.ErrBadImage, "hashes to"},
		{"endless", func(w http.ResponseWriter, _ *http.Request, _ int) bool {
			for {
				if _, err := w.Write(blob); err != nil {
					return true
				}
			}
		}, image.ErrBadImage, "more than"},
		{"stalls", func(w http.ResponseWriter, r *http.Request, _ int) bool {
			w.WriteHeader(200)
			_, _ = w.Write(blob[:100])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		}, image.ErrUnreachable, "nothing was sent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			o := r.options()
			o.Idle = 200 * time.Millisecond
			o.Bounds.BlobBytes = 1 << 20
			rem := newRemote(t, o)
			ref := r.host + "/a"
			if err := rem.PushBlob(context.Background(), ref, sum(blob), int64(len(blob)), opener(blob)); err != nil {
				t.Fatal(err)
			}
			var n atomic.Int64
			r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
				if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
					return c.hook(w, req, int(n.Add(1)-1))
				}
				return false
			})
			f, err := os.Create(filepath.Join(t.TempDir(), "blob"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			err = rem.BlobFile(context.Background(), ref+"@"+sum(blob), int64(-1), 0, f)
			if c.want == nil {
				got, _ := os.ReadFile(f.Name())
				if err != nil || !bytes.Equal(got, blob) {
					t.Fatalf("%d bytes, %v", len(got), err)
				}
				return
			}
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), ref) {
				t.Errorf("%q should say %q and %s", err, c.says, ref)
			}
		})
	}
}

func TestUploadBroken(t *testing.T) {
	blob := bytes.Repeat([]byte("y"), 1<<20)
	r := newRig(t)
	rem := r.remote(t)
	var n atomic.Int64
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodPut && n.Add(1) == 1 {
			_, _ = io.CopyN(io.Discard, req.Body, 1000)
			w.WriteHeader(500)
			return true
		}
		return false
	})
	if err := rem.PushBlob(context.Background(), r.host+"/a", sum(blob), int64(len(blob)), opener(blob)); err != nil {
		t.Fatal(err)
	}
	if got := n.Load(); got != 2 {
		t.Errorf("%d PUTs, want 2: an upload that broke off starts over", got)
	}
}

func TestRegistryDown(t *testing.T) {
	r := newRig(t)
	rem := r.remote(t)
	r.srv.Close()
	_, err := rem.Manifest(context.Background(), r.host+"/a:v1")
	if !errors.Is(err, image.ErrUnreachable) || !strings.Contains(err.Error(), "is "+r.host+" running") {
		t.Errorf("got %v", err)
	}
}

func TestManifestOfOtherDigest(t *testing.T) {
	r := newRig(t)
	one := r.push(t, "a", makeImage(t, archive(t, file("a", "1"))))
	two := r.push(t, "a", makeImage(t, archive(t, file("a", "2"))))
	_, d1, _ := strings.Cut(one, "@")
	_, d2, _ := strings.Cut(two, "@")
	r.setHook(func(_ http.ResponseWriter, req *http.Request) bool {
		req.URL.Path = strings.Replace(req.URL.Path, d1, d2, 1)
		return false
	})
	if _, err := r.remote(t).Manifest(context.Background(), one); !errors.Is(err, image.ErrBadImage) {
		t.Errorf("Manifest: %v", err)
	}
	if _, err := r.remote(t).Head(context.Background(), one); !errors.Is(err, image.ErrBadImage) {
		t.Errorf("Head: %v", err)
	}
}

func TestBadReferences(t *testing.T) {
	rem := newRemote(t, image.RemoteOptions{})
	for _, ref := range []string{"", "UPPER", "a b", "host/x@sha256:12", "host/x@sha512:" + strings.Repeat("0", 128)} {
		if _, err := rem.Manifest(context.Background(), ref); !errors.Is(err, image.ErrBadReference) && !errors.Is(err, image.ErrBadImage) {
			t.Errorf("%q: %v", ref, err)
		}
	}
}

func TestDockerCredentials(t *testing.T) {
	r := newRig(t)
	ref := r.push(t, "a", makeImage(t, archive(t, file("a", "1"))))
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		if u, p, _ := req.BasicAuth(); u == "me" && p == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	if _, err := r.remote(t).Manifest(context.Background(), ref); !errors.Is(err, image.ErrUnauthorized) {
		t.Errorf("without credentials: %v", err)
	}
	rem := r.remote(t) // sets DOCKER_CONFIG to an empty folder
	auth := base64.StdEncoding.EncodeToString([]byte("me:secret"))
	config := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, r.host, auth)
	if err := os.WriteFile(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := rem.Manifest(context.Background(), ref); err != nil {
		t.Errorf("with credentials: %v", err)
	}
}

func TestMirrors(t *testing.T) {
	ctx := context.Background()
	origin, mirror := newRig(t), newRig(t)
	img := makeImage(t, archive(t, file("a", "1")))
	ref := origin.push(t, "a", img)
	mirror.push(t, "proxy/a", img)
	o := origin.options()
	o.Insecure = append(o.Insecure, mirror.host)
	o.Mirrors = map[string][]string{origin.host: {mirror.host + "/proxy"}}
	rem := newRemote(t, o)

	origin.seen()
	mirror.seen()
	for _, name := range []string{ref, origin.host + "/a:latest"} {
		if _, err := rem.Manifest(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	if got := origin.seen(); len(got) != 0 {
		t.Errorf("the origin was asked: %v", got)
	}
	if got := mirror.seen(); len(got) != 2 {
		t.Errorf("the mirror was asked: %v", got)
	}

	if _, err := rem.PushManifest(ctx, origin.host+"/a:new", types.OCIManifestSchema1, must(img.RawManifest())); err != nil {
		t.Fatal(err)
	}
	if got := mirror.seen(); len(got) != 0 {
		t.Errorf("the mirror was written to: %v", got)
	}

	mirror.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		_, _ = w.Write([]byte(`{"layers":[]}`))
		return req.URL.Path != "/v2/"
	})
	if _, err := rem.Manifest(ctx, ref); err != nil {
		t.Errorf("a mirror that lies must not matter: %v", err)
	}
	mirror.srv.CloseClientConnections()
	mirror.srv.Close()
	if _, err := rem.Manifest(ctx, ref); err != nil {
		t.Errorf("a mirror that is down must not matter: %v", err)
	}
	_, err := rem.Manifest(ctx, origin.host+"/none:latest")
	if !errors.Is(err, image.ErrNotFound) || !strings.Contains(err.Error(), "mirror "+mirror.host) {
		t.Errorf("the error should be the origin's and mention the mirror: %v", err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestSocket reaches a registry by its name through a Unix socket.
func TestSocket(t *testing.T) {
	r := newRig(t)
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: r.srv.Config.Handler}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", sock)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	rem := newRemote(t, image.RemoteOptions{Insecure: []string{"localhost:5055"}, Transport: func(host string) http.RoundTripper {
		if host == "localhost:5055" {
			return tr
		}
		return nil
	}})
	img := makeImage(t, archive(t, file("a", "1")))
	if _, err := rem.PushImage(context.Background(), "localhost:5055/staging/x:1", img); err != nil {
		t.Fatal(err)
	}
	if _, err := rem.Manifest(context.Background(), "localhost:5055/staging/x:1"); err != nil {
		t.Fatal(err)
	}
}

// TestDockerHub: short names and their mirrors.
func TestDockerHub(t *testing.T) {
	mirror := newRig(t)
	ref := mirror.push(t, "library/busybox", makeImage(t, archive(t, file("a", "1"))))
	o := mirror.options()
	o.Mirrors = map[string][]string{"docker.io": {mirror.host}}
	rem := newRemote(t, o)
	_, digest, _ := strings.Cut(ref, "@")
	for _, name := range []string{"busybox", "busybox:latest", "docker.io/busybox", "docker.io/library/busybox@" + digest, "index.docker.io/library/busybox"} {
		m, err := rem.Manifest(context.Background(), name)
		if err != nil || m.Descriptor.Digest.String() != digest {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPages(t *testing.T) {
	r := newRig(t)
	var elsewhere string
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, "/tags/list") {
			return false
		}
		page := req.URL.Query().Get("page")
		if next := map[string]string{"": "1", "1": "2"}[page]; next != "" {
			w.Header().Set("Link", "<"+elsewhere+"/v2/a/tags/list?page="+next+`>; rel="next"`)
		}
		_, _ = fmt.Fprintf(w, `{"tags":["t%s"]}`, page)
		return true
	})
	rem := r.remote(t)
	got, err := rem.Tags(context.Background(), r.host+"/a")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"t", "t1", "t2"}, got); diff != "" {
		t.Error(diff)
	}
	elsewhere = "http://169.254.169.254"
	if _, err := rem.Tags(context.Background(), r.host+"/a"); !errors.Is(err, image.ErrBadImage) {
		t.Errorf("a page at another host: %v", err)
	}
}

func TestBlobReader(t *testing.T) {
	r := newRig(t)
	rem := r.remote(t)
	ctx := context.Background()
	blob := bytes.Repeat([]byte("b"), 100000)
	ref := r.host + "/a@" + sum(blob)
	if err := rem.PushBlob(ctx, r.host+"/a", sum(blob), int64(len(blob)), opener(blob)); err != nil {
		t.Fatal(err)
	}
	b, err := rem.Blob(ctx, ref, 0)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, blob) || b.Close() != nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := rem.Blob(ctx, ref, 99999); !errors.Is(err, image.ErrBadImage) {
		t.Errorf("beyond the bound: %v", err)
	}
	if _, err := rem.Blob(ctx, r.host+"/a:tag", 0); !errors.Is(err, image.ErrBadReference) {
		t.Errorf("by tag: %v", err)
	}
	// The same length, other bytes: seen at the end, before the end is handed out.
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, "/blobs/") {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
		_, _ = w.Write(bytes.ToUpper(blob))
		return true
	})
	if b, err = rem.Blob(ctx, ref, 0); err != nil {
		t.Fatal(err)
	}
	if got, err = io.ReadAll(b); !errors.Is(err, image.ErrBadImage) || len(got) == len(blob) {
		t.Errorf("altered content: %d bytes, %v", len(got), err)
	}
	_ = b.Close()
}
