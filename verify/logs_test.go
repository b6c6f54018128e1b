package verify_test

// The log and the witness in these tests are the real ones (internal/logserver),
// over HTTP on loopback.

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/internal/logserver"
	"assay.dev/assay/store"
	"assay.dev/assay/store/storetest"
	"assay.dev/assay/verify"
)

// aLog is a log with its witness and a client that may add.
type aLog struct {
	client *tlog.Tile
	trust  tlog.Trust
}

func newLog(t *testing.T) *aLog {
	t.Helper()
	skey, key, _, err := tlog.GenerateKey("example.com/log")
	if err != nil {
		t.Fatal(err)
	}
	wkey, _, _, err := tlog.GenerateKey("example.org/witness")
	if err != nil {
		t.Fatal(err)
	}
	cosigner, err := tlog.NewCosigner(wkey, nil)
	if err != nil {
		t.Fatal(err)
	}
	w, err := logserver.NewWitness(logserver.WitnessOptions{Key: cosigner, Logs: []tlog.LogKey{key}, State: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	wsrv := httptest.NewServer(w.Handler())
	l, err := logserver.Open(t.Context(), logserver.Options{Dir: t.TempDir(), Key: skey, Witnesses: []logserver.WitnessAt{{URL: wsrv.URL, Key: w.Key()}}})
	if err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("a token that nobody guesses\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(l.Handler(logserver.Admission{TokenFile: token}))
	t.Cleanup(func() {
		srv.Close()
		l.Close(context.Background())
		wsrv.Close()
		w.Close()
	})
	c, err := tlog.NewTile(tlog.TileOptions{URL: srv.URL, LogKey: key.String(), Witnesses: []string{w.Key().String()}, TokenFile: token})
	if err != nil {
		t.Fatal(err)
	}
	return &aLog{client: c, trust: tlog.Trust{Logs: []tlog.LogKey{key}, Witnesses: []tlog.WitnessKey{w.Key()}}}
}

// add logs evidence in all its forms and returns what the annotation would say.
func (l *aLog) add(t *testing.T, evidence ...store.Evidence) string {
	t.Helper()
	var entries []store.LogEntry
	for _, e := range evidence {
		added, err := l.client.AddEvidence(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, added...)
	}
	return tlog.FormatProofs(entries)
}

func annotate(items []store.Item, value string) []store.Item {
	for i := range items {
		a := map[string]string{tlog.AnnotationProof: value}
		for k, v := range items[i].Annotations {
			a[k] = v
		}
		items[i].Annotations = a
	}
	return items
}

// TestThief: who has the signing key signs at home. Without a demand for the log
// nobody notices; with it the evidence is refused, whatever proof is put beside it.
func TestThief(t *testing.T) {
	l := newLog(t)
	key := storetest.NewKey(t) // the observer's, and a copy is the thief's
	honest, stolen := newRig(t), newRig(t)
	stolen.subject = storetest.PushImage(t, stolen.rt, "localhost:5055", "staging/run", "malware")
	evidence := func(r *rig) []store.Evidence {
		return []store.Evidence{storetest.Provenance(t, key, r.subject, "one"), storetest.Signature(t, key, r.subject)}
	}
	good := evidence(honest)
	honest.put(good...)
	stolen.put(evidence(stolen)...)
	proof := l.add(t, good...)

	opts := verify.Options{Keys: []verify.Key{observer(key)}}
	if _, err := verify.Items(stolen.subject.Ref(), stolen.manifest(), stolen.items(), opts); err != nil {
		t.Fatalf("without a log the theft should be invisible: %v", err)
	}
	opts.Log = verify.LogTrust{Trust: l.trust}
	e, err := verify.Items(stolen.subject.Ref(), stolen.manifest(), stolen.items(), opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range e.Statements() {
		if len(s.Log) != 0 || s.NotLogged != "no log entry is kept with it" {
			t.Errorf("a log known and not required: %+v", s.Logged)
		}
	}

	opts.Log.Require = true
	e, err = verify.Items(honest.subject.Ref(), honest.manifest(), annotate(honest.items(), proof), opts)
	if err != nil {
		t.Fatal(err)
	}
	if len(e.Statements()) != 1 || len(e.Signatures()) != 2 || len(e.Rejected()) != 0 {
		t.Errorf("%d statements, %d signatures, rejected %v", len(e.Statements()), len(e.Signatures()), e.Rejected())
	}
	for _, s := range e.Signatures() {
		if len(s.Log) != 1 || !s.Witnessed() || s.Log[0].Witnesses[0] != "example.org/witness" || s.NotLogged != "" {
			t.Errorf("signature %+v", s.Logged)
		}
	}
	refused := func(name string, r *rig, items []store.Item, opts verify.Options, want string) {
		t.Helper()
		_, err := verify.Items(r.subject.Ref(), r.manifest(), items, opts)
		none, ok := err.(*verify.NoEvidenceError)
		if !ok || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want no evidence, with %q", name, err, want)
			return
		}
		if len(none.Rejected) != none.Found {
			t.Errorf("%s: %d of %d rejected", name, len(none.Rejected), none.Found)
		}
	}
	refused("signed offline", stolen, stolen.items(), opts, "its key may have been used unseen: no log entry is kept with it")
	refused("another's proof", stolen, annotate(stolen.items(), proof), opts, "the log entry is about")
	refused("garbage", stolen, annotate(stolen.items(), "AAAA"), opts, "reading log proof")
	refused("too many proofs", stolen, annotate(stolen.items(), strings.Repeat("AAAA,", 9)), opts, "at most")
	refused("no base64", stolen, annotate(stolen.items(), "%"), opts, "reading assay.dev/log-proof")
	if _, err := verify.Items(stolen.subject.Ref(), stolen.manifest(), stolen.items(), verify.Options{Keys: opts.Keys, Log: verify.LogTrust{Require: true}}); err == nil || !strings.Contains(err.Error(), "no log is trusted") {
		t.Errorf("a log required and none trusted: %v", err)
	}
	other := newLog(t)
	strange := opts
	strange.Log.Trust.Witnesses = other.trust.Witnesses
	refused("witness unknown", honest, annotate(honest.items(), proof), strange, "cosigned by 0 of the trusted witnesses")
	strange.Log.Trust = other.trust
	refused("log unknown", honest, annotate(honest.items(), proof), strange, "not signed by the trusted key")

	// Without a witness it counts, and says so.
	opts.Log.Witnesses = nil
	if e, err = verify.Items(honest.subject.Ref(), honest.manifest(), annotate(honest.items(), proof), opts); err != nil {
		t.Fatal(err)
	}
	for _, s := range e.Statements() {
		if len(s.Log) != 1 || s.Witnessed() {
			t.Errorf("without witness: %+v", s.Logged)
		}
	}
}

// TestTwoCopies: the tag's copy without proof does not spoil the referrer's with one.
func TestTwoCopies(t *testing.T) {
	l := newLog(t)
	r, key := newRig(t), storetest.NewKey(t)
	p := storetest.Provenance(t, key, r.subject, "one")
	r.put(p)
	proof := l.add(t, p)
	items := r.items()
	if len(items) != 2 {
		t.Fatalf("%d items; want tag and referrer", len(items))
	}
	for i := range items {
		both := r.items()
		both[i : i+1 : i+1][0] = annotate(both[i:i+1], proof)[0]
		opts := verify.Options{Keys: []verify.Key{bare("k", key)}, WithoutSignature: true, Log: verify.LogTrust{Trust: l.trust}}
		e, err := verify.Items(r.subject.Ref(), r.manifest(), both, opts)
		if err != nil {
			t.Fatal(err)
		}
		if s := e.Statements(); len(s) != 1 || !s[0].Witnessed() || s[0].NotLogged != "" {
			t.Errorf("copy %d with proof: %+v", i, s[0].Logged)
		}
		opts.Log.Require = true
		if e, err = verify.Items(r.subject.Ref(), r.manifest(), both, opts); err != nil || len(e.Statements()) != 1 || len(e.Rejected()) != 1 {
			t.Errorf("copy %d with proof, required: %v", i, err)
		}
	}
}

// TestSeveralSigners: one envelope by two keys of which one logged.
func TestSeveralSigners(t *testing.T) {
	l := newLog(t)
	r, one, two := newRig(t), storetest.NewKey(t), storetest.NewKey(t)
	p := storetest.Provenance(t, one, r.subject, "one")
	q := storetest.Provenance(t, two, r.subject, "one")
	if string(p.Envelope.Payload) != string(q.Envelope.Payload) {
		t.Fatal("the two do not state the same")
	}
	proof := l.add(t, q)
	env := *p.Envelope
	env.Signatures = append([]dsse.Signature{}, p.Envelope.Signatures[0], q.Envelope.Signatures[0])
	content, err := json.Marshal(&env)
	if err != nil {
		t.Fatal(err)
	}
	items := annotate([]store.Item{{Format: store.FormatTag, Digest: "sha256:x", MediaType: "application/vnd.dsse.envelope.v1+json", Content: content}}, proof)
	opts := verify.Options{Keys: []verify.Key{bare("one", one), bare("two", two)}, WithoutSignature: true, Log: verify.LogTrust{Trust: l.trust, Require: true}}
	e, err := verify.Items(r.subject.Ref(), r.manifest(), items, opts)
	if err != nil {
		t.Fatal(err)
	}
	if s := e.Statements(); len(s) != 1 || s[0].KeyName != "two" {
		t.Errorf("%+v; want the signer that logged", s)
	}
}

func TestLogTrust(t *testing.T) {
	_, log, wit, err := tlog.GenerateKey("example.com/log")
	if err != nil {
		t.Fatal(err)
	}
	_, _, witness, err := tlog.GenerateKey("example.org/witness")
	if err != nil {
		t.Fatal(err)
	}
	key := storetest.NewKey(t)
	rekor, _ := json.Marshal(string(storetest.NewKey(t).PublicPEM()))
	pem, _ := json.Marshal(string(key.PublicPEM()))
	good := `{"keys":[{"name":"k","pem":` + string(pem) + `}],"logs":[{"name":"ours","key":"` + log.String() + `"},{"name":"Rekor","pem":` + string(rekor) + `,"witnessed":true}],` +
		`"witnesses":[{"name":"neighbour","key":"` + witness.String() + `"}],"quorum":1,"requireLog":true}`
	trust, err := verify.ParseTrust([]byte(good), nil)
	if err != nil {
		t.Fatal(err)
	}
	if l := trust.Log; !l.Require || l.Quorum != 1 || len(l.Logs) != 1 || l.Logs[0].Name != "ours" || len(l.Rekor) != 1 || !l.Rekor[0].Witnessed || l.Witnesses[0].Name != "neighbour" {
		t.Errorf("%+v", l)
	}
	// There and back, as it is handed to the releaser.
	b, err := json.Marshal(trust.Log)
	if err != nil {
		t.Fatal(err)
	}
	var back verify.LogTrust
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if again, err := json.Marshal(back); err != nil || string(again) != string(b) {
		t.Errorf("there and back:\n%s\n%s, %v", b, again, err)
	}
	for name, tc := range map[string]struct{ old, new, says string }{
		"witness with the log's key": {witness.String(), wit.String(), "somebody else"},
		"quorum out of reach":        {`"quorum":1`, `"quorum":2`, "2 witnesses are required"},
		"quorum 0":                   {`"quorum":1`, `"quorum":0`, "1 or more"},
		"quorum a word":              {`"quorum":1`, `"quorum":"all"`, "1 or more"},
		"requireLog a word":          {`"requireLog":true`, `"requireLog":"yes"`, "true or false"},
		"requireLog null":            {`"requireLog":true`, `"requireLog":null`, "true or false"},
		"unknown member":             {`"witnessed"`, `"trusted"`, `"trusted"`},
		"two logs alike":             {`"Rekor"`, `"ours"`, "second one named"},
		"log without key":            {`"key":"` + log.String() + `"`, `"witnessed":true`, "one of key"},
		"key and pem":                {`"name":"ours"`, `"name":"ours","pem":"x"`, "one of key"},
		"bad key":                    {log.String(), "example.com/log+00000000+AAAA", "reading log key"},
		"witness' key for a log's":   {log.String(), witness.String(), "reading log key"},
		"a file":                     {`"pem":` + string(rekor), `"file":"x"`, "cannot refer to files"},
		"logs null":                  {`"quorum":1`, `"quorum":null`, "1 or more"},
		"tile log witnessed":         {`"name":"ours"`, `"name":"ours","witnessed":false`, "always must be"},
	} {
		doc := strings.Replace(good, tc.old, tc.new, 1)
		if _, err := verify.ParseTrust([]byte(doc), nil); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v; want an error that says %q", name, err, tc.says)
		}
	}
	if _, err := verify.ParseTrust([]byte(`{"keys":[{"name":"k","pem":`+string(pem)+`}],"requireLog":true}`), nil); err == nil {
		t.Error("requireLog without logs was accepted")
	}
}
