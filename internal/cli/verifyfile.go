package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	"assay.dev/assay/internal/gate"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/store"
	"assay.dev/assay/verify"
)

// verifyFlags are those of verify.
type verifyFlags struct {
	trust      trustFlags
	identity   identityFlags
	expect     expectFlags
	bundles    []string
	digest     string
	format     string
	types      []string
	predicates []string
	anyOutcome bool
	workflows  []string
}

func (v *verifyFlags) add(c *cobra.Command) {
	v.trust.add(c)
	v.identity.add(c)
	v.expect.add(c)
	f := c.Flags()
	f.StringVar(&v.trust.kubeconfig, "kubeconfig", "", "kubeconfig file for keys in a cluster (k8s://; default: as kubectl)")
	f.StringArrayVarP(&v.bundles, "bundle", "b", nil, "file with the evidence: a Sigstore bundle, a DSSE envelope, or lines of them (repeatable)")
	f.StringArrayVar(&v.workflows, "workflow-repo", nil, "repository of the workflow: a folder or an https address (repeatable)")
	f.StringVar(&v.digest, "artifact-digest", "", "digest of the artifact instead of the file itself: sha256:HEX, sha512:HEX")
	f.StringVar(&v.format, "format", "", "what --bundle is, where it does not say so itself: gcb (Google Cloud Build's description of an image)")
	f.StringArrayVar(&v.types, "type", nil, "type of which an attestation must verify: slsaprovenance, spdx, cyclonedx, vuln, … or the predicate type (repeatable: any of them)")
	f.StringArrayVar(&v.predicates, "predicate-type", nil, "as --type, in gh's words")
	f.BoolVar(&v.anyOutcome, "any-outcome", false, "count provenance of runs that failed or had not ended, too")
	f.Lookup("trusted-root").Usage = "Sigstore trusted root (JSON file): whose certificates, logs and timestamps to believe (default: those of Sigstore's public instance and of GitHub)"
}

// options are what the flags say, and whether artifacts are to be found beside keys.
func (a *app) options(ctx context.Context, v *verifyFlags, h *home.Home, npm bool) (verify.Options, error) {
	o := verify.Options{WithoutSignature: true, WithoutProvenance: true, AnyOutcome: v.anyOutcome}
	var err error
	if o.Predicates, err = typesOf(slices.Concat(v.types, v.predicates)...); err != nil {
		return o, err
	}
	if o.Expect, err = v.expect.expectation(); err != nil {
		return o, err
	}
	if o.Expect != nil || v.identity.owner+v.identity.repo != "" && len(o.Predicates) == 0 {
		o.WithoutProvenance = false
	}
	if v.format == "gcb" {
		if o.At, err = v.identity.instant(); err == nil {
			o.Keys, err = gcbKeys(v.trust.keys)
		}
		return o, err
	}
	trust, at, err := a.trusted(ctx, h, &v.trust, &v.identity, o.Expect != nil)
	if err != nil {
		return o, err
	}
	o.Keys, o.Identities, o.Instances, o.Log, o.At = trust.Keys, trust.Identities, trust.Instances, trust.Log, at
	if len(o.Keys) == 0 {
		err = npmKeys(&o, npm)
	}
	return o, err
}

// npmKeys adds npm's keys where they count: the registry's word that it published what
// the provenance is about.
func npmKeys(o *verify.Options, npm bool) error {
	if !npm || o.Expect == nil {
		return nil
	}
	keys, err := verify.NPMKeys()
	if err != nil {
		return err
	}
	o.Keys, o.KeysLogged, o.All = keys, true, true
	return nil
}

// gcbKeys are Google's public keys: files, or a folder of them, each named as Google
// names the key.
func gcbKeys(paths []string) ([]verify.Key, error) {
	if len(paths) == 0 {
		return nil, usagef("--format gcb needs Google's public keys: --key FOLDER, or --key FILE for each")
	}
	var out []verify.Key
	for _, p := range paths {
		files := []string{p}
		if info, err := os.Stat(p); err == nil && info.IsDir() {
			if files, err = filepath.Glob(filepath.Join(p, "*.key")); err != nil {
				return nil, err
			}
			if len(files) == 0 {
				return nil, fmt.Errorf("%s: no *.key in it", p)
			}
		}
		for _, f := range files {
			k, err := verify.LoadPublicKey(f)
			if err != nil {
				return nil, err
			}
			out = append(out, k)
		}
	}
	return out, nil
}

// verify finds out what the argument is and verifies it.
func (a *app) verify(ctx context.Context, v *verifyFlags, args []string) (*verify.Evidence, error) {
	switch {
	case v.format != "" && v.format != "gcb":
		return nil, usagef("--format %q is not known; known is gcb", v.format)
	case v.digest == "" && len(args) == 0:
		return nil, usagef("nothing to verify: want IMAGE or FILE, or --artifact-digest")
	case v.digest != "" && len(args) > 0:
		return nil, usagef("%s and --artifact-digest: give one of them", args[0])
	case (v.digest != "" || v.format != "") && len(v.bundles) == 0:
		return nil, usagef("no evidence is given: use --bundle FILE")
	}
	artifact, err := v.artifact(args)
	if err != nil {
		return nil, err
	}
	h, cfg, err := findHome()
	if err != nil {
		return nil, err
	}
	if artifact == nil {
		o, err := a.options(ctx, v, h, false)
		if err != nil {
			return nil, err
		}
		return a.verifyImage(ctx, v, h, cfg, strings.TrimPrefix(args[0], "oci://"), o)
	}
	if len(v.bundles) == 0 {
		if v.bundles, err = beside(args[0]); err != nil {
			return nil, err
		}
	}
	var files [][]byte
	var items []store.Item
	npm := false
	for _, path := range v.bundles {
		data, err := readEvidence(path)
		if err != nil {
			return nil, err
		}
		files = append(files, data)
		npm = npm || verify.IsNPM(data)
	}
	o, err := a.options(ctx, v, h, npm)
	if err != nil {
		return nil, err
	}
	if v.format == "gcb" {
		if len(files) != 1 {
			return nil, usagef("--format gcb: give one --bundle")
		}
		return verify.GCB(artifact, files[0], o)
	}
	for i, data := range files {
		more, err := verify.ReadFile(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", v.bundles[i], err)
		}
		items = append(items, more...)
	}
	return verify.Files(artifact, items, o)
}

// artifact is nil where the argument is an image in a registry.
func (v *verifyFlags) artifact(args []string) (*verify.Artifact, error) {
	if v.digest != "" {
		d, err := verify.DigestArtifact(v.digest)
		if err != nil {
			return nil, usagef("--artifact-digest: %v", err)
		}
		return d, nil
	}
	arg := args[0]
	image := strings.HasPrefix(arg, "oci://")
	if !image {
		if info, err := os.Stat(arg); err == nil && info.Mode().IsRegular() {
			return verify.FileArtifact(arg)
		}
	}
	if len(v.bundles) == 0 {
		return nil, nil
	}
	// An image whose evidence is at hand needs no registry, if its digest is known.
	r, err := name.NewDigest(strings.TrimPrefix(arg, "oci://"))
	if err != nil {
		if !image {
			return nil, fmt.Errorf("reading the artifact: %s is no file; for an image with --bundle name its digest, IMAGE@sha256:…", arg)
		}
		return nil, usagef("--bundle needs the image's digest, IMAGE@sha256:…: %v", err)
	}
	return verify.DigestArtifact(r.DigestStr())
}

func (a *app) verifyImage(ctx context.Context, v *verifyFlags, h *home.Home, cfg home.Config, ref string, o verify.Options) (*verify.Evidence, error) {
	rt, err := embedded(h, cfg)
	if err != nil {
		return nil, err
	}
	var transport http.RoundTripper
	if transport, err = gate.Authorized(ctx, ref, rt, cfg.Registry); err != nil {
		return nil, err
	}
	o.Transport = transport
	return verify.Image(ctx, ref, o)
}

// suffixes are how evidence beside a file is called.
var suffixes = []string{".sigstore.json", ".sigstore", ".intoto.jsonl", ".intoto.sigstore", ".att.jsonl"}

// beside finds the evidence that lies beside a file.
func beside(path string) ([]string, error) {
	var found []string
	for _, s := range suffixes {
		if _, err := os.Stat(path + s); err == nil {
			found = append(found, path+s)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no evidence lies beside %s (%s): use --bundle FILE", path, strings.Join(suffixes, ", "))
	}
	return found, nil
}

// maxEvidence is the size of the largest file of evidence.
const maxEvidence = 256 << 20

func readEvidence(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading evidence: %w; want a bundle, an envelope or lines of them, such as `assay download bundle IMAGE` prints", err)
	}
	if err != nil {
		return nil, fmt.Errorf("reading evidence: %w", err)
	}
	if info.Size() > maxEvidence {
		return nil, fmt.Errorf("reading evidence: %s is larger than %d bytes", path, maxEvidence)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading evidence: %w", err)
	}
	return data, nil
}
