package verify_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/api"
	"assay.dev/assay/attest"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
	"assay.dev/assay/verify"
)

const builder = "https://assay.dev/builder/v1/executed/user/test"

// rig is a registry with one image and what was put beside it.
type rig struct {
	t       *testing.T
	rt      http.RoundTripper
	subject store.Subject
}

func newRig(t *testing.T) *rig {
	t.Helper()
	rt := storetest.Transport(storetest.Registry(t, true))
	return &rig{t, rt, storetest.PushImage(t, rt, "localhost:5055", "staging/run", "image")}
}

func (r *rig) put(evidence ...store.Evidence) {
	r.t.Helper()
	repo, err := name.NewRepository(r.subject.Repo)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := oci.New(repo, r.rt, oci.Options{}).Put(r.t.Context(), r.subject, evidence...); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) items() []store.Item {
	r.t.Helper()
	repo, _ := name.NewRepository(r.subject.Repo)
	items, err := oci.New(repo, r.rt, oci.Options{}).List(r.t.Context(), r.subject.Digest)
	if err != nil {
		r.t.Fatal(err)
	}
	return items
}

func (r *rig) manifest() []byte {
	repo, _ := name.NewRepository(r.subject.Repo)
	_, m, err := oci.New(repo, r.rt, oci.Options{}).Resolve(r.t.Context(), r.subject.Digest)
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

func observer(k *attest.Key) verify.Key {
	return verify.Key{Name: "observer", Public: k.Public(), Observer: true, Builders: []string{builder}}
}

func bare(name string, k *attest.Key) verify.Key { return verify.Key{Name: name, Public: k.Public()} }

// observation names provenance by the digest of its payload.
func observation(t *testing.T, k *attest.Key, subject store.Subject, run string, of ...store.Evidence) store.Evidence {
	t.Helper()
	var p []map[string]string
	for _, e := range of {
		p = append(p, map[string]string{"predicateType": api.PredicateSLSAv02, "digest": storetest.Digest(e.Envelope.Payload)})
	}
	b, err := json.Marshal(map[string]any{"run": map[string]string{"id": run}, "provenance": p, "builder": builder, "tasks": []any{}, "claims": []any{}})
	if err != nil {
		t.Fatal(err)
	}
	return storetest.Statement(t, k, subject, api.PredicateObservation, string(b))
}

func TestImage(t *testing.T) {
	r := newRig(t)
	key := storetest.NewKey(t)
	p := storetest.Provenance(t, key, r.subject, "one")
	r.put(p, storetest.Signature(t, key, r.subject), observation(t, key, r.subject, "run-1", p))

	for _, ref := range []string{r.subject.Ref(), r.subject.Repo + ":image", r.subject.Repo + ":image@" + r.subject.Digest} {
		e, err := verify.Image(t.Context(), ref, verify.Options{Keys: []verify.Key{observer(key)}, Transport: r.rt})
		if err != nil {
			t.Fatalf("%s: %v", ref, err)
		}
		if e.Ref() != r.subject.Ref() || e.Digest() != r.subject.Digest || storetest.Digest(e.Manifest()) != r.subject.Digest {
			t.Errorf("%s: evidence for %s", ref, e.Ref())
		}
		if n := len(e.Signatures()); n != 2 {
			t.Errorf("%d signatures; want tag and bundle", n)
		}
		for _, s := range e.Signatures() {
			if s.Grade != verify.GradeObserver || s.KeyName != "observer" || s.KeyID == "" {
				t.Errorf("signature %+v; want the observer's", s)
			}
		}
		if n := len(e.Statements()); n != 2 {
			t.Errorf("%d statements; want provenance (once, from tag and referrer) and observation", n)
		}
		for _, s := range e.Statements() {
			if s.Grade != verify.GradeObserver || storetest.Digest(s.Payload) != s.PayloadDigest || s.Predicate == nil || s.Sig == "" {
				t.Errorf("statement %s: %+v", s.PredicateType, s.Identity)
			}
		}
		runs := e.Runs()
		if len(runs) != 1 || runs[0].ID != "run-1" || runs[0].Provenance == nil || string(runs[0].Provenance.Payload) != string(p.Envelope.Payload) || runs[0].Observation == nil {
			t.Errorf("runs %+v", runs)
		}
		if len(e.Rejected()) != 0 {
			t.Errorf("rejected %+v", e.Rejected())
		}
	}
}

func TestImageRefuses(t *testing.T) {
	key, other := storetest.NewKey(t), storetest.NewKey(t)
	opts := func(r *rig, keys ...verify.Key) verify.Options { return verify.Options{Keys: keys, Transport: r.rt} }
	for _, tc := range []struct {
		name    string
		put     func(r *rig)
		opts    func(r *rig) verify.Options
		missing []string // empty: some other error
		says    string
	}{
		{"nothing attached", func(r *rig) {}, func(r *rig) verify.Options { return opts(r, bare("k", key)) },
			[]string{"image signature", "provenance"}, "nothing is attached"},
		{"only a signature", func(r *rig) { r.put(storetest.Signature(t, key, r.subject)) }, func(r *rig) verify.Options { return opts(r, bare("k", key)) },
			[]string{"provenance"}, "no provenance verified"},
		{"only provenance", func(r *rig) { r.put(storetest.Provenance(t, key, r.subject, "x")) }, func(r *rig) verify.Options { return opts(r, bare("k", key)) },
			[]string{"image signature"}, "no image signature verified"},
		{"signed by another key", func(r *rig) {
			r.put(storetest.Provenance(t, other, r.subject, "x"), storetest.Signature(t, other, r.subject))
		}, func(r *rig) verify.Options { return opts(r, bare("mine", key)) },
			[]string{"image signature", "provenance"}, `key "mine"`},
		{"observations are no provenance", func(r *rig) {
			r.put(storetest.Observation(t, key, r.subject, "x"), storetest.Signature(t, key, r.subject))
		}, func(r *rig) verify.Options { return opts(r, bare("k", key)) }, []string{"provenance"}, ""},
		{"nothing required and nothing there", func(r *rig) {}, func(r *rig) verify.Options {
			o := opts(r, bare("k", key))
			o.WithoutSignature, o.WithoutProvenance = true, true
			return o
		}, []string{"signature or statement"}, ""},
		{"no keys", func(r *rig) {}, func(r *rig) verify.Options { return opts(r) }, nil, "--key"},
		{"one key twice", func(r *rig) {}, func(r *rig) verify.Options { return opts(r, bare("a", key), observer(key)) }, nil, "same key"},
		{"observer without builders", func(r *rig) {}, func(r *rig) verify.Options {
			return opts(r, verify.Key{Name: "o", Public: key.Public(), Observer: true})
		}, nil, "builder.id"},
		{"builders without observer", func(r *rig) {}, func(r *rig) verify.Options {
			return opts(r, verify.Key{Name: "o", Public: key.Public(), Builders: []string{builder}})
		}, nil, "role"},
		{"key that is none", func(r *rig) {}, func(r *rig) verify.Options { return opts(r, verify.Key{Name: "k", Public: "text"}) }, nil, "not supported"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			tc.put(r)
			e, err := verify.Image(t.Context(), r.subject.Ref(), tc.opts(r))
			if e != nil || err == nil {
				t.Fatalf("Image = %v, %v; want an error and no evidence", e, err)
			}
			var none *verify.NoEvidenceError
			if errors.As(err, &none) != (tc.missing != nil) {
				t.Fatalf("%T: %v", err, err)
			}
			if none != nil {
				if d := cmp.Diff(tc.missing, none.Missing); d != "" {
					t.Error(d)
				}
			}
			if !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v; want it to say %q", err, tc.says)
			}
		})
	}
	r := newRig(t)
	for ref, says := range map[string]string{
		r.subject.Repo + ":none":                    "no such artifact",
		r.subject.Repo + "@sha256:" + zeros:         "no such artifact",
		"UPPER CASE":                                "could not parse",
		r.subject.Repo + "@sha512:" + zeros + zeros: "",
	} {
		if _, err := verify.Image(t.Context(), ref, opts(r, bare("k", key))); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v; want an error that says %q", ref, err, says)
		}
	}
}

const zeros = "0000000000000000000000000000000000000000000000000000000000000000"

// One bad piece beside a good one is rejected with its reason, and the good one
// counts.
func TestGoodAndBad(t *testing.T) {
	r := newRig(t)
	key, stranger := storetest.NewKey(t), storetest.NewKey(t)
	r.put(storetest.Provenance(t, key, r.subject, "good"), storetest.Signature(t, key, r.subject))
	good := r.items()
	other := r.subject
	other.Digest = "sha256:" + zeros

	envelope := func(e store.Evidence) []byte {
		b, err := e.Envelope.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	tampered := storetest.Provenance(t, key, r.subject, "victim")
	tampered.Envelope.Payload = []byte(strings.Replace(string(tampered.Envelope.Payload), "victim", "Victim", 1))
	notJSON, err := attest.Envelope(t.Context(), key, api.PayloadTypeInToto, []byte(`{"_type":"x"}{}`))
	if err != nil {
		t.Fatal(err)
	}
	twice, err := attest.Envelope(t.Context(), key, api.PayloadTypeInToto,
		[]byte(strings.Replace(string(storetest.Provenance(t, key, r.subject, "x").Envelope.Payload), `"predicate":`, `"predicate":{},"predicate":`, 1)))
	if err != nil {
		t.Fatal(err)
	}
	otherType, err := attest.Envelope(t.Context(), key, "text/plain", storetest.Provenance(t, key, r.subject, "x").Envelope.Payload)
	if err != nil {
		t.Fatal(err)
	}
	simple := storetest.Signature(t, key, other)
	dsse := func(content []byte) store.Item {
		return store.Item{Format: store.FormatTag, Digest: "sha256:bad", MediaType: api.MediaTypeDSSE, Content: content}
	}
	certificate := []byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"certificate":{"rawBytes":"eA=="}},"dsseEnvelope":` + string(envelope(storetest.Provenance(t, key, r.subject, "x"))) + `}`)

	for _, tc := range []struct {
		name string
		item store.Item
		says string
	}{
		{"tampered envelope", dsse(envelope(tampered)), "none of the 1 trusted keys"},
		{"about another digest", dsse(envelope(storetest.Provenance(t, key, other, "x"))), "about another artifact"},
		{"stranger's key", dsse(envelope(storetest.Provenance(t, stranger, r.subject, "x"))), "none of the 1 trusted keys"},
		{"signed nonsense", dsse(must(notJSON.MarshalJSON())), "parsing in-toto statement"},
		{"duplicate predicate", dsse(must(twice.MarshalJSON())), "duplicate member"},
		{"other payload type", dsse(must(otherType.MarshalJSON())), "payload type"},
		{"no envelope", dsse([]byte("hello")), "parsing DSSE envelope"},
		{"empty", dsse(nil), "parsing DSSE envelope"},
		{"unknown media type", store.Item{Format: store.FormatTag, MediaType: "x/y", Content: []byte("x")}, `media type "x/y"`},
		{"could not be read", store.Item{Format: store.FormatTag, Err: errors.New("too large")}, "too large"},
		{"signature of another digest", store.Item{Format: store.FormatTag, MediaType: "application/vnd.dev.cosign.simplesigning.v1+json", Content: simple.Simple.Payload,
			Annotations: map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(simple.Simple.Sig)}}, "not this artifact"},
		{"signature without signature", store.Item{Format: store.FormatTag, MediaType: "application/vnd.dev.cosign.simplesigning.v1+json",
			Content: storetest.Signature(t, key, r.subject).Simple.Payload}, "no annotation"},
		{"certificate bundle", store.Item{Format: store.FormatBundle, Content: certificate}, "signed by a certificate; this trust holds only keys"},
		{"certificate layer", store.Item{Format: store.FormatTag, MediaType: api.MediaTypeDSSE, Content: envelope(storetest.Provenance(t, stranger, r.subject, "x")),
			Annotations: map[string]string{"dev.sigstore.cosign/certificate": "x"}}, "signed by a certificate; this trust holds only keys"},
		{"bundle of nothing", store.Item{Format: store.FormatBundle, Content: []byte("{}")}, "parsing Sigstore bundle"},
		{"provenance without builder", dsse(envelope(storetest.Statement(t, key, r.subject, api.PredicateSLSAv1, `{}`))), "reading predicate"},
		{"observation without run", dsse(envelope(storetest.Statement(t, key, r.subject, api.PredicateObservation, `{}`))), "reading predicate"},
		{"observation of another shape", dsse(envelope(storetest.Statement(t, key, r.subject, api.PredicateObservation, `{"run":{"id":"x"},"tasks":{}}`))), "reading predicate"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, err := verify.Items(r.subject.Ref(), r.manifest(), append([]store.Item{tc.item}, good...), verify.Options{Keys: []verify.Key{bare("k", key)}})
			if err != nil {
				t.Fatal(err)
			}
			if len(e.Signatures()) != 2 || len(e.Statements()) != 1 {
				t.Errorf("%d signatures, %d statements; want only the good ones", len(e.Signatures()), len(e.Statements()))
			}
			if rej := e.Rejected(); len(rej) != 1 || !strings.Contains(rej[0].Reason, tc.says) {
				t.Errorf("rejected %+v; want one that says %q", rej, tc.says)
			}
			// Alone, it is no evidence.
			_, err = verify.Items(r.subject.Ref(), r.manifest(), []store.Item{tc.item}, verify.Options{Keys: []verify.Key{bare("k", key)}})
			var none *verify.NoEvidenceError
			if !errors.As(err, &none) || len(none.Rejected) != 1 || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), "hint:") {
				t.Errorf("alone: %v", err)
			}
		})
	}
	if _, err := verify.Items(other.Ref(), r.manifest(), good, verify.Options{Keys: []verify.Key{bare("k", key)}}); err == nil {
		t.Error("a manifest with another digest passed")
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

// Predicates that nobody here knows are carried, as their signer's word only.
func TestUnknownPredicate(t *testing.T) {
	r := newRig(t)
	key := storetest.NewKey(t)
	r.put(storetest.Provenance(t, key, r.subject, "x"), storetest.Signature(t, key, r.subject),
		storetest.Statement(t, key, r.subject, "https://example.com/other/v9", `{"builder":{"id":"`+builder+`"}}`))
	e, err := verify.Image(t.Context(), r.subject.Ref(), verify.Options{Keys: []verify.Key{observer(key)}, Transport: r.rt})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range e.Statements() {
		if s.PredicateType == "https://example.com/other/v9" && s.Grade != verify.GradeKeyHolder {
			t.Errorf("unknown predicate graded %q: %s", s.Grade, s.Reason)
		}
	}
	if len(e.Statements()) != 2 || len(e.Runs()) != 0 {
		t.Errorf("%d statements, %d runs", len(e.Statements()), len(e.Runs()))
	}
}

func TestGrades(t *testing.T) {
	key := storetest.NewKey(t)
	bind := func(builders ...string) verify.Key {
		return verify.Key{Name: "o", Public: key.Public(), Observer: true, Builders: builders}
	}
	for _, tc := range []struct {
		name string
		key  verify.Key
		want verify.Grade
	}{
		{"bare key", bare("k", key), verify.GradeKeyHolder},
		{"exact builder", bind(builder), verify.GradeObserver},
		{"prefix", bind("https://assay.dev/builder/v1/executed/"), verify.GradeObserver},
		{"second of two", bind("https://x/y", "https://assay.dev/builder/v1/executed/user/"), verify.GradeObserver},
		{"prefix without slash is no prefix", bind("https://assay.dev/builder/v1/executed"), verify.GradeKeyHolder},
		{"another instance", bind(builder + "2"), verify.GradeKeyHolder},
		{"longer than the builder", bind(builder + "/"), verify.GradeKeyHolder},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			p := storetest.Provenance(t, key, r.subject, "x")
			r.put(p, storetest.Signature(t, key, r.subject), observation(t, key, r.subject, "run", p))
			e, err := verify.Image(t.Context(), r.subject.Ref(), verify.Options{Keys: []verify.Key{tc.key}, Transport: r.rt})
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range e.Statements() {
				if s.Grade != tc.want || s.Reason == "" {
					t.Errorf("%s: grade %q (%s); want %q", s.PredicateType, s.Grade, s.Reason, tc.want)
				}
			}
			for _, s := range e.Signatures() {
				if s.Grade != tc.want || s.Reason == "" {
					t.Errorf("signature: grade %q (%s); want %q", s.Grade, s.Reason, tc.want)
				}
			}
		})
	}
}

func TestRuns(t *testing.T) {
	r := newRig(t)
	key, other := storetest.NewKey(t), storetest.NewKey(t)
	p1, p2 := storetest.Provenance(t, key, r.subject, "one"), storetest.Provenance(t, key, r.subject, "two")
	foreign := storetest.Provenance(t, other, r.subject, "foreign")
	gone := storetest.Provenance(t, key, r.subject, "never stored")
	r.put(p1, p2, foreign, storetest.Signature(t, key, r.subject),
		observation(t, key, r.subject, "run-1", p1),
		observation(t, key, r.subject, "run-2", gone, p2),
		observation(t, key, r.subject, "run-3", gone),
		observation(t, key, r.subject, "run-4", foreign), // another key's word
		observation(t, other, r.subject, "run-5", p1))    // another key's observation
	e, err := verify.Image(t.Context(), r.subject.Ref(), verify.Options{Keys: []verify.Key{bare("a", key), bare("b", other)}, Transport: r.rt})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, run := range e.Runs() {
		got[run.ID] = ""
		if run.Provenance != nil {
			got[run.ID] = run.Provenance.PayloadDigest
		}
	}
	want := map[string]string{
		"run-1": storetest.Digest(p1.Envelope.Payload), "run-2": storetest.Digest(p2.Envelope.Payload), "run-3": "", "run-4": "", "run-5": "",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if len(e.Statements()) != 8 {
		t.Errorf("%d statements; want all 8", len(e.Statements()))
	}
}

func TestUnreachable(t *testing.T) {
	r := newRig(t)
	key := storetest.NewKey(t)
	r.put(storetest.Provenance(t, key, r.subject, "x"), storetest.Signature(t, key, r.subject))
	down := roundTripper(func(req *http.Request) (*http.Response, error) {
		if strings.Contains(req.URL.Path, "/referrers/") {
			return nil, errors.New("connection refused")
		}
		return r.rt.RoundTrip(req)
	})
	e, err := verify.Image(t.Context(), r.subject.Ref(), verify.Options{Keys: []verify.Key{bare("k", key)}, Transport: down})
	var none *verify.NoEvidenceError
	if e != nil || err == nil || errors.As(err, &none) {
		t.Errorf("registry half down: %v, %v; want an error that is no verdict", e, err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestTrust(t *testing.T) {
	k1, k2 := storetest.NewKey(t), storetest.NewKey(t)
	dir := t.TempDir()
	write := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("one.pub", k1.PublicPEM())
	pem, _ := json.Marshal(string(k2.PublicPEM()))
	good := `{"keys":[{"name":"factory","file":"one.pub","role":"observer","builders":["` + builder + `"]},{"name":"two","pem":` + string(pem) + `}]}`
	write("trust.json", []byte(good))
	trust, err := verify.LoadTrust(filepath.Join(dir, "trust.json"))
	if err != nil {
		t.Fatal(err)
	}
	want := []verify.Key{{Name: "factory", Public: k1.Public(), Observer: true, Builders: []string{builder}}, {Name: "two", Public: k2.Public()}}
	if d := cmp.Diff(want, trust.Keys); d != "" {
		t.Error(d)
	}
	for name, tc := range map[string]struct{ doc, says string }{
		"no keys":              {`{"keys":[]}`, "no keys"},
		"nothing":              {`{}`, "nobody is trusted"},
		"unknown member":       {strings.Replace(good, `{"keys"`, `{"version":1,"keys"`, 1), `"version"`},
		"unknown key member":   {strings.Replace(good, `"role"`, `"Role":"x","role"`, 1), `"Role"`},
		"unknown role":         {strings.Replace(good, `"observer"`, `"witness"`, 1), `"witness"`},
		"duplicate":            {strings.Replace(good, `"role"`, `"role":"observer","role"`, 1), "duplicate"},
		"no role for builders": {strings.Replace(good, `"role":"observer",`, ``, 1), "role"},
		"no builders":          {strings.Replace(good, `"`+builder+`"`, ``, 1), "without builders"},
		"empty builder":        {strings.Replace(good, builder, ``, 1), "empty"},
		"two names alike":      {strings.Replace(good, `"two"`, `"factory"`, 1), "second key named"},
		"one key twice":        {strings.Replace(good, `"pem":`+string(pem), `"file":"one.pub"`, 1), "same key"},
		"pem and file":         {strings.Replace(good, `"pem"`, `"file":"one.pub","pem"`, 1), "one of pem and file"},
		"missing file":         {strings.Replace(good, "one.pub", "none.pub", 1), "none.pub"},
		"trailing":             {good + "x", "invalid"},
	} {
		_, err := verify.ParseTrust([]byte(tc.doc), func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, name)) })
		if err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v; want an error that says %q", name, err, tc.says)
		}
	}
	k, err := verify.LoadPublicKey(filepath.Join(dir, "one.pub"))
	if err != nil || k.Name != "one.pub" || k.Observer {
		t.Errorf("LoadPublicKey: %+v, %v", k, err)
	}
	if _, err := verify.ParseTrust([]byte(good), nil); err == nil {
		t.Error("file without reader: no error")
	}
}

func FuzzParseTrust(f *testing.F) {
	f.Add([]byte(`{"keys":[{"name":"a","file":"x","role":"observer","builders":["b"]}]}`))
	f.Add([]byte(`{"identities":[{"name":"w","san":"a","issuer":"i"}],"instances":[{"name":"public-good"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		trust, err := verify.ParseTrust(data, func(string) ([]byte, error) { return []byte("none"), nil })
		if err == nil && len(trust.Keys)+len(trust.Identities) == 0 {
			t.Fatal("an empty trust was accepted")
		}
	})
}

// Nothing but what the key signed verifies, whatever is put around it.
func FuzzItems(f *testing.F) {
	key, err := attest.GenerateKey(attest.Ed25519)
	if err != nil {
		f.Fatal(err)
	}
	manifest := []byte(`{}`)
	subject := store.Subject{Repo: "example.com/a", Digest: storetest.Digest(manifest), MediaType: "x", Size: 2}
	p := storetest.Provenance(f, key, subject, "seed")
	b, err := p.Envelope.MarshalJSON()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, api.MediaTypeDSSE, false)
	s := storetest.Signature(f, key, subject)
	f.Add(s.Simple.Payload, "application/vnd.dev.cosign.simplesigning.v1+json", false)
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"h"}},"dsseEnvelope":`+string(b)+`}`), "", true)
	f.Fuzz(func(t *testing.T, content []byte, mediaType string, isBundle bool) {
		if len(content) > 1<<16 {
			return
		}
		it := store.Item{Format: store.FormatTag, MediaType: mediaType, Content: content,
			Annotations: map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(s.Simple.Sig)}}
		if isBundle {
			it.Format = store.FormatBundle
		}
		e, err := verify.Items(subject.Ref(), manifest, []store.Item{it}, verify.Options{
			Keys: []verify.Key{bare("k", key)}, WithoutSignature: true, WithoutProvenance: true,
		})
		if err != nil {
			return
		}
		for _, st := range e.Statements() {
			if string(st.Payload) != string(p.Envelope.Payload) {
				t.Fatalf("verified a payload that was never signed: %q", st.Payload)
			}
		}
		if len(e.Signatures()) > 0 && string(content) != string(s.Simple.Payload) {
			t.Fatalf("verified a signature of other bytes: %q", content)
		}
	})
}
