package observer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"sort"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"assay.dev/assay/api"
	"assay.dev/assay/attest"
	"assay.dev/assay/internal/channel"
	"assay.dev/assay/internal/registry"
	"assay.dev/assay/ledger"
	"assay.dev/assay/observe"
	"assay.dev/assay/store"
)

// shelf keeps what was put, by subject.
type shelf struct {
	store.Reader
	payloads []string
	evidence []store.Evidence
}

func (s *shelf) Put(_ context.Context, sub store.Subject, evidence ...store.Evidence) ([]store.Stored, error) {
	for _, e := range evidence {
		if _, err := e.Check(sub); err != nil {
			return nil, err
		}
		s.evidence = append(s.evidence, e)
		s.payloads = append(s.payloads, sub.Repo+"@"+sub.Digest+"\n"+string(e.Envelope.Payload))
	}
	return nil, nil
}

// state states a recording and returns every payload that was signed.
func state(t *testing.T, key attest.Signer, r *recording, rec *ledger.Record, s channel.State) ([]string, error) {
	t.Helper()
	kept := &shelf{}
	_, err := notary(key, r, kept).State(t.Context(), rec, s)
	return kept.payloads, err
}

// notary states a recording onto a shelf.
func notary(key attest.Signer, r *recording, kept *shelf) *Notary {
	return &Notary{
		Signer: key, Instance: "test", RegistryName: "localhost:5055", Bundles: bundles(r.Bundles),
		Uploads: func(string) ([]registry.Upload, error) { return r.Uploads, nil },
		Head: func(context.Context, string) (v1.Descriptor, error) {
			return v1.Descriptor{MediaType: "application/vnd.oci.image.manifest.v1+json", Size: 1}, nil
		},
		Store: func(string) (store.Store, error) { return kept, nil },
		Log:   slog.New(slog.DiscardHandler),
	}
}

// A planner that lies: every field of every object, changed, left out, doubled.
// Either the run is refused, or what is signed is the same to the byte, so that
// nobody is told the lie.
func TestStateRefusesEveryLie(t *testing.T) {
	r := load(t)
	rec := r.record(t)
	for _, format := range []string{"in-toto", "slsa/v2alpha3", "slsa/v2alpha4"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			everyLie(t, r, rec, format)
		})
	}
}

func everyLie(t *testing.T, r *recording, rec *ledger.Record, format string) {
	key := newKey(t)
	honest := r.State
	honest.Format = format
	want, err := state(t, key, r, rec, honest)
	if err != nil || len(want) < 3 {
		t.Fatalf("the honest run: %d payloads, %v", len(want), err)
	}
	n, tried, refused := 0, 0, 0
	stride := 13 // a run of all takes a minute: `make test-all`
	if os.Getenv("ASSAY_SLOW") != "" {
		stride = 1
	}
	told := map[string]string{}
	for i := range len(honest.Children) + 1 {
		source, name := honest.Object, "PipelineRun"
		if i > 0 {
			source = honest.Children[i-1]
			name = "TaskRun " + pipelineTask(t, source)
		}
		mutate(t, source, func(path, how string, changed json.RawMessage) {
			s := honest
			if i == 0 {
				s.Object = changed
			} else {
				s.Children = slices.Clone(honest.Children)
				s.Children[i-1] = changed
			}
			if n++; n%stride != 0 {
				return
			}
			tried++
			got, err := state(t, key, r, rec, s)
			if err != nil {
				refused++
				return
			}
			if !slices.Equal(got, want) {
				told[name+" "+path] += how + "; " + difference(want, got)
			}
		})
	}
	paths := make([]string, 0, len(told))
	for p := range told {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	for _, p := range paths {
		if why := harmless(p, told[p]); why != "" {
			continue
		}
		t.Errorf("told: %s: %s", p, told[p])
	}
	t.Logf("%d changes tried, %d refused, the others change nothing that is signed", tried, refused)
	if tried < 2000/stride || refused < tried/4 {
		t.Errorf("only %d changes tried, %d refused", tried, refused)
	}
}

func pipelineTask(t *testing.T, raw json.RawMessage) string {
	t.Helper()
	var o struct {
		Metadata struct{ Labels map[string]string }
	}
	if err := json.Unmarshal(raw, &o); err != nil {
		t.Fatal(err)
	}
	return o.Metadata.Labels["tekton.dev/pipelineTask"]
}

// harmless are the fields that may be told as the planner has them.
func harmless(path, how string) string {
	switch {
	case regexp.MustCompile(`\.metadata\.labels`).MatchString(path) && !strings.Contains(path, ".tekton.dev/"):
		return "labels of the Task, which the specification does not hold"
	case regexp.MustCompile(`\.status\.provenance\.featureFlags`).MatchString(path), strings.HasSuffix(path, ".status.provenance"):
		return "the planner says of itself how it is set"
	case regexp.MustCompile(`\.(childReferences|params|results)$`).MatchString(path) && strings.HasPrefix(how, "turned around;") && strings.Count(how, "; ") == 1:
		return "an order"
	}
	return ""
}

// difference finds where two lists of payloads part.
func difference(want, got []string) string {
	if len(want) != len(got) {
		return fmt.Sprintf("%d payloads, not %d", len(got), len(want))
	}
	for i := range want {
		if want[i] == got[i] {
			continue
		}
		n := 0
		for n < len(want[i]) && n < len(got[i]) && want[i][n] == got[i][n] {
			n++
		}
		from := max(0, n-60)
		return fmt.Sprintf("payload %d says …%s", i, got[i][from:min(len(got[i]), n+60)])
	}
	return ""
}

// mutate calls f with every change of a JSON document: each value replaced,
// each member left out, each list shortened, doubled and turned around.
func mutate(t *testing.T, raw json.RawMessage, f func(path, how string, changed json.RawMessage)) {
	t.Helper()
	var doc any
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	emit := func(path, how string) {
		b, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		f(path, how, b)
	}
	var walk func(path string, v any, set func(any))
	walk = func(path string, v any, set func(any)) {
		for how, changed := range lies(v) {
			set(changed)
			emit(path, how)
		}
		set(v)
		switch v := v.(type) {
		case map[string]any:
			keys := make([]string, 0, len(v))
			for k := range v {
				keys = append(keys, k)
			}
			sort.Strings(keys)
			for _, k := range keys {
				old := v[k]
				delete(v, k)
				emit(path+"."+k, "left out")
				v[k] = old
				walk(path+"."+k, old, func(n any) { v[k] = n })
			}
		case []any:
			for i := range v {
				walk(fmt.Sprintf("%s[%d]", path, i), v[i], func(n any) { v[i] = n })
			}
		}
	}
	walk("", doc, func(n any) { doc = n })
}

func lies(v any) map[string]any {
	switch v := v.(type) {
	case string:
		out := map[string]any{"longer": v + "x", "empty": ""}
		switch {
		case v == "True":
			out["denied"] = "False"
		case v == "False":
			out["denied"] = "True"
		case strings.HasPrefix(v, "2026-"):
			out["earlier"] = "2025" + v[4:]
		case strings.Contains(v, "sha256:"):
			out["other digest"] = strings.NewReplacer("0", "1", "1", "2", "a", "b").Replace(v)
		}
		return out
	case float64:
		return map[string]any{"more": v + 1, "negative": -v - 1}
	case bool:
		return map[string]any{"denied": !v}
	case []any:
		out := map[string]any{"doubled": append(slices.Clone(v), v...), "none": []any{}}
		if len(v) > 0 {
			out["shorter"] = v[:len(v)-1]
		}
		if len(v) > 1 {
			turned := slices.Clone(v)
			slices.Reverse(turned)
			out["turned around"] = turned
		}
		return out
	case map[string]any:
		more := maps.Clone(v)
		more["added"] = "x"
		return map[string]any{"none": map[string]any{}, "more": more}
	}
	return nil
}

func newKey(t *testing.T) attest.Signer {
	t.Helper()
	k, err := attest.GenerateKey(attest.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// The lies that matter most, by name: each is refused, and says what is wrong.
func TestStateRefusesNamedLies(t *testing.T) {
	r := load(t)
	rec := r.record(t)
	key := newKey(t)
	child := func(s *channel.State, task string, edit func(o map[string]any)) {
		for i, c := range s.Children {
			if pipelineTask(t, c) == task {
				s.Children[i] = edited(t, c, edit)
				return
			}
		}
		t.Fatalf("no TaskRun of %s", task)
	}
	at := func(o any, path ...any) any {
		for _, p := range path {
			switch p := p.(type) {
			case string:
				o = o.(map[string]any)[p]
			case int:
				o = o.([]any)[p]
			}
		}
		return o
	}
	for name, lie := range map[string]struct {
		tell func(s *channel.State)
		want string
	}{
		"other result": {func(s *channel.State) {
			child(s, "build", func(o map[string]any) {
				for _, res := range at(o, "status", "results").([]any) {
					if at(res, "name") == "IMAGE_DIGEST" {
						res.(map[string]any)["value"] = "sha256:" + strings.Repeat("1", 64)
					}
				}
			})
		}, "result IMAGE_DIGEST is not what was written"},
		"other exit code": {func(s *channel.State) {
			child(s, "make", func(o map[string]any) {
				at(o, "status", "steps", 1, "terminated").(map[string]any)["exitCode"] = 0
			})
		}, "the exit code was 3"},
		"other image": {func(s *channel.State) {
			child(s, "make", func(o map[string]any) {
				at(o, "status", "steps", 0).(map[string]any)["imageID"] = "localhost:5055/catalog/task@sha256:" + strings.Repeat("1", 64)
			})
		}, "imageID"},
		"no retry": {func(s *channel.State) {
			child(s, "build", func(o map[string]any) { delete(o["status"].(map[string]any), "retriesStatus") })
		}, "1 were run"},
		"missing TaskRun": {func(s *channel.State) {
			for i, c := range s.Children {
				if pipelineTask(t, c) == "last" {
					s.Children = slices.Delete(s.Children, i, i+1)
					break
				}
			}
			s.Object = edited(t, s.Object, func(o map[string]any) {
				list := at(o, "status", "childReferences").([]any)
				o["status"].(map[string]any)["childReferences"] = slices.DeleteFunc(list, func(c any) bool { return at(c, "pipelineTaskName") == "last" })
			})
		}, "no TaskRun of this name was handed in"},
		"TaskRun that was never run": {func(s *channel.State) {
			child(s, "last", func(o map[string]any) { o["metadata"].(map[string]any)["name"] = "invented" })
			s.Object = edited(t, s.Object, func(o map[string]any) {
				for _, c := range at(o, "status", "childReferences").([]any) {
					if at(c, "pipelineTaskName") == "last" {
						c.(map[string]any)["name"] = "invented"
					}
				}
			})
		}, "no such task was run"},
		"other taskSpec": {func(s *channel.State) {
			child(s, "make", func(o map[string]any) {
				at(o, "status", "taskSpec", "steps", 0).(map[string]any)["script"] = "#!/bin/sh\ntrue\n"
			})
		}, "status.taskSpec is not the task's"},
		"other bundle": {func(s *channel.State) {
			child(s, "make", func(o map[string]any) {
				at(o, "status", "provenance", "refSource", "digest").(map[string]any)["sha256"] = strings.Repeat("1", 64)
			})
		}, "refSource is not that of the specification"},
		"other parameter, used": {func(s *channel.State) {
			child(s, "make", func(o map[string]any) { at(o, "spec", "params", 0).(map[string]any)["value"] = "other" })
		}, "parameter text is not what the pipeline gives"},
		"other parameter, not used": {func(s *channel.State) {
			child(s, "build", func(o map[string]any) {
				for _, p := range at(o, "spec", "params").([]any) {
					if at(p, "name") == "HERMETIC" {
						p.(map[string]any)["value"] = "false"
					}
				}
			})
		}, "parameter HERMETIC is not what the pipeline gives"},
		"failed and said to have succeeded": {func(s *channel.State) {
			s.Object = edited(t, s.Object, func(o map[string]any) { at(o, "status", "conditions", 0).(map[string]any)["status"] = "False" })
		}, "the object says succeeded=false"},
		"other pipeline result": {func(s *channel.State) {
			s.Object = edited(t, s.Object, func(o map[string]any) { at(o, "status", "results", 0).(map[string]any)["value"] = "other" })
		}, "is not what the tasks' results make it"},
		"other specification": {func(s *channel.State) {
			s.Spec = json.RawMessage(strings.Replace(string(s.Spec), "hello", "hullo", 1))
		}, "the run was opened with"},
		"another run's objects": {func(s *channel.State) {
			s.Object = edited(t, s.Object, func(o map[string]any) { o["metadata"].(map[string]any)["uid"] = "another" })
		}, "uid"},
	} {
		s := r.State
		s.Children = slices.Clone(s.Children)
		lie.tell(&s)
		payloads, err := state(t, key, r, rec, s)
		if err == nil || !strings.Contains(err.Error(), lie.want) {
			t.Errorf("%s: %v, want %q", name, err, lie.want)
		}
		if len(payloads) != 0 {
			t.Errorf("%s: %d payloads were signed", name, len(payloads))
		}
	}
	// Bundles that hold something else than was run.
	for ref := range r.Bundles {
		other := *r
		other.Bundles = maps.Clone(r.Bundles)
		other.Bundles[ref] = strings.NewReplacer("exit 3", "exit 0", "test $(", "true $(", "retries: 1", "retries: 2", "\"make\"", "\"other\"").Replace(r.Bundles[ref])
		if payloads, err := state(t, key, &other, rec, r.State); err == nil || len(payloads) != 0 {
			t.Errorf("%s holds something else: %v, %d payloads", ref, err, len(payloads))
		}
		delete(other.Bundles, ref)
		if payloads, err := state(t, key, &other, rec, r.State); err == nil || len(payloads) != 0 {
			t.Errorf("%s holds nothing: %v, %d payloads", ref, err, len(payloads))
		}
	}
	// A registry that remembers nothing of this run, or of other tasks only.
	for name, uploads := range map[string][]registry.Upload{"nothing": nil, "others": {{Run: r.State.Run, Task: "other", Kind: registry.KindTask, Digest: r.Uploads[len(r.Uploads)-1].Digest}}} {
		other := *r
		other.Uploads = uploads
		if payloads, err := state(t, key, &other, rec, r.State); !errors.Is(err, ErrNoSubject) || len(payloads) != 0 {
			t.Errorf("uploads of %s: %v, %d payloads", name, err, len(payloads))
		}
	}
	// The run itself failed, whatever the objects say.
	failed := *rec
	failed.Ending = &ledger.Ending{Outcome: ledger.Failed}
	if payloads, err := state(t, key, r, &failed, r.State); err == nil || len(payloads) != 0 {
		t.Errorf("a failed run: %v, %d payloads", err, len(payloads))
	}
}

func edited(t *testing.T, raw json.RawMessage, edit func(o map[string]any)) json.RawMessage {
	t.Helper()
	var o map[string]any
	if err := json.Unmarshal(raw, &o); err != nil {
		t.Fatal(err)
	}
	edit(o)
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// slow is a Statements that takes its time and counts.
type slow struct {
	calls   atomic.Int32
	release chan struct{}
}

func (s *slow) State(context.Context, *ledger.Record, channel.State) (*channel.Stated, error) {
	s.calls.Add(1)
	<-s.release
	return &channel.Stated{Payloads: []observe.Payload{{PredicateType: "x", Digest: "y"}}, Subjects: []string{"z"}}, nil
}

// Two requests at once, and one afterwards: signed once.
func TestSignedOnce(t *testing.T) {
	l, err := ledger.Open(t.TempDir(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	run, err := l.Admit(ledger.Admission{Run: "r", ExecutorUID: 5})
	if err != nil {
		t.Fatal(err)
	}
	if err := run.End(ledger.Succeeded, ""); err != nil {
		t.Fatal(err)
	}
	s := &slow{release: make(chan struct{})}
	o, err := New(Config{Ledger: l, Separation: api.SeparationUser, Statements: s, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	errs := make(chan error)
	for range 8 {
		go func() {
			_, err := o.state(context.Background(), channel.State{Run: "r"})
			errs <- err
		}()
	}
	for range 7 { // all but the one that is at it
		if err := <-errs; err == nil {
			t.Error("a second request succeeded")
		}
	}
	close(s.release)
	if err := <-errs; err != nil {
		t.Error(err)
	}
	if _, err := o.state(context.Background(), channel.State{Run: "r"}); !errors.Is(err, ledger.ErrSigned) {
		t.Errorf("afterwards: %v", err)
	}
	if n := s.calls.Load(); n != 1 {
		t.Errorf("stated %d times", n)
	}
}
