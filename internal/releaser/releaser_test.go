package releaser

import (
	"strings"
	"testing"

	"assay.dev/assay/internal/gate"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/policy"
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
