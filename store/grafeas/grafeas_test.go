// The tests run against Grafeas' own implementation of its API, v1
// (github.com/grafeas/grafeas/go/v1/api), over gRPC on loopback: its checks of
// names, permissions and messages, enforced, and its parser of filters. Grafeas
// publishes no storage for v1; the one below the API is ours, in memory. Google's
// Container Analysis speaks the same API and could not be asked.
package grafeas_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/grafeas/grafeas/go/iam"
	pb "github.com/grafeas/grafeas/proto/v1/grafeas_go_proto"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/internal/testrig/conformance"
	"assay.dev/assay/store"
	"assay.dev/assay/store/grafeas"
	"assay.dev/assay/store/storetest"
)

var update = flag.Bool("update", false, "write golden files")

func open(t testing.TB, o grafeas.Options) *grafeas.Keeper {
	t.Helper()
	if o.Project == "" {
		o.Project = "team"
	}
	k, err := grafeas.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

func image(say string) string {
	return "registry.example/team/app@" + storetest.Digest([]byte(say))
}

func TestSuite(t *testing.T) {
	storetest.RunKeeper(t, func(t *testing.T) storetest.Keepers {
		s := start(t, grpc.MaxRecvMsgSize(1<<20))
		return storetest.Keepers{
			Open: func(t testing.TB) store.Keeper {
				k, err := grafeas.Open(grafeas.Options{Project: "team", Endpoint: s.endpoint})
				if err != nil {
					t.Fatal(err)
				}
				return k
			},
			NoCerts: true,
			Down: func(on bool) {
				if s.inject(nil); on {
					s.inject(func(string) error { return status.Error(codes.Unavailable, "down") })
				}
			},
			Deny: func(on bool) {
				if s.auth.deny.Store(nil); on {
					all := iam.Permission("*")
					s.auth.deny.Store(&all)
				}
			},
			TooLarge: 1 << 20,
		}
	})
}

// TestMessages compares what is stored, field by field, with golden files: one
// statement of each version that the conformance data has, and an image.
func TestMessages(t *testing.T) {
	root := conformance.Dir(t, "chains")
	key := fixedSigner(t)
	for _, c := range []struct{ name, run, payload string }{
		{"v02-taskrun", "TaskRun", "ex-task-output-image/expected-slsa-v1.json"},
		{"v02-pipelinerun", "PipelineRun", "ex-pipeline-output-image-deep/expected-slsa-v1.json"},
		{"v1-taskrun", "TaskRun", "ex-task-output-image/expected-slsa-v2alpha4.json"},
		{"v1-pipelinerun", "PipelineRun", "ex-pipeline-output-image-deep/expected-slsa-v2alpha3.json"},
		{"image", "TaskRun", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t)
			run := store.Run{APIVersion: "tekton.dev/v1", Kind: c.run, Namespace: "builds", Name: "run-1", UID: "b1e2"}
			r := key.image(t, run, image("golden"))
			if c.payload != "" {
				data, err := os.ReadFile(filepath.Join(root, c.payload))
				if err != nil {
					t.Fatal(err)
				}
				r = key.statement(t, run, data)
			}
			out := open(t, grafeas.Options{Endpoint: s.endpoint}).Keep(t.Context(), []store.Record{r})
			if out[0].Err != nil || len(out[0].Skipped) != 0 {
				t.Fatalf("%+v", out[0])
			}
			notes, occurrences := s.storage.all()
			for _, n := range notes {
				n.CreateTime = nil
			}
			for _, o := range occurrences {
				if string(o.GetEnvelope().GetPayload()) != string(r.Payload) {
					t.Error("the envelope's payload is not the record's")
				}
				o.CreateTime = nil
				// Long, and what the record has; checked here and above.
				o.Envelope.Payload = nil
				want, _ := r.SignatureBytes()
				for _, sig := range o.Envelope.Signatures {
					if diff := cmp.Diff(want, sig.Sig); diff != "" {
						t.Errorf("signature: %s", diff)
					}
					sig.Sig = nil
				}
				if a := o.GetAttestation(); a != nil {
					for _, sig := range a.Signatures {
						sig.Signature = nil
					}
				}
			}
			golden(t, c.name, notes, occurrences)
		})
	}
}

// golden compares notes and occurrences with a file. protojson is not stable
// byte by byte, so both sides are decoded.
func golden(t *testing.T, name string, notes map[string]*pb.Note, occurrences []*pb.Occurrence) {
	t.Helper()
	var got struct {
		Notes       []any `json:"notes"`
		Occurrences []any `json:"occurrences"`
	}
	value := func(data []byte, err error) (v any) {
		if err == nil {
			err = json.Unmarshal(data, &v)
		}
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, n := range notes {
		got.Notes = append(got.Notes, value(protojson.Marshal(n)))
	}
	for _, o := range occurrences {
		got.Occurrences = append(got.Occurrences, value(protojson.Marshal(o)))
	}
	data, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.WriteFile(file, append(data, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.TrimSpace(string(want)), string(data)); diff != "" {
		t.Errorf("%s (-want +got; -update writes it):\n%s", file, diff)
	}
}

// TestConformance: every statement that upstream's formatters make is taken.
func TestConformance(t *testing.T) {
	root := conformance.Dir(t, "chains")
	files, err := filepath.Glob(filepath.Join(root, "*", "expected-slsa-*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no statements in %s: %v", root, err)
	}
	s := start(t)
	k := open(t, grafeas.Options{Endpoint: s.endpoint})
	key := fixedSigner(t)
	taken := 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := intoto.Parse(data); err != nil {
			continue // no statement, or one without subjects
		}
		r := key.statement(t, storetest.NewRun("PipelineRun"), data)
		out := k.Keep(t.Context(), []store.Record{r})
		if out[0].Err != nil || len(out[0].Where) == 0 && len(out[0].Skipped) == 0 {
			t.Errorf("%s: %+v", file, out[0])
		}
		taken++
	}
	t.Logf("%d statements", taken)
}

func TestSubjects(t *testing.T) {
	s := start(t)
	k := open(t, grafeas.Options{Endpoint: s.endpoint})
	sha1 := strings.Repeat("a", 40)
	r := storetest.StatementRecord(t, storetest.NewRun("PipelineRun"), "many", []intoto.Subject{
		{Name: "a", Digest: map[string]string{"sha256": strings.Repeat("1", 64), "sha1": sha1}},
		{Name: "a", Digest: map[string]string{"sha1": sha1}},
		{Digest: map[string]string{"sha1": sha1}},
		{Name: `quoted "name" \`, Digest: map[string]string{"sha1": sha1}},
	}, storetest.NewRecordSigner(t))
	for i := range 2 {
		out := k.Keep(t.Context(), []store.Record{r})
		if out[0].Err != nil || len(out[0].Where) != 3 || len(out[0].Skipped) != 1 || out[0].Existing != (i > 0) {
			t.Fatalf("time %d: %+v; want three places and one subject skipped", i, out[0])
		}
	}
	var uris []string
	_, occurrences := s.storage.all()
	for _, o := range occurrences {
		uris = append(uris, o.ResourceUri)
	}
	want := map[string]bool{"a@sha1:" + sha1: true, "a@sha256:" + strings.Repeat("1", 64): true, `quoted "name" \@sha1:` + sha1: true}
	got := map[string]bool{}
	for _, u := range uris {
		got[u] = true
	}
	if diff := cmp.Diff(want, got); diff != "" || len(uris) != 3 {
		t.Errorf("resource URIs %q (-want +got):\n%s", uris, diff)
	}
}

// TestHalf: what is missing of a statement's occurrences is added, and no more.
func TestHalf(t *testing.T) {
	s := start(t)
	k := open(t, grafeas.Options{Endpoint: s.endpoint})
	var subjects []intoto.Subject
	for i := range 45 { // three filters
		subjects = append(subjects, storetest.ImageSubject(image(fmt.Sprint(i))))
	}
	r := storetest.StatementRecord(t, storetest.NewRun("PipelineRun"), "half", subjects, storetest.NewRecordSigner(t))
	s.inject(func(method string) error {
		if method == "CreateOccurrence" && s.count(method) > 20 {
			return status.Error(codes.Unavailable, "crash")
		}
		return nil
	})
	if out := k.Keep(t.Context(), []store.Record{r}); out[0].Err == nil || store.ClassOf(out[0].Err) != store.Transient || len(out[0].Where) != 0 {
		t.Fatalf("%+v; want a transient error", out[0])
	}
	s.inject(nil)
	out := k.Keep(t.Context(), []store.Record{r})
	if out[0].Err != nil || out[0].Existing || len(out[0].Where) != 45 {
		t.Fatalf("%+v; want the rest added", out[0])
	}
	if _, occurrences := s.storage.all(); len(occurrences) != 45 {
		t.Errorf("%d occurrences; want 45", len(occurrences))
	}
	if kept, err := k.Find(t.Context(), r.Run, r.Key); err != nil || len(kept) != 1 {
		t.Errorf("Find: %d, %v; want the one record", len(kept), err)
	}
}

// TestUpstreamsOccurrence: what Chains stored before us is not stored again.
func TestUpstreamsOccurrence(t *testing.T) {
	s := start(t)
	r := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), image("before"), storetest.NewRecordSigner(t))
	k := open(t, grafeas.Options{Endpoint: s.endpoint})
	if out := k.Keep(t.Context(), []store.Record{r}); out[0].Err != nil {
		t.Fatal(out[0].Err)
	}
	s.storage.mu.Lock()
	s.storage.occurrences[0].Remediation = "" // upstream writes none
	s.storage.mu.Unlock()
	if out := k.Keep(t.Context(), []store.Record{r}); out[0].Err != nil || !out[0].Existing {
		t.Errorf("%+v; want it existing", out[0])
	}
}

// TestNames: notes and keys as the settings have them, one note per namespace.
func TestNames(t *testing.T) {
	s := start(t)
	one := storetest.NewRecordSigner(t)
	run := storetest.NewRun("TaskRun")
	other := run
	other.Namespace = "elsewhere"
	k := open(t, grafeas.Options{Endpoint: s.endpoint, KMSRef: "gcpkms://x"})
	for _, r := range []store.Record{
		storetest.ImageRecord(t, run, image("a"), one),
		storetest.ImageRecord(t, other, image("b"), one, storetest.NewRecordSigner(t)),
		storetest.StatementRecord(t, run, "c", []intoto.Subject{storetest.ImageSubject(image("c"))}, one),
	} {
		if out := k.Keep(t.Context(), []store.Record{r}); out[0].Err != nil {
			t.Fatal(out[0].Err)
		}
	}
	named := open(t, grafeas.Options{Endpoint: s.endpoint, Note: "ours", NoteHint: "hint"})
	if out := named.Keep(t.Context(), []store.Record{storetest.ImageRecord(t, run, image("d"), one)}); out[0].Err != nil {
		t.Fatal(out[0].Err)
	}
	notes, occurrences := s.storage.all()
	for _, n := range []string{"tekton-builds-simplesigning", "tekton-elsewhere-simplesigning", "tekton-builds-taskrun-intoto", "ours-simplesigning"} {
		if notes["projects/team/notes/"+n] == nil {
			t.Errorf("no note %s among %d", n, len(notes))
		}
	}
	if h := notes["projects/team/notes/ours-simplesigning"].GetAttestation().GetHint().GetHumanReadableName(); h != "hint" {
		t.Errorf("hint %q", h)
	}
	if len(notes) != 4 || len(occurrences) != 4 {
		t.Fatalf("%d notes, %d occurrences; want 4 and 4", len(notes), len(occurrences))
	}
	ids := func(o *pb.Occurrence) (out []string) {
		for _, sig := range o.GetAttestation().GetSignatures() {
			out = append(out, sig.GetPublicKeyId())
		}
		return out
	}
	if got := ids(occurrences[0]); len(got) != 1 || got[0] != "gcpkms://x" {
		t.Errorf("one KMS key: %q", got)
	}
	if got := ids(occurrences[1]); len(got) != 2 || !strings.HasPrefix(got[0], "ni:///sha-256;") || got[0] == got[1] {
		t.Errorf("two keys: %q; want two names by digest", got)
	}
}

// TestNoteRemoved: somebody cleans up between two runs.
func TestNoteRemoved(t *testing.T) {
	s := start(t)
	k := open(t, grafeas.Options{Endpoint: s.endpoint})
	for i := range 2 {
		r := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), image(fmt.Sprint(i)), storetest.NewRecordSigner(t))
		s.storage.removeNotes()
		// The list's NotFound is met first, then the occurrence's.
		out := k.Keep(t.Context(), []store.Record{r})
		if out[0].Err != nil {
			t.Fatalf("time %d: %v", i, out[0].Err)
		}
	}
}

// TestMayNotList: upstream's rights suffice; only repetition goes unnoticed.
func TestMayNotList(t *testing.T) {
	s := start(t)
	list := iam.Permission("notes.listOccurrences")
	s.auth.deny.Store(&list)
	k := open(t, grafeas.Options{Endpoint: s.endpoint})
	r := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), image("x"), storetest.NewRecordSigner(t))
	if out := k.Keep(t.Context(), []store.Record{r}); out[0].Err != nil || out[0].Existing {
		t.Errorf("%+v; want it kept", out[0])
	}
	if _, err := k.Find(t.Context(), r.Run, r.Key); store.ClassOf(err) != store.Configuration {
		t.Errorf("Find: %v; want a configuration error", err)
	}
}

func TestFaults(t *testing.T) {
	retry, err := status.New(codes.ResourceExhausted, "quota").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(9 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	s := start(t)
	r := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), image("x"), storetest.NewRecordSigner(t))
	for _, c := range []struct {
		err  error
		want store.Class
	}{
		{status.Error(codes.Unauthenticated, ""), store.Configuration},
		{status.Error(codes.PermissionDenied, ""), store.Configuration},
		{status.Error(codes.NotFound, "project"), store.Configuration},
		{status.Error(codes.Unimplemented, ""), store.Configuration},
		{status.Error(codes.InvalidArgument, ""), store.Permanent},
		{status.Error(codes.ResourceExhausted, "grpc: received message larger than max (2 vs. 1)"), store.Permanent},
		{retry.Err(), store.Transient},
		{status.Error(codes.Unavailable, ""), store.Transient},
		{status.Error(codes.Internal, ""), store.Transient},
		{status.Error(codes.DeadlineExceeded, ""), store.Transient},
		{errors.New("anything"), store.Transient},
	} {
		for _, method := range []string{"CreateNote", "CreateOccurrence"} {
			s.inject(func(m string) error {
				if m == method {
					return c.err
				}
				return nil
			})
			out := open(t, grafeas.Options{Endpoint: s.endpoint}).Keep(t.Context(), []store.Record{r})
			if out[0].Err == nil || store.ClassOf(out[0].Err) != c.want {
				t.Errorf("%s answers %v: %v (%v); want %v", method, c.err, out[0].Err, store.ClassOf(out[0].Err), c.want)
			}
			var f *store.Fault
			if c.err == retry.Err() && (!errors.As(out[0].Err, &f) || f.RetryAfter != 9*time.Second) {
				t.Errorf("RetryAfter of %+v", f)
			}
		}
	}
	s.inject(nil)
	if _, occurrences := s.storage.all(); len(occurrences) != 0 {
		t.Errorf("%d occurrences in spite of all faults", len(occurrences))
	}
	t.Run("nobody there", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		out := open(t, grafeas.Options{Endpoint: "grpc://127.0.0.1:1"}).Keep(ctx, []store.Record{r})
		if out[0].Err == nil || store.ClassOf(out[0].Err) != store.Transient {
			t.Errorf("%v; want a transient error", out[0].Err)
		}
	})
}

func TestUnknownPredicate(t *testing.T) {
	s := start(t)
	key := fixedSigner(t)
	r := key.statement(t, storetest.NewRun("TaskRun"), []byte(`{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://example.com/other","subject":[{"name":"a","digest":{"sha1":"00"}}],"predicate":{}}`))
	out := open(t, grafeas.Options{Endpoint: s.endpoint}).Keep(t.Context(), []store.Record{r})
	if out[0].Err == nil || store.ClassOf(out[0].Err) != store.Permanent || !strings.Contains(out[0].Err.Error(), "example.com/other") {
		t.Errorf("%v; want a permanent error that names the type", out[0].Err)
	}
}

func TestOpenRefuses(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none")
	for name, o := range map[string]grafeas.Options{
		"no project":           {},
		"project with a slash": {Project: "projects/x"},
		"endpoint":             {Project: "x", Endpoint: "localhost:1"},
		"no port":              {Project: "x", Endpoint: "grpc://localhost"},
		"scheme":               {Project: "x", Endpoint: "https://localhost:1"},
		"token in clear":       {Project: "x", Endpoint: "grpc://localhost:1", TokenFile: missing},
		"missing token":        {Project: "x", Endpoint: "grpcs://localhost:1", TokenFile: missing},
		"missing authorities":  {Project: "x", Endpoint: "grpcs://localhost:1", CAFile: missing},
		"token for Google":     {Project: "x", TokenFile: missing},
	} {
		if _, err := grafeas.Open(o); err == nil || store.ClassOf(err) != store.Configuration {
			t.Errorf("%s: %v; want a configuration error", name, err)
		}
	}
	t.Run("no credentials for Google", func(t *testing.T) {
		t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", missing)
		r := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), image("x"), storetest.NewRecordSigner(t))
		out := open(t, grafeas.Options{}).Keep(t.Context(), []store.Record{r})
		if out[0].Err == nil || store.ClassOf(out[0].Err) != store.Configuration {
			t.Errorf("%v; want a configuration error", out[0].Err)
		}
	})
}
