package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// library is what the generated packages share: walking over the provenance's tasks,
// the SBOM behind the build task's result, and results with their annotations.
const library = `package lib

import rego.v1

provenances := [s | some a in input.attestations; s := a.statement; s.predicateType == "https://slsa.dev/provenance/v0.2"]

tasks := [t | some p in provenances; some t in p.predicate.buildConfig.tasks]

result(task, wanted) := r.value if {
	some r in task.results
	r.name == wanted
}

results(wanted) := [{"task": t.name, "value": v} | some t in tasks; v := result(t, wanted)]

tests := [{"task": r.task, "test": json.unmarshal(r.value)} | some r in results("TEST_OUTPUT")]

bundle(task) := v if {
	some p in task.ref.params
	p.name == "bundle"
	v := p.value
}

bundles := {b | some t in tasks; b := bundle(t)}

manifests := ec.oci.image_manifests(bundles)

sboms := [doc | some r in results("SBOM_BLOB_URL"); doc := json.unmarshal(ec.oci.blob(r.value))]

packages := [p | some s in sboms; some p in s.packages]

purls := [r.referenceLocator |
	some p in packages
	some r in p.externalRefs
	r.referenceType == "purl"
]

reports := [doc |
	some r in results("REPORTS")
	some _, digest in json.unmarshal(r.value)
	doc := json.unmarshal(ec.oci.blob(sprintf("%s@%s", [split(input.image.ref, "@")[0], digest])))
]

rule_data(key) := v if {
	v := data.rule_data__configuration__[key]
} else := v if {
	v := data.rule_data[key]
} else := []

outcome(chain, args) := {"code": code, "msg": sprintf(chain[0].annotations.custom.failure_msg, args), "effective_on": object.get(chain[0].annotations.custom, "effective_on", "2022-01-01T00:00:00Z")} if {
	code := sprintf("%s.%s", [concat(".", array.slice(chain[0].path, 1, count(chain[0].path) - 1)), chain[0].annotations.custom.short_name])
}
`

// checks are the bodies of the generated rules; %d tells apart those that come up
// more than once.
var checks = []struct{ name, msg, body string }{
	{"succeeded", "Task %q did not succeed", `some t in lib.tasks
	t.status != "Succeeded"
	args := [t.name]`},
	{"bundle_pinned", "Bundle %q is not pinned", `some b in lib.bundles
	not contains(b, "@sha256:")
	args := [b]`},
	{"bundle_known", "Bundle %q is not in its registry", `some b in lib.bundles
	not lib.manifests[b]
	args := [b]`},
	{"test_passed", "Test of task %q did not pass", `some t in lib.tests
	t.test.result in {"FAILURE", "ERROR"}
	args := [t.task]`},
	{"parameter", "Task %q has parameter denied-%d", `some t in lib.tasks
	t.invocation.parameters["denied-%d"]
	args := [t.name]`},
	{"script", "Task %q runs forbidden-%d", `some t in lib.tasks
	some s in t.steps
	contains(s.entryPoint, "forbidden-%d")
	args := [t.name]`},
	{"purl", "Package %q is of a type that is not allowed", `some p in lib.purls
	not startswith(p, "pkg:rpm/")
	not startswith(p, "pkg:oci/")
	args := [p]`},
	{"package", "Package %q is not allowed", `some p in lib.packages
	p.name in lib.rule_data("disallowed_packages_%d")
	args := [p.name]`},
	{"cve", "Vulnerability %q is critical", `some r in lib.reports
	some v in r.vulnerabilities
	v.normalized_severity == "Critical"
	args := [v.name]`},
	{"label", "Label %q is missing", `some l in ["name", "vendor", "vcs-ref"]
	not input.image.config.Labels[l]
	args := [l]`},
	{"source", "Material %q is not the source", `some p in lib.provenances
	some m in p.predicate.materials
	m.digest.sha1
	not startswith(m.uri, "git+https://git.example.com/")
	args := [m.uri]`},
	{"step_image", "Step image %q comes from elsewhere", `some t in lib.tasks
	some s in t.steps
	not startswith(s.environment.image, "oci://registry.example.com/")
	args := [s.environment.image]`},
}

// The size of upstream's collection @redhat.
const (
	packagesOfPolicy = 29
	rulesOfPolicy    = 147
)

// writePolicy writes a policy of the size of Conforma's collection @redhat, or, where
// a checkout of the public policies is named, a configuration that takes that.
// Its trusted tasks are those of the set.
func writePolicy(dir, checkout string, bundles map[string]string) (string, error) {
	if checkout != "" {
		trusted := map[string]any{}
		for _, ref := range bundles {
			repository, digest, _ := strings.Cut(ref, "@")
			trusted["oci://"+repository+":0.1"] = []any{map[string]string{"ref": digest, "effective_on": "2025-01-01T00:00:00Z"}}
		}
		return writeConfig(dir, map[string]any{
			"policy":   []string{filepath.Join(checkout, "policy", "lib"), filepath.Join(checkout, "policy", "release")},
			"data":     []string{filepath.Join(checkout, "example", "data")},
			"ruleData": map[string]any{"trusted_tasks": trusted},
			"config":   map[string]any{"include": []string{"@redhat"}, "exclude": []string{"source_image"}},
		})
	}
	rules := filepath.Join(dir, "rules")
	if err := os.MkdirAll(filepath.Join(rules, "lib"), 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(rules, "lib", "lib.rego"), []byte(library), 0o644); err != nil {
		return "", err
	}
	left := rulesOfPolicy
	for p := range packagesOfPolicy {
		var b strings.Builder
		fmt.Fprintf(&b, "package check_%02d\n\nimport rego.v1\n\nimport data.lib\n", p)
		for r := range left / (packagesOfPolicy - p) {
			n := rulesOfPolicy - left
			left--
			c := checks[n%len(checks)]
			fmt.Fprintf(&b, "\n# METADATA\n# title: %s %d\n# description: Check %d of the bench.\n# custom:\n#   short_name: %s_%d\n#   failure_msg: %q\n#   collections:\n#   - redhat\ndeny contains result if {\n\t%s\n\tresult := lib.outcome(rego.metadata.chain(), args)\n}\n",
				c.name, r, n, c.name, n, strings.ReplaceAll(c.msg, "%d", fmt.Sprint(n)), strings.ReplaceAll(c.body, "%d", fmt.Sprint(n)))
		}
		if err := os.WriteFile(filepath.Join(rules, fmt.Sprintf("check_%02d.rego", p)), []byte(b.String()), 0o644); err != nil {
			return "", err
		}
	}
	return writeConfig(dir, map[string]any{"policy": []string{rules}, "config": map[string]any{"include": []string{"@redhat"}}})
}

func writeConfig(dir string, source map[string]any) (string, error) {
	raw, err := yaml.Marshal(map[string]any{"name": "bench", "sources": []any{source}})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "policy.yaml")
	return path, os.WriteFile(path, raw, 0o644)
}

// writeSnapshot writes the images as a Snapshot's spec.
func writeSnapshot(path string, refs []string) error {
	type component struct {
		Name           string `json:"name"`
		ContainerImage string `json:"containerImage"`
		Source         any    `json:"source"`
	}
	var list []component
	for i, ref := range refs {
		list = append(list, component{fmt.Sprintf("app-%03d", i), ref, map[string]any{"git": map[string]string{"url": repoURL, "revision": commit}}})
	}
	raw, err := json.Marshal(map[string]any{"application": "bench", "components": list})
	if err != nil {
		return err
	}
	return os.WriteFile(path, raw, 0o644)
}
