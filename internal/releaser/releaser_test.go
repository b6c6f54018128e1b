package releaser

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"assay.dev/assay/internal/gate"
	"assay.dev/assay/internal/gate/recording"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/policy"
	"assay.dev/assay/policy/source"
	"assay.dev/assay/report"
	"assay.dev/assay/verify"
)

func TestRepository(t *testing.T) {
	for in, want := range map[string][2]string{
		"localhost:5055/released/yq":     {"localhost:5055/released/yq", ""},
		"localhost:5055/released/yq:v1":  {"localhost:5055/released/yq", "v1"},
		"quay.io/org/app:1.0":            {"quay.io/org/app", "1.0"},
		"localhost:5055/released/yq:":    {},
		"localhost:5055/released/yq@x":   {},
		"Not A Reference":                {},
		"":                               {},
		"localhost:5055/released/yq:a b": {},
	} {
		repo, tag, err := Repository(in)
		if (err != nil) != (want[0] == "") {
			t.Errorf("%q: error %v", in, err)
		}
		if err == nil && (repo != want[0] || tag != want[1]) {
			t.Errorf("%q: %s and tag %q, want %v", in, repo, tag, want)
		}
	}
}

// What the gate judged and what is there when it is copied must be one.
func TestSame(t *testing.T) {
	entry := func(image string, r policy.Outcome) report.Entry {
		return report.Entry{Image: image, Verdict: &policy.Verdict{Image: image, Result: r}}
	}
	verdicts := func(images ...string) (out []*policy.Verdict) {
		for _, i := range images {
			out = append(out, &policy.Verdict{Image: i, Result: policy.Pass})
		}
		return out
	}
	for name, tc := range map[string]struct {
		j    *gate.Judgement
		o    Order
		fail string
	}{
		"the same":          {&gate.Judgement{Entries: []report.Entry{entry("a", policy.Pass), entry("b", policy.Pass)}}, Order{Verdicts: verdicts("a", "b")}, ""},
		"refused meanwhile": {&gate.Judgement{Entries: []report.Entry{entry("a", policy.Fail)}}, Order{Verdicts: verdicts("a")}, "does not pass"},
		"nothing judged":    {&gate.Judgement{}, Order{Verdicts: verdicts("a")}, "does not pass"},
		"one more now":      {&gate.Judgement{Entries: []report.Entry{entry("a", policy.Pass), entry("b", policy.Pass)}}, Order{Verdicts: verdicts("a")}, "now there are 2"},
		"no verdicts":       {&gate.Judgement{Entries: []report.Entry{entry("a", policy.Pass)}}, Order{}, "now there are 1"},
		"another image":     {&gate.Judgement{Entries: []report.Entry{entry("b", policy.Pass)}}, Order{Verdicts: verdicts("a")}, "now it is b"},
		"evidence that does not verify": {&gate.Judgement{Entries: []report.Entry{entry("a", policy.Pass)}, Rejected: []verify.Rejected{{Reason: "bad signature"}}},
			Order{Verdicts: verdicts("a")}, "bad signature"},
	} {
		err := same(tc.j, tc.o)
		if tc.fail == "" && err != nil || tc.fail != "" && (err == nil || !strings.Contains(err.Error(), tc.fail)) {
			t.Errorf("%s: error %v, want %q", name, err, tc.fail)
		}
	}
}

// Without a credential file there is no credential, not the user's own.
func TestNoCredential(t *testing.T) {
	k, err := credential(&home.Home{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := k.(none); !ok {
		t.Errorf("%T, want none", k)
	}
}

// The releaser judges by the recorded policy and trust of the order, and by nothing
// that merely lies where they lay.
func TestJudgeBy(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"policy/policy.yaml":     "name: p\nsources: [{policy: [../rules]}]\n",
		"rules/main.rego":        "package main\n\ndeny contains \"no\" if input.component_name == \"bad\"\n",
		"elsewhere/ignored.rego": "package x\n",
	} {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	to := filepath.Join(t.TempDir(), "recording")
	rec, err := recording.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	p, err := rec.Policy(t.Context(), filepath.Join(dir, "policy"), policy.Options{Sources: source.Local{}})
	if err != nil {
		t.Fatal(err)
	}
	in, err := verify.PublicGood()
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	id := verify.CertificateIdentity{SAN: "me@example.com", Issuer: "https://accounts.example.com"}
	before := &gate.Gate{Instances: []*verify.Instance{in}, Identities: []verify.CertificateIdentity{id}, At: at}
	trust, err := before.Trust()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := rec.Close(recording.Case{Trust: *trust})
	if err != nil {
		t.Fatal(err)
	}
	// The order goes through a pipe.
	raw, err := json.Marshal(Order{Policy: to, PolicyRecording: digest, PolicyDigest: p.Digest(), Trust: *trust})
	if err != nil {
		t.Fatal(err)
	}
	var o Order
	if err := json.Unmarshal(raw, &o); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	g := &gate.Gate{}
	if err := judgeBy(t.Context(), g, o); err != nil {
		t.Fatal(err)
	}
	if g.Policy.Digest() != p.Digest() || !g.At.Equal(at) || len(g.Identities) != 1 || g.Identities[0].SAN != id.SAN || len(g.Instances) != 1 || string(g.Instances[0].JSON()) != string(in.JSON()) || g.Instances[0].Thresholds() != in.Thresholds() {
		t.Errorf("handed over: %+v", g)
	}
	o.PolicyDigest = "sha256:" + strings.Repeat("0", 64)
	if err := judgeBy(t.Context(), &gate.Gate{}, o); err == nil || !strings.Contains(err.Error(), "the policy changed") {
		t.Error(err)
	}
	blobs, err := filepath.Glob(filepath.Join(to, "blobs/sha256/*"))
	if err != nil || len(blobs) == 0 {
		t.Fatal(blobs, err)
	}
	if err := os.WriteFile(blobs[0], []byte("package main\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := judgeBy(t.Context(), &gate.Gate{}, o); err == nil || !strings.Contains(err.Error(), "was changed") {
		t.Error(err)
	}
}
