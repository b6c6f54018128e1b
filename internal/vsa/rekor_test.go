package vsa_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	internal "assay.dev/assay/internal/vsa"
	"assay.dev/assay/internal/vsa/vsatest"
	"assay.dev/assay/policy/vsa"
	"assay.dev/assay/store/storetest"
)

func place(t testing.TB, s string) internal.Place {
	t.Helper()
	p, err := internal.ParsePlace(s, internal.Rekor, internal.Local, internal.File)
	fatal(t, err)
	return p
}

// TestRekor: an envelope comes back as it went, by the image's digest, the latest first.
func TestRekor(t *testing.T) {
	log, url := vsatest.Serve(t)
	k := storetest.NewKey(t)
	s := startSigner(t, k)
	p := place(t, "rekor@"+url+"?retries=0")
	var sent [][]byte
	for _, say := range []string{"one", "two"} {
		statement, err := vsa.ConformaStatement("example.com/app", otherDigest, map[string]any{"say": say})
		fatal(t, err)
		env, key, err := s.Sign(t.Context(), statement)
		fatal(t, err)
		fatal(t, p.Put(t.Context(), env, key, nil, time.Now()))
		fatal(t, p.Put(t.Context(), env, key, nil, time.Now())) // there already
		sent = append(sent, statement)
	}
	got, err := p.Get(t.Context(), "example.com/app@"+otherDigest, nil)
	fatal(t, err)
	if len(got) != 2 || !bytes.Equal(got[0].Payload, sent[1]) || !bytes.Equal(got[1].Payload, sent[0]) {
		t.Fatalf("%d envelopes", len(got))
	}
	for _, env := range got {
		if _, err := env.Verify(1, storetest.Public(t, k)); err != nil {
			t.Error(err)
		}
	}
	if _, err := p.Get(t.Context(), policyDigest, nil); !errors.Is(err, internal.ErrNotThere) {
		t.Errorf("another image: %v", err)
	}
	if _, err := p.Get(t.Context(), "example.com/app:1", nil); err == nil || !strings.Contains(err.Error(), "does not contain a valid image digest") {
		t.Errorf("a tag: %v", err)
	}
	// A log that lies makes nothing true.
	log.Alter(func(e map[string]any) {
		e["attestation"] = map[string]any{"data": bytes.ReplaceAll(sent[1], []byte("two"), []byte("six"))}
	})
	if got, err = p.Get(t.Context(), otherDigest, nil); err != nil {
		t.Fatal(err)
	}
	for _, env := range got {
		if _, err := env.Verify(1, storetest.Public(t, k)); err == nil {
			t.Error("a payload of the log's own verifies")
		}
	}
}

// TestRekorRefuses: what a log refuses or cannot do is said.
func TestRekorRefuses(t *testing.T) {
	_, url := vsatest.Serve(t)
	statement, err := vsa.ConformaStatement("example.com/app", otherDigest, map[string]any{})
	fatal(t, err)
	env, _, err := startSigner(t, storetest.NewKey(t)).Sign(t.Context(), statement)
	fatal(t, err)
	if err := place(t, "rekor@"+url).Put(t.Context(), env, storetest.Public(t, storetest.NewKey(t)), nil, time.Now()); err == nil || !strings.Contains(err.Error(), "answers 400") {
		t.Errorf("another key: %v", err)
	}
	for name, answer := range map[string]string{"no list": `{}`, "an id that leads elsewhere": `["../../evil"]`, "too many": `["` + strings.Repeat(strings.Repeat("0", 64)+`","`, 300) + `x"]`} {
		rt := roundTripper(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Header: http.Header{}, Request: r, Body: readCloser{strings.NewReader(answer)}}, nil
		})
		if got, err := place(t, "rekor@http://log.test").Get(t.Context(), otherDigest, rt); err == nil {
			t.Errorf("%s: %d envelopes", name, len(got))
		}
	}
	tries := 0
	away := roundTripper(func(r *http.Request) (*http.Response, error) {
		tries++
		return &http.Response{StatusCode: 503, Header: http.Header{}, Request: r, Body: readCloser{strings.NewReader("away")}}, nil
	})
	if _, err := place(t, "rekor@http://log.test?retries=2").Get(t.Context(), otherDigest, away); err == nil || tries != 3 || errors.Is(err, internal.ErrNotThere) {
		t.Errorf("%d tries, %v", tries, err)
	}
}

type readCloser struct{ *strings.Reader }

func (readCloser) Close() error { return nil }

func TestPlace(t *testing.T) {
	dir := t.TempDir()
	k := storetest.NewKey(t)
	statement, err := vsa.ConformaStatement("example.com/app", otherDigest, map[string]any{})
	fatal(t, err)
	env, key, err := startSigner(t, k).Sign(t.Context(), statement)
	fatal(t, err)
	local := place(t, "local@"+filepath.Join(dir, "a", "b"))
	fatal(t, local.Put(t.Context(), env, key, nil, time.Now()))
	files, err := filepath.Glob(filepath.Join(dir, "a", "b", "vsa-*.json"))
	fatal(t, err)
	if len(files) != 1 {
		t.Fatalf("%q", files)
	}
	if info, err := os.Stat(files[0]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	got, err := place(t, "file@"+filepath.Join(dir, "a")).Get(t.Context(), "b/"+filepath.Base(files[0]), nil)
	fatal(t, err)
	if len(got) != 1 || !bytes.Equal(got[0].Payload, statement) {
		t.Errorf("%d envelopes", len(got))
	}
	if _, err := place(t, "file@"+dir).Get(t.Context(), "none.json", nil); !errors.Is(err, internal.ErrNotThere) {
		t.Errorf("%v", err)
	}
	if _, err := local.Get(t.Context(), "x", nil); err == nil {
		t.Error("a place that is only written was read")
	}
	if err := place(t, "file@"+dir).Put(t.Context(), env, key, nil, time.Now()); err == nil {
		t.Error("a place that is only read was written")
	}
	for in, want := range map[string]string{
		"": "cannot be empty", "@x": "backend name cannot be empty", "s3@x": "unsupported backend 's3'. Supported backends: rekor, local",
		"rekor@x": "no URL", "rekor?timeout=x": "invalid timeout", "rekor?retries=-1": "invalid retries", "rekor?retries=x": "invalid retries", "local@x?a=%zz": "invalid storage",
	} {
		if p, err := internal.ParsePlace(in, internal.Rekor, internal.Local); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v; want %q", in, p, err, want)
		}
	}
	for in, want := range map[string]internal.Place{
		"rekor":                 {Backend: internal.Rekor, Where: internal.DefaultRekor},
		"Rekor@http://x/y":      {Backend: internal.Rekor, Where: "http://x/y"},
		"rekor?server=http://z": {Backend: internal.Rekor, Where: "http://z"},
		"local":                 {Backend: internal.Local, Where: "./vsa-upload"},
		"local?dir=/d":          {Backend: internal.Local, Where: "/d"},
		"file":                  {Backend: internal.File, Where: "."},
	} {
		if p := place(t, in); p.Backend != want.Backend || p.Where != want.Where {
			t.Errorf("%q: %+v", in, p)
		}
	}
}

// FuzzEntry: no answer of a log makes more than a payload with signatures to verify.
func FuzzEntry(f *testing.F) {
	body := base64.StdEncoding.EncodeToString([]byte(`{"apiVersion":"0.0.2","kind":"intoto","spec":{"content":{"envelope":{"payload":"WlhoaGJYQnNaUT09","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"WlhoaGJYQnNaUT09"}]}}}}`))
	raw, _ := json.Marshal(map[string]any{strings.Repeat("0", 64): map[string]any{"body": body, "integratedTime": 1}})
	f.Add(raw)
	f.Add([]byte(`{}`))
	id := strings.Repeat("0", 64)
	p := place(f, "rekor@http://log.test?retries=0")
	f.Fuzz(func(t *testing.T, raw []byte) {
		rt := roundTripper(func(r *http.Request) (*http.Response, error) {
			answer := string(raw)
			if r.Method == http.MethodPost {
				answer = `["` + id + `"]`
			}
			return &http.Response{StatusCode: 200, Header: http.Header{}, Request: r, Body: readCloser{strings.NewReader(answer)}}, nil
		})
		list, err := p.Get(t.Context(), otherDigest, rt)
		if err != nil {
			return
		}
		for _, env := range list {
			if len(env.Payload) == 0 || len(env.Signatures) == 0 {
				t.Fatalf("%+v", env)
			}
		}
	})
}
