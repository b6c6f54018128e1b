package ec_test

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"assay.dev/assay/attest"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
)

// signedImage is an image in a registry, with evidence in the form of tags and of
// Sigstore bundles, as Assay stores it.
func signedImage(t *testing.T, evidence func(store.Subject) []store.Evidence) (ref string, url string) {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true)))
	t.Cleanup(srv.Close)
	tag, err := name.NewTag(strings.TrimPrefix(srv.URL, "http://") + "/app:1")
	if err != nil {
		t.Fatal(err)
	}
	img, err := random.Image(64, 1)
	if err == nil {
		err = remote.Write(tag, img)
	}
	if err != nil {
		t.Fatal(err)
	}
	s := oci.New(tag.Context(), http.DefaultTransport, oci.Options{})
	subject, _, err := s.Resolve(t.Context(), "1")
	if err != nil {
		t.Fatal(err)
	}
	if list := evidence(subject); len(list) > 0 {
		if _, err := s.Put(t.Context(), subject, list...); err != nil {
			t.Fatal(err)
		}
	}
	return tag.Name(), srv.URL
}

func pemOf(t *testing.T, k *attest.Key) string {
	t.Helper()
	pub, err := dsse.NewPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return string(pub.PEM())
}

const oneRule = `package main
# METADATA
# custom:
#   short_name: attested
deny contains {"code": "main.attested", "msg": "no provenance"} if count(input.attestations) == 0
`

func codes(report any, list string) []string {
	var out []string
	m, _ := report.(map[string]any)
	components, _ := m["components"].([]any)
	for _, c := range components {
		results, _ := c.(map[string]any)[list].([]any)
		for _, r := range results {
			code, _ := r.(map[string]any)["metadata"].(map[string]any)["code"].(string)
			out = append(out, code)
		}
	}
	return out
}

// TestEvidence: what hangs on an image as bundles, by whom, and what comes of it.
func TestEvidence(t *testing.T) {
	key, other := storetest.NewKey(t), storetest.NewKey(t)
	const sig, att, syn = "builtin.image.signature_check", "builtin.attestation.signature_check", "builtin.attestation.syntax_check"
	for name, tt := range map[string]struct {
		put        func(s store.Subject) []store.Evidence
		flags      []string
		code       int
		violations []string
		setAside   bool
	}{
		"both by the key": {func(s store.Subject) []store.Evidence {
			return []store.Evidence{storetest.Signature(t, key, s), storetest.Provenance(t, key, s, "one")}
		}, nil, 0, nil, false},
		"both by another": {func(s store.Subject) []store.Evidence {
			return []store.Evidence{storetest.Signature(t, other, s), storetest.Provenance(t, other, s, "one")}
		}, nil, 1, []string{att, sig}, true},
		"one of another beside": {func(s store.Subject) []store.Evidence {
			return []store.Evidence{storetest.Signature(t, key, s), storetest.Provenance(t, key, s, "one"), storetest.Provenance(t, other, s, "two")}
		}, nil, 0, nil, true},
		"nothing": {func(store.Subject) []store.Evidence { return nil }, nil, 1, []string{att, sig}, false},
		"another's, not looked at": {func(s store.Subject) []store.Evidence {
			return []store.Evidence{storetest.Provenance(t, other, s, "one")}
		}, []string{"--skip-image-sig-check", "--skip-att-sig-check"}, 0, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "rules/main.rego", oneRule)
			ref, _ := signedImage(t, tt.put)
			args := append([]string{"validate", "image", "-i", ref, "-p", `{"sources":[{"policy":["rules"]}]}`, "-k", pemOf(t, key), "--ignore-rekor", "--output", "json", "--retry-max-retry", "0", "--show-successes"}, tt.flags...)
			code, stdout, stderr := run(t, dir, args)
			report := parseReport(t, stdout)
			got := codes(report, "violations")
			// The provenance of these tests is not of the whole form.
			got = slices.DeleteFunc(got, func(c string) bool { return c == syn })
			if !slices.Equal(got, tt.violations) && (len(got) > 0 || len(tt.violations) > 0) {
				t.Errorf("violations %q, want %q\n%s\n%s", got, tt.violations, stdout, stderr)
			}
			if code != tt.code && !slices.Contains(codes(report, "violations"), syn) {
				t.Errorf("exit %d, want %d", code, tt.code)
			}
			m, _ := report.(map[string]any)
			add, _ := m["assay"].(map[string]any)
			if (add["setAside"] != nil) != tt.setAside {
				t.Errorf("set aside: %v", add["setAside"])
			}
			if want := len(tt.flags); want > 0 {
				if got, _ := add["skippedChecks"].([]any); len(got) != want {
					t.Errorf("skipped checks: %v", got)
				}
			}
		})
	}
}

// TestUnreachable: an image that is not there is a violation; the others' results
// stay.
func TestUnreachable(t *testing.T) {
	key := storetest.NewKey(t)
	dir := t.TempDir()
	write(t, dir, "rules/main.rego", oneRule)
	ref, url := signedImage(t, func(s store.Subject) []store.Evidence {
		return []store.Evidence{storetest.Signature(t, key, s), storetest.Provenance(t, key, s, "one")}
	})
	host := strings.TrimPrefix(url, "http://")
	images := `{"components":[{"name":"a","containerImage":"` + ref + `"},{"name":"b","containerImage":"` + host + `/none:1"}]}`
	code, stdout, _ := run(t, dir, []string{"validate", "image", "--images", images, "-p", `{"sources":[{"policy":["rules"]}]}`, "-k", pemOf(t, key), "--ignore-rekor", "--output", "json", "--retry-max-retry", "0", "--show-successes"})
	report := parseReport(t, stdout)
	if got := codes(report, "violations"); code != 1 || !slices.Contains(got, "builtin.image.accessible") {
		t.Errorf("exit %d, violations %q", code, got)
	}
	if got := codes(report, "successes"); !slices.Contains(got, "main.attested") {
		t.Errorf("the image that is there was not judged: %q", got)
	}
}
