package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// builtAt is when all images were made; policies' dates lie around it.
var builtAt = time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)

const (
	repoURL = "https://git.example.com/team/app"
	commit  = "15e5733dc128d8178e29f49c1c417ff41c5d7125"
)

// taskKind is one of the pipeline's tasks: which Task it comes from, how often it
// runs (once for each platform), and what its result members are made of.
type taskKind struct {
	name    string
	bundle  string
	runs    int
	results []string
}

// pipelineTasks are the 22 of a container build as Konflux runs it, from 16 bundles.
var pipelineTasks = []taskKind{
	{"init", "init", 1, []string{"build"}},
	{"clone-repository", "git-clone-oci-ta", 1, []string{"CHAINS-GIT_COMMIT", "CHAINS-GIT_URL", "commit", "url", "SOURCE_ARTIFACT"}},
	{"prefetch-dependencies", "prefetch-dependencies-oci-ta", 1, []string{"CACHI2_ARTIFACT", "SOURCE_ARTIFACT"}},
	{"generate-labels", "generate-labels", 1, []string{"labels"}},
	{"build-images", "buildah-remote-oci-ta", 1, []string{"IMAGE_DIGEST", "IMAGE_REF", "IMAGE_URL", "SBOM_BLOB_URL"}},
	{"build-image-index", "build-image-index", 1, []string{"IMAGE_DIGEST", "IMAGE_REF", "IMAGE_URL"}},
	{"deprecated-base-image-check", "deprecated-image-check", 1, []string{"IMAGES_PROCESSED", "TEST_OUTPUT"}},
	{"clair-scan", "clair-scan", 4, []string{"IMAGES_PROCESSED", "REPORTS", "SCAN_OUTPUT", "TEST_OUTPUT"}},
	{"sast-snyk-check", "sast-snyk-check-oci-ta", 1, []string{"TEST_OUTPUT"}},
	{"clamav-scan", "clamav-scan", 4, []string{"IMAGES_PROCESSED", "TEST_OUTPUT"}},
	{"sast-shell-check", "sast-shell-check-oci-ta", 1, []string{"TEST_OUTPUT"}},
	{"sast-unicode-check", "sast-unicode-check-oci-ta", 1, []string{"TEST_OUTPUT"}},
	{"apply-tags", "apply-tags", 1, nil},
	{"push-dockerfile", "push-dockerfile-oci-ta", 1, []string{"IMAGE_REF"}},
	{"rpms-signature-scan", "rpms-signature-scan", 1, []string{"IMAGES_PROCESSED", "RPMS_DATA", "TEST_OUTPUT"}},
	{"show-sbom", "show-sbom", 1, nil},
}

// scriptBytes is the length of a task's scripts, which makes a statement of 320 kB.
const scriptBytes = 8400

// artifactsOf is what one image's provenance speaks of.
type artifactsOf struct {
	repository, digest string            // of the image
	bundles            map[string]string // name → repository@digest, of tasks
	sbom, report       string            // repository@digest, of blobs
}

// statement is an in-toto Statement v0.1 with SLSA provenance v0.2 of a PipelineRun,
// as Tekton Chains states it.
func statement(a *artifactsOf) ([]byte, error) {
	var tasks, materials []any
	seen := map[string]bool{}
	at := builtAt
	for _, k := range pipelineTasks {
		bundle := a.bundles[k.bundle]
		repository, digest, _ := strings.Cut(bundle, "@")
		_, hex, _ := strings.Cut(digest, ":")
		if !seen[bundle] {
			seen[bundle] = true
			materials = append(materials, map[string]any{"uri": "oci://" + repository, "digest": map[string]string{"sha256": hex}})
		}
		for run := range k.runs {
			end := at.Add(time.Minute)
			tasks = append(tasks, map[string]any{
				"name": k.name, "status": "Succeeded", "serviceAccountName": "build",
				"startedOn": at.Format(time.RFC3339), "finishedOn": end.Format(time.RFC3339),
				"ref": map[string]any{"resolver": "bundles", "params": []any{
					map[string]string{"name": "name", "value": k.bundle},
					map[string]string{"name": "bundle", "value": repository + ":0.1@" + digest},
					map[string]string{"name": "kind", "value": "task"},
				}},
				"invocation": map[string]any{
					"configSource": map[string]any{"uri": repository, "digest": map[string]string{"sha256": hex}, "entryPoint": k.bundle},
					"parameters":   parameters(a, k, run),
					"environment":  environment(k),
				},
				"results": results(a, k),
				"steps":   steps(k, hex),
			})
			at = end
		}
	}
	materials = append(materials, map[string]any{"uri": "git+" + repoURL + ".git", "digest": map[string]string{"sha1": commit}})
	_, hex, _ := strings.Cut(a.digest, ":")
	return json.Marshal(map[string]any{
		"_type":         "https://in-toto.io/Statement/v0.1",
		"predicateType": "https://slsa.dev/provenance/v0.2",
		"subject":       []any{map[string]any{"name": a.repository, "digest": map[string]string{"sha256": hex}}},
		"predicate": map[string]any{
			"builder":     map[string]string{"id": "https://tekton.dev/chains/v2"},
			"buildType":   "tekton.dev/v1beta1/PipelineRun",
			"invocation":  map[string]any{"configSource": map[string]any{}, "parameters": map[string]any{"git-url": repoURL, "output-image": a.repository}, "environment": environment(taskKind{name: "pipeline"})},
			"buildConfig": map[string]any{"tasks": tasks},
			"metadata": map[string]any{
				"buildStartedOn": builtAt.Format(time.RFC3339), "buildFinishedOn": at.Format(time.RFC3339),
				"completeness": map[string]bool{"parameters": false, "environment": false, "materials": false}, "reproducible": false,
			},
			"materials": materials,
		},
	})
}

func parameters(a *artifactsOf, k taskKind, run int) map[string]any {
	p := map[string]any{
		"HERMETIC": "true", "IMAGE": a.repository, "image-url": a.repository, "image-digest": a.digest,
		"revision": commit, "url": repoURL, "ociStorage": a.repository + ":trusted", "PLATFORM": []string{"linux/amd64", "linux/arm64", "linux/ppc64le", "linux/s390x"}[run%4],
		"CONTEXT": ".", "DOCKERFILE": "Dockerfile", "input": `[{"type": "rpm"}, {"type": "pip"}]`,
	}
	if k.name != "clone-repository" {
		p["SOURCE_ARTIFACT"] = "oci:" + a.repository + "@" + a.digest
	}
	return p
}

func environment(k taskKind) map[string]any {
	annotations, labels := map[string]string{}, map[string]string{"tekton.dev/pipelineTask": k.name, "tekton.dev/task": k.bundle, "pipelines.openshift.io/runtime": "generic", "build.appstudio.redhat.com/pipeline": "docker"}
	for _, n := range []string{"branch", "event-type", "git-provider", "log-url", "max-keep-runs", "original-prname", "repo-url", "repository", "sender", "sha", "sha-title", "sha-url", "source-branch", "source-project-id", "source-repo-url", "state", "target-project-id", "url-org", "url-repository"} {
		annotations["pipelinesascode.tekton.dev/"+n] = repoURL + "/-/" + n + "/" + commit
		labels["pipelinesascode.tekton.dev/"+n] = n + "-" + commit[:12]
	}
	annotations["build.appstudio.redhat.com/commit_sha"] = commit
	annotations["build.appstudio.redhat.com/target_branch"] = "main"
	return map[string]any{"annotations": annotations, "labels": labels}
}

func results(a *artifactsOf, k taskKind) []any {
	_, hex, _ := strings.Cut(a.digest, ":")
	values := map[string]string{
		"build": "true", "CHAINS-GIT_COMMIT": commit, "CHAINS-GIT_URL": repoURL, "commit": commit, "url": repoURL,
		"SOURCE_ARTIFACT": "oci:" + a.repository + "@" + a.digest, "CACHI2_ARTIFACT": "oci:" + a.repository + "@" + a.digest,
		"labels":       "vcs-ref=" + commit,
		"IMAGE_DIGEST": a.digest, "IMAGE_REF": a.repository + "@" + a.digest, "IMAGE_URL": a.repository + ":latest", "SBOM_BLOB_URL": a.sbom,
		"IMAGES_PROCESSED": `{"image": {"pullspec": "` + a.repository + `", "digests": ["` + a.digest + `"]}}`,
		"REPORTS":          `{"sha256:` + hex + `":"` + a.report[strings.IndexByte(a.report, '@')+1:] + `"}`,
		"SCAN_OUTPUT":      `{"vulnerabilities":{"critical":0,"high":0,"medium":4,"low":12,"unknown":0},"unpatched_vulnerabilities":{"critical":0,"high":0,"medium":2,"low":9,"unknown":0}}`,
		"TEST_OUTPUT":      `{"result":"SUCCESS","timestamp":"2026-03-02T10:00:00+00:00","note":"Task ` + k.name + ` succeeded","namespace":"default","successes":1,"failures":0,"warnings":0}`,
		"RPMS_DATA":        `{"keys": {"199e2f91fd431d51": 121, "unsigned": 0}}`,
	}
	list := []any{}
	for _, name := range k.results {
		list = append(list, map[string]string{"name": name, "type": "string", "value": values[name]})
	}
	return list
}

// steps are one or a few scripts of scriptBytes together.
func steps(k taskKind, hex string) []any {
	n := 1 + len(k.results)/2
	var out []any
	for i := range n {
		var script strings.Builder
		script.WriteString("#!/usr/bin/env bash\nset -euo pipefail\n")
		for line := 0; script.Len() < scriptBytes/n; line++ {
			fmt.Fprintf(&script, "echo \"step %d of %s, line %d: $(cat /workspace/source/%s-%d.txt)\" | tee -a /tekton/home/log\n", i, k.name, line, k.bundle, line)
		}
		out = append(out, map[string]any{
			"entryPoint": script.String(), "arguments": nil, "annotations": nil,
			"environment": map[string]string{"container": fmt.Sprintf("step-%d", i), "image": "oci://registry.example.com/tools/" + k.bundle + "@sha256:" + hex},
		})
	}
	return out
}

// sbomOf is an SPDX 2.3 document of about 300 kB, which names the image.
func sbomOf(image, digest string) ([]byte, error) {
	_, hex, _ := strings.Cut(digest, ":")
	var packages, relations []any
	packages = append(packages, map[string]any{
		"SPDXID": "SPDXRef-image", "name": image, "versionInfo": "1", "downloadLocation": "NOASSERTION",
		"checksums":    []any{map[string]string{"algorithm": "SHA256", "checksumValue": hex}},
		"externalRefs": []any{map[string]string{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": "pkg:oci/app@" + digest}},
	})
	for i := range 520 {
		id := fmt.Sprintf("SPDXRef-rpm-%d", i)
		packages = append(packages, map[string]any{
			"SPDXID": id, "name": fmt.Sprintf("library-%d", i), "versionInfo": fmt.Sprintf("1.%d.0-3.el10", i), "supplier": "Organization: Example",
			"downloadLocation": "NOASSERTION", "licenseDeclared": "MIT", "licenseConcluded": "NOASSERTION", "copyrightText": "NOASSERTION", "filesAnalyzed": false,
			"externalRefs": []any{
				map[string]string{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": fmt.Sprintf("pkg:rpm/example/library-%d@1.%d.0-3.el10?arch=x86_64&repository_id=base-for-x86_64-rpms", i, i)},
				map[string]string{"referenceCategory": "SECURITY", "referenceType": "cpe23Type", "referenceLocator": fmt.Sprintf("cpe:2.3:a:example:library-%d:1.%d.0:*:*:*:*:*:*:*", i, i)},
			},
		})
		relations = append(relations, map[string]string{"spdxElementId": "SPDXRef-image", "relationshipType": "CONTAINS", "relatedSpdxElement": id})
	}
	return json.Marshal(map[string]any{
		"spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": image,
		"documentNamespace": repoURL + "/sbom/" + hex, "creationInfo": map[string]any{"created": builtAt.Format(time.RFC3339), "creators": []string{"Tool: bench"}},
		"packages": packages, "relationships": append(relations, map[string]string{"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": "SPDXRef-image"}),
	})
}

// clairReport is what a scan leaves as a blob.
func clairReport(digest string) ([]byte, error) {
	found := map[string]any{}
	for i := range 27 {
		found[fmt.Sprint(i)] = map[string]any{
			"id": fmt.Sprint(i), "name": fmt.Sprintf("CVE-2026-%04d", i), "normalized_severity": []string{"Low", "Medium"}[i%2],
			"issued": builtAt.Format(time.RFC3339), "fixed_in_version": "", "package": map[string]string{"name": fmt.Sprintf("library-%d", i), "version": "1.0"},
			"description": strings.Repeat("A flaw was found. ", 20),
		}
	}
	return json.Marshal(map[string]any{"manifest_hash": digest, "vulnerabilities": found})
}
