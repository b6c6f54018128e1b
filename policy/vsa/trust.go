package vsa

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/verify"
)

// TrustDigest is sha256:… over everything in verification options that decides whose
// evidence counts: keys, identities, instances, logs and what is demanded. The order
// in which they are given does not count; the instant of verification and the way to
// the registry do not belong to it. It fails for a key that cannot be used.
func TrustDigest(o verify.Options) (string, error) {
	type key struct {
		Name, Fingerprint    string
		Observer             bool
		Builders, Predicates []string
		From, Until          time.Time
	}
	type instance struct {
		Name, Root string
		Thresholds verify.Thresholds
	}
	doc := struct {
		Keys       []key
		Identities []verify.CertificateIdentity
		Instances  []instance
		Log        verify.LogTrust
		Expect     *verify.Expectation
		Predicates []string

		KeysLogged, All, AnyOutcome, WithoutSignature, WithoutProvenance bool
	}{
		Identities: slices.Clone(o.Identities), Log: o.Log, Expect: o.Expect, Predicates: o.Predicates,
		KeysLogged: o.KeysLogged, All: o.All, AnyOutcome: o.AnyOutcome,
		WithoutSignature: o.WithoutSignature, WithoutProvenance: o.WithoutProvenance,
	}
	for _, k := range o.Keys {
		pub, err := dsse.NewPublicKey(k.Public)
		if err != nil {
			return "", fmt.Errorf("digesting the trust: key %s: %w", k.Name, err)
		}
		doc.Keys = append(doc.Keys, key{k.Name, pub.Fingerprint(), k.Observer, k.Builders, k.Predicates, k.From.UTC(), k.Until.UTC()})
	}
	for _, i := range o.Instances {
		sum := sha256.Sum256(i.JSON())
		doc.Instances = append(doc.Instances, instance{i.Name(), hex.EncodeToString(sum[:]), i.Thresholds()})
	}
	if err := sortByJSON(doc.Keys); err != nil {
		return "", err
	}
	if err := sortByJSON(doc.Identities); err != nil {
		return "", err
	}
	if err := sortByJSON(doc.Instances); err != nil {
		return "", err
	}
	raw, err := json.Marshal(doc)
	if err != nil {
		return "", fmt.Errorf("digesting the trust: %w", err)
	}
	sum := sha256.Sum256(raw)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}

func sortByJSON[T any](list []T) error {
	var failed error
	text := func(v T) string {
		raw, err := json.Marshal(v)
		if err != nil {
			failed = fmt.Errorf("digesting the trust: %w", err)
		}
		return string(raw)
	}
	slices.SortFunc(list, func(a, b T) int { return strings.Compare(text(a), text(b)) })
	return failed
}
