package kubeapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"assay.dev/assay/internal/watch/kubeapi"
)

// The server here speaks the watch protocol in the ways in which a real API
// server is hard to make to: events cut in the middle, expired versions, servers
// that cannot stream their initial state. Package watch's tests follow a real one.

// record is a handler that writes down what it is told.
type record struct {
	mu    sync.Mutex
	lines []string
	more  chan struct{}
}

func newRecord() *record { return &record{more: make(chan struct{}, 1000)} }

func (r *record) add(s string) {
	r.mu.Lock()
	r.lines = append(r.lines, s)
	r.mu.Unlock()
	r.more <- struct{}{}
}

func name(object []byte) string {
	var o struct{ Metadata struct{ Name string } }
	if err := json.Unmarshal(object, &o); err != nil {
		return err.Error()
	}
	return o.Metadata.Name
}

func (r *record) Begin()          { r.add("begin") }
func (r *record) Synced()         { r.add("synced") }
func (r *record) Object(o []byte) { r.add("object " + name(o)) }
func (r *record) Gone(o []byte)   { r.add("gone " + name(o)) }
func (r *record) Trouble(err error) {
	if err != nil {
		r.add("trouble")
	}
}

// until waits for a line and returns all up to it.
func (r *record) until(t *testing.T, last string) []string {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		r.mu.Lock()
		for i, l := range r.lines {
			if l == last {
				out := append([]string(nil), r.lines[:i+1]...)
				r.mu.Unlock()
				return out
			}
		}
		r.mu.Unlock()
		select {
		case <-r.more:
		case <-deadline:
			t.Fatalf("waited for %q in vain; told: %q", last, r.lines)
		}
	}
}

func event(kind, object string) string {
	return fmt.Sprintf(`{"type":%q,"object":%s}`+"\n", kind, object)
}

func object(name, version string) string {
	return fmt.Sprintf(`{"metadata":{"name":%q,"resourceVersion":%q}}`, name, version)
}

func bookmark(version string, end bool) string {
	a := ""
	if end {
		a = `,"annotations":{"k8s.io/initial-events-end":"true"}`
	}
	return event("BOOKMARK", fmt.Sprintf(`{"metadata":{"resourceVersion":%q%s}}`, version, a))
}

const expired = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","message":"too old","code":410}`

// follow runs a follower against answers, one for each request.
func follow(t *testing.T, answers ...func(w http.ResponseWriter, r *http.Request)) (*record, func()) {
	t.Helper()
	next := make(chan func(http.ResponseWriter, *http.Request), len(answers))
	for _, a := range answers {
		next <- a
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case a := <-next:
			a(w, r)
			if f, ok := w.(http.Flusher); ok {
				f.Flush()
			}
		default:
			<-r.Context().Done() // nothing happens any more
		}
	}))
	client, err := kubeapi.New(&rest.Config{Host: server.URL}, kubeapi.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := newRecord()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = client.Follow(ctx, kubeapi.Selection{Resource: kubeapi.TaskRuns, Namespace: "ns"}, r)
	}()
	stop := func() { cancel(); <-done; server.CloseClientConnections(); server.Close() }
	t.Cleanup(stop)
	return r, stop
}

func say(text string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) }
}

func TestFollow(t *testing.T) {
	status := func(code int, body string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code); fmt.Fprint(w, body) }
	}
	from := func(version, text string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			if got := r.URL.Query().Get("resourceVersion"); got != version {
				t.Errorf("goes on from version %q; want %q", got, version)
			}
			fmt.Fprint(w, text)
		}
	}
	initial := event("ADDED", object("a", "5")) + bookmark("7", true)
	for what, test := range map[string]struct {
		answers []func(http.ResponseWriter, *http.Request)
		want    []string
	}{
		"goes on where it was": {
			[]func(http.ResponseWriter, *http.Request){
				say(initial + event("MODIFIED", object("a", "8")) + bookmark("9", false)),
				from("9", event("DELETED", object("a", "10"))),
				from("10", event("ADDED", object("z", "11"))),
			},
			[]string{"begin", "object a", "synced", "object a", "gone a", "object z"},
		},
		"missed events": {
			[]func(http.ResponseWriter, *http.Request){
				say(initial + event("ERROR", expired)),
				from("", event("ADDED", object("b", "20"))+bookmark("21", true)),
				from("21", event("ADDED", object("z", "22"))),
			},
			[]string{"begin", "object a", "synced", "begin", "object b", "synced", "object z"},
		},
		"missed events, said at once": {
			[]func(http.ResponseWriter, *http.Request){
				say(initial), status(410, expired), from("", event("ADDED", object("z", "20"))+bookmark("21", true)),
			},
			[]string{"begin", "object a", "synced", "begin", "object z"},
		},
		"cut in the initial state": {
			[]func(http.ResponseWriter, *http.Request){
				say(event("ADDED", object("a", "5"))),
				from("", event("ADDED", object("z", "5"))+bookmark("7", true)),
			},
			[]string{"begin", "object a", "trouble", "begin", "object z"},
		},
		"cut in an event": {
			[]func(http.ResponseWriter, *http.Request){
				say(initial + event("ADDED", object("b", "8"))[:30]),
				from("7", event("ADDED", object("z", "8"))),
			},
			[]string{"begin", "object a", "synced", "trouble", "object z"},
		},
		"cannot stream the initial state": {
			[]func(http.ResponseWriter, *http.Request){
				status(422, `{"kind":"Status","reason":"Invalid","code":422,"message":"sendInitialEvents is forbidden"}`),
				say(`{"metadata":{"resourceVersion":"5","continue":"more"},"items":[` + object("a", "1") + `,` + object("b", "2") + `]}`),
				say(`{"items":[` + object("c", "3") + `],"metadata":{"resourceVersion":"5"}}`),
				from("5", event("ADDED", object("z", "6"))),
			},
			[]string{"begin", "object a", "object b", "object c", "synced", "object z"},
		},
		"silent in the initial state": {
			[]func(http.ResponseWriter, *http.Request){
				func(w http.ResponseWriter, r *http.Request) {
					say(event("ADDED", object("a", "5")))(w, r)
					_ = http.NewResponseController(w).Flush()
					<-r.Context().Done() // until the follower has had enough
				},
				say(`{"metadata":{"resourceVersion":"5"},"items":[` + object("a", "5") + `]}`),
				from("5", event("ADDED", object("z", "6"))),
			},
			[]string{"begin", "object a", "begin", "object a", "synced", "object z"},
		},
		"trouble": {
			[]func(http.ResponseWriter, *http.Request){
				status(500, "oh"), status(403, "no"), say(event("ADDED", object("z", "5")) + bookmark("7", true)),
			},
			[]string{"trouble", "trouble", "begin", "object z"},
		},
	} {
		t.Run(what, func(t *testing.T) {
			r, stop := follow(t, test.answers...)
			got := r.until(t, "object z")
			stop()
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestPutOff: 429 is asked again after the time that the server names, and other
// errors are the caller's.
func TestPutOff(t *testing.T) {
	n := 0
	var seen []int
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n++
		switch {
		case n <= 2:
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(429)
		case strings.HasSuffix(r.URL.Path, "/gone"):
			w.WriteHeader(404)
			fmt.Fprint(w, `{"kind":"Status","status":"Failure","reason":"NotFound","code":404}`)
		default:
			fmt.Fprint(w, `{"metadata":{"name":"a"}}`)
		}
	}))
	defer server.Close()
	c, err := kubeapi.New(&rest.Config{Host: server.URL}, kubeapi.Options{Observe: func(_, _ string, code int) { seen = append(seen, code) }})
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	if err := c.Get(t.Context(), kubeapi.Leases, "ns", "a", func(b []byte) error { got = name(b); return nil }); err != nil || got != "a" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := c.Get(t.Context(), kubeapi.Leases, "ns", "gone", nil); !apierrors.IsNotFound(err) {
		t.Errorf("error %v; want not found", err)
	}
	if diff := cmp.Diff([]int{429, 429, 200, 404}, seen); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Get(ctx, kubeapi.Leases, "ns", "a", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v; want canceled", err)
	}
}
