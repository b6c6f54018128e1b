package cli_test

// These tests give the command line the cases of shared/conformance beside the
// repository, in this process. They are skipped where it is not there.

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/internal/cli"
	"assay.dev/assay/internal/testrig/conformance"
)

// assay runs a command line in a home of its own.
func assay(t *testing.T, args ...string) (code int, out, errout string) {
	t.Helper()
	t.Setenv("ASSAY_HOME", t.TempDir())
	var stdout, stderr bytes.Buffer
	code = cli.Main(args, strings.NewReader(""), &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

// rows reads a file of tab-separated values with names in its first line.
func rows(t *testing.T, path string) []map[string]string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	var out []map[string]string
	for line := range strings.Lines(string(data)) {
		cells := strings.Split(strings.TrimRight(line, "\r\n"), "\t")
		if names == nil {
			names = cells
			continue
		}
		row := map[string]string{}
		for i, c := range cells {
			row[names[i]] = c
		}
		out = append(out, row)
	}
	return out
}

// TestSigstoreConformance: the suite's verification cases, each by file and by
// digest.
func TestSigstoreConformance(t *testing.T) {
	dir := filepath.Join(conformance.Dir(t, "sigstore"), "bundle-verify")
	count := map[string]int{}
	for _, row := range rows(t, filepath.Join(dir, "cases.tsv")) {
		folder := filepath.Join(dir, row["case"])
		args := []string{"sigstore-conformance", "verify-bundle", "--bundle", filepath.Join(folder, "bundle.sigstore.json")}
		if row["key"] != "" {
			args = append(args, "--key", filepath.Join(folder, row["key"]))
		} else {
			args = append(args, "--certificate-identity", row["identity"], "--certificate-oidc-issuer", row["issuer"])
		}
		args = append(args, "--trusted-root", filepath.Join(folder, row["trusted_root"]))
		for _, artifact := range []string{filepath.Join(folder, row["artifact"]), "sha256:" + row["artifact_sha256"]} {
			code, _, errout := assay(t, append(args, artifact)...)
			if (code == 0) != (row["expect"] == "accept") {
				t.Errorf("%s %s: exit %d, want %s\n%s", row["case"], filepath.Base(artifact), code, row["expect"], errout)
			}
			if code == 1 || code == 2 {
				t.Errorf("%s %s: exit %d is no verdict: %s", row["case"], filepath.Base(artifact), code, errout)
			}
			count[row["expect"]]++
		}
	}
	t.Logf("runs: %v", count)
}

// TestDSSEConformance: every case of threshold, keys and envelope.
func TestDSSEConformance(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(conformance.Dir(t, "dsse"), "cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Name, Expect string
		Threshold    int
		Keys         map[string]string `json:"keys_pem"`
		Envelope     json.RawMessage
		Text         string `json:"envelope_text"`
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, c := range cases {
		dir := t.TempDir()
		args := []string{"verify-dsse", "--threshold", itoa(c.Threshold)}
		for name, pem := range c.Keys {
			path := filepath.Join(dir, name+".pub")
			if err := os.WriteFile(path, []byte(pem), 0o644); err != nil {
				t.Fatal(err)
			}
			args = append(args, "--key", path)
		}
		envelope := filepath.Join(dir, "envelope.json")
		text := []byte(c.Envelope)
		if c.Text != "" {
			text = []byte(c.Text)
		}
		if err := os.WriteFile(envelope, text, 0o644); err != nil {
			t.Fatal(err)
		}
		code, _, errout := assay(t, append(args, envelope)...)
		count[c.Expect]++
		switch c.Expect {
		case "accept":
			if code != 0 {
				t.Errorf("%s: exit %d: %s", c.Name, code, errout)
			}
		case "reject":
			if code != 3 {
				t.Errorf("%s: exit %d, want 3: %s", c.Name, code, errout)
			}
		default:
			t.Logf("%s (%s): exit %d %s", c.Name, c.Expect, code, strings.SplitN(errout, "\n", 2)[0])
		}
	}
	t.Logf("cases: %v", count)
}

// TestInTotoConformance: the signed envelopes of in-toto's own tests, with the key
// that signed and with another.
func TestInTotoConformance(t *testing.T) {
	dir := conformance.Dir(t, "intoto")
	verifier, golang := filepath.Join(dir, "in-toto__attestation-verifier"), filepath.Join(dir, "in-toto__in-toto-golang", "test", "data")
	key, alice, dan := filepath.Join(verifier, "test-data-raw", "key.pub"), filepath.Join(golang, "alice.pub"), filepath.Join(golang, "dan.pub")
	for _, tc := range []struct {
		key, file string
		code      int
	}{
		{key, filepath.Join(verifier, "test-data", "clone.fe1c6281.json"), 0},
		{key, filepath.Join(verifier, "test-data", "test.fe1c6281.json"), 0},
		{filepath.Join(verifier, "test-data-npm-raw", "key.pub"), filepath.Join(verifier, "test-data-npm", "build.fe1c6281.json"), 0},
		{alice, filepath.Join(golang, "demo.dsse.layout"), 0},
		{alice, filepath.Join(golang, "dsse-only.root.layout"), 0},
		{dan, filepath.Join(golang, "demo.dsse.layout"), 3},
		{alice, filepath.Join(verifier, "test-data", "test.fe1c6281.json"), 3},
		{alice, filepath.Join(golang, "foo.d3ffd108.link"), 3}, // no DSSE: signed in in-toto's old way
	} {
		if code, _, errout := assay(t, "verify-dsse", "--key", tc.key, tc.file); code != tc.code {
			t.Errorf("%s with %s: exit %d, want %d: %s", filepath.Base(tc.file), filepath.Base(tc.key), code, tc.code, errout)
		}
	}
}

func itoa(n int) string {
	b, _ := json.Marshal(n)
	return string(b)
}
