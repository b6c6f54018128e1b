package vsa_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"assay.dev/assay/attest"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/policy"
	"assay.dev/assay/policy/vsa"
	"assay.dev/assay/store"
	"assay.dev/assay/store/storetest"
	"assay.dev/assay/verify"
)

const (
	repo      = "registry.example.com/team/app"
	policyA   = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	policyB   = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	trustA    = "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"
	otherHex  = "sha256:dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
	mediaType = "application/vnd.oci.image.manifest.v1+json"
)

var (
	manifest = []byte(`{"schemaVersion":2,"mediaType":"` + mediaType + `","config":{},"layers":[]}`)
	ref      = repo + "@" + storetest.Digest(manifest)
	now      = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

// evidence verifies pieces about an image by keys.
func evidence(t testing.TB, ref string, manifest []byte, keys []verify.Key, pieces ...store.Evidence) *verify.Evidence {
	t.Helper()
	e, err := verify.Items(ref, manifest, items(t, pieces...), verify.Options{Keys: keys, WithoutSignature: true, WithoutProvenance: true, Predicates: nil})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func items(t testing.TB, pieces ...store.Evidence) []store.Item {
	t.Helper()
	var out []store.Item
	for _, p := range pieces {
		raw, err := p.Envelope.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, store.Item{Format: store.FormatTag, Digest: storetest.Digest(raw), MediaType: "application/vnd.dsse.envelope.v1+json", Content: raw})
	}
	return out
}

func key(t testing.TB, name string, k *attest.Key) verify.Key {
	return verify.Key{Name: name, Public: k.Public()}
}

func subjectOf(ref string) store.Subject {
	r, d, _ := strings.Cut(ref, "@")
	return store.Subject{Repo: r, Digest: d, MediaType: mediaType, Size: 1}
}

func verdict() *policy.Verdict {
	return &policy.Verdict{
		Result: policy.Pass, Image: ref, Component: "app", Policy: policy.Identified{Name: "release", Digest: policyA},
		EffectiveTime: now, Digests: []string{ref[len(repo)+1:]}, Expiry: now.Add(24 * time.Hour),
	}
}

func made() vsa.Made {
	return vsa.Made{Verifier: "https://gate.example.com/release", Time: now, PolicyURI: "git::https://example.com/policy", Trust: trustA, Version: map[string]string{"assay": "1.0"}}
}

func want() vsa.Want {
	return vsa.Want{
		Verifier: "https://gate.example.com/release", Policy: policyA, Trust: trustA, Circumstances: vsa.Circumstances{Component: "app"},
		Now: now.Add(time.Hour), MaxAge: 12 * time.Hour,
	}
}

// statement is that of a pass on one piece of provenance.
func statement(t testing.TB) []byte {
	t.Helper()
	k := storetest.NewKey(t)
	e := evidence(t, ref, manifest, []verify.Key{key(t, "builder", k)}, storetest.Provenance(t, k, subjectOf(ref), "one"))
	raw, err := vsa.Statement(e, verdict(), made())
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func sign(t testing.TB, k *attest.Key, statement []byte) store.Evidence {
	t.Helper()
	env, err := attest.Statement(t.Context(), k, statement)
	if err != nil {
		t.Fatal(err)
	}
	return store.Evidence{Envelope: env, Key: storetest.Public(t, k)}
}

func TestStatement(t *testing.T) {
	raw := statement(t)
	s, err := intoto.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	if s.PredicateType != "https://slsa.dev/verification_summary/v1" || !s.About(ref[len(repo)+1:]) || s.Subjects[0].Name != repo {
		t.Errorf("%+v", s)
	}
	var p map[string]any
	if err := json.Unmarshal(s.Predicate, &p); err != nil {
		t.Fatal(err)
	}
	inputs := p["inputAttestations"].([]any)
	delete(p, "inputAttestations")
	if in := inputs[0].(map[string]any); len(inputs) != 1 || in["name"] != "https://slsa.dev/provenance/v0.2" || in["digest"] == nil {
		t.Errorf("inputs %v", inputs)
	}
	digest := ref[len(repo)+1:]
	if diff := cmp.Diff(p, map[string]any{
		"verifier":     map[string]any{"id": "https://gate.example.com/release", "version": map[string]any{"assay": "1.0"}},
		"timeVerified": "2026-03-01T12:00:00Z",
		"resourceUri":  "pkg:oci/app@" + strings.Replace(digest, ":", "%3A", 1) + "?repository_url=registry.example.com%2Fteam%2Fapp",
		"policy":       map[string]any{"name": "release", "uri": "git::https://example.com/policy", "digest": map[string]any{"sha256": policyA[7:]}},
		// Nothing is bound, so nothing is claimed, whatever provenance says.
		"verifiedLevels":     []any{"SLSA_BUILD_LEVEL_UNEVALUATED"},
		"verificationResult": "PASSED",
		"slsaVersion":        "1.2",
		"assay_judgement": map[string]any{
			"component": "app", "effectiveTime": "2026-03-01T12:00:00Z", "expires": "2026-03-02T12:00:00Z",
			"digests": []any{digest}, "trust": trustA,
		},
	}); diff != "" {
		t.Errorf("predicate (-got +want):\n%s", diff)
	}
}

// TestStatementOfNoPass: a summary is made of a pass on this evidence, and of nothing
// else.
func TestStatementOfNoPass(t *testing.T) {
	k := storetest.NewKey(t)
	e := evidence(t, ref, manifest, []verify.Key{key(t, "builder", k)}, storetest.Provenance(t, k, subjectOf(ref), "one"))
	for name, change := range map[string]func(*policy.Verdict, *vsa.Made){
		"a failure":            func(v *policy.Verdict, _ *vsa.Made) { v.Result = policy.Fail },
		"the zero outcome":     func(v *policy.Verdict, _ *vsa.Made) { v.Result = "" },
		"a pass with faults":   func(v *policy.Verdict, _ *vsa.Made) { v.Violations = []policy.Result{{Msg: "x"}} },
		"another image":        func(v *policy.Verdict, _ *vsa.Made) { v.Image = repo + "@" + otherHex },
		"not in the closure":   func(v *policy.Verdict, _ *vsa.Made) { v.Digests = []string{otherHex} },
		"no policy":            func(v *policy.Verdict, _ *vsa.Made) { v.Policy.Digest = "" },
		"no trust":             func(_ *policy.Verdict, m *vsa.Made) { m.Trust = "" },
		"no time":              func(_ *policy.Verdict, m *vsa.Made) { m.Time = time.Time{} },
		"a verifier of no URI": func(_ *policy.Verdict, m *vsa.Made) { m.Verifier = "gate" },
		"two levels": func(_ *policy.Verdict, m *vsa.Made) {
			m.Levels = []string{"SLSA_BUILD_LEVEL_1", "SLSA_BUILD_LEVEL_3"}
		},
		"a level that is none": func(_ *policy.Verdict, m *vsa.Made) { m.Levels = []string{"SLSA_BUILD_LEVEL_4"} },
	} {
		v, m := verdict(), made()
		change(v, &m)
		if raw, err := vsa.Statement(e, v, m); err == nil {
			t.Errorf("%s: made %s", name, raw)
		}
	}
	if _, err := vsa.Statement(nil, verdict(), made()); err == nil {
		t.Error("made without evidence")
	}
}

// TestFind changes one thing at a time; the summary is signed by the right key each
// time, as by a verifier that was asked another question.
func TestFind(t *testing.T) {
	gate := storetest.NewKey(t)
	good := statement(t)
	if a, err := vsa.Find(evidence(t, ref, manifest, []verify.Key{key(t, "gate.pub", gate)}, sign(t, gate, good)), want()); err != nil {
		t.Fatal(err)
	} else if a.Verifier != "https://gate.example.com/release" || a.Signer != "gate.pub" || !a.Expires.Equal(now.Add(12*time.Hour)) || a.Image != ref {
		t.Errorf("%+v", a)
	}
	predicate := func(name string, value any) func(map[string]any) {
		return func(m map[string]any) { m["predicate"].(map[string]any)[name] = value }
	}
	judgement := func(name string, value any) func(map[string]any) {
		return func(m map[string]any) {
			m["predicate"].(map[string]any)["assay_judgement"].(map[string]any)[name] = value
		}
	}
	for name, tt := range map[string]struct {
		statement func(map[string]any)
		want      func(*vsa.Want)
		code      vsa.Code
	}{
		"another verifier's": {predicate("verifier", map[string]any{"id": "https://gate.example.com/test"}), nil, vsa.CodeVerifier},
		"failed":             {predicate("verificationResult", "FAILED"), nil, vsa.CodeResult},
		"of another repository": {predicate("resourceUri", "pkg:oci/app@x?repository_url=evil.example.com%2Fapp"), nil,
			vsa.CodeImage},
		"another policy":   {nil, func(w *vsa.Want) { w.Policy = policyB }, vsa.CodePolicy},
		"two digests":      {predicate("policy", map[string]any{"digest": map[string]any{"sha256": policyA[7:], "sha1": "00"}}), nil, vsa.CodePolicy},
		"no policy digest": {predicate("policy", map[string]any{"uri": "x"}), nil, vsa.CodePolicy},
		"another trust":    {nil, func(w *vsa.Want) { w.Trust = otherHex }, vsa.CodeTrust},
		"another component": {nil, func(w *vsa.Want) { w.Component = "web" },
			vsa.CodeContext},
		"of an index":           {nil, func(w *vsa.Want) { w.Parent = "app" }, vsa.CodeContext},
		"another snapshot":      {nil, func(w *vsa.Want) { w.Snapshot = otherHex }, vsa.CodeContext},
		"another source":        {nil, func(w *vsa.Want) { w.Source, w.AnySnapshot = otherHex, true }, vsa.CodeContext},
		"another destination":   {nil, func(w *vsa.Want) { w.Destination = "prod.example.com/app" }, vsa.CodeContext},
		"too old":               {nil, func(w *vsa.Want) { w.Now = now.Add(12*time.Hour + time.Second) }, vsa.CodeTooOld},
		"from the future":       {nil, func(w *vsa.Want) { w.Now = now.Add(-2 * time.Minute) }, vsa.CodeFuture},
		"an expired verdict":    {nil, func(w *vsa.Want) { w.Now, w.MaxAge = now.Add(24*time.Hour), 48*time.Hour }, vsa.CodeExpired},
		"another closure":       {judgement("digests", []string{otherHex}), nil, vsa.CodeImage},
		"back-dated rules":      {judgement("effectiveTime", "2020-01-01T00:00:00Z"), nil, vsa.CodeContext},
		"as of another time":    {nil, func(w *vsa.Want) { w.EffectiveTime = now.Add(time.Second) }, vsa.CodeContext},
		"without a judgement":   {func(m map[string]any) { delete(m["predicate"].(map[string]any), "assay_judgement") }, nil, vsa.CodeIncomplete},
		"a judgement with more": {judgement("onlyOnSundays", true), nil, vsa.CodeMalformed},
		"without a time":        {func(m map[string]any) { delete(m["predicate"].(map[string]any), "timeVerified") }, nil, vsa.CodeIncomplete},
	} {
		t.Run(name, func(t *testing.T) {
			var doc map[string]any
			if err := json.Unmarshal(good, &doc); err != nil {
				t.Fatal(err)
			}
			if tt.statement != nil {
				tt.statement(doc)
			}
			w := want()
			if tt.want != nil {
				tt.want(&w)
			}
			raw, err := json.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			a, err := vsa.Find(evidence(t, ref, manifest, []verify.Key{key(t, "gate.pub", gate)}, sign(t, gate, raw)), w)
			var not *vsa.NotTaken
			if !errors.As(err, &not) || a != nil {
				t.Fatalf("taken: %+v, %v", a, err)
			}
			if not.Code() != tt.code || not.Refusals[0].Payload == "" {
				t.Errorf("%s (%s), want %s", not.Code(), not, tt.code)
			}
		})
	}
}

// TestFindNewest: one that does not answer hides none that does; the newest counts.
func TestFindNewest(t *testing.T) {
	gate := storetest.NewKey(t)
	at := func(d time.Duration, component string) store.Evidence {
		k := storetest.NewKey(t)
		e := evidence(t, ref, manifest, []verify.Key{key(t, "builder", k)}, storetest.Provenance(t, k, subjectOf(ref), "one"))
		v, m := verdict(), made()
		m.Time, v.EffectiveTime, v.Component = now.Add(d), now.Add(d), component
		raw, err := vsa.Statement(e, v, m)
		if err != nil {
			t.Fatal(err)
		}
		return sign(t, gate, raw)
	}
	e := evidence(t, ref, manifest, []verify.Key{key(t, "gate.pub", gate)}, at(0, "app"), at(20*time.Minute, "web"), at(10*time.Minute, "app"))
	a, err := vsa.Find(e, want())
	if err != nil {
		t.Fatal(err)
	}
	if !a.Time.Equal(now.Add(10 * time.Minute)) {
		t.Errorf("took the one of %s", a.Time)
	}
	w := want()
	w.Component = "api"
	var not *vsa.NotTaken
	if _, err := vsa.Find(e, w); !errors.As(err, &not) || len(not.Refusals) != 3 || !strings.Contains(not.Refusals[0].Reason, "12:20") {
		t.Errorf("%v", err)
	}
}

// TestFindIndex: a verdict on an index counts only if it was about all that it lists.
func TestFindIndex(t *testing.T) {
	index := []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":%q,"digest":%q,"size":2}]}`, mediaType, otherHex))
	ref := repo + "@" + storetest.Digest(index)
	for name, digests := range map[string][]string{"": {ref[len(repo)+1:], otherHex}, "without its image": {ref[len(repo)+1:]}} {
		k, gate := storetest.NewKey(t), storetest.NewKey(t)
		v := verdict()
		v.Image, v.Digests = ref, digests
		raw, err := vsa.Statement(evidence(t, ref, index, []verify.Key{key(t, "b", k)}, storetest.Provenance(t, k, subjectOf(ref), "one")), v, made())
		if err != nil {
			t.Fatal(err)
		}
		_, err = vsa.Find(evidence(t, ref, index, []verify.Key{key(t, "g", gate)}, sign(t, gate, raw)), want())
		if (err == nil) != (name == "") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestFindAnySnapshot: who says so takes a summary of another snapshot.
func TestFindAnySnapshot(t *testing.T) {
	gate := storetest.NewKey(t)
	w := want()
	w.Snapshot, w.AnySnapshot = otherHex, true
	if _, err := vsa.Find(evidence(t, ref, manifest, []verify.Key{key(t, "g", gate)}, sign(t, gate, statement(t))), w); err != nil {
		t.Error(err)
	}
	one, err := vsa.CircumstancesOf(policy.Context{Component: "app", Snapshot: &policy.Snapshot{Application: "a"}})
	if err != nil || one.Snapshot == "" || one.Source != "" {
		t.Errorf("%+v, %v", one, err)
	}
	if two, err := vsa.CircumstancesOf(policy.Context{Component: "app", Snapshot: &policy.Snapshot{Application: "b"}}); err != nil || two.Snapshot == one.Snapshot {
		t.Errorf("%+v, %v", two, err)
	}
}

// TestFindNeeds: what was not said is not assumed.
func TestFindNeeds(t *testing.T) {
	gate := storetest.NewKey(t)
	e := evidence(t, ref, manifest, []verify.Key{key(t, "g", gate)}, sign(t, gate, statement(t)))
	for name, change := range map[string]func(*vsa.Want){
		"policy": func(w *vsa.Want) { w.Policy = "" }, "trust": func(w *vsa.Want) { w.Trust = "" },
		"age": func(w *vsa.Want) { w.MaxAge = 0 }, "now": func(w *vsa.Want) { w.Now = time.Time{} },
	} {
		w := want()
		change(&w)
		var not *vsa.NotTaken
		if a, err := vsa.Find(e, w); err == nil || errors.As(err, &not) {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
}

// TestLevels: levels come from bindings and from nothing that was signed.
func TestLevels(t *testing.T) {
	k := storetest.NewKey(t)
	p := storetest.Provenance(t, k, subjectOf(ref), "one")
	observer := verify.Key{Name: "observer", Public: k.Public(), Observer: true, Builders: []string{"https://assay.dev/builder/v1/executed/"}}
	other := observer
	other.Builders = []string{"https://example.com/other"}
	bind := []vsa.Binding{{"observer", "SLSA_BUILD_LEVEL_2"}, {"observer", "SLSA_BUILD_LEVEL_3"}, {"nobody", "SLSA_SOURCE_LEVEL_3"}}
	for name, tt := range map[string]struct {
		key  verify.Key
		want []string
	}{
		"an observer":            {observer, []string{"SLSA_BUILD_LEVEL_3"}},
		"of another builder":     {other, nil},
		"a bare key of the name": {verify.Key{Name: "observer", Public: k.Public()}, nil},
	} {
		if diff := cmp.Diff(vsa.Levels(evidence(t, ref, manifest, []verify.Key{tt.key}, p), bind), tt.want); diff != "" {
			t.Errorf("%s (-got +want):\n%s", name, diff)
		}
	}
	if b, err := vsa.ParseBinding("a=b=SLSA_BUILD_LEVEL_1"); err != nil || b.Signer != "a=b" {
		t.Errorf("%+v, %v", b, err)
	}
	for _, s := range []string{"", "x", "=SLSA_BUILD_LEVEL_1", "x=SLSA_BUILD_LEVEL_9", "x=PASSED!", "x=FAILED", "x="} {
		if b, err := vsa.ParseBinding(s); err == nil {
			t.Errorf("%q: %+v", s, b)
		}
	}
}

// TestTrustDigest: every part of a trust changes it, the order of its parts does not.
func TestTrustDigest(t *testing.T) {
	a, b := key(t, "a", storetest.NewKey(t)), key(t, "b", storetest.NewKey(t))
	base := verify.Options{Keys: []verify.Key{a, b}}
	sum := func(o verify.Options) string {
		s, err := vsa.TrustDigest(o)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if sum(base) != sum(verify.Options{Keys: []verify.Key{b, a}, At: now}) {
		t.Error("the order of keys counts")
	}
	observer := b
	observer.Observer = true
	seen := map[string]int{sum(base): -1}
	for i, o := range []verify.Options{
		{}, {Keys: []verify.Key{a}}, {Keys: []verify.Key{a, observer}}, {Keys: base.Keys, KeysLogged: true}, {Keys: base.Keys, WithoutSignature: true},
		{Keys: base.Keys, Log: verify.LogTrust{Require: true}}, {Keys: base.Keys, Identities: []verify.CertificateIdentity{{SAN: "x", Issuer: "y"}}},
		{Keys: base.Keys, Expect: &verify.Expectation{SourceURI: "https://example.com/x"}}, {Keys: base.Keys, Predicates: []string{"x"}},
	} {
		s := sum(o)
		if j, ok := seen[s]; ok {
			t.Errorf("options %d and %d have one digest", i, j)
		}
		seen[s] = i
	}
}

func TestResource(t *testing.T) {
	for in, want := range map[string]string{
		"localhost:5055/a/b@" + otherHex:   "pkg:oci/b@sha256%3A" + otherHex[7:] + "?repository_url=localhost%3A5055%2Fa%2Fb",
		"localhost:5055/a/b:1@" + otherHex: "pkg:oci/b@sha256%3A" + otherHex[7:] + "?repository_url=localhost%3A5055%2Fa%2Fb",
		"a/b:1":                            "", "a/b@sha256:00": "", "@" + otherHex: "", "": "",
	} {
		got, err := vsa.Resource(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func TestParseExpiration(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"24h": 24 * time.Hour, "7d": 168 * time.Hour, "1w": 168 * time.Hour, "1mo": 720 * time.Hour, "1.5d": 36 * time.Hour, "0": 0, "90m": 90 * time.Minute, " 1h ": time.Hour,
	} {
		if got, err := vsa.ParseExpiration(in); err != nil || got != want {
			t.Errorf("%q: %s, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "x", "-1h", "-1d", "d", "NaNd", "Infw", "1e30d", "7"} {
		if got, err := vsa.ParseExpiration(in); err == nil {
			t.Errorf("%q: %s", in, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 10000).Draw(t, "days")
		d, err := vsa.ParseExpiration(fmt.Sprintf("%dd", n))
		if err != nil || d != time.Duration(n)*24*time.Hour {
			t.Fatalf("%d days: %s, %v", n, d, err)
		}
	})
}

func TestFileName(t *testing.T) {
	for in, want := range map[string]string{"": "vsa-unknown.json", "app": "vsa-app.json", "../../etc/x": "vsa-..-..-etc-x.json", "a/b": "vsa-a-b.json", "a\nb": "vsa-a-b.json"} {
		if got := vsa.FileName(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
