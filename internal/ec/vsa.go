package ec

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	internal "assay.dev/assay/internal/vsa"
	"assay.dev/assay/policy/vsa"
)

// vsaAge is how old a summary may be: a duration, or days, weeks and months as well.
type vsaAge time.Duration

// defaultVSAAge is a week.
const defaultVSAAge = vsaAge(168 * time.Hour)

func (a *vsaAge) String() string { return time.Duration(*a).String() }
func (a *vsaAge) Type() string   { return "duration" }

func (a *vsaAge) Set(s string) error {
	d, err := vsa.ParseExpiration(s)
	*a = vsaAge(d)
	return err
}

// vsaFlags are those of validate image about verification summaries.
type vsaFlags struct {
	enabled    bool
	format     string
	signingKey string
	publicKey  string
	upload     []string
	expiration vsaAge
	outputDir  string

	// asked is the policy as it was asked for.
	asked string
}

// Words of --attestation-format.
const (
	formatDSSE      = "dsse"
	formatPredicate = "predicate"
)

func (v *vsaFlags) add(c *cobra.Command) {
	v.expiration = defaultVSAAge
	f := c.Flags()
	f.BoolVar(&v.enabled, "vsa", false, "make a verification summary (VSA) of each image")
	f.StringVar(&v.format, "attestation-format", formatDSSE, "form of summaries: dsse (signed), predicate (JSON, not signed)")
	f.StringVar(&v.signingKey, "vsa-signing-key", "", "key to sign summaries with: a file, k8s://NAMESPACE/SECRET[/FIELD], the address of a key service, or pkcs11:…")
	f.StringVar(&v.publicKey, "vsa-public-key", "", "key that summaries are verified with; needed with --vsa-upload unless --vsa-expiration is 0")
	f.StringSliceVar(&v.upload, "vsa-upload", nil, "where summaries are kept, and looked for before an image is judged: local@FOLDER or rekor@URL[?timeout=30s&retries=3] (repeatable)")
	f.Var(&v.expiration, "vsa-expiration", "how old a summary may be to stand in for judging the image: 24h, 7d, 2w, 1mo; 0: none does")
	f.StringVar(&v.outputDir, "attestation-output-dir", "", "folder for summaries, below the folder for temporary files or the current one (default: a new one for temporary files)")
}

// check refuses combinations that mean nothing. It is called before anything is judged.
func (v *vsaFlags) check() error {
	var errs []error
	if v.enabled {
		if v.format != formatDSSE && v.format != formatPredicate {
			errs = append(errs, fmt.Errorf("invalid --attestation-format: %s (valid: dsse, predicate)", v.format))
		}
		if v.format == formatDSSE && v.signingKey == "" {
			errs = append(errs, errors.New("--vsa-signing-key required for --attestation-format=dsse"))
		}
		if _, err := attestationFolder(v.outputDir); err != nil {
			errs = append(errs, fmt.Errorf("invalid attestation output directory: %w", err))
		}
	}
	if len(v.upload) > 0 && v.publicKey == "" && v.expiration > 0 {
		errs = append(errs, errors.New("--vsa-public-key required when --vsa-upload is set with --vsa-expiration > 0"))
	}
	return errors.Join(errs...)
}

// attestationFolder is the folder that --attestation-output-dir names; empty: none. It
// must lie where nothing else is overwritten by mistake, links resolved as far as the
// folder is there.
func attestationFolder(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for _, root := range []string{"/tmp", os.TempDir(), wd} {
		if below(abs, root) && below(real(abs), real(root)) {
			return abs, nil
		}
	}
	return "", fmt.Errorf("attestation output directory must be under /tmp or current working directory, got: %s", abs)
}

func below(path, root string) bool {
	rel, err := filepath.Rel(root, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// real resolves the links of that part of a path which is there.
func real(path string) string {
	for rest := ""; ; {
		if r, err := filepath.EvalSymlinks(path); err == nil {
			return filepath.Join(r, rest)
		}
		if path == filepath.Dir(path) {
			return filepath.Join(path, rest)
		}
		path, rest = filepath.Dir(path), filepath.Join(filepath.Base(path), rest)
	}
}

// write makes summaries of a report, signs and keeps them. What becomes of them does not
// change the outcome of the command, as with Conforma: what goes wrong is logged. Only a
// key that cannot be reached is an error.
func (v *vsaFlags) write(ctx context.Context, r *runner, report *imageReport, skipped bool) error {
	if !v.enabled {
		return nil
	}
	made, err := v.predicates(report, skipped)
	if err != nil {
		return err
	}
	folder, err := attestationFolder(v.outputDir)
	if err != nil {
		return fmt.Errorf("invalid attestation output directory: %w", err)
	}
	if v.format == formatPredicate {
		if v.signingKey != "" {
			r.warn("--vsa-signing-key is ignored for --attestation-format=predicate")
		}
		for _, m := range made {
			if m.snapshot {
				continue
			}
			if _, err := m.write(folder); err != nil {
				r.log.printf(levelError, "[VSA] Failed to generate predicate for %s: %v", m.about, err)
			}
		}
		return nil
	}
	s, err := internal.StartSigner(ctx, v.signingKey, internal.SignerOptions{Kubeconfig: r.kubeconfig})
	if err != nil {
		return err
	}
	defer s.Close()
	places := v.places(r)
	for _, m := range made {
		if err := m.keep(ctx, s, folder, places, r); err != nil {
			r.log.printf(levelError, "[VSA] Failed to process VSA for %s: %v", m.about, err)
		}
	}
	if len(v.upload) == 0 {
		r.log.printf(levelError, "[VSA] VSA files generated but not uploaded (no --vsa-upload backends specified)")
	}
	return nil
}

// places are those of --vsa-upload that can be used.
func (v *vsaFlags) places(r *runner) []internal.Place {
	var out []internal.Place
	for _, s := range v.upload {
		p, err := internal.ParsePlace(s, internal.Rekor, internal.Local)
		if err != nil {
			r.warn("invalid storage config %v", err)
			continue
		}
		if len(p.Ignored) > 0 {
			r.warn("[VSA] %s: ignoring unknown parameters %s", p, strings.Join(p.Ignored, ", "))
		}
		out = append(out, p)
	}
	return out
}

// predicate is a summary to be written.
type predicate struct {
	about     string // for messages
	file      string
	name      string // of the subject
	digest    string // of the subject; empty: that of the predicate's file
	snapshot  bool
	predicate any
}

// write writes the predicate as JSON, into a folder of its own where none is named.
func (m predicate) write(folder string) (path string, err error) {
	raw, err := json.MarshalIndent(m.predicate, "", "  ")
	if err != nil {
		return "", err
	}
	if folder == "" {
		prefix := "vsa-"
		if m.snapshot {
			prefix = "snapshot-predicate-"
		}
		if folder, err = os.MkdirTemp("", prefix); err != nil {
			return "", err
		}
	}
	return internal.Write(folder, m.file, raw)
}

// keep writes, signs and uploads.
func (m predicate) keep(ctx context.Context, s *internal.Signer, folder string, places []internal.Place, r *runner) error {
	path, err := m.write(folder)
	if err != nil {
		return err
	}
	digest := m.digest
	if digest == "" {
		if digest, err = fileDigest(path); err != nil {
			return err
		}
	}
	statement, err := vsa.ConformaStatement(m.name, digest, m.predicate)
	if err != nil {
		return err
	}
	env, key, err := s.Sign(ctx, statement)
	if err != nil {
		return err
	}
	raw, err := env.MarshalJSON()
	if err != nil {
		return err
	}
	if _, err := internal.Write(filepath.Dir(path), filepath.Base(path)+".intoto.jsonl", raw); err != nil {
		return err
	}
	r.debugf("[VSA] Predicate attested and envelope written: %s.intoto.jsonl", path)
	for _, p := range places {
		if err := p.Put(ctx, env, key, nil, time.Now()); err != nil {
			if p.Backend == internal.Rekor {
				r.log.printf(levelError, "[VSA] Failed to upload in-toto 0.0.2 entry: %v", err)
			}
			r.warn("failed to upload to %s: %v", p, err)
		}
	}
	return nil
}

// predicates are the summaries of a report: one of each component, and one of all.
// Skipped says that signatures were not checked: the summaries then name no key, so
// that nobody who demands one takes them.
func (v *vsaFlags) predicates(report *imageReport, skipped bool) ([]predicate, error) {
	policy, err := json.Marshal(report.Policy)
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC().Format(time.RFC3339)
	key := report.Key
	if skipped {
		key = ""
	}
	entries, err := report.summarized()
	if err != nil {
		return nil, err
	}
	members := membersOf(entries)
	var out []predicate
	used := map[string]int{}
	for i := range entries {
		c := &entries[i]
		repo, digest, ok := strings.Cut(c.ContainerImage, "@")
		if _, err := name.NewDigest(c.ContainerImage); err != nil || !ok {
			continue // it could not be reached, so there is nothing to say something of
		}
		if report.accepted(c.ContainerImage) {
			continue // somebody's word is not repeated as ours
		}
		source, err := json.Marshal(c.Source)
		if err != nil {
			return nil, err
		}
		p := vsa.Conforma{
			Policy: policy, PolicySource: v.asked, ImageRefs: []string{c.ContainerImage}, Timestamp: now,
			Status: vsa.StatusPassed, Verifier: vsa.ConformaVerifier, PublicKey: key,
			Summary: vsa.ConformaSummary{Component: vsa.ConformaOfComponent{Name: c.Name, ContainerImage: c.ContainerImage, Source: source}},
		}
		for _, x := range append([]*summarized{c}, members[place{repository(repo), c.Name}]...) {
			p.Summary.Components = append(p.Summary.Components, vsa.ConformaDetail{
				Name: x.Name, ImageRef: x.ContainerImage, Violations: x.violations, Warnings: x.warnings, Successes: x.listed,
			})
			p.Summary.Violations += x.violations
			p.Summary.Warnings += x.warnings
			p.Summary.Successes += x.listed
			if !slices.Contains(p.ImageRefs, x.ContainerImage) {
				p.ImageRefs = append(p.ImageRefs, x.ContainerImage)
			}
			if !x.success {
				// An index is not better than what it lists.
				p.Status = vsa.StatusFailed
			}
		}
		file := vsa.FileName(c.Name)
		if used[file]++; used[file] > 1 {
			file = fmt.Sprintf("%s-%d.json", strings.TrimSuffix(file, ".json"), used[file])
		}
		out = append(out, predicate{about: c.ContainerImage, file: file, name: repo, digest: digest, predicate: p})
	}
	all, err := report.vsa()
	if err != nil {
		return nil, err
	}
	subject := report.Snapshot
	if subject == "" {
		subject = "application-snapshot"
	}
	return append(out, predicate{about: subject, file: "application-snapshot-vsa.json", name: subject, snapshot: true, predicate: all}), nil
}

// summarized is a component of a report with what came of it.
type summarized struct {
	component
	success                      bool
	violations, warnings, listed int
}

// summarized reads back what the report keeps of its components.
func (r *imageReport) summarized() ([]summarized, error) {
	var out []summarized
	for _, k := range r.kept {
		s := summarized{success: k.success, violations: k.violations, warnings: k.warnings, listed: k.listed}
		if err := r.decode(k.entry, &s.component); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// place is a component by its repository and name.
type place struct{ repo, name string }

func repository(repo string) string {
	if i := strings.LastIndex(repo, ":"); i > strings.LastIndex(repo, "/") {
		return repo[:i]
	}
	return repo
}

// membersOf are the components that were made of the images that an index lists, by the
// index: see runner.members, which names them.
func membersOf(entries []summarized) map[place][]*summarized {
	out := map[place][]*summarized{}
	for i := range entries {
		x := &entries[i]
		repo, digest, ok := strings.Cut(x.ContainerImage, "@")
		if at := strings.LastIndex(x.Name, "-"+digest+"-"); ok && at >= 0 {
			p := place{repository(repo), x.Name[:at]}
			out[p] = append(out[p], x)
		}
	}
	return out
}

// vsa is the predicate about the whole snapshot: the output of that name.
func (r *imageReport) vsa() (*vsa.Snapshot, error) {
	policy, err := json.Marshal(r.Policy)
	if err != nil {
		return nil, err
	}
	entries, err := r.summarized()
	if err != nil {
		return nil, err
	}
	s := &vsa.Snapshot{
		Policy: policy, ImageRefs: []string{}, Timestamp: r.created.UTC().Format(time.RFC3339), Status: vsa.StatusFailed, Verifier: vsa.ConformaVerifier,
		Summary: vsa.SnapshotSummary{
			Snapshot: r.Snapshot, Components: len(entries), Success: r.Success, Key: r.Key, Version: r.Version,
			ComponentDetails: []vsa.SnapshotDetail{},
		},
	}
	if r.Success {
		s.Status = vsa.StatusPassed
	}
	seen := map[string]bool{}
	for _, c := range entries {
		s.Summary.ComponentDetails = append(s.Summary.ComponentDetails, vsa.SnapshotDetail{
			Name: c.Name, ContainerImage: c.ContainerImage, Success: c.success,
			Violations: c.violations, Warnings: c.warnings, Successes: c.listed,
		})
		s.Summary.Violations += c.violations
		s.Summary.Warnings += c.warnings
		if !seen[c.ContainerImage] {
			seen[c.ContainerImage] = true
			s.ImageRefs = append(s.ImageRefs, c.ContainerImage)
		}
	}
	return s, nil
}

// accepted says whether an image was not judged, since a summary stood in for it.
func (r *imageReport) accepted(image string) bool {
	return r.Assay != nil && r.Assay.Summaries[image] != nil
}
