package verify_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"assay.dev/assay/verify"
)

// gcbKeys are Google's, by the names that it publishes them under.
func gcbKeys(t testing.TB, dir string) []verify.Key {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "gcb-keys", "*.key"))
	if err != nil || len(files) == 0 {
		t.Fatal("no keys", err)
	}
	var keys []verify.Key
	for _, f := range files {
		k, err := verify.LoadPublicKey(f)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	return keys
}

// TestGCB: the rows of upstream's table for Google Cloud Build.
func TestGCB(t *testing.T) {
	dir := shared(t, "slsa-verifier")
	keys := gcbKeys(t, dir)
	n := counts{}
	defer n.print(t)
	for _, x := range expectations(t, dir) {
		if x.Table != "GCBArtifactImage" || x.Remote {
			continue
		}
		for _, version := range []string{"v0.2", "v0.3"} {
			if x.MinVersion > version {
				continue
			}
			folder := filepath.Join(dir, "gcb_container", version)
			data, err := os.ReadFile(filepath.Join(folder, x.Provenance))
			digest, err2 := os.ReadFile(filepath.Join(folder, x.Artifact+".digest"))
			if err != nil || err2 != nil {
				continue // not in the data
			}
			a, err := verify.DigestArtifact("sha256:" + strings.TrimPrefix(strings.TrimSpace(string(digest)), "sha256:"))
			if err != nil {
				t.Fatal(err)
			}
			builder := x.PBuilderID
			e, err := verify.GCB(a, data, verify.Options{Keys: keys, Expect: &verify.Expectation{
				SourceURI: x.Source, SourceTag: x.PTag, SourceVersionedTag: x.PVersionTag, SourceBranch: x.PBranch, BuilderID: builder,
			}})
			name := fmt.Sprintf("%s %q %s", version, x.Name, x.Provenance)
			want := x.Err
			if want == "" {
				want = "pass"
			}
			n["gcb: "+want]++
			var none *verify.NoEvidenceError
			switch {
			case x.Err == "" && err != nil:
				t.Errorf("%s: %v", name, err)
			case x.Err == "" && len(e.Statements()) == 0:
				t.Errorf("%s: nothing", name)
			case x.Err != "" && (!errors.As(err, &none) || !slices.ContainsFunc(none.Kinds(), func(k verify.Kind) bool { return slices.Contains(kinds[x.Err], k) })):
				t.Errorf("%s: %v; want %s", name, err, x.Err)
			}
		}
	}
}

// gcbUnit are the cases of upstream's unit tests whose signatures are good; the
// others have been taken apart after they were signed.
var gcbUnit = []string{
	"gcloud-container-gcs.json", "gcloud-container-github-v03-git.json", "gcloud-container-github.json",
	"gcloud-container-multiple-signatures-2ndvalid.json", "gcloud-container-multiple-signatures-3rdvalid.json",
	"v1.0-gcloud-container-bb.json", "v1.0-gcloud-container-github-inline.json", "v1.0-gcloud-container-github.json",
	"v1.0-gcloud-container-github-v0.1-valid.json", "v1.0-gcloud-container-github-v1.0-valid.json",
}

// TestGCBUnit: the shapes that upstream's unit tests take apart.
func TestGCBUnit(t *testing.T) {
	dir := shared(t, "slsa-verifier")
	keys := gcbKeys(t, dir)
	files, _ := filepath.Glob(filepath.Join(dir, "unit-gcb", "*.json"))
	n := counts{}
	defer n.print(t)
	for _, f := range files {
		var doc struct {
			Image struct {
				Digest string `json:"digest"`
			} `json:"image_summary"`
		}
		if err := json.Unmarshal(read(t, f), &doc); err != nil {
			t.Fatal(err)
		}
		a, err := verify.DigestArtifact(doc.Image.Digest)
		if err != nil {
			t.Fatal(err)
		}
		_, err = verify.GCB(a, read(t, f), verify.Options{Keys: keys})
		name := filepath.Base(f)
		var none *verify.NoEvidenceError
		switch want := slices.Contains(gcbUnit, name); {
		case want != (err == nil):
			t.Errorf("%s: %v", name, err)
		case err == nil:
			n["verifies"]++
		case !errors.As(err, &none) || len(none.Kinds()) == 0:
			t.Errorf("%s: refused without a kind: %v", name, err)
		default:
			n["refused: "+string(none.Kinds()[0])]++
		}
	}
}
