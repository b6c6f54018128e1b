package gate

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/policy"
	"assay.dev/assay/report"
)

func digestN(n int) string { return fmt.Sprintf("sha256:%064x", n) }

func index(mediaType string, digests ...string) string {
	type m struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
	}
	var list []m
	for _, d := range digests {
		list = append(list, m{mediaType, d})
	}
	b, _ := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": list}) //nolint:errcheck // strings only
	return string(b)
}

const imageType = "application/vnd.oci.image.manifest.v1+json"

func TestMembersOf(t *testing.T) {
	var many []string
	for i := range maxMembers + 1 {
		many = append(many, digestN(i))
	}
	for name, tc := range map[string]struct {
		manifest string
		want     []string
		fail     string
	}{
		"an image":        {`{"schemaVersion":2,"config":{}}`, nil, ""},
		"an index":        {index(imageType, digestN(1), digestN(2)), []string{digestN(1), digestN(2)}, ""},
		"an empty index":  {`{"manifests":[]}`, nil, ""},
		"no JSON":         {`<html>`, nil, "reading the manifest"},
		"nothing":         {``, nil, "reading the manifest"},
		"too many":        {index(imageType, many...), nil, "at most 256"},
		"nested":          {index("application/vnd.oci.image.index.v1+json", digestN(1)), nil, "another index"},
		"nested, docker":  {index("application/vnd.docker.distribution.manifest.list.v2+json", digestN(1)), nil, "another index"},
		"no digest":       {index(imageType, ""), nil, "digest"},
		"a tag as digest": {index(imageType, "latest"), nil, "digest"},
		"another hash":    {index(imageType, "md5:abc"), nil, "digest"},
	} {
		t.Run(name, func(t *testing.T) {
			got, _, err := membersOf([]byte(tc.manifest))
			if tc.fail != "" {
				if err == nil || !strings.Contains(err.Error(), tc.fail) {
					t.Errorf("error %v, want %q", err, tc.fail)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var digests []string
			for _, m := range got {
				digests = append(digests, m.digest)
			}
			if diff := cmp.Diff(tc.want, digests); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// FuzzMembersOf: what it returns are digests, boundedly many, and each stands
// in the manifest.
func FuzzMembersOf(f *testing.F) {
	for _, s := range []string{`{}`, index(imageType, digestN(1)), `{"manifests":[{"digest":"x"}]}`, `{"manifests":null}`, `[]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 64<<10 {
			t.Skip("bounded input")
		}
		got, aside, err := membersOf(in)
		if err != nil {
			return
		}
		if len(got)+len(aside) > maxMembers {
			t.Fatalf("%d members", len(got))
		}
		for _, m := range got {
			if d := m.digest; len(d) != 71 || !strings.HasPrefix(d, "sha256:") {
				t.Fatalf("member %q", d)
			}
		}
	})
}

// What BuildKit lists beside its images is no image, and nothing else gets away as
// that: a manifest that a runtime could pick is judged.
func TestBuildKit(t *testing.T) {
	list := func(os, arch, of string) string {
		return fmt.Sprintf(`{"manifests":[
			{"mediaType":%q,"digest":%q,"platform":{"os":"linux","architecture":"amd64"}},
			{"mediaType":%q,"digest":%q,"platform":{"os":%q,"architecture":%q},
			 "annotations":{"vnd.docker.reference.type":"attestation-manifest","vnd.docker.reference.digest":%q}}]}`,
			imageType, digestN(1), imageType, digestN(2), os, arch, of)
	}
	for name, tc := range map[string]struct {
		index         string
		judged, aside int
	}{
		"attestations":         {list("unknown", "unknown", digestN(1)), 1, 1},
		"with a platform":      {list("linux", "arm64", digestN(1)), 2, 0},
		"of nothing here":      {list("unknown", "unknown", digestN(3)), 2, 0},
		"only by its platform": {strings.ReplaceAll(list("unknown", "unknown", digestN(1)), "attestation-manifest", "x"), 2, 0},
	} {
		got, aside, err := membersOf([]byte(tc.index))
		if err != nil || len(got) != tc.judged || len(aside) != tc.aside {
			t.Errorf("%s: %d judged, %d aside, %v", name, len(got), len(aside), err)
		}
	}
}

// A judgement passes only when there is one and everything in it passed.
func TestJudgement(t *testing.T) {
	pass := report.Entry{Verdict: &policy.Verdict{Result: policy.Pass}}
	fail := report.Entry{Verdict: &policy.Verdict{Result: policy.Fail}}
	for name, tc := range map[string]struct {
		entries           []report.Entry
		passed, unchecked bool
	}{
		"nothing":                 {nil, false, true},
		"a pass":                  {[]report.Entry{pass}, true, false},
		"a pass and a refusal":    {[]report.Entry{pass, fail}, false, false},
		"a pass and an error":     {[]report.Entry{pass, {Err: errors.New("x")}}, false, true},
		"neither verdict nor err": {[]report.Entry{pass, {}}, false, false},
		"a verdict of no outcome": {[]report.Entry{{Verdict: &policy.Verdict{}}}, false, false},
	} {
		j := &Judgement{Entries: tc.entries}
		if j.Passed() != tc.passed || j.Unchecked() != tc.unchecked {
			t.Errorf("%s: passed %t, unchecked %t", name, j.Passed(), j.Unchecked())
		}
	}
}
