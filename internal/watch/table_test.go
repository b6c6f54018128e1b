package watch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/s2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"pgregory.net/rapid"

	"assay.dev/assay/internal/watch/watchtest"
	"assay.dev/assay/store"
)

func ended(kind, uid, owner string, at int) head {
	return head{kind: kind, namespace: "ns", name: uid, uid: uid, ownerUID: owner, version: "1",
		done: true, ended: time.Unix(int64(at), 0)}
}

// drain pops everything that is ready and finishes each at once.
func drain(tb *table) (order []string) {
	for {
		tb.mu.Lock()
		j := tb.pop()
		tb.mu.Unlock()
		if j == nil {
			return order
		}
		order = append(order, j.uid)
		tb.done(j.uid, true)
	}
}

// TestOrder: whole PipelineRuns one after the other, the newest first, and a
// PipelineRun after its TaskRuns.
func TestOrder(t *testing.T) {
	tb := newTable(tableOptions{})
	for i := range 3 {
		pr := fmt.Sprintf("pr%d", i)
		tb.see(ended("PipelineRun", pr, "", 100+i), []byte("{}"), "prs", 1, true)
	}
	// TaskRuns come in the worst order, and are waited for all the same.
	for k := range 2 {
		for i := range 3 {
			pr := fmt.Sprintf("pr%d", i)
			h := ended("TaskRun", fmt.Sprintf("%s-%d", pr, k), pr, 90+i)
			tb.see(h, []byte("{}"), "trs", 1, true)
		}
	}
	got := drain(tb)
	want := []string{"pr2-0", "pr2-1", "pr2", "pr1-0", "pr1-1", "pr1", "pr0-0", "pr0-1", "pr0"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("PipelineRuns told first (-want +got):\n%s", diff)
	}

	tb = newTable(tableOptions{})
	for k := range 2 {
		for i := range 3 {
			pr := fmt.Sprintf("pr%d", i)
			tb.see(ended("TaskRun", fmt.Sprintf("%s-%d", pr, k), pr, 90+i), []byte("{}"), "trs", 1, true)
		}
	}
	for i := range 3 {
		tb.see(ended("PipelineRun", fmt.Sprintf("pr%d", i), "", 100+i), []byte("{}"), "prs", 1, true)
	}
	got = drain(tb)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("TaskRuns told first (-want +got):\n%s", diff)
	}
}

// TestLateNews: the watch is behind, and tells an older state of a run that we
// have marked.
func TestLateNews(t *testing.T) {
	tb := newTable(tableOptions{})
	h := ended("PipelineRun", "a", "", 1)
	tb.see(h, []byte("{}"), "s", 1, false)
	if got := drain(tb); len(got) != 1 {
		t.Fatalf("worked on %q", got)
	}
	h.version = "2"
	tb.see(h, []byte("{}"), "s", 1, false)
	if got := drain(tb); len(got) != 0 {
		t.Errorf("worked again on %q", got)
	}
	h.signed = "true"
	tb.see(h, nil, "s", 1, false)
	if len(tb.runs) != 0 || len(tb.groups) != 0 || tb.held != 0 {
		t.Errorf("%d runs, %d groups, %d bytes are left", len(tb.runs), len(tb.groups), tb.held)
	}
}

// TestTable: whatever happens in whatever order, each run that ended is worked on
// until it is done, never by two at once, and at the end nothing is kept.
func TestTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tb := newTable(tableOptions{maxHeld: rapid.SampledFrom([]int{1, 100, 1 << 20}).Draw(t, "held")})
		blocks := rapid.Bool().Draw(t, "blocks")
		type run struct {
			head
			working, marked, deleted bool
		}
		var runs []*run
		for i := range rapid.IntRange(1, 8).Draw(t, "runs") {
			uid := fmt.Sprintf("u%d", i)
			h := head{kind: "PipelineRun", namespace: "ns", name: uid, uid: uid, version: "1"}
			if i > 0 && rapid.Bool().Draw(t, "child") {
				h.kind, h.ownerUID = "TaskRun", "u0"
			}
			runs = append(runs, &run{head: h})
		}
		version := 1
		tell := func(r *run) {
			version++
			r.version = fmt.Sprint(version)
			if r.deleted {
				return
			}
			if r.marked {
				r.signed = "true"
			}
			tb.see(r.head, []byte(`{"x":"`+r.uid+`"}`), "s", 1, blocks)
		}
		var jobs []*job
		finish := func(i int, how int) {
			j := jobs[i]
			jobs = append(jobs[:i], jobs[i+1:]...)
			for _, r := range runs {
				if r.uid != j.uid {
					continue
				}
				r.working = false
				if how == 0 {
					tb.retry(j.uid, time.Hour, nil, []string{"store"}, j.raw, true)
					return
				}
				r.marked = true
				tb.done(j.uid, true)
			}
		}
		pop := func() bool {
			tb.mu.Lock()
			j := tb.pop()
			tb.mu.Unlock()
			if j == nil {
				return false
			}
			for _, r := range runs {
				if r.uid == j.uid {
					if r.working || r.marked || !r.done {
						t.Fatalf("%s was given out: working %t, marked %t, done %t", r.uid, r.working, r.marked, r.done)
					}
					r.working = true
				}
			}
			if j.raw != nil {
				if text, err := s2.Decode(nil, j.raw); err != nil || !bytes.Contains(text, []byte(j.uid)) {
					t.Fatalf("%s was given out with %q (%v)", j.uid, text, err)
				}
			}
			jobs = append(jobs, j)
			return true
		}
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			r := rapid.SampledFrom(runs).Draw(t, "run")
			switch rapid.IntRange(0, 6).Draw(t, "step") {
			case 0:
				tell(r)
			case 1:
				if !r.deleted {
					r.done, r.ended = true, time.Unix(int64(version), 0)
				}
				tell(r)
			case 2:
				pop()
			case 3, 4:
				if len(jobs) > 0 {
					finish(rapid.IntRange(0, len(jobs)-1).Draw(t, "job"), rapid.IntRange(0, 1).Draw(t, "how"))
				}
			case 5:
				tb.recovered("store")
			case 6:
				if !r.deleted {
					tell(r)
					r.deleted = true
					tb.lost(r.head, []byte(`{"x":"`+r.uid+`"}`))
				}
			}
		}
		// From here on everything goes well.
		for _, r := range runs {
			if !r.deleted {
				r.done = true
				tell(r)
			}
		}
		for {
			for len(jobs) > 0 {
				finish(0, 1)
			}
			tb.recovered("")
			if !pop() {
				break
			}
		}
		for _, r := range runs {
			if !r.marked && !r.deleted {
				t.Fatalf("%s was never worked on to the end", r.uid)
			}
			if r.marked && !r.deleted {
				tell(r)
			}
		}
		if len(tb.runs) != 0 || len(tb.groups) != 0 || tb.held != 0 || tb.working != 0 || len(tb.order) != 0 {
			t.Fatalf("left: %d runs, %d groups, %d bytes, %d working, %d in order", len(tb.runs), len(tb.groups), tb.held, tb.working, len(tb.order))
		}
	})
}

// TestHead reads what a generated run says, by another way than decoding it.
func TestHead(t *testing.T) {
	run := watchtest.Generate(7, watchtest.Options{})
	tr := run.TaskRuns[0]
	tr.Annotations[annotationSigned] = "true"
	tr.Finalizers = []string{"example.com/other", "chains.tekton.dev/taskrun"}
	text, err := json.Marshal(tr)
	if err != nil {
		t.Fatal(err)
	}
	got, err := readHead("TaskRun", text)
	if err != nil {
		t.Fatal(err)
	}
	want := head{
		kind: "TaskRun", namespace: "default", name: tr.Name, uid: string(tr.UID), signed: "true",
		finalizers: []string{"chains.tekton.dev/taskrun"}, ownerUID: string(run.PipelineRun.UID), ownerName: run.PipelineRun.Name,
		inPipeline: true, done: true, ended: tr.Status.CompletionTime.Time.UTC(), created: tr.CreationTimestamp.Time.UTC(),
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(head{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// FuzzHead: objects are strangers', however well the API server checks them.
func FuzzHead(f *testing.F) {
	run := watchtest.Generate(1, watchtest.Options{TaskRunBytes: 1})
	text, err := json.Marshal(run.TaskRuns[0])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"metadata":{"name":"a","namespace":"b","uid":"c","annotations":null,"finalizers":[1]},"status":{"conditions":[{"type":"Succeeded","status":"True"}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		h, err := readHead("TaskRun", data)
		if err == nil && (h.uid == "" || h.name == "" || h.namespace == "") {
			t.Error("a head without name")
		}
		_, _ = readAnnotations(data)
		_, _, _ = readData(data)
		_, _, _, _ = readFinalizers(data)
	})
}

func TestPause(t *testing.T) {
	const most = 10 * time.Minute
	for attempts := 1; attempts < 100; attempts++ {
		d := pause(attempts, most, 0)
		if d > most || d < firstPause/2 {
			t.Errorf("pause %d is %s", attempts, d)
		}
		if attempts > 12 && d < most/2 {
			t.Errorf("pause %d is %s; want minutes by now", attempts, d)
		}
	}
	if d := pause(1, most, 3*time.Minute); d != 3*time.Minute {
		t.Errorf("asked for 3 minutes, rests %s", d)
	}
	if d := pause(1, most, 1000*time.Hour); d > time.Hour {
		t.Errorf("rests %s because the other side says so", d)
	}
}

func TestAPIErrors(t *testing.T) {
	runs := schema.GroupResource{Resource: "taskruns"}
	for name, test := range map[string]struct {
		err  error
		want store.Class
	}{
		"forbidden":   {apierrors.NewForbidden(runs, "a", errors.New("no")), store.Configuration},
		"wrapped":     {fmt.Errorf("x: %w", apierrors.NewUnauthorized("no")), store.Configuration},
		"too large":   {apierrors.NewRequestEntityTooLargeError("x"), store.Permanent},
		"throttled":   {apierrors.NewTooManyRequests("x", 3), store.Transient},
		"out of time": {context.DeadlineExceeded, store.Transient},
	} {
		t.Run(name, func(t *testing.T) {
			f := fault{err: apiClass(test.err)}
			if got := f.class(); got != test.want {
				t.Errorf("class %s; want %s", got, test.want)
			}
			if name == "throttled" && f.asked() != 3*time.Second {
				t.Errorf("was asked to wait 3s; heard %s", f.asked())
			}
		})
	}
}

func TestListing(t *testing.T) {
	var many []text
	for i := range 10_000 {
		many = append(many, text(fmt.Sprintf("item-%d", i)))
	}
	got := listing(many)
	if len(got) > 2100 || !strings.HasSuffix(got, "more") || !strings.HasPrefix(got, "item-0, item-1") {
		t.Errorf("%d bytes: %.100s … %s", len(got), got, got[len(got)-30:])
	}
}
