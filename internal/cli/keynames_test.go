package cli_test

import (
	"encoding/json"
	"strings"
	"testing"

	"assay.dev/assay/store/storetest"
)

// TestKeyNames: every command that takes a public key reads it by whatever name assay
// verify does; here an environment variable's. Package keyref's tests have the others.
func TestKeyNames(t *testing.T) {
	r := newGateRig(t)
	image := r.image("app/keys", false)
	t.Setenv("CI_KEY", string(storetest.Public(t, r.key).PEM()))
	t.Setenv("STRANGER", string(storetest.Public(t, storetest.NewKey(t)).PEM()))
	raw, err := json.Marshal(storetest.Provenance(t, r.key, image, "x").Envelope)
	if err != nil {
		t.Fatal(err)
	}
	envelope := r.write("envelope.json", string(raw))
	for _, tc := range []struct {
		name string
		args []string
		code int // with the right key
		bad  int // with another
	}{
		{"attach", []string{"attach", "attestation", image.Ref(), "--file", envelope, "--key"}, 0, 1},
		{"convert", []string{"convert", image.Ref(), "--to", "bundles", "--key"}, 0, 1},
		{"tree", []string{"tree", image.Ref(), "--key"}, 0, 0},
		{"verify-dsse", []string{"verify-dsse", envelope, "--key"}, 0, 3},
		{"verify", []string{"verify", image.Ref(), "--type", "slsaprovenance02", "--key"}, 0, 3},
	} {
		args := func(key string) []string {
			if tc.name == "verify-dsse" { // further files may follow its --key
				return []string{"verify-dsse", "--key", key, envelope}
			}
			return append(append([]string{}, tc.args...), key)
		}
		for key, want := range map[string]int{"env://STRANGER": tc.bad, "env://NO_SUCH": 1, "k8s://a/b/c": 1} {
			if code, out, errout := r.bare(args(key)...); code != want || want == 1 && !strings.Contains(key, "STRANGER") && !strings.Contains(errout, key[strings.Index(key, "://")+3:]) {
				t.Errorf("%s by %s: exit %d, want %d\n%s%s", tc.name, key, code, want, out, errout)
			}
		}
		if code, out, errout := r.bare(args("env://CI_KEY")...); code != tc.code {
			t.Errorf("%s: exit %d, want %d\n%s%s", tc.name, code, tc.code, out, errout)
		}
	}
}
