package vsa_test

import (
	"encoding/json"
	"testing"
	"time"

	"assay.dev/assay/policy/vsa"
)

func conforma() *vsa.Conforma {
	return &vsa.Conforma{
		Policy: json.RawMessage(`{"sources":[{"policy":["oci::example.com/policy@sha256:00"]}]}`), PolicySource: "default",
		ImageRefs: []string{ref}, Timestamp: now.Format(time.RFC3339), Status: vsa.StatusPassed, Verifier: vsa.ConformaVerifier,
	}
}

func TestConforma(t *testing.T) {
	digest := ref[len(repo)+1:]
	for name, tt := range map[string]struct {
		change func(*vsa.Conforma)
		digest string
		now    time.Time
		maxAge time.Duration
		code   string
		ok     bool
	}{
		"good":                  {nil, digest, now.Add(time.Hour), 2 * time.Hour, "", true},
		"no image named":        {nil, "", now.Add(time.Hour), 2 * time.Hour, "", true},
		"any age":               {nil, digest, now.Add(10000 * time.Hour), 0, "", true},
		"another image's":       {nil, otherHex, now, time.Hour, vsa.ReasonNone, false},
		"old":                   {nil, digest, now.Add(2*time.Hour + time.Second), 2 * time.Hour, vsa.ReasonExpired, false},
		"from the future":       {nil, digest, now.Add(-2 * time.Minute), time.Hour, "", false},
		"failed":                {func(c *vsa.Conforma) { c.Status = vsa.StatusFailed }, digest, now, time.Hour, vsa.ReasonFailed, false},
		"no status":             {func(c *vsa.Conforma) { c.Status = "" }, digest, now, time.Hour, vsa.ReasonFailed, false},
		"passed, violations":    {func(c *vsa.Conforma) { c.Summary.Violations = 1 }, digest, now, time.Hour, vsa.ReasonFailed, false},
		"no sources":            {func(c *vsa.Conforma) { c.Policy = json.RawMessage(`{}`) }, digest, now, time.Hour, "", false},
		"a time that cannot be": {func(c *vsa.Conforma) { c.Timestamp = "yesterday" }, digest, now, time.Hour, vsa.ReasonNotFound, false},
	} {
		c := conforma()
		if tt.change != nil {
			tt.change(c)
		}
		raw, err := vsa.ConformaStatement(repo, digest, c)
		if err != nil {
			t.Fatal(err)
		}
		got, s, err := vsa.ParseConforma(raw)
		if err != nil {
			t.Fatal(err)
		}
		r := vsa.CheckConforma(got, s, tt.digest, tt.now, tt.maxAge)
		if (r == nil) != tt.ok || r != nil && r.Code != tt.code {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestParseConforma(t *testing.T) {
	for name, raw := range map[string]string{
		"SLSA's":          string(statement(t)),
		"a predicate":     `{"status":"passed"}`,
		"two statuses":    `{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://conforma.dev/verification_summary/v1","subject":[{"digest":{"sha256":"00"}}],"predicate":{"status":"failed","status":"passed"}}`,
		"no predicate":    `{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://conforma.dev/verification_summary/v1","subject":[{"digest":{"sha256":"00"}}]}`,
		"of a wrong form": `{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://conforma.dev/verification_summary/v1","subject":[{"digest":{"sha256":"00"}}],"predicate":{"status":1}}`,
	} {
		if c, _, err := vsa.ParseConforma([]byte(raw)); err == nil {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

func FuzzParseConforma(f *testing.F) {
	raw, err := vsa.ConformaStatement(repo, otherHex, conforma())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, s, err := vsa.ParseConforma(raw)
		if err != nil {
			return
		}
		if s.PredicateType != vsa.ConformaType {
			t.Fatalf("a statement of type %q was read", s.PredicateType)
		}
		if vsa.CheckConforma(c, s, otherHex, now, time.Hour) == nil && (!s.About(otherHex) || c.Status != vsa.StatusPassed) {
			t.Fatal("taken though it is about another image or did not pass")
		}
	})
}
