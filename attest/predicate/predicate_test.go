package predicate_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/predicate"
)

func TestParse(t *testing.T) {
	const (
		v02   = `{"builder":{"id":"b"},"buildType":"x","invocation":{"configSource":{"uri":"git+https://github.com/o/n@refs/tags/v1","digest":{"sha1":"c"}}}}`
		v1    = `{"buildDefinition":{"buildType":"x","externalParameters":{"workflow":{"ref":"refs/heads/main","repository":"https://github.com/o/n","path":"w"}},"resolvedDependencies":[{"uri":"git+https://github.com/o/n@refs/heads/main","digest":{"gitCommit":"c"}}]},"runDetails":{"builder":{"id":"b"},"metadata":{"finishedOn":"2026-01-01T00:00:00Z"}}}`
		vsa   = `{"verifier":{"id":"v"},"timeVerified":"2026-01-01T00:00:00Z","resourceUri":"r","policy":{"uri":"p"},"verificationResult":"PASSED","verifiedLevels":["SLSA_BUILD_LEVEL_3"]}`
		vsa02 = `{"verifier":{"id":"v"},"time_verified":"2026-01-01T00:00:00Z","resource_uri":"r","policy":{"uri":"p"},"input_attestations":[{"uri":"a","digest":{"sha256":"x"}}],"verification_result":"PASSED","policy_level":"SLSA_LEVEL_3","dependency_levels":{"SLSA_LEVEL_4":1}}`
	)
	for _, tc := range []struct {
		name, typ, doc string
		says           string // of the error; empty: it is read
	}{
		{"v0.2", api.PredicateSLSAv02, v02, ""},
		{"v1", api.PredicateSLSAv1, v1, ""},
		{"v1 with members of later versions", api.PredicateSLSAv1, strings.Replace(v1, `{"buildDefinition"`, `{"later":1,"buildDefinition"`, 1), ""},
		{"v0.1", predicate.SLSAv01, `{"builder":{"id":"b"},"recipe":{"type":"t","definedInMaterial":"0"},"materials":[{"uri":"git+https://github.com/o/n"}]}`, ""},
		{"v0.1 of a material that is not there", predicate.SLSAv01, `{"builder":{"id":"b"},"recipe":{"type":"t","definedInMaterial":1},"materials":[{"uri":"x"}]}`, "definedInMaterial"},
		{"v0.2 as v1", api.PredicateSLSAv1, v02, "builder id"},
		{"no builder", api.PredicateSLSAv02, `{"buildType":"x"}`, "builder id"},
		{"no type of build", api.PredicateSLSAv02, `{"builder":{"id":"b"}}`, "buildType"},
		{"builder of another kind", api.PredicateSLSAv02, `{"builder":"b","buildType":"x"}`, "builder"},
		{"two builders in two cases", api.PredicateSLSAv02, `{"builder":{"id":"b"},"Builder":{"id":"c"},"buildType":"x"}`, "case alone"},
		{"two builders", api.PredicateSLSAv02, `{"builder":{"id":"b"},"builder":{"id":"c"},"buildType":"x"}`, "duplicate"},
		{"both ids", api.PredicateSLSAv02, `{"builder":{"id":"b"},"buildType":"x","metadata":{"buildInvocationID":"a","buildInvocationId":"b"}}`, "both"},
		{"none", api.PredicateSLSAv02, ``, "none"},
		{"VSA", predicate.VSAv1, vsa, ""},
		{"VSA without a word that is known", predicate.VSAv1, strings.Replace(vsa, "PASSED", "OK", 1), "PASSED or FAILED"},
		{"VSA without levels", predicate.VSAv1, strings.Replace(vsa, "verifiedLevels", "levels", 1), "verifiedLevels"},
		{"VSA with half a dependency", predicate.VSAv1, strings.Replace(vsa, `"policy"`, `"dependencyLevels":{"SLSA_BUILD_LEVEL_1":0.5},"policy"`, 1), "dependencyLevels"},
		{"VSA v0.2", predicate.VSAv02, vsa02, ""},
		{"VSA v0.2 in v1's words", predicate.VSAv02, vsa, "resourceUri"},
		{"VSA v1 in v0.2's words", predicate.VSAv1, vsa02, "resourceUri"},
		{"v1 as in-toto's Go types write it", api.PredicateSLSAv1, strings.Replace(v1, `"finishedOn"`, `"invocationID":"i","finishedOn"`, 1), ""},
		{"v1 with both ids", api.PredicateSLSAv1, strings.Replace(v1, `"finishedOn"`, `"invocationID":"i","invocationId":"k","finishedOn"`, 1), "both"},
		{"v1 with a third spelling", api.PredicateSLSAv1, strings.Replace(v1, `"finishedOn"`, `"invocationid":"i","finishedOn"`, 1), "case alone"},
		{"test result", predicate.TestResult, `{"result":"PASSED","configuration":[{"uri":"x"}]}`, ""},
		{"test result without configuration", predicate.TestResult, `{"result":"PASSED"}`, "configuration"},
		{"vulnerabilities", predicate.VulnsV01, `{"scanner":{"uri":"s","result":[{"id":"CVE-1","severity":[{"method":"m","score":"9"}]}]}}`, ""},
		{"vulnerabilities as the text of v0.1 has them", predicate.VulnsV01, `{"scanner":{"uri":"s","result":[{"vulnerability":{"id":"CVE-1"}}]}}`, ""},
		{"vulnerabilities of two ids", predicate.VulnsV01, `{"scanner":{"uri":"s","result":[{"id":"CVE-2","vulnerability":{"id":"CVE-1"}}]}}`, "both"},
		{"vulnerabilities v0.2", predicate.VulnsV02, `{"scanner":{"uri":"s","db":{"lastUpdate":"2026-01-01T00:00:00Z"},"result":[]},"metadata":{"scanStartedOn":"2026-01-01T00:00:00Z"}}`, ""},
		{"vulnerabilities v0.2 in v0.1's words", predicate.VulnsV02, `{"scanner":{"uri":"s","result":[{"vulnerability":{"id":"CVE-1"}}]}}`, "id"},
		{"vulnerabilities without result", predicate.VulnsV01, `{"scanner":{"uri":"s"}}`, "result"},
		{"cosign's vulnerabilities", predicate.VulnsCosign, `{"invocation":{},"scanner":{"uri":"s","result":{"any":1}},"metadata":{}}`, ""},
		{"SPDX 2", api.PredicateSPDX, `{"spdxVersion":"SPDX-2.3","packages":[{"SPDXID":"a","name":"n"}]}`, ""},
		{"SPDX 3", api.PredicateSPDX, `{"@context":"https://spdx.org/rdf/3.0.1/spdx-context.jsonld","@graph":[]}`, ""},
		{"SPDX of no version", api.PredicateSPDX, `{"packages":[]}`, "spdxVersion"},
		{"CycloneDX", predicate.CycloneDX + "/v1.6", `{"bomFormat":"CycloneDX","specVersion":"1.6","components":[{"type":"library","name":"n"}]}`, ""},
		{"CycloneDX that is none", predicate.CycloneDX, `{"bomFormat":"SPDX","specVersion":"1"}`, "CycloneDX"},
		{"observation", api.PredicateObservation, `{"run":{"id":"r"}}`, ""},
		{"observation of nothing", api.PredicateObservation, `{"run":{}}`, "run id"},
		{"npm's", predicate.NPMPublish, `{"name":"n","version":"1","registry":"r"}`, ""},
		{"unknown", "https://example.com/x", `{"builder":1}`, ""},
		{"nearly known", api.PredicateSLSAv1 + "/", `{"builder":1}`, ""},
	} {
		p, err := predicate.Parse(tc.typ, []byte(tc.doc))
		if tc.says == "" && err != nil || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%s: %v; want %q", tc.name, err, tc.says)
			continue
		}
		if err == nil && p.Type() != tc.typ {
			t.Errorf("%s: type %s", tc.name, p.Type())
		}
		if _, unknown := p.(*predicate.Unknown); err == nil && unknown == predicate.Known(tc.typ) {
			t.Errorf("%s: %T", tc.name, p)
		}
	}
	old, err := predicate.Parse(predicate.VSAv02, []byte(vsa02))
	if err != nil {
		t.Fatal(err)
	}
	if v := old.(*predicate.VSA); v.ResourceURI != "r" || v.VerificationResult != "PASSED" || v.TimeVerified.IsZero() || len(v.InputAttestations) != 1 || v.VerifiedLevels[0] != "SLSA_LEVEL_3" || v.DependencyLevels["SLSA_LEVEL_4"] != "1" {
		t.Errorf("%+v", v)
	}
	nested, err := predicate.Parse(predicate.VulnsV01, []byte(`{"scanner":{"uri":"s","result":[{"vulnerability":{"id":"CVE-1","severity":[{"method":"m","score":"9"}]}}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]predicate.Found{{ID: "CVE-1", Severity: []predicate.Severity{{Method: "m", Score: "9"}}}}, nested.(*predicate.Vulnerabilities).Found()); d != "" {
		t.Error(d)
	}
	for doc, want := range map[string]predicate.Source{
		v02: {"https://github.com/o/n", "refs/tags/v1", "c"},
		v1:  {"https://github.com/o/n", "refs/heads/main", "c"},
	} {
		typ := api.PredicateSLSAv1
		if doc == v02 {
			typ = api.PredicateSLSAv02
		}
		p, err := predicate.Parse(typ, []byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, p.(predicate.Provenance).Source()); d != "" {
			t.Error(d)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(api.PredicateSLSAv1, []byte(`{"runDetails":{"builder":{"id":"b"}},"buildDefinition":{"buildType":"t"}}`))
	f.Add(predicate.SLSAv01, []byte(`{"builder":{"id":"b"},"recipe":{"type":"t","definedInMaterial":"-1"}}`))
	f.Add(api.PredicateSLSAv02, []byte(`{"builder":{"id":"b"},"buildType":"t","metadata":{"buildStartedOn":""}}`))
	f.Add(predicate.VulnsV02, []byte(`{"scanner":{"uri":"s","result":[]}}`))
	f.Fuzz(func(t *testing.T, typ string, doc []byte) {
		if len(doc) > 1<<16 {
			return
		}
		p, err := predicate.Parse(typ, doc)
		if err != nil {
			return
		}
		if pr, ok := p.(predicate.Provenance); ok && pr.BuilderID() == "" {
			t.Fatalf("provenance of nobody: %s", doc)
		}
		if pr, ok := p.(predicate.Provenance); ok {
			pr.Source()
			pr.Outcome()
		}
	})
}
