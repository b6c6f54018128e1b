// The tests run against Archivista's own server, built from its module over
// SQLite (tools/archivista): its handlers, its GraphQL, its stores. What a
// working server does not do (refuse, be slow, lose what it accepted) is done by
// an HTTP server of ours before or instead of it.
package archivista_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/store"
	"assay.dev/assay/store/archivista"
	"assay.dev/assay/store/storetest"
)

// server starts Archivista with an empty folder and returns its URL.
func server(t *testing.T) string {
	t.Helper()
	binary := os.Getenv("ASSAY_ARCHIVISTA")
	if binary == "" {
		t.Skip(`set ASSAY_ARCHIVISTA; eval "$(tools/peers archivista)" builds it and does`)
	}
	cmd := exec.Command(binary, t.TempDir())
	var log bytes.Buffer
	cmd.Stderr = &log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close() // it ends with its input
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("starting Archivista: %v\n%s", err, &log)
	}
	return strings.TrimSpace(line)
}

func open(t *testing.T, url string) *archivista.Keeper {
	t.Helper()
	k, err := archivista.Open(archivista.Options{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

func image(say string) string {
	return "registry.example/team/app@" + storetest.Digest([]byte(say))
}

func statement(t *testing.T, say string, signers ...*storetest.RecordSigner) store.Record {
	t.Helper()
	return storetest.StatementRecord(t, storetest.NewRun("PipelineRun"), say,
		[]intoto.Subject{storetest.ImageSubject(image(say))}, signers...)
}

func TestSuite(t *testing.T) {
	storetest.RunKeeper(t, func(t *testing.T) storetest.Keepers {
		var broken atomic.Int64 // the status of every answer, if not 0
		direct := server(t)
		target, _ := url.Parse(direct)
		proxy := httputil.NewSingleHostReverseProxy(target)
		front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if code := broken.Load(); code != 0 {
				http.Error(w, "broken", int(code))
				return
			}
			if req.ContentLength > 1<<20 {
				http.Error(w, "too large", http.StatusRequestEntityTooLarge)
				return
			}
			proxy.ServeHTTP(w, req)
		}))
		t.Cleanup(front.Close)
		answer := func(code int64) func(on bool) {
			return func(on bool) {
				if broken.Store(0); on {
					broken.Store(code)
				}
			}
		}
		return storetest.Keepers{
			Open: func(t testing.TB) store.Keeper {
				k, err := archivista.Open(archivista.Options{URL: front.URL})
				if err != nil {
					t.Fatal(err)
				}
				return k
			},
			NoImages: true, SkipsImages: true,
			Arrived: func(t testing.TB) []store.Kept { return everything(t, direct) },
			Down:    answer(http.StatusBadGateway), Deny: answer(http.StatusForbidden),
			TooLarge: 1 << 20,
		}
	})
}

// everything is what a server holds, asked for by its own GraphQL.
func everything(t testing.TB, u string) []store.Kept {
	t.Helper()
	res, err := http.Post(u+"/v1/query", "application/json", strings.NewReader(`{"query":"{dsses(first:1000){edges{node{gitoidSha256 payloadDigests{algorithm value}}}}}"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var page struct {
		Data struct {
			Dsses struct {
				Edges []struct {
					Node struct {
						Digests []struct{ Value string } `json:"payloadDigests"`
					}
				}
			}
		}
	}
	if err := json.Unmarshal(data, &page); err != nil {
		t.Fatal(err)
	}
	k, err := archivista.Open(archivista.Options{URL: u})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	var out []store.Kept
	seen := map[string]bool{}
	for _, e := range page.Data.Dsses.Edges {
		d := e.Node.Digests[0].Value
		if seen[d] {
			continue
		}
		seen[d] = true
		kept, err := k.FindDigest(context.WithoutCancel(t.Context()), d)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, kept...)
	}
	return out
}

func TestKeep(t *testing.T) {
	u := server(t)
	key := storetest.NewRecordSigner(t)
	r := statement(t, "one", key)
	picture := storetest.ImageRecord(t, r.Run, image("one"), key)
	out := open(t, u).Keep(t.Context(), []store.Record{picture, r})
	if out[1].Err != nil || out[1].Existing || len(out[1].Where) != 1 {
		t.Fatalf("statement: %+v; want it kept in one place", out[1])
	}
	if out[0].Err != nil || len(out[0].Skipped) != 1 || !strings.Contains(out[0].Skipped[0], picture.Image) || len(out[0].Where) != 0 {
		t.Errorf("image: %+v; want it skipped by name", out[0])
	}
	// What Where says is the envelope as upstream uploads it.
	res, err := http.Get(out[1].Where[0])
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	want, err := r.SignatureBytes()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("stored envelope (-want +got):\n%s", diff)
	}
	// By another keeper, by payload and by subject.
	k := open(t, u)
	for name, find := range map[string]func() ([]store.Kept, error){
		"payload": func() ([]store.Kept, error) { return k.FindPayload(t.Context(), r.Payload) },
		"subject": func() ([]store.Kept, error) {
			return k.FindSubject(t.Context(), storetest.Digest([]byte("one")))
		},
	} {
		kept, err := find()
		if err != nil {
			t.Fatalf("finding by %s: %v", name, err)
		}
		if diff := cmp.Diff([]store.Kept{{Where: out[1].Where[0], Payload: r.Payload, Signature: want}}, kept); diff != "" {
			t.Errorf("found by %s (-want +got):\n%s", name, diff)
		}
	}
	if kept, err := k.FindSubject(t.Context(), storetest.Digest([]byte("other"))); err != nil || len(kept) != 0 {
		t.Errorf("finding another subject: %d, %v; want none", len(kept), err)
	}
	if _, err := k.Find(t.Context(), r.Run, r.Key); !errors.Is(err, store.ErrWriteOnly) {
		t.Errorf("Find: %v; want ErrWriteOnly", err)
	}
}

// TestKeepAgain: another observer with the same key signs anew and adds nothing.
// Who has no such key cannot keep a statement away by uploading it first.
func TestKeepAgain(t *testing.T) {
	u := server(t)
	run := storetest.NewRun("TaskRun")
	subjects := []intoto.Subject{storetest.ImageSubject(image("a"))}
	stranger, ours := storetest.NewRecordSigner(t), storetest.NewRecordSigner(t)
	for i, c := range []struct {
		signer   *storetest.RecordSigner
		existing bool
		want     int
	}{{stranger, false, 1}, {ours, false, 2}, {ours, true, 2}, {ours, true, 2}} {
		r := storetest.StatementRecord(t, run, "same", subjects, c.signer)
		out := open(t, u).Keep(t.Context(), []store.Record{r})
		if out[0].Err != nil || out[0].Existing != c.existing {
			t.Fatalf("time %d: %+v; want Existing %t", i, out[0], c.existing)
		}
		kept, err := open(t, u).FindPayload(t.Context(), r.Payload)
		if err != nil || len(kept) != c.want {
			t.Fatalf("time %d: %d envelopes, %v; want %d", i, len(kept), err, c.want)
		}
	}
}

// TestCertificates: Archivista keeps nothing beside the envelope, so that a
// certificate must be in it.
func TestCertificates(t *testing.T) {
	u := server(t)
	signer := storetest.NewCertSigner(t)
	r := statement(t, "cert", signer, storetest.NewRecordSigner(t))
	if out := open(t, u).Keep(t.Context(), []store.Record{r}); out[0].Err != nil {
		t.Fatal(out[0].Err)
	}
	kept, err := open(t, u).FindPayload(t.Context(), r.Payload)
	if err != nil || len(kept) != 1 {
		t.Fatalf("%d envelopes, %v; want one", len(kept), err)
	}
	want, _ := r.SignatureBytes()
	if diff := cmp.Diff(store.Kept{Where: kept[0].Where, Payload: r.Payload, Signature: want, Cert: signer.Cert, Chain: signer.Chain}, kept[0]); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
	// Readers that know nothing of witness' members read the envelope too.
	res, err := http.Get(kept[0].Where)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, _ := io.ReadAll(res.Body)
	e, err := dsse.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Verify(2, r.Signatures[0].Key, r.Signatures[1].Key); err != nil {
		t.Error(err)
	}
}

// TestConcurrent: many runs and one keeper, the same statement several times.
func TestConcurrent(t *testing.T) {
	u := server(t)
	k := open(t, u)
	key := storetest.NewRecordSigner(t)
	var records []store.Record
	for i := range 8 {
		records = append(records, statement(t, fmt.Sprint(i), key))
	}
	var group sync.WaitGroup
	var added atomic.Int64
	for range 3 {
		for _, r := range records {
			group.Go(func() {
				out := k.Keep(t.Context(), []store.Record{r})
				if out[0].Err != nil {
					t.Error(out[0].Err)
				} else if !out[0].Existing {
					added.Add(1)
				}
			})
		}
	}
	group.Wait()
	if n := added.Load(); n != int64(len(records)) {
		t.Errorf("%d of %d statements were added", n, len(records))
	}
	for i, r := range records {
		if kept, err := k.FindPayload(t.Context(), r.Payload); err != nil || len(kept) != 1 {
			t.Errorf("statement %d: %d envelopes, %v; want one", i, len(kept), err)
		}
	}
}

// TestManySubjects: one envelope, however many subjects.
func TestManySubjects(t *testing.T) {
	u := server(t)
	var subjects []intoto.Subject
	for i := range 500 {
		subjects = append(subjects, storetest.ImageSubject(image(fmt.Sprint(i))))
	}
	r := storetest.StatementRecord(t, storetest.NewRun("PipelineRun"), strings.Repeat("x", 1<<20), subjects, storetest.NewRecordSigner(t))
	k := open(t, u)
	if out := k.Keep(t.Context(), []store.Record{r}); out[0].Err != nil {
		t.Fatal(out[0].Err)
	}
	kept, err := k.FindSubject(t.Context(), storetest.Digest([]byte("499")))
	if err != nil || len(kept) != 1 || !bytes.Equal(kept[0].Payload, r.Payload) {
		t.Errorf("finding the last subject: %d, %v; want the statement", len(kept), err)
	}
}

// TestLostAnswers breaks each request's answer in turn, after the server has
// done its work: the caller's retry must find what is there.
func TestLostAnswers(t *testing.T) {
	u := server(t)
	target, _ := url.Parse(u)
	for n := int64(1); ; n++ {
		var count atomic.Int64
		proxy := &httputil.ReverseProxy{
			Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(target) },
			ModifyResponse: func(*http.Response) error {
				if count.Add(1) == n {
					return errors.New("lost")
				}
				return nil
			},
			ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
		}
		front := httptest.NewServer(proxy)
		r := statement(t, fmt.Sprint("lost ", n), storetest.NewRecordSigner(t))
		k := open(t, front.URL)
		out := k.Keep(t.Context(), []store.Record{r})
		done := count.Load() < n
		if out[0].Err != nil {
			if store.ClassOf(out[0].Err) != store.Transient {
				t.Errorf("answer %d lost: %v is %s", n, out[0].Err, store.ClassOf(out[0].Err))
			}
			if out = k.Keep(t.Context(), []store.Record{r}); out[0].Err != nil {
				t.Errorf("answer %d lost, second attempt: %v", n, out[0].Err)
			}
		}
		front.Close()
		if kept, err := open(t, u).FindPayload(t.Context(), r.Payload); err != nil || len(kept) != 1 {
			t.Errorf("answer %d lost: %d envelopes, %v; want one", n, len(kept), err)
		}
		if done {
			t.Logf("a statement takes %d requests, the first time", n-1)
			return
		}
	}
}

func TestFaults(t *testing.T) {
	answer := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "7")
			http.Error(w, body, code)
		}
	}
	r := statement(t, "faults", storetest.NewRecordSigner(t))
	for name, c := range map[string]struct {
		h    http.HandlerFunc
		want store.Class
		say  string
	}{
		"unauthorized":  {answer(401, ""), store.Configuration, "401"},
		"forbidden":     {answer(403, "no"), store.Configuration, "403 Forbidden: no"},
		"elsewhere":     {answer(302, ""), store.Configuration, "302"},
		"too large":     {answer(413, ""), store.Permanent, "raise the limit"},
		"refused":       {answer(400, ""), store.Permanent, "400"},
		"throttled":     {answer(429, ""), store.Transient, "429"},
		"down":          {answer(503, ""), store.Transient, "503"},
		"no Archivista": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") }, store.Configuration, "is it an Archivista"},
		"a page":        {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, store.Transient, "parsing the answer"},
		"query fails": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"errors":[{"message":"db"}]}`)
		}, store.Transient, "db"},
		"nothing but index": {indexOnly(500, "object store unavailable"), store.Configuration, "ARCHIVISTA_STORAGE_BACKEND"},
		"loses envelopes":   {indexOnly(500, "no such file"), store.Transient, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(c.h)
			defer srv.Close()
			out := open(t, srv.URL).Keep(t.Context(), []store.Record{r})
			if out[0].Err == nil || store.ClassOf(out[0].Err) != c.want || !strings.Contains(out[0].Err.Error(), c.say) {
				t.Errorf("%v (%v); want %v and %q", out[0].Err, store.ClassOf(out[0].Err), c.want, c.say)
			}
			var f *store.Fault
			if errors.As(out[0].Err, &f); strings.HasPrefix(c.say, "4") && f.RetryAfter.Seconds() != 7 {
				t.Errorf("RetryAfter = %v; want 7s", f.RetryAfter)
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		srv := httptest.NewServer(nil)
		srv.Close()
		out := open(t, srv.URL).Keep(t.Context(), []store.Record{r})
		if out[0].Err == nil || store.ClassOf(out[0].Err) != store.Transient {
			t.Errorf("%v; want a transient error", out[0].Err)
		}
	})
}

// indexOnly accepts envelopes and gives none back.
func indexOnly(code int, say string) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		switch {
		case strings.HasSuffix(req.URL.Path, "/query"):
			_, _ = io.WriteString(w, `{"data":{"dsses":{"pageInfo":{"hasNextPage":false},"edges":[]}}}`)
		case strings.HasSuffix(req.URL.Path, "/upload"):
			body, _ := io.ReadAll(req.Body)
			_ = json.NewEncoder(w).Encode(map[string]string{"gitoid": archivista.Gitoid(body)})
		default:
			http.Error(w, say, code)
		}
	}
}

// TestNoGraphQL: a server that answers no queries keeps records all the same.
func TestNoGraphQL(t *testing.T) {
	target, _ := url.Parse(server(t))
	proxy := httputil.NewSingleHostReverseProxy(target)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.HasSuffix(req.URL.Path, "/query") {
			http.NotFound(w, req)
			return
		}
		proxy.ServeHTTP(w, req)
	}))
	defer srv.Close()
	r := statement(t, "no queries", storetest.NewRecordSigner(t))
	k := open(t, srv.URL)
	if out := k.Keep(t.Context(), []store.Record{r}); out[0].Err != nil || out[0].Existing {
		t.Fatalf("%+v; want it kept", out[0])
	}
	if _, err := k.FindPayload(t.Context(), r.Payload); store.ClassOf(err) != store.Configuration {
		t.Errorf("FindPayload: %v; want a configuration error", err)
	}
}

func TestToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	var got atomic.Value
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		got.Store(req.Header.Get("Authorization"))
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer srv.Close()
	k, err := archivista.Open(archivista.Options{URL: srv.URL, TokenFile: file})
	if err != nil {
		t.Fatal(err)
	}
	r := []store.Record{statement(t, "token", storetest.NewRecordSigner(t))}
	if out := k.Keep(t.Context(), r); store.ClassOf(out[0].Err) != store.Configuration || got.Load() != nil {
		t.Errorf("without the file: %v; want a configuration error and no request", out[0].Err)
	}
	for _, token := range []string{"first", "second"} {
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		k.Keep(t.Context(), r)
		if got.Load() != "Bearer "+token {
			t.Errorf("Authorization = %v; want the token %s", got.Load(), token)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, u := range []string{"", " ", "archivista:8082", "ftp://x", "http://", "://"} {
		if _, err := archivista.Open(archivista.Options{URL: u}); store.ClassOf(err) != store.Configuration || err == nil {
			t.Errorf("Open(%q): %v; want a configuration error", u, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"keyid":"k","sig":"c2ln","certificate":"eA==","intermediates":["eA=="]}]}`))
	f.Add([]byte(`{"payloadType":"t","payload":"_-8=","signatures":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := archivista.Decode(data)
		if err == nil && (e.PayloadType == "" || slices.ContainsFunc(e.Signatures, func(s archivista.Signature) bool { return s.Sig == nil })) {
			t.Errorf("decoded %q to %+v", data, e)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"data":{"dsses":{"pageInfo":{"hasNextPage":true,"endCursor":"x"},"edges":[{"node":{"gitoidSha256":"a","payloadDigests":[{"algorithm":"sha256","value":"b"}]}}]}}}`))
	f.Add([]byte(`{"errors":[{"message":"no"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if hits, next, err := archivista.Answer(data); err != nil && (hits != nil || next != "") {
			t.Errorf("an error and %d hits", len(hits))
		}
	})
}
