package observer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/internal/logserver"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
	"assay.dev/assay/verify"
)

// transparency is a real log with a real witness, each behind a server of its own,
// that can be taken away.
type transparency struct {
	home  *home.Home
	conf  *home.Log
	trust tlog.Trust
	down  atomic.Bool
	adds  atomic.Int32
}

func newTransparency(t *testing.T) *transparency {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	skey, key, _, err := tlog.GenerateKey("example.com/log")
	must(err)
	wkey, _, witnessKey, err := tlog.GenerateKey("example.org/witness")
	must(err)
	cosigner, err := tlog.NewCosigner(wkey, nil)
	must(err)
	w, err := logserver.NewWitness(logserver.WitnessOptions{Key: cosigner, Logs: []tlog.LogKey{key}, State: filepath.Join(dir, "witness")})
	must(err)
	t.Cleanup(func() { w.Close() })
	witness := httptest.NewServer(w.Handler())
	t.Cleanup(witness.Close)
	log, err := logserver.Open(t.Context(), logserver.Options{
		Dir: filepath.Join(dir, "log"), Key: skey, Witnesses: []logserver.WitnessAt{{URL: witness.URL, Key: witnessKey}},
	})
	must(err)
	t.Cleanup(func() { log.Close(t.Context()) })
	token := filepath.Join(dir, "token")
	must(os.WriteFile(token, []byte("a token that is long enough\n"), 0o600))
	handler := log.Handler(logserver.Admission{TokenFile: token})
	tr := &transparency{home: &home.Home{Dir: dir}, trust: tlog.Trust{Logs: []tlog.LogKey{key}, Witnesses: []tlog.WitnessKey{witnessKey}}}
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if tr.down.Load() {
			http.Error(rw, "maintenance", http.StatusServiceUnavailable)
			return
		}
		if r.Method == http.MethodPost {
			tr.adds.Add(1)
		}
		handler.ServeHTTP(rw, r)
	}))
	t.Cleanup(srv.Close)
	tr.conf = &home.Log{URL: srv.URL, Key: key.String(), Witnesses: []string{witnessKey.String()}, TokenFile: token}
	return tr
}

func (tr *transparency) open(t *testing.T) Logbook {
	t.Helper()
	l, err := openLog(tr.home, tr.conf)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// What is stored was logged before, every signature of it, and shared statements
// once; a log that is down or not the one that it should be keeps a run from being
// signed, and stores nothing.
func TestStateLogs(t *testing.T) {
	r := load(t)
	rec, key, tr := r.record(t), newKey(t), newTransparency(t)
	try := func(log Logbook) (*shelf, error) {
		kept := &shelf{}
		n := notary(key, r, kept)
		n.Logbook = log
		_, err := n.State(t.Context(), rec, r.State)
		return kept, err
	}

	tr.down.Store(true)
	kept, err := try(tr.open(t))
	if err == nil || !strings.Contains(err.Error(), "logging the evidence") || !strings.Contains(err.Error(), "maintenance") || len(kept.evidence) > 0 {
		t.Fatalf("with the log down: %d pieces stored, %v", len(kept.evidence), err)
	}

	other := newTransparency(t)
	wrong := *tr.conf
	wrong.Key = other.conf.Key
	tr.down.Store(false)
	log, err := openLog(tr.home, &wrong)
	if err != nil {
		t.Fatal(err)
	}
	if kept, err = try(log); err == nil || !strings.Contains(err.Error(), "do its key and witnesses match") || len(kept.evidence) > 0 {
		t.Fatalf("with another log's key: %d pieces stored, %v", len(kept.evidence), err)
	}

	tr.adds.Store(0)
	if kept, err = try(tr.open(t)); err != nil {
		t.Fatal(err)
	}
	images := 0
	for _, e := range kept.evidence {
		signed := []tlog.Signed{{PayloadType: e.Envelope.PayloadType, Payload: e.Envelope.Payload, Sig: e.Envelope.Signatures[0].Sig, Key: e.Key}}
		if e.Simple != nil {
			images++
			signed = append(signed, tlog.Signed{PayloadType: simplesigning.MediaType, Payload: e.Simple.Payload, Sig: e.Simple.Sig, Key: e.Key})
		}
		for _, s := range signed {
			if !slices.ContainsFunc(e.Log, func(l store.LogEntry) bool {
				in, err := tlog.CheckProof(l.Proof, s, tr.trust)
				return err == nil && slices.Equal(in.Witnesses, []string{"example.org/witness"})
			}) {
				t.Errorf("no proof under a witnessed checkpoint for %.80s", s.Payload)
			}
		}
	}
	if images == 0 || len(kept.evidence) != 3*images || int(tr.adds.Load()) != 2+2*images {
		t.Errorf("%d pieces about %d images, %d additions; want 3 pieces an image, and 2 additions each beside the 2 statements'", len(kept.evidence), images, tr.adds.Load())
	}
	if got, err := try(nil); err != nil || !slices.Equal(got.payloads, kept.payloads) || slices.ContainsFunc(got.evidence, func(e store.Evidence) bool { return e.Log != nil }) {
		t.Errorf("without a log something else is stored: %v", err)
	}
}

func TestOpenLog(t *testing.T) {
	h := &home.Home{Dir: t.TempDir()}
	if l, err := openLog(h, nil); l != nil || err != nil {
		t.Errorf("no log: %v, %v", l, err)
	}
	for name, l := range map[string]home.Log{
		"no key at all":      {Key: "a+b+c"},
		"no address":         {Key: newTransparency(t).conf.Key, URL: "ftp://x"},
		"keys that are none": {Key: "example.com/log+ac6a4d6c+AQ==", Witnesses: []string{"x+y+z"}},
	} {
		if got, err := openLog(h, &l); err == nil || got != nil || !strings.Contains(err.Error(), "config.json") {
			t.Errorf("%s: %v; want an error that names config.json", name, err)
		}
	}
}

// A stated run's envelope is logged too before it is stored.
func TestStatedLogs(t *testing.T) {
	tr := newTransparency(t)
	for dir := tr.home.Dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("ASSAY_HOME", tr.home.Dir)
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	config, err := json.Marshal(home.Config{Instance: "local", Registry: "localhost:5055", Log: tr.conf})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(tr.home.Path("config.json"), config, 0o644); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(storetest.Registry(t, true))
	t.Cleanup(srv.Close)
	subject := storetest.PushImage(t, http.DefaultTransport, strings.TrimPrefix(srv.URL, "http://"), "app", "image")
	run := filepath.Join(t.TempDir(), "run.json")
	if err := os.WriteFile(run, fmt.Appendf(nil, `{"apiVersion": "tekton.dev/v1", "kind": "TaskRun", "metadata": {"name": "r", "uid": "1"}, "status": {
		"conditions": [{"type": "Succeeded", "status": "True"}], "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:01:00Z",
		"taskSpec": {"results": [{"name": "IMAGE_URL"}, {"name": "IMAGE_DIGEST"}]},
		"results": [{"name": "IMAGE_URL", "type": "string", "value": %q}, {"name": "IMAGE_DIGEST", "type": "string", "value": %q}]}}`,
		subject.Repo, subject.Digest), 0o644); err != nil {
		t.Fatal(err)
	}
	repo, err := name.NewRepository(subject.Repo)
	if err != nil {
		t.Fatal(err)
	}
	items := func() []store.Item {
		t.Helper()
		list, err := oci.New(repo, nil, oci.Options{}).List(t.Context(), subject.Digest)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	var out, errw bytes.Buffer
	tr.down.Store(true)
	if code := MainAttest(t.Context(), []string{"-f", run, "--store"}, &out, &errw); code != 1 || !strings.Contains(errw.String(), "logging the evidence") || len(items()) > 0 {
		t.Fatalf("with the log down: exit %d, %d items stored: %s", code, len(items()), errw.String())
	}
	tr.down.Store(false)
	if code := MainAttest(t.Context(), []string{"-f", run, "--store"}, &out, &errw); code != 0 {
		t.Fatalf("exit %d: %s", code, errw.String())
	}
	key, err := verify.LoadPublicKey(tr.home.PublicKey(api.Stated))
	if err != nil {
		t.Fatal(err)
	}
	e, err := verify.Image(t.Context(), subject.Ref(), verify.Options{
		Keys: []verify.Key{key}, WithoutSignature: true, Log: verify.LogTrust{Trust: tr.trust, Require: true},
	})
	if err != nil || len(e.Statements()) != 1 || !e.Statements()[0].Witnessed() || len(e.Rejected()) > 0 {
		t.Fatalf("what was stored is not logged: %v, %+v", err, e)
	}
}
