package e2e_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/attest"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/ledger"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
)

// logged gives the rig's home a log and a witness.
func (r *rig) logged(t *testing.T) *home.Log {
	t.Helper()
	if _, errout, code := r.Run("log", "init"); code != 0 {
		t.Fatalf("making a log: %s", errout)
	}
	c, err := (&home.Home{Dir: r.Home}).Config()
	must(t, err)
	return c.Log
}

// TestThief is about somebody with a copy of the observer's private key, who signs
// at home whatever he likes: provenance and observation of an honest run, word for
// word, about an image of his own.
func TestThief(t *testing.T) {
	r := newRig(t)
	l := r.logged(t)
	good := r.run(imageResults, cloneTask(), prefetchTask(), buildTask()).attested(t)
	release := r.policy(t, "release", nil)
	r.passes(t, good.image, release)

	// Without the log in the trust, everything that he signs is true.
	var trust map[string]any
	b, err := os.ReadFile(filepath.Join(r.Home, "trust.json"))
	must(t, err)
	must(t, json.Unmarshal(b, &trust))
	for _, k := range []string{"logs", "witnesses", "quorum"} {
		if trust[k] == nil {
			t.Errorf("the home's trust names no %s: %s", k, b)
		}
		delete(trust, k)
	}
	b, err = json.Marshal(trust)
	must(t, err)
	blind := filepath.Join(r.Home, "blind.json")
	must(t, os.WriteFile(blind, b, 0o644))

	stolen := filepath.Join(t.TempDir(), "key")
	b, err = os.ReadFile(filepath.Join(r.Home, "observer", "executed.key"))
	must(t, err)
	must(t, os.WriteFile(stolen, b, 0o600))
	key, err := attest.LoadSigner(stolen, nil)
	must(t, err)
	for how, log := range map[string]func(own, genuine []store.Evidence) []store.Evidence{
		"unseen": func(own, _ []store.Evidence) []store.Evidence { return own },
		"with the entries of the honest run": func(own, genuine []store.Evidence) []store.Evidence {
			for i := range own {
				own[i].Log = genuine[i].Log
			}
			return own
		},
		"in a log of his own": func(own, _ []store.Evidence) []store.Evidence {
			his := storetest.NewLog(t)
			for i := range own {
				own[i] = his.Add(t, own[i])
			}
			return own
		},
	} {
		t.Run(how, func(t *testing.T) {
			srv := httptest.NewServer(storetest.Registry(t, true))
			defer srv.Close()
			host := strings.TrimPrefix(srv.URL, "http://")
			subject := storetest.PushImage(t, http.DefaultTransport, host, "forged/image", "malware")
			repo, err := name.NewRepository(subject.Repo)
			must(t, err)
			genuine := r.evidence(t, good.image, key)
			_, err = oci.New(repo, nil, oci.Options{}).Put(t.Context(), subject, log(forge(t, key, genuine, good.image, subject), genuine)...)
			must(t, err)
			forged := subject.Ref()

			r.passes(t, forged, release, "--trust", blind)
			v := r.refuses(t, forged, release, "log.entry")
			if msg := v.violation(t, "log.entry").Msg; !strings.Contains(msg, "No trusted log ("+strings.Split(l.Key, "+")[0]+")") {
				t.Errorf("it is refused since %q", msg)
			}
			if _, errout, code := r.Run("verify", forged, "--key", r.key(), "--require-log"); code == 0 || !strings.Contains(errout, "its key may have been used unseen") {
				t.Errorf("verify --require-log: exit %d: %s", code, errout)
			}
			out, errout, code := r.Run("verify", forged, "--key", r.key())
			if code != 0 || strings.Count(out, "not logged") != 4 {
				t.Errorf("verify does not say that nothing is logged: exit %d: %s%s", code, out, errout)
			}
		})
	}
	// What is honest stays so when the log's processes are gone.
	if _, errout, code := r.Run("verify", good.image, "--key", r.key(), "--require-log"); code != 0 {
		t.Errorf("the honest image is refused: %s", errout)
	}
	leftovers(t, r)
}

// evidence is what the home keeps of an image: signature, provenance, observation,
// with their log entries.
func (r *rig) evidence(t *testing.T, image string, key attest.Signer) []store.Evidence {
	t.Helper()
	out, errout, code := r.Run("download", "attestation", image, "--all")
	if code != 0 {
		t.Fatalf("reading attestations: %s", errout)
	}
	repo, digest, _ := strings.Cut(image, "@")
	sig, err := attest.Image(t.Context(), key, repo, digest)
	must(t, err)
	pub := storetest.Public(t, key)
	list := []store.Evidence{{Envelope: sig.Envelope, Simple: &store.Simple{Payload: sig.Payload, Sig: sig.Sig}, Key: pub}}
	for _, line := range lines(out) {
		env, err := dsse.Parse(line)
		must(t, err)
		list = append(list, store.Evidence{Envelope: env, Key: pub})
	}
	// As the registry has it in its folder: any of its annotations will do.
	proofs := r.proofs(t)
	for i := range list {
		list[i].Log = proofs
	}
	return list
}

// proofs are some of those in the embedded registry.
func (r *rig) proofs(t *testing.T) []store.LogEntry {
	t.Helper()
	for _, content := range r.listing(t, "staging") {
		var m struct{ Annotations map[string]string }
		if json.Unmarshal([]byte(content), &m) != nil || m.Annotations[tlog.AnnotationProof] == "" {
			continue
		}
		list, err := tlog.ParseProofs(m.Annotations[tlog.AnnotationProof])
		must(t, err)
		var out []store.LogEntry
		for _, p := range list {
			out = append(out, store.LogEntry{Proof: p})
		}
		return out
	}
	t.Fatal("no referrer in the registry has a proof")
	return nil
}

// forge signs evidence again, about another image.
func forge(t *testing.T, key attest.Signer, genuine []store.Evidence, image string, subject store.Subject) []store.Evidence {
	t.Helper()
	sig, err := attest.Image(t.Context(), key, subject.Repo, subject.Digest)
	must(t, err)
	pub := storetest.Public(t, key)
	out := []store.Evidence{{Envelope: sig.Envelope, Simple: &store.Simple{Payload: sig.Payload, Sig: sig.Sig}, Key: pub}}
	digests := strings.NewReplacer(strings.TrimPrefix(digestOf(image), "sha256:"), strings.TrimPrefix(subject.Digest, "sha256:"))
	payloads := make([]string, len(genuine))
	var was, is string
	for i, e := range genuine {
		payloads[i] = digests.Replace(string(e.Envelope.Payload))
		if s, err := intoto.Parse(e.Envelope.Payload); err == nil && strings.Contains(s.PredicateType, "slsa") {
			was, is = sum(string(e.Envelope.Payload)), sum(payloads[i])
		}
	}
	for _, p := range payloads[1:] {
		env, err := attest.Statement(t.Context(), key, []byte(strings.ReplaceAll(p, was, is)))
		must(t, err)
		out = append(out, store.Evidence{Envelope: env, Key: pub})
	}
	return out
}

// TestLogDown takes the log away: runs go on, are not signed, and are attested when
// it is back. Nothing is lost, and nothing passes for logged.
func TestLogDown(t *testing.T) {
	r := newRig(t)
	r.logged(t)
	unsigned := func(t *testing.T, res *built, why string) {
		t.Helper()
		if res.Code != 1 || !res.Succeeded || res.Stated != nil || !strings.Contains(res.Stderr, why) || !strings.Contains(res.Stderr, "assay runs attest "+res.Run) {
			t.Fatalf("exit %d, succeeded %t, stated %+v; want it unsigned since %q\n%s", res.Code, res.Succeeded, res.Stated, why, res.Stderr)
		}
		rec, err := ledger.Read(filepath.Join(r.Home, "ledger"), res.Run)
		must(t, err)
		if rec.Signing != nil || rec.Ending == nil || rec.Ending.Outcome != ledger.Succeeded {
			t.Errorf("the ledger has it as %+v, signed %+v", rec.Ending, rec.Signing)
		}
		for file, content := range r.listing(t, "staging/"+res.Run) {
			if strings.Contains(content, "vnd.dev.sigstore.bundle") || strings.Contains(content, "vnd.dsse.envelope") {
				t.Errorf("evidence was stored that is in no log: %s", file)
			}
		}
	}
	attested := func(t *testing.T, res *built) {
		t.Helper()
		out, errout, code := r.Run("runs", "attest", res.Run)
		if code != 0 || !strings.Contains(out, "attested "+res.image) {
			t.Fatalf("attesting later: exit %d\n%s%s", code, out, errout)
		}
		if _, errout, code := r.Run("verify", res.image, "--key", r.key(), "--require-log"); code != 0 {
			t.Errorf("what was attested later is in no log: %s", errout)
		}
	}

	t.Run("it does not start", func(t *testing.T) {
		// The log's process refuses a key that others can read.
		logKey := filepath.Join(r.Home, "log", "key")
		must(t, os.Chmod(logKey, 0o644))
		res := r.run(imageResults, cloneTask(), prefetchTask(), buildTask())
		unsigned(t, res, "others may read it")
		if _, errout, code := r.Run("runs", "attest", res.Run); code != 1 || !strings.Contains(errout, "others may read it") {
			t.Errorf("attesting without the log: exit %d %s", code, errout)
		}
		must(t, os.Chmod(logKey, 0o600))
		attested(t, res)
	})
	t.Run("it is killed during the run", func(t *testing.T) {
		serve := r.serveLog(t)
		r.bundle("slow-build", strings.Replace(r.file("testdata/tasks/build-shell.yaml"), "      set -eu\n", "      set -eu\n      sleep 3\n", 1))
		slow := buildTask()
		slow.bundle, slow.as = "slow-build", "build-shell"
		before, err := ledger.List(filepath.Join(r.Home, "ledger"))
		must(t, err)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for t.Context().Err() == nil {
				if now, err := ledger.List(filepath.Join(r.Home, "ledger")); err == nil && len(now) > len(before) {
					break // it is open, and sleeps before it can be stated
				}
				time.Sleep(20 * time.Millisecond)
			}
			serve.Process.Kill() //nolint:errcheck // the run tells
		}()
		res := r.run(imageResults, cloneTask(), prefetchTask(), slow)
		<-done
		serve.Wait() //nolint:errcheck // it was killed
		unsigned(t, res, "logging the evidence")
		attested(t, res)
	})
	t.Run("somebody serves it", func(t *testing.T) {
		serve := r.serveLog(t)
		r.run(imageResults, cloneTask(), prefetchTask(), buildTask()).attested(t)
		must(t, serve.Process.Signal(os.Interrupt))
		must(t, serve.Wait())
	})
	out, errout, code := r.Run("log", "verify")
	if code != 0 || !strings.Contains(errout, "all in the tree") || out == "" {
		t.Errorf("the log does not verify: exit %d %s", code, errout)
	}
	leftovers(t, r)
}

// serveLog is `assay log serve`, ready.
func (r *rig) serveLog(t *testing.T) *exec.Cmd {
	t.Helper()
	c := r.Command(t.Context(), "log", "serve")
	var errs bytes.Buffer
	c.Stderr = &errs
	out, err := c.StdoutPipe()
	must(t, err)
	must(t, c.Start())
	lines := bufio.NewReader(out)
	for _, want := range []string{"witness ", "log "} {
		line, err := lines.ReadString('\n')
		if err != nil || !strings.HasPrefix(line, want) {
			t.Fatalf("assay log serve: %q, %v: %s", line, err, errs.String())
		}
	}
	go io.Copy(io.Discard, lines) //nolint:errcheck // until it ends
	return c
}
