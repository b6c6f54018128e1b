package oci_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
)

// TestKeeperCosign lets the cosign binary that ASSAY_COSIGN names verify what a
// Keeper keeps in either encoding, and append to it, and checks that what cosign had
// attached before stays.
func TestKeeperCosign(t *testing.T) {
	cosign := os.Getenv("ASSAY_COSIGN")
	if cosign == "" {
		t.Skip(`ASSAY_COSIGN names no cosign binary; eval "$(tools/peers cosign)" makes one`)
	}
	dir := t.TempDir()
	try := func(t *testing.T, args ...string) (string, error) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), cosign, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "COSIGN_PASSWORD=s3cret", "HOME="+dir, "COSIGN_YES=true")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	run := func(t *testing.T, args ...string) string {
		t.Helper()
		out, err := try(t, args...)
		if err != nil {
			t.Fatalf("cosign %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return out
	}
	run(t, "generate-key-pair")
	predicate := filepath.Join(dir, "predicate.json")
	if err := os.WriteFile(predicate, []byte(`{"builder":{"id":"https://example.com/b"},"buildType":"x"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	for encoding, newFormat := range map[string]string{oci.EncodingDSSE: "--new-bundle-format=false", oci.EncodingBundle: "--new-bundle-format=true"} {
		t.Run(encoding, func(t *testing.T) {
			s := serve(t, olareg(t))
			keep := func(image string, signers ...*storetest.RecordSigner) []store.Record {
				k := s.keeper(t, oci.KeeperOptions{Encoding: encoding})
				defer k.Close()
				r := storetest.NewRun("PipelineRun")
				records := []store.Record{
					storetest.StatementRecord(t, r, "interop", []intoto.Subject{storetest.ImageSubject(image)}, signers...),
					storetest.ImageRecord(t, r, image, signers...),
				}
				s.mustKeep(t, k, records...)
				return records
			}
			verify := func(image, key string) {
				t.Helper()
				common := []string{"--key", key, newFormat, "--insecure-ignore-tlog=true", "--allow-insecure-registry=true"}
				run(t, slices.Concat([]string{"verify"}, common, []string{image})...)
				run(t, slices.Concat([]string{"verify-attestation", "--type", "slsaprovenance"}, common, []string{image})...)
			}
			attach := func(image string) {
				t.Helper()
				flags := []string{"--key", "cosign.key", "--tlog-upload=false", "--allow-insecure-registry=true", "--use-signing-config=false", newFormat}
				run(t, slices.Concat([]string{"sign"}, flags, []string{image})...)
				run(t, slices.Concat([]string{"attest", "--type", "slsaprovenance", "--predicate", predicate}, flags, []string{image})...)
			}
			ours := storetest.NewRecordSigner(t)
			pub := filepath.Join(dir, encoding+".pub")
			writeKey(t, pub, ours.Key)
			stranger := filepath.Join(dir, encoding+"-stranger.pub")
			writeKey(t, stranger, storetest.NewRecordSigner(t).Key)

			// Ours first, theirs appended, ours again; and the other way round.
			first := s.image(t, "interop/ours-first", "1")
			keep(first, ours)
			verify(first, pub)
			if out, err := try(t, "verify", "--key", stranger, newFormat, "--insecure-ignore-tlog=true", "--allow-insecure-registry=true", first); err == nil {
				t.Errorf("cosign verified with a stranger's key; this test proves nothing\n%s", out)
			}
			attach(first)
			verify(first, pub)
			verify(first, "cosign.pub")
			keep(first, storetest.NewRecordSigner(t))
			verify(first, pub)
			verify(first, "cosign.pub")

			last := s.image(t, "interop/theirs-first", "2")
			attach(last)
			keep(last, ours)
			verify(last, pub)
			verify(last, "cosign.pub")
			attach(last)
			verify(last, pub)

			// Each of several signers is enough for whoever trusts it.
			both := s.image(t, "interop/both", "3")
			other := storetest.NewRecordSigner(t)
			otherPub := filepath.Join(dir, encoding+"-other.pub")
			writeKey(t, otherPub, other.Key)
			keep(both, ours, other)
			verify(both, pub)
			verify(both, otherPub)
		})
	}
}

// TestKeeperCosignCertificate verifies by certificate what was kept with one.
func TestKeeperCosignCertificate(t *testing.T) {
	cosign := os.Getenv("ASSAY_COSIGN")
	if cosign == "" {
		t.Skip(`ASSAY_COSIGN names no cosign binary; eval "$(tools/peers cosign)" makes one`)
	}
	s := serve(t, olareg(t))
	signer := storetest.NewCertSigner(t)
	dir := t.TempDir()
	chain := filepath.Join(dir, "chain.pem")
	if err := os.WriteFile(chain, signer.Chain, 0o644); err != nil {
		t.Fatal(err)
	}
	image := s.image(t, "interop/certificate", "x")
	k := s.keeper(t, oci.KeeperOptions{})
	defer k.Close()
	r := storetest.NewRun("PipelineRun")
	s.mustKeep(t, k, storetest.ImageRecord(t, r, image, signer),
		storetest.StatementRecord(t, r, "x", []intoto.Subject{storetest.ImageSubject(image)}, signer))
	for _, command := range [][]string{{"verify"}, {"verify-attestation", "--type", "slsaprovenance"}} {
		args := slices.Concat(command, []string{
			"--ca-roots", chain, "--certificate-identity-regexp", "^https://kubernetes.io/namespaces/tekton-chains/", "--certificate-oidc-issuer-regexp", ".*",
			"--insecure-ignore-sct=true", "--insecure-ignore-tlog=true", "--allow-insecure-registry=true", "--new-bundle-format=false", image,
		})
		cmd := exec.CommandContext(t.Context(), cosign, args...)
		cmd.Env = append(os.Environ(), "HOME="+dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("cosign %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

func writeKey(t *testing.T, path string, key dsse.PublicKey) {
	t.Helper()
	if err := os.WriteFile(path, key.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
}
