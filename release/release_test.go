package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"assay.dev/assay/image"
	"assay.dev/assay/policy"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func hex(n int) string { return fmt.Sprintf("sha256:%064x", n) }

// verdict is a pass for one image of an index.
func verdict(n int, of ...string) *policy.Verdict {
	return &policy.Verdict{Result: policy.Pass, Image: "r.example/staging@" + hex(n), Digests: append([]string{hex(n)}, of...), Destination: "r.example/released", Expiry: now.Add(time.Hour)}
}

func TestCheck(t *testing.T) {
	change := func(f func(*policy.Verdict)) []*policy.Verdict {
		v := verdict(1)
		f(v)
		return []*policy.Verdict{v}
	}
	for name, tc := range map[string]struct {
		verdicts []*policy.Verdict
		fail     string
	}{
		"one image":             {[]*policy.Verdict{verdict(1)}, ""},
		"an index":              {[]*policy.Verdict{verdict(1, hex(2), hex(3)), verdict(2), verdict(3)}, ""},
		"no verdict":            {nil, "no verdict"},
		"a refusal":             {change(func(v *policy.Verdict) { v.Result = policy.Fail }), "the policy says fail"},
		"no outcome":            {change(func(v *policy.Verdict) { v.Result = "" }), "the policy says"},
		"a refused member":      {append([]*policy.Verdict{verdict(1, hex(2))}, &policy.Verdict{Result: policy.Fail, Image: "r.example/staging@" + hex(2), Destination: "r.example/released", Expiry: now.Add(time.Hour)}), "the policy says fail"},
		"another destination":   {change(func(v *policy.Verdict) { v.Destination = "r.example/other" }), "judged for"},
		"no destination":        {change(func(v *policy.Verdict) { v.Destination = "" }), "judged for"},
		"expired":               {change(func(v *policy.Verdict) { v.Expiry = now.Add(-time.Second) }), "expired"},
		"expiring now":          {change(func(v *policy.Verdict) { v.Expiry = now }), "expired"},
		"no expiry":             {change(func(v *policy.Verdict) { v.Expiry = time.Time{} }), "expired"},
		"a member not judged":   {[]*policy.Verdict{verdict(1, hex(2), hex(3)), verdict(2)}, "was not judged"},
		"a verdict of no image": {change(func(v *policy.Verdict) { v.Image = "" }), "was not judged first"},
		"no digests":            {change(func(v *policy.Verdict) { v.Digests = nil }), "names no digests"},
		"another's digest":      {change(func(v *policy.Verdict) { v.Digests = []string{hex(9)} }), "was not judged first"},
		"another's first":       {[]*policy.Verdict{{Result: policy.Pass, Image: "r.example/staging@" + hex(1), Digests: []string{hex(2), hex(1)}, Destination: "r.example/released", Expiry: now.Add(time.Hour)}, verdict(2)}, "was not judged first"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Order{Verdicts: tc.verdicts, Destination: "r.example/released"}.Check(now)
			if tc.fail == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.fail) {
				t.Errorf("error %v, want %q", err, tc.fail)
			}
		})
	}
}

// failing lets n writing requests through and answers 500 from then on.
type failing struct {
	next  http.RoundTripper
	left  atomic.Int64
	wrote atomic.Int64
}

func (f *failing) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		f.wrote.Add(1)
		if f.left.Add(-1) < 0 {
			if r.Body != nil {
				r.Body.Close()
			}
			return &http.Response{StatusCode: 500, Status: "500 Internal Server Error", Header: http.Header{}, Body: io.NopCloser(strings.NewReader("boom")), Request: r, ProtoMajor: 1, ProtoMinor: 1}, nil
		}
	}
	return f.next.RoundTrip(r)
}

// TestCopyFailing lets the destination fail at every request in turn: an error
// then, and no tag that points anywhere.
func TestCopyFailing(t *testing.T) {
	ctx := context.Background()
	server := func() string {
		s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true)))
		t.Cleanup(s.Close)
		return strings.TrimPrefix(s.URL, "http://")
	}
	from := server()
	img, err := random.Image(256, 2)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(from + "/staging/x:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	client := func(host string, rt http.RoundTripper) *image.Remote {
		r, err := image.NewRemote(image.RemoteOptions{Transport: func(string) http.RoundTripper { return rt }, Insecure: []string{host}, RetryDelay: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Close)
		return r
	}
	for n := int64(0); ; n++ {
		if n > 50 {
			t.Fatal("50 requests and no end")
		}
		to := server()
		f := &failing{next: http.DefaultTransport}
		f.left.Store(n)
		v := &policy.Verdict{Result: policy.Pass, Image: from + "/staging/x@" + d.String(), Digests: []string{d.String()}, Destination: to + "/released/x", Expiry: now.Add(time.Hour)}
		done, err := Copy(ctx, client(from, http.DefaultTransport), client(to, f), Order{Verdicts: []*policy.Verdict{v}, Destination: to + "/released/x", Tags: []string{"v1", "latest"}}, now)
		tags := tagsOf(t, client(to, http.DefaultTransport), to+"/released/x", "v1", "latest")
		if err == nil {
			if n == 0 || done.Image != to+"/released/x@"+d.String() || len(tags) != 2 {
				t.Errorf("after %d requests: %+v, tags %v", n, done, tags)
			}
			return
		}
		if done != nil {
			t.Errorf("request %d failed (%v) and yet it says %+v", n, err, done)
		}
		for _, at := range tags {
			if at != d.String() {
				t.Errorf("request %d failed (%v) and a tag names %s", n, err, at)
			}
		}
		// Tags come last: while anything else is missing there is none.
		if len(tags) > 0 && !strings.Contains(err.Error(), "setting tag") {
			t.Errorf("request %d failed (%v) and tags %v are set", n, err, tags)
		}
	}
}

func tagsOf(t *testing.T, r *image.Remote, repo string, tags ...string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, tag := range tags {
		desc, err := r.Head(context.Background(), repo+":"+tag)
		if errors.Is(err, image.ErrNotFound) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		out[tag] = desc.Digest.String()
	}
	return out
}
