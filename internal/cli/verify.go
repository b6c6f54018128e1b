package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/internal/gate"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/verify"
	"assay.dev/assay/verify/workflow"
)

func (a *app) verifyCommand() *cobra.Command {
	v := &verifyFlags{}
	c := &cobra.Command{
		Use:   "verify IMAGE|FILE",
		Short: "Verify signatures and attestations of an image or a file, and say who made them",
		Long: `Finds the signatures and attestations of an image, as cosign's tags and as
referrers, or of a file, in --bundle or beside it (FILE.sigstore.json, FILE.sigstore,
FILE.intoto.jsonl), and verifies them with the keys and identities you trust. Prints
what is true and who said it; what did not verify is listed with the reason.

An argument that names a file is a file; oci://IMAGE is always an image. Instead of
the file its digest will do (--artifact-digest).

Keys: --key and --observer-key. Certificates: an identity and its issuer, or --owner,
--repo and --signer-workflow for GitHub; and the instances of Sigstore that vouch for
them, which are the public one and GitHub's unless --trusted-root or the trust file
says otherwise. Their roots are refreshed by TUF once a day where there is a network;
--offline opens no connection but to the image's registry.

Of a workflow's provenance it says what is left open; with --workflow-repo it reads the
workflow's file at the attested commit and lists the actions that it names and which are
not pinned by digest: inferred, not attested.

With --source-uri provenance must say that the artifact is built from there, by a
builder that is trusted for building for others or that --builder-id names.

Exit codes: 0 verified, 1 could not be checked, 2 usage, 3 nothing verifies, or not
what was asked for.`,
		Example: `  assay verify localhost:5055/released/yq:v4.47.2 --key $KEY
  assay verify gh.tar.gz --bundle gh.sigstore.json --repo cli/cli
  assay verify $IMAGE --certificate-identity me@example.com --certificate-oidc-issuer https://accounts.google.com
  assay verify --artifact-digest $DIGEST --bundle b.jsonl --source-uri github.com/o/n --source-tag v1.2.3`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.outputIs("text", "json"); err != nil {
				return err
			}
			e, err := a.verify(cmd.Context(), v, args)
			var none *verify.NoEvidenceError
			if errors.As(err, &none) {
				if a.output == "json" {
					if err := a.json(refusalJSON{none.Ref, "refused", none.Missing, none.Kinds(), none.Rejected}); err != nil {
						return err
					}
				}
				return &exit{exitRefused, none}
			}
			if err != nil {
				return err
			}
			inferred, err := a.inferences(cmd.Context(), e, v.workflows)
			if err != nil {
				return err
			}
			if err := a.printEvidence(e, inferred); err != nil {
				return err
			}
			if altered(e) {
				return &exit{exitRefused, errors.New("some of the evidence was altered where it is kept; find out by whom before you use this image")}
			}
			return nil
		},
	}
	v.add(c)
	return c
}

type evidenceJSON struct {
	Image      string             `json:"image"`
	Digest     string             `json:"digest"`
	Signatures []verify.Signature `json:"signatures"`
	Statements []statementJSON    `json:"statements"`
	Runs       []string           `json:"runs"`
	Rejected   []verify.Rejected  `json:"rejected"`
}

type statementJSON struct {
	verify.Identity
	Format        string `json:"format"`
	PredicateType string `json:"predicateType"`
	PayloadDigest string `json:"payloadDigest"`
	// Outcome is how the run that it describes ended, where it describes one.
	Outcome predicate.Outcome `json:"outcome,omitempty"`
	Builder string            `json:"builder,omitempty"`
	// Unsaid is what a workflow's provenance leaves open, and Inferred what its file
	// says, which nobody attests.
	Unsaid   []verify.Omission   `json:"unsaid,omitempty"`
	Inferred []*workflow.Reading `json:"inferred,omitempty"`
	verify.Logged
}

// refusalJSON is what is printed where nothing verifies.
type refusalJSON struct {
	Artifact string            `json:"artifact"`
	Result   string            `json:"result"`
	Missing  []string          `json:"missing"`
	Kinds    []verify.Kind     `json:"kinds"`
	Rejected []verify.Rejected `json:"rejected"`
}

// altered says whether evidence is false that nobody but its keeper can have made
// so. What strangers hang on an image does not make it so.
func altered(e *verify.Evidence) bool {
	return slices.ContainsFunc(e.Rejected(), func(r verify.Rejected) bool { return r.Kind == verify.KindAltered })
}

func (a *app) printEvidence(e *verify.Evidence, inferred map[string][]*workflow.Reading) error {
	out := evidenceJSON{Image: e.Ref(), Digest: e.Digest(), Signatures: e.Signatures(), Statements: []statementJSON{}, Runs: []string{}, Rejected: e.Rejected()}
	for _, s := range e.Statements() {
		st := statementJSON{
			Identity: s.Identity, Format: s.Format, PredicateType: s.PredicateType, PayloadDigest: s.PayloadDigest, Outcome: s.Outcome,
			Unsaid: verify.Unsaid(s.Typed, s.Certificate), Inferred: inferred[s.PayloadDigest], Logged: s.Logged,
		}
		if p, ok := s.Typed.(predicate.Provenance); ok {
			st.Builder = p.BuilderID()
		}
		out.Statements = append(out.Statements, st)
	}
	for _, r := range e.Runs() {
		out.Runs = append(out.Runs, r.ID)
	}
	if a.output == "json" {
		return a.json(out)
	}
	word := "verified"
	if altered(e) {
		word = "altered "
	}
	fmt.Fprintf(a.out, "%s  %s\n", word, out.Image)
	for _, s := range out.Signatures {
		fmt.Fprintf(a.out, "  signature    by %s (%s): %s\n", s.KeyName, s.Grade, s.Format)
		a.printSigner(s.Identity)
		a.printLogged(s.Logged)
	}
	for _, s := range out.Statements {
		fmt.Fprintf(a.out, "  attestation  %s by %s (%s): %s\n", first(s.PredicateType, "of no type"), s.KeyName, s.Grade, s.Reason)
		if s.Builder != "" {
			fmt.Fprintf(a.out, "    builder    %s\n", s.Builder)
		}
		if s.Outcome != "" {
			fmt.Fprintf(a.out, "    outcome    %s\n", s.Outcome)
		}
		a.printSigner(s.Identity)
		a.printLogged(s.Logged)
		a.printUnsaid(s)
	}
	for _, r := range out.Runs {
		fmt.Fprintf(a.out, "  run          %s\n", r)
	}
	for _, r := range out.Rejected {
		fmt.Fprintf(a.out, "  rejected     %s %s: %s\n", r.Format, r.Digest, r.Reason)
	}
	return nil
}

// printSigner says what a certificate says of its owner.
func (a *app) printSigner(id verify.Identity) {
	c := id.Certificate
	if c == nil {
		return
	}
	fmt.Fprintf(a.out, "    issuer     %s, certified by %s (%s)\n", c.Issuer, c.Instance, c.Authority)
	if r := c.SourceRepository(); r != "" {
		fmt.Fprintf(a.out, "    source     %s at %s, commit %s\n", r, first(c.SourceRef(), "no ref"), first(c.SourceDigest(), "unknown"))
	}
	if w := c.BuildConfigURI; w != "" && w != c.SAN {
		fmt.Fprintf(a.out, "    workflow   %s\n", w)
	}
	if c.RunInvocationURI != "" {
		fmt.Fprintf(a.out, "    run        %s (%s)\n", c.RunInvocationURI, first(c.RunnerEnvironment, "runner unknown"))
	}
	for _, t := range id.Times {
		fmt.Fprintf(a.out, "    signed at  %s, says %s %s\n", t.Time.Format(time.RFC3339), map[string]string{verify.TimeLog: "log", verify.TimeAuthority: "timestamp authority"}[t.Kind], first(t.Source, "of the trusted root"))
	}
}

func first(s ...string) string {
	for _, x := range s {
		if x != "" {
			return x
		}
	}
	return ""
}

func (a *app) downloadCommand() *cobra.Command {
	c := &cobra.Command{Use: "download", Short: "Print evidence as it is stored"}
	var all bool
	d := &cobra.Command{
		Use:   "attestation IMAGE",
		Short: "Print an image's attestations, one DSSE envelope a line",
		Long: `Prints the envelopes of cosign's .att tag: an image's provenance. With --all also
those that are stored as referrers only: its observations. --output json makes one list
of them. What cannot be read is named on standard error, and the exit code is then 1.
Nothing is verified; use assay verify for that.`,
		Example: "  assay download attestation $IMAGE | jq -r '.payload | @base64d | fromjson | .predicate.buildConfig.tasks[].name'",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, cfg, err := findHome()
			if err != nil {
				return err
			}
			rt, err := embedded(h, cfg)
			if err != nil {
				return err
			}
			if err := a.outputIs("text", "json"); err != nil {
				return err
			}
			envelopes, unread := listEnvelopes(cmd.Context(), args[0], rt, all)
			if len(envelopes) == 0 && unread != nil {
				return unread
			}
			if len(envelopes) == 0 {
				return fmt.Errorf("%s has no attestations", args[0])
			}
			return errors.Join(a.envelopes(envelopes), unread)
		},
	}
	d.Flags().BoolVar(&all, "all", false, "also what is stored as referrers only")
	c.AddCommand(d)
	return c
}

// listEnvelopes reads envelopes as stored, unverified: the .att tag's, with all
// also the bundles'. The error is about those that it does not return.
func listEnvelopes(ctx context.Context, ref string, rt http.RoundTripper, all bool) ([]*dsse.Envelope, error) {
	_, cfg, err := findHome()
	if err != nil {
		return nil, err
	}
	if rt, err = gate.Authorized(ctx, ref, rt, cfg.Registry); err != nil {
		return nil, err
	}
	r, err := name.ParseReference(ref)
	if err != nil {
		return nil, usagef("%v", err)
	}
	st := oci.New(r.Context(), rt, oci.Options{})
	subject, _, err := st.Resolve(ctx, r.Identifier())
	if err != nil {
		return nil, err
	}
	items, err := st.List(ctx, subject.Digest)
	if err != nil {
		return nil, err
	}
	return envelopesOf(items, all)
}
