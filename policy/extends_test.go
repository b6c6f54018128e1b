package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/policy/source"
	"assay.dev/assay/policy/spec"
	"assay.dev/assay/verify"
)

func saying(pkg, code string) string {
	return fmt.Sprintf("package %s\n\n# METADATA\n# title: T\n# custom:\n#   short_name: %s\ndeny contains {\"code\": \"%s.%s\", \"msg\": data.rule_data__configuration__.word} if input.image\n", pkg, code, pkg, code)
}

// TestExtends: one line changed, without a copy of the rest.
func TestExtends(t *testing.T) {
	base := map[string]string{
		"base/policy.yaml":  "name: base\nsources:\n- name: one\n  policy: [./rules]\n  ruleData: {word: base, kept: 1}\n  volatileConfig: {exclude: [{value: a.never}]}\n- policy: [./more]\n  ruleData: {word: more}\n",
		"base/rules/a.rego": saying("a", "x"), "base/more/b.rego": saying("b", "x"),
		"rules/c.rego": saying("c", "x"),
	}
	for name, tc := range map[string]struct {
		overlay string
		want    []string
	}{
		"as it is":        {"assay: {extends: [./base]}\n", []string{"a.x: base", "b.x: more"}},
		"a rule more":     {"assay: {extends: [base/policy.yaml]}\nsources: [{policy: [./rules], ruleData: {word: over}}]\n", []string{"a.x: base", "b.x: more", "c.x: over"}},
		"a rule less":     {"assay: {extends: [./base]}\nsources: [{name: one, volatileConfig: {exclude: [{value: a.x, effectiveUntil: 2026-12-01}]}}]\n", []string{"b.x: more", "builtin.policy.source_evaluated: No rule of source 1 (./rules) was evaluated for this image"}},
		"another word":    {"assay: {extends: [./base]}\nsources: [{name: one, ruleData: {word: over}}]\n", []string{"a.x: over", "b.x: more"}},
		"other rules":     {"assay: {extends: [./base]}\nsources: [{name: one, policy: [./rules]}]\n", []string{"b.x: more", "c.x: base"}},
		"of a configured": {"assay: {extends: [./base]}\nsources: [{name: one, config: {exclude: [b]}}]\n", []string{"a.x: base", "b.x: more"}},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{"policy.yaml": tc.overlay}
			for k, v := range base {
				files[k] = v
			}
			v, err := judge(t, files, Options{}, Context{})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, messages(v.Violations)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestExtendsRefuses(t *testing.T) {
	deep := map[string]string{"p.rego": passes, "policy.yaml": "assay: {extends: [./0.yaml]}"}
	for i := range 12 {
		deep[fmt.Sprintf("%d.yaml", i)] = fmt.Sprintf("assay: {extends: [./%d.yaml]}", i+1)
	}
	deep["12.yaml"] = "sources: [{policy: [./p.rego]}]"
	for name, tc := range map[string]struct {
		files map[string]string
		want  string
	}{
		"itself":        {map[string]string{"policy.yaml": "assay: {extends: [./policy.yaml]}"}, "extends itself"},
		"a circle":      {map[string]string{"policy.yaml": "assay: {extends: [./a.yaml]}", "a.yaml": "assay: {extends: [./b.yaml]}", "b.yaml": "assay: {extends: [./a.yaml]}"}, "extends itself"},
		"too deep":      {deep, "nested deeper than 8"},
		"nothing":       {map[string]string{"policy.yaml": "assay: {extends: [./gone.yaml]}"}, "extending ./gone.yaml"},
		"no sources":    {map[string]string{"policy.yaml": "assay: {extends: [./a.yaml]}", "a.yaml": "name: a"}, "has no sources"},
		"unknown names": {map[string]string{"policy.yaml": "assay: {extends: [./a.yaml]}\nsources: [{name: other}]", "a.yaml": "sources: [{name: one, policy: [.]}]", "p.rego": passes}, "sources[1] names no policy"},
		"a cluster":     {map[string]string{"policy.yaml": "assay: {extends: ['k8s://ns/default']}"}, "policies of clusters are not read here"},
		"git":           {map[string]string{"policy.yaml": "assay: {extends: ['git::https://x/y.git']}"}, "git policies are not fetched here"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(t.Context(), folder(t, tc.files), Options{})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got error %v, want one with %q", err, tc.want)
			}
		})
	}
}

// elsewhere is a Fetcher of what lies in folders, by address.
type elsewhere map[string]string

func (e elsewhere) Fetch(ctx context.Context, address string) (*source.Tree, error) {
	at, ok := e[address]
	if !ok {
		return source.Local{}.Fetch(ctx, address)
	}
	t, err := source.Open(at)
	if err != nil {
		return nil, err
	}
	t.Address, t.Pinned = address, address+"#pinned"
	return t, nil
}

// TestPlaces: a policy may be text, a file, a folder, fetched, or in a cluster, and
// means the same.
func TestPlaces(t *testing.T) {
	dir := folder(t, map[string]string{"policy.yaml": "sources: [{policy: [./rules]}]\n", "rules/p.rego": passes})
	fetched := folder(t, map[string]string{".ec/policy.yaml": "sources: [{policy: ['git::https://x/rules']}]\n"})
	inline := fmt.Sprintf(`{"sources": [{"policy": [%q]}]}`, filepath.Join(dir, "rules"))
	from := elsewhere{"git::https://x/policy": fetched, "git::https://x/rules": filepath.Join(dir, "rules")}
	resource := func(_ context.Context, name string) (json.RawMessage, error) {
		if name != "ns/default" {
			return nil, errors.New("not this one")
		}
		return json.RawMessage(`{"apiVersion": "appstudio.redhat.com/v1alpha1", "kind": "EnterpriseContractPolicy", "metadata": {"name": "default"}, "status": {}, "spec": ` + inline + `}`), nil
	}
	for name, tc := range map[string]struct {
		path   string
		opts   Options
		pinned []string
	}{
		"a folder":  {dir, Options{}, []string{"file::./rules"}},
		"a file":    {filepath.Join(dir, "policy.yaml"), Options{}, []string{"file::./rules"}},
		"JSON":      {inline, Options{}, []string{"file::" + filepath.Join(dir, "rules")}},
		"YAML":      {"sources:\n- policy: [" + filepath.Join(dir, "rules") + "]\n", Options{}, []string{"file::" + filepath.Join(dir, "rules")}},
		"fetched":   {"git::https://x/policy", Options{Sources: from}, []string{"git::https://x/policy#pinned", "git::https://x/rules#pinned"}},
		"a cluster": {"k8s://ns/default", Options{Resource: resource}, []string{"file::" + filepath.Join(dir, "rules")}},
	} {
		p, err := Load(t.Context(), tc.path, tc.opts)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var pinned []string
		for _, s := range p.Sources() {
			pinned = append(pinned, s.Pinned)
		}
		if d := cmp.Diff(tc.pinned, pinned); d != "" {
			t.Errorf("%s: -want +got:\n%s", name, d)
		}
		if v, err := p.evaluate(t.Context(), &fakeEvidence{ref: testImage}, Context{Now: noon}); err != nil || v.Result != Pass {
			t.Errorf("%s: %v, %v", name, v, err)
		}
	}
	if _, err := Load(t.Context(), " ", Options{}); err == nil {
		t.Error("a policy without a name is loaded")
	}
}

func TestRuleData(t *testing.T) {
	files := map[string]string{"rules/a.rego": saying("a", "x"), "policy.yaml": "sources: [{policy: [./rules], ruleData: {word: file}}]\n"}
	v, err := judge(t, files, Options{RuleData: map[string]string{"word": "said"}}, Context{})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"a.x: said"}, messages(v.Violations)); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	w, err := judge(t, files, Options{RuleData: map[string]string{"word": "other"}}, Context{})
	if err != nil || w.Policy.Digest == v.Policy.Digest {
		t.Errorf("other rule data, same digest %s (%v)", v.Policy.Digest, err)
	}
}

// TestSigners: who has to have signed what. The rule sees who is left.
func TestSigners(t *testing.T) {
	const shows = `package p
deny contains sprintf("%d signatures, %s, %d set aside", [count(input.assay.signatures), concat(" ", sort([a.statement.t | some a in input.attestations])), count(input.assay.rejected)]) if input.attestations
`
	alice := verify.Identity{Key: "k", Certificate: &verify.Certificate{SAN: "alice@example.com", Issuer: "https://idp"}}
	bob := verify.Identity{Key: "k", Certificate: &verify.Certificate{SAN: "bob@example.com", Issuer: "https://idp"}}
	key := verify.Identity{Key: "aa"}
	statement := func(kind, predicate string, by verify.Identity) verify.Statement {
		return verify.Statement{Identity: by, PredicateType: predicate, PayloadDigest: kind, Payload: []byte(`{"t": "` + kind + `"}`)}
	}
	e := &fakeEvidence{ref: testImage, manifest: []byte("{}"), signatures: []verify.Signature{{Identity: alice}, {Identity: key}}, statements: []verify.Statement{
		statement("provenance-alice", "https://slsa.dev/provenance/v1", alice), statement("provenance-bob", "https://slsa.dev/provenance/v0.2", bob),
		statement("sbom-alice", "https://spdx.dev/Document", alice), statement("sbom-bob", "https://cyclonedx.org/bom", bob),
		statement("other-alice", "https://example.com/other", alice), statement("other-key", "https://example.com/other", key),
	}}
	const a, b = "{identity: {subject: alice@example.com, issuer: 'https://idp'}}", "{identity: {subjectRegExp: '^bob@', issuerRegExp: 'https://.*'}}"
	for name, tc := range map[string]struct{ config, want string }{
		"anybody":            {"", "2 signatures, other-alice other-key provenance-alice provenance-bob sbom-alice sbom-bob, 0 set aside"},
		"one identity":       {"identity: {subject: alice@example.com, issuer: 'https://idp'}", "1 signatures, other-alice provenance-alice sbom-alice, 4 set aside"},
		"of another issuer":  {"identity: {subjectRegExp: '.*', issuer: 'https://other'}", "0 signatures, , 8 set aside"},
		"by what they sign":  {"assay: {signers: {image: [" + a + "], provenance: [" + b + "]}}", "1 signatures, other-alice provenance-bob sbom-alice, 4 set aside"},
		"alternatives":       {"assay: {signers: {image: [" + a + ", " + b + "]}}", "1 signatures, other-alice provenance-alice provenance-bob sbom-alice sbom-bob, 2 set aside"},
		"the software parts": {"assay: {signers: {image: [" + a + "], sbom: [" + b + "]}}", "1 signatures, other-alice provenance-alice sbom-bob, 4 set aside"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Load(t.Context(), folder(t, map[string]string{"p.rego": shows, "policy.yaml": tc.config + "\nsources: [{policy: [.]}]\n"}), Options{})
			if err != nil {
				t.Fatal(err)
			}
			v, err := p.evaluate(t.Context(), e, Context{Now: noon})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff([]string{": " + tc.want}, messages(v.Violations)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// TestPublicKeyElsewhere: keys that are neither text nor a file are somebody else's
// to read.
func TestPublicKeyElsewhere(t *testing.T) {
	dir := folder(t, map[string]string{"p.rego": passes, "policy.yaml": "publicKey: awskms:///alias/x\nsources: [{policy: [.]}]\n"})
	p, err := Load(t.Context(), dir, Options{PublicKey: func(_ context.Context, address string) ([]byte, error) {
		if address != "awskms:///alias/x" {
			return nil, os.ErrNotExist
		}
		return []byte(publicKey), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if p.publicKey != publicKey {
		t.Errorf("rules see the key %q", p.publicKey)
	}
}

// TestDemandsOnSources: checksums and signatures that a policy wants of its sources.
func TestDemandsOnSources(t *testing.T) {
	rules := folder(t, map[string]string{"p.rego": passes})
	tree, err := source.Open(rules)
	if err != nil {
		t.Fatal(err)
	}
	other := "sha256:" + strings.Repeat("1", 64)
	from := elsewhere{"oci::quay.io/a/b": rules}
	refuse := func(context.Context, *source.Tree, []spec.Signer) error { return errors.New("nobody signed") }
	accept := func(_ context.Context, t *source.Tree, by []spec.Signer) error {
		if t.Address != "oci::quay.io/a/b" || len(by) != 1 || by[0].PublicKey != "k" {
			return fmt.Errorf("asked for %s by %v", t.Address, by)
		}
		return nil
	}
	for name, tc := range map[string]struct {
		config string
		opts   Options
		want   string
	}{
		"the digest":       {"sources: [{policy: [./rules]}]\nassay: {checksums: {./rules: '" + tree.Digest + "'}}", Options{}, ""},
		"by a fetcher":     {"sources: [{policy: [./rules]}]\nassay: {checksums: {./rules: '" + tree.Digest + "'}}", Options{Sources: from}, ""},
		"another digest":   {"sources: [{policy: [./rules]}]\nassay: {checksums: {./rules: '" + other + "'}}", Options{}, "its digest is " + tree.Digest},
		"none listed":      {"sources: [{policy: [./rules]}]\nassay: {checksums: {./other: '" + other + "'}}", Options{}, "does not list it"},
		"signed":           {"sources: [{policy: ['oci::quay.io/a/b']}]\nassay: {sourceSigners: [{publicKey: k}]}", Options{Sources: from, Signed: accept}, ""},
		"not signed":       {"sources: [{policy: ['oci::quay.io/a/b']}]\nassay: {sourceSigners: [{publicKey: k}]}", Options{Sources: from, Signed: refuse}, "nobody signed"},
		"signed elsewhere": {"assay: {extends: [./base.yaml]}", Options{Sources: from, Signed: accept}, ""},
		"not looked at":    {"assay: {extends: [./base.yaml]}", Options{Sources: from}, "in a policy that this one extends"},
	} {
		dir := folder(t, map[string]string{"policy.yaml": tc.config, "rules/p.rego": passes, "base.yaml": "sources: [{policy: ['oci::quay.io/a/b']}]\nassay: {sourceSigners: [{publicKey: k}]}"})
		_, err := Load(t.Context(), dir, tc.opts)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: got error %v, want %q", name, err, tc.want)
		}
	}
}
