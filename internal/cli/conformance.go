package cli

import (
	"errors"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"assay.dev/assay/verify"
)

// conformanceCommand speaks the protocol of the Sigstore project's conformance suite
// for clients.
func (a *app) conformanceCommand() *cobra.Command {
	c := &cobra.Command{Use: "sigstore-conformance", Short: "Speak the protocol of Sigstore's conformance suite"}
	var bundle, san, issuer, key, root string
	var staging bool
	v := &cobra.Command{
		Use:   "verify-bundle --bundle FILE (--certificate-identity ID --certificate-oidc-issuer URL | --key PEM) [--trusted-root FILE] FILE_OR_DIGEST",
		Short: "Verify a bundle as the suite asks: exit 0 accepts",
		Long: `Verifies a Sigstore bundle for an artifact, given as a file or as sha256:HEX, with
an identity or a key, a trusted root (default: the public one, as shipped) and no
network. One log entry and one time are required, and one certificate transparency
log's promise where there is a certificate.

Exit codes: 0 accepted, 1 could not be checked, 2 usage, 3 rejected.`,
		Example: "  assay sigstore-conformance verify-bundle --bundle b.json --key key.pub artifact",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if staging {
				return usagef("--staging: the staging instance's root is not shipped; give it with --trusted-root")
			}
			o := verify.Options{At: time.Now(), WithoutSignature: true, WithoutProvenance: true}
			switch {
			case key != "" && san+issuer == "":
				k, err := verify.LoadPublicKey(key)
				if err != nil {
					return err
				}
				o.Keys, o.KeysLogged = []verify.Key{k}, true
			case key == "" && san != "" && issuer != "":
				o.Identities = []verify.CertificateIdentity{{SAN: san, Issuer: issuer}}
			default:
				return usagef("want --certificate-identity and --certificate-oidc-issuer, or --key")
			}
			in, err := conformanceInstance(root)
			if err != nil {
				return err
			}
			o.Instances = []*verify.Instance{in}
			data, err := readEvidence(bundle)
			if err != nil {
				return err
			}
			artifact, err := fileOrDigest(args[0])
			if err != nil {
				return err
			}
			items, err := verify.ReadFile(data)
			if err != nil {
				return &exit{exitRefused, err}
			}
			if len(items) != 1 {
				return &exit{exitRefused, errors.New("the file holds several bundles")}
			}
			_, err = verify.Files(artifact, items, o)
			var none *verify.NoEvidenceError
			if errors.As(err, &none) {
				return &exit{exitRefused, err}
			}
			return err
		},
	}
	f := v.Flags()
	f.StringVar(&bundle, "bundle", "", "the bundle (required)")
	f.StringVar(&san, "certificate-identity", "", "identity that the certificate must name")
	f.StringVar(&issuer, "certificate-oidc-issuer", "", "issuer that the certificate must name")
	f.StringVar(&key, "key", "", "public key (PEM file) instead of an identity")
	f.StringVar(&root, "trusted-root", "", "trusted root (JSON file; default: the public instance's)")
	f.BoolVar(&staging, "staging", false, "the staging instance, whose root has to be given")
	if err := v.MarkFlagRequired("bundle"); err != nil {
		panic(err) // the flag was defined above
	}
	c.AddCommand(v)
	return c
}

func conformanceInstance(path string) (*verify.Instance, error) {
	if path == "" {
		return verify.PublicGood()
	}
	data, err := readSmall(path)
	if err != nil {
		return nil, err
	}
	need, err := verify.DefaultThresholds(data)
	if err != nil {
		return nil, err
	}
	return verify.NewInstance(path, data, need)
}

// fileOrDigest is a file, or sha256:HEX where there is no file of that name.
func fileOrDigest(arg string) (*verify.Artifact, error) {
	if _, err := os.Stat(arg); err != nil && strings.HasPrefix(arg, "sha256:") {
		return verify.DigestArtifact(arg)
	}
	return verify.FileArtifact(arg)
}
