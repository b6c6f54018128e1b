package ec_test

// The signer is the real one, in a process of its own: this test's program, which lies
// beside itself under the name assay-observer. The registry and the log are in this
// process: see vsatest.

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"assay.dev/assay/attest"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/internal/signer"
	internal "assay.dev/assay/internal/vsa"
	"assay.dev/assay/internal/vsa/vsatest"
	"assay.dev/assay/policy/vsa"
	"assay.dev/assay/store"
	"assay.dev/assay/store/storetest"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "signer" {
		os.Exit(signer.Main(context.Background(), os.Args[2:], os.Stdout, os.Stderr))
	}
	withScripts(m)
}

// observer puts this program beside itself as assay-observer.
func observer(t *testing.T) {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	if err := os.Symlink(self, filepath.Join(filepath.Dir(self), "assay-observer")); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
}

// vsaRig is an image that passes a policy, the keys of builder and gate, and a log.
type vsaRig struct {
	t       *testing.T
	dir     string
	image   string // by digest
	digest  string
	builder *attest.Key
	gate    *attest.Key
	log     *vsatest.Rekor
	url     string
}

const wholeProvenance = `{"buildDefinition":{"buildType":"https://example.com/build","externalParameters":{}},"runDetails":{"builder":{"id":"https://example.com/builder"}}}`

func newVSARig(t *testing.T) *vsaRig {
	t.Helper()
	observer(t)
	r := &vsaRig{t: t, dir: t.TempDir(), builder: storetest.NewKey(t), gate: storetest.NewKey(t)}
	tag, _ := signedImage(t, func(s store.Subject) []store.Evidence {
		r.digest = s.Digest
		return []store.Evidence{storetest.Signature(t, r.builder, s), storetest.Statement(t, r.builder, s, "https://slsa.dev/provenance/v1", wholeProvenance)}
	})
	r.image = strings.TrimSuffix(tag, ":1") + "@" + r.digest
	r.log, r.url = vsatest.Serve(t)
	write(t, r.dir, "rules/main.rego", oneRule)
	write(t, r.dir, "policy.yaml", "sources:\n- policy: [rules]\n")
	raw, err := r.gate.PrivatePEM([]byte("secret"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(r.dir, "gate.key"), raw, 0o600))
	write(t, r.dir, "gate.pub", string(r.gate.PublicPEM()))
	write(t, r.dir, "builder.pub", string(r.builder.PublicPEM()))
	t.Setenv("COSIGN_PASSWORD", "secret")
	// A short name, since sockets have short paths.
	tmp, err := os.MkdirTemp("", "ec")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(tmp) })
	t.Setenv("TMPDIR", tmp)
	return r
}

func (r *vsaRig) ec(args ...string) (int, string, string) {
	r.t.Helper()
	return run(r.t, r.dir, args)
}

// validate is validate image with flags more.
func (r *vsaRig) validate(more ...string) (int, map[string]any, string) {
	r.t.Helper()
	args := []string{"validate", "image", "-i", r.image, "-p", "policy.yaml", "-k", "builder.pub", "--ignore-rekor", "--output", "json", "--show-successes", "--retry-max-retry", "0"}
	code, out, errs := r.ec(append(args, more...)...)
	m, _ := parseReport(r.t, out).(map[string]any)
	return code, m, errs
}

// issue makes a summary and puts it into the log.
func (r *vsaRig) issue(more ...string) {
	r.t.Helper()
	code, _, errs := r.validate(append([]string{"--vsa", "--vsa-signing-key", "gate.key", "--vsa-upload", "rekor@" + r.url, "--vsa-expiration", "0", "--attestation-output-dir", "out"}, more...)...)
	if code != 0 || strings.Contains(errs, "[VSA]") {
		r.t.Fatalf("exit %d: %s", code, errs)
	}
}

func TestVSAIssue(t *testing.T) {
	r := newVSARig(t)
	r.issue("--vsa-upload", "local@kept")
	if n := r.log.Len(); n != 2 {
		t.Errorf("%d entries; want one of the component and one of the snapshot", n)
	}
	files, err := filepath.Glob(filepath.Join(r.dir, "kept", "vsa-*.json"))
	must(t, err)
	if len(files) != 2 {
		t.Errorf("%q", files)
	}
	raw, err := os.ReadFile(filepath.Join(r.dir, "out", "vsa-Unnamed.json.intoto.jsonl"))
	must(t, err)
	env, err := dsse.Parse(raw)
	must(t, err)
	pub, err := dsse.NewPublicKey(r.gate.Public())
	must(t, err)
	_, err = env.Verify(1, pub)
	must(t, err)
	c, s, err := vsa.ParseConforma(env.Payload)
	must(t, err)
	if s.Type != "https://in-toto.io/Statement/v0.1" || !s.About(r.digest) || c.Status != "passed" || c.Verifier != "conforma" || c.PolicySource != "policy.yaml" ||
		len(c.ImageRefs) != 1 || c.ImageRefs[0] != r.image || strings.TrimSpace(c.PublicKey) != strings.TrimSpace(string(r.builder.PublicPEM())) ||
		c.Summary.Component.ContainerImage != r.image || len(c.Summary.Components) != 1 || c.Summary.Successes == 0 || string(c.Summary.Component.Source) != "{}" {
		t.Errorf("%+v\n%s", c, env.Payload)
	}
	raw, err = os.ReadFile(filepath.Join(r.dir, "out", "application-snapshot-vsa.json"))
	must(t, err)
	var snap vsa.Snapshot
	must(t, json.Unmarshal(raw, &snap))
	if snap.Status != "passed" || snap.Summary.Components != 1 || !snap.Summary.Success || snap.Summary.ComponentDetails[0].Name != "Unnamed" {
		t.Errorf("%s", raw)
	}
	// The output of that name is the same predicate.
	code, out, errs := r.ec("validate", "image", "-i", r.image, "-p", "policy.yaml", "-k", "builder.pub", "--ignore-rekor", "--output", "vsa")
	if code != 0 || json.Unmarshal([]byte(out), &snap) != nil || snap.Verifier != "conforma" {
		t.Errorf("exit %d, %s, %s", code, out, errs)
	}
	// Predicates alone need no key.
	code, _, errs = r.validate("--vsa", "--attestation-format", "predicate", "--attestation-output-dir", "bare")
	if raw, err := os.ReadFile(filepath.Join(r.dir, "bare", "vsa-Unnamed.json")); code != 0 || err != nil || !strings.Contains(string(raw), `"status": "passed"`) {
		t.Errorf("exit %d, %v, %s, %s", code, err, raw, errs)
	}
}

// TestVSAIssueFailures: what goes wrong with summaries is said and changes no outcome;
// what would mean nothing is refused first.
func TestVSAIssueFailures(t *testing.T) {
	r := newVSARig(t)
	for name, tt := range map[string]struct {
		args []string
		code int
		want string
	}{
		"no place":             {[]string{"--vsa", "--vsa-signing-key", "gate.key"}, 0, "[VSA] VSA files generated but not uploaded (no --vsa-upload backends specified)"},
		"a bad place":          {[]string{"--vsa", "--vsa-signing-key", "gate.key", "--vsa-upload", "invalid-backend@somewhere", "--vsa-expiration", "0"}, 0, "unsupported backend 'invalid-backend'"},
		"a log that is away":   {[]string{"--vsa", "--vsa-signing-key", "gate.key", "--vsa-upload", "rekor@http://127.0.0.1:1?retries=0", "--vsa-expiration", "0"}, 0, "[VSA] Failed to upload in-toto 0.0.2 entry"},
		"no key":               {[]string{"--vsa"}, 1, "--vsa-signing-key required for --attestation-format=dsse"},
		"a key that is away":   {[]string{"--vsa", "--vsa-signing-key", "none.key"}, 1, "finding the key"},
		"a format":             {[]string{"--vsa", "--attestation-format", "jws"}, 1, "invalid --attestation-format: jws (valid: dsse, predicate)"},
		"no public key":        {[]string{"--vsa-upload", "local@x"}, 1, "--vsa-public-key required when --vsa-upload is set with --vsa-expiration > 0"},
		"a folder elsewhere":   {[]string{"--vsa", "--vsa-signing-key", "gate.key", "--attestation-output-dir", "/etc/vsa"}, 1, "must be under /tmp or current working directory"},
		"a way out of /tmp":    {[]string{"--vsa", "--vsa-signing-key", "gate.key", "--attestation-output-dir", "/tmp/../etc"}, 1, "must be under /tmp"},
		"a time that is none":  {[]string{"--vsa-expiration", "soon"}, 1, "is no time"},
		"a time in the future": {[]string{"--vsa-expiration", "-1h"}, 1, "negative"},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, errs := r.ec(append([]string{"validate", "image", "-i", r.image, "-p", "policy.yaml", "-k", "builder.pub", "--ignore-rekor", "--retry-max-retry", "0"}, tt.args...)...)
			if code != tt.code || !strings.Contains(errs, tt.want) {
				t.Errorf("exit %d, %s; want %d, %q", code, errs, tt.code, tt.want)
			}
		})
	}
	link := filepath.Join(r.dir, "link")
	must(t, os.Symlink("/etc", link))
	if code, _, errs := r.ec("validate", "image", "-i", r.image, "-p", "policy.yaml", "--vsa", "--vsa-signing-key", "gate.key", "--attestation-output-dir", "link/vsa"); code != 1 || !strings.Contains(errs, "must be under") {
		t.Errorf("a link to elsewhere: exit %d, %s", code, errs)
	}
}

// TestVSASkip: a summary stands in for judging, shows as such, and only where it
// answers: each attack is judged instead, and fails since the rules were changed to.
func TestVSASkip(t *testing.T) {
	taken := func(r *vsaRig, more ...string) (bool, int, map[string]any, string) {
		code, report, errs := r.validate(append([]string{"--vsa-upload", "rekor@" + r.url, "--vsa-public-key", "gate.pub"}, more...)...)
		add, _ := report["assay"].(map[string]any)
		list, _ := add["acceptedSummaries"].(map[string]any)
		_, ok := list[r.image]
		return ok, code, report, errs
	}
	sign := func(r *vsaRig, k *attest.Key, change func(*vsa.Conforma)) *dsse.Envelope {
		r.issue()
		raw, err := os.ReadFile(filepath.Join(r.dir, "out", "vsa-Unnamed.json"))
		must(r.t, err)
		c := new(vsa.Conforma)
		must(r.t, json.Unmarshal(raw, c))
		if change != nil {
			change(c)
		}
		st, err := vsa.ConformaStatement("x", r.digest, c)
		must(r.t, err)
		env, err := attest.Statement(r.t.Context(), k, st)
		must(r.t, err)
		return env
	}
	upload := func(r *vsaRig, env *dsse.Envelope, k *attest.Key) {
		p, err := internal.ParsePlace("rekor@"+r.url, internal.Rekor)
		must(r.t, err)
		must(r.t, p.Put(r.t.Context(), env, storetest.Public(r.t, k), nil, time.Now()))
	}
	later := func(c *vsa.Conforma) { c.Timestamp = time.Now().Add(30 * time.Second).UTC().Format(time.RFC3339) }
	const deny = "package main\n# METADATA\n# custom:\n#   short_name: no\ndeny contains {\"code\": \"main.no\", \"msg\": \"no\"} if true\n"

	t.Run("taken", func(t *testing.T) {
		r := newVSARig(t)
		r.issue()
		// As upstream the policy is compared by its configuration: the rules may differ.
		write(t, r.dir, "rules/main.rego", deny)
		ok, code, report, errs := taken(r)
		if !ok || code != 0 || len(codes(report, "successes")) != 0 {
			t.Errorf("taken %v, exit %d, %v, %s", ok, code, report, errs)
		}
		if ok, code, _, _ := taken(r, "--vsa-expiration", "0"); ok || code != 1 {
			t.Errorf("taken %v, exit %d with expiration 0", ok, code)
		}
	})
	for name, attack := range map[string]func(r *vsaRig) []string{
		"none": func(*vsaRig) []string { return nil },
		"another key's": func(r *vsaRig) []string {
			thief := storetest.NewKey(r.t)
			env := sign(r, thief, nil)
			*r.log = vsatest.Rekor{}
			r.log, r.url = vsatest.Serve(r.t)
			upload(r, env, thief)
			return nil
		},
		"too old": func(r *vsaRig) []string {
			r.issue()
			time.Sleep(1100 * time.Millisecond)
			return []string{"--vsa-expiration", "1s"}
		},
		"another policy": func(r *vsaRig) []string {
			r.issue()
			return []string{"-p", `{"sources":[{"policy":["rules"],"ruleData":{"a":1}}]}`}
		},
		"another signer's key": func(r *vsaRig) []string {
			r.issue()
			write(r.t, r.dir, "other.pub", string(storetest.NewKey(r.t).PublicPEM()))
			return []string{"-k", "other.pub"}
		},
		"a failure after it": func(r *vsaRig) []string {
			upload(r, sign(r, r.gate, func(c *vsa.Conforma) { later(c); c.Status = "failed" }), r.gate)
			return nil
		},
		"violations": func(r *vsaRig) []string {
			upload(r, sign(r, r.gate, func(c *vsa.Conforma) { later(c); c.Summary.Violations = 1 }), r.gate)
			return nil
		},
		"from the future": func(r *vsaRig) []string {
			upload(r, sign(r, r.gate, func(c *vsa.Conforma) {
				c.Timestamp = time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
			}), r.gate)
			return nil
		},
		"unchecked signatures": func(r *vsaRig) []string { r.issue("--skip-att-sig-check"); return nil },
		"a log that answers with another image's": func(r *vsaRig) []string {
			st, err := vsa.ConformaStatement("x", "sha256:"+strings.Repeat("0", 64), map[string]any{"status": "passed"})
			must(r.t, err)
			r.issue()
			r.log.Alter(func(e map[string]any) { e["attestation"] = map[string]any{"data": st} })
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newVSARig(t)
			more := attack(r)
			write(t, r.dir, "rules/main.rego", deny)
			if ok, code, report, errs := taken(r, more...); ok || code != 1 {
				t.Errorf("taken %v, exit %d, %v, %s", ok, code, report, errs)
			}
		})
	}
}

func TestValidateVSA(t *testing.T) {
	r := newVSARig(t)
	r.issue()
	r.issue("--vsa-upload", "local@kept")
	files, err := filepath.Glob(filepath.Join(r.dir, "kept", "vsa-*.json"))
	must(t, err)
	var file string
	for _, f := range files {
		env, err := internal.Envelope(f)
		must(t, err)
		if s, err := intoto.Parse(env.Payload); err == nil && s.About(r.digest) {
			file = f
		}
	}
	other := storetest.NewKey(t)
	write(t, r.dir, "other.pub", string(other.PublicPEM()))
	from := []string{"--vsa-retrieval", "rekor@" + r.url + "?retries=0"}
	key, alone, fallback := []string{"--vsa-public-key", "gate.pub"}, []string{"--no-fallback"}, []string{"--fallback-public-key", "builder.pub"}
	join := func(lists ...[]string) []string {
		var out []string
		for _, l := range lists {
			out = append(out, l...)
		}
		return out
	}
	for name, tt := range map[string]struct {
		args []string
		code int
		want []string // of both outputs
	}{
		"by digest":             {join([]string{r.image}, from, key, alone), 0, []string{"Overall: ✅ PASSED", "Signature: VERIFIED", "Predicate: passed (1/1)", "Policy: matches (no differences)", "VSA=PASSED"}},
		"by flag":               {join([]string{"-v", r.digest}, from, key, alone), 0, []string{"Overall: ✅ PASSED"}},
		"a file":                {join([]string{file}, key, alone), 0, []string{"Overall: ✅ PASSED"}},
		"images":                {join([]string{"--images", `{"components":[{"name":"a","containerImage":"` + r.image + `"}]}`}, from, key, alone), 0, []string{"Found 1 components", "PASSED"}},
		"status":                {join([]string{r.image, "--output", "status"}, from, key, alone), 0, []string{`{"result":"SUCCESS"}`}},
		"json":                  {join([]string{r.image, "--output", "json"}, from, key, alone), 0, []string{`"vsa_summary": {`, `"overall": "✅ PASSED"`}},
		"yaml":                  {join([]string{r.image, "--output", "yaml"}, from, key, alone), 0, []string{"vsa_summary:\n  policy: matches (no differences)"}},
		"another key":           {join([]string{r.image, "--vsa-public-key", "other.pub"}, from, alone), 1, []string{"VSA=FAILED(reason=retrieval failed)", "Signature: NOT VERIFIED", "VSA signature verification failed"}},
		"not verified":          {join([]string{r.image, "--ignore-signature-verification"}, from, alone), 0, []string{"Signature: NOT VERIFIED", "anybody can have written them"}},
		"too old":               {join([]string{r.image, "--vsa-expiration", "1ns"}, from, key, alone), 1, []string{"VSA=FAILED(reason=expired)", "snapshot validation failed for 1 components"}},
		"not strict":            {join([]string{r.image, "--vsa-expiration", "1ns", "--strict=false"}, from, key, alone), 0, []string{"❌ FAILED"}},
		"another image":         {join([]string{strings.Split(r.image, "@")[0] + "@sha256:" + strings.Repeat("0", 64)}, from, key, alone), 1, []string{"reason=no vsa"}},
		"a tag":                 {join([]string{strings.Split(r.image, "@")[0] + ":1"}, from, key, alone), 1, []string{"does not contain a valid image digest"}},
		"judged instead":        {join([]string{r.image, "--vsa-expiration", "1ns"}, from, key, fallback), 0, []string{"Fallback: used for all images", "Fallback=PASSED", "=== FALLBACK: VALIDATE IMAGE ===", "Overall: ✅ PASSED", "Fallback reason(s): expired"}},
		"judged, another key":   {join([]string{r.image, "--vsa-expiration", "1ns", "--fallback-public-key", "other.pub"}, from, key), 1, []string{"Fallback=FAILED", "Overall: ❌ FAILED"}},
		"no key":                {join([]string{r.image}, from, alone), 1, []string{"--vsa-public-key is required for signature verification"}},
		"no fallback key":       {join([]string{r.image}, from, key), 1, []string{"--fallback-public-key is required"}},
		"a file, with fallback": {join([]string{"./x.json"}, key, fallback), 1, []string{"fallback not supported for file paths"}},
		"nothing":               {join(key, alone), 1, []string{"either --vsa, --images, or VSA identifier must be provided"}},
		"no identifier":         {join([]string{"UPPER CASE"}, key, alone), 1, []string{"invalid VSA identifier format"}},
		"both":                  {join([]string{"-v", r.image, "--images", "x"}, key, alone), 1, []string{"if any flags in the group [vsa images] are set none of the others can be"}},
		"a bad place":           {join([]string{r.image, "--vsa-retrieval", "s3@x"}, key, alone), 1, []string{"no valid retriever found from flags"}},
		"a format":              {join([]string{r.image, "--output", "junit"}, from, key, alone), 1, []string{"unsupported format: junit"}},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errs := r.ec(append([]string{"validate", "vsa", "-p", "policy.yaml", "--retry-max-retry", "0"}, tt.args...)...)
			if code != tt.code {
				t.Errorf("exit %d, want %d\n%s%s", code, tt.code, out, errs)
			}
			for _, w := range tt.want {
				if !strings.Contains(out+errs, w) {
					t.Errorf("no %q in\n%s%s", w, out, errs)
				}
			}
		})
	}
	// Another policy, and a report in a file with what was judged in it.
	code, out, errs := r.ec(join([]string{"validate", "vsa", r.image, "-p", `{"sources":[{"policy":["rules"],"config":{"include":["main.attested"]}}]}`, "--output", "json=report.json"}, from, key, fallback)...)
	raw, err := os.ReadFile(filepath.Join(r.dir, "report.json"))
	must(t, err)
	var report map[string]any
	must(t, json.Unmarshal(raw, &report))
	diff, _ := report["policy_diff"].(map[string]any)
	inner, _ := report["fallback"].(map[string]any)
	if code != 0 || diff["added"] != "[include] 1" || inner["success"] != true {
		t.Errorf("exit %d, %s%s\n%s", code, out, errs, raw)
	}
}
