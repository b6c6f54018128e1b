package policy_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/api"
	"assay.dev/assay/policy"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
	"assay.dev/assay/verify"
)

// TestVerifiedEvidence goes the whole way: signed, stored in a registry, found,
// verified, judged.
func TestVerifiedEvidence(t *testing.T) {
	const builder = "https://assay.dev/builder/v1/executed/user/test"
	rt := storetest.Transport(storetest.Registry(t, true))
	subject := storetest.PushImage(t, rt, "localhost:5055", "staging/run-1", "image")
	key := storetest.NewKey(t)

	raw, err := os.ReadFile(filepath.Join("testdata", "good.json"))
	if err != nil {
		t.Fatal(err)
	}
	raw = bytes.ReplaceAll(raw, []byte("sha256:"+strings.Repeat("1", 64)), []byte(subject.Digest))
	var good struct {
		Runs []struct {
			Observation, Provenance json.RawMessage
		}
	}
	if err := json.Unmarshal(raw, &good); err != nil {
		t.Fatal(err)
	}
	provenance := storetest.Statement(t, key, subject, api.PredicateSLSAv02, string(good.Runs[0].Provenance))
	predicate := strings.ReplaceAll(string(good.Runs[0].Observation), "PROVENANCE", storetest.Digest(provenance.Envelope.Payload))
	observation := storetest.Statement(t, key, subject, api.PredicateObservation, predicate)
	repo, err := name.NewRepository(subject.Repo)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := oci.New(repo, rt, oci.Options{}).Put(t.Context(), subject, provenance, observation, storetest.Signature(t, key, subject)); err != nil {
		t.Fatal(err)
	}
	p, err := policy.Load(t.Context(), filepath.Join("..", "examples", "policy", "prototype"), policy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		trust verify.Key
		want  policy.Outcome
	}{
		"observer":   {verify.Key{Name: "observer", Public: key.Public(), Observer: true, Builders: []string{builder}}, policy.Pass},
		"key holder": {verify.Key{Name: "somebody", Public: key.Public()}, policy.Fail},
	} {
		e, err := verify.Image(t.Context(), subject.Ref(), verify.Options{Keys: []verify.Key{tc.trust}, Transport: rt})
		if err != nil {
			t.Fatal(err)
		}
		v, err := p.Evaluate(t.Context(), e, policy.Context{Now: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)})
		if err != nil {
			t.Fatal(err)
		}
		if v.Result != tc.want || v.Run != "run-1" {
			t.Errorf("%s: %s by run %q, want %s: %v", name, v.Result, v.Run, tc.want, v.Violations)
		}
	}
}
