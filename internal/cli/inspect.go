package cli

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/store"
	"assay.dev/assay/verify"
)

// inspectedJSON is one piece of a file, and what it says. Only Verified is more than
// the file's own word.
type inspectedJSON struct {
	Form          string            `json:"form"`
	Digest        string            `json:"digest"`
	Verified      bool              `json:"verified"`
	Reason        string            `json:"reason,omitempty"` // why not
	Signer        *verify.Identity  `json:"signer,omitempty"`
	PayloadType   string            `json:"payloadType,omitempty"`
	StatementType string            `json:"statementType,omitempty"`
	PredicateType string            `json:"predicateType,omitempty"`
	Known         bool              `json:"known,omitempty"` // the predicate type
	Subjects      []subjectJSON     `json:"subjects,omitempty"`
	Builder       string            `json:"builder,omitempty"`
	Source        *predicate.Source `json:"source,omitempty"`
	Outcome       predicate.Outcome `json:"outcome,omitempty"`
	Predicate     json.RawMessage   `json:"predicate,omitempty"`
	Message       string            `json:"message,omitempty"` // digest that a message signature claims
	LogEntries    int               `json:"logEntries,omitempty"`
	Problem       string            `json:"problem,omitempty"` // why it cannot be read
}

type subjectJSON struct {
	Name   string            `json:"name,omitempty"`
	Digest map[string]string `json:"digest"`
}

func (a *app) inspectCommand() *cobra.Command {
	v := &verifyFlags{}
	payload := false
	c := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show what an envelope or bundle says, verified or loudly not",
		Long: `Prints the signatures, statements and predicates in a file: Sigstore bundles, DSSE
envelopes, lines of them, npm's attestation documents. Each is verified for the first
subject that it names, with the keys and identities that are given. Without any, a
certificate of Sigstore's public instance or of GitHub's is enough to say who signed,
whoever that is; a bare key is not, and what it signed is shown as NOT VERIFIED.

No artifact is looked at. To verify one, use assay verify.

Exit codes: 0 shown, 1 could not be read, 2 usage, 3 shown, and does not verify with
the keys and identities that were given.`,
		Example: "  assay inspect provenance.sigstore.json\n  assay inspect attestations.jsonl --key key.pub --output json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.outputIs("text", "json"); err != nil {
				return err
			}
			data, err := readEvidence(args[0])
			if err != nil {
				return err
			}
			items, err := verify.ReadFile(data)
			if err != nil {
				return err
			}
			h, _, err := findHome()
			if err != nil {
				return err
			}
			asked := v.trust.plain() || v.identity.given() || v.trust.trust != ""
			var o verify.Options
			if asked {
				o, err = a.options(cmd.Context(), v, h, false)
			} else {
				o, err = a.anybody(cmd, v, h)
			}
			if err != nil {
				return err
			}
			o.WithoutSignature, o.WithoutProvenance, o.AnyOutcome = true, true, true
			out := []inspectedJSON{}
			refused := false
			for _, it := range items {
				one := inspect(it, o, payload || a.output == "json")
				refused = refused || !one.Verified
				out = append(out, one)
			}
			if a.output == "json" {
				err = a.json(out)
			} else {
				a.printInspected(out)
			}
			if err == nil && asked && refused {
				err = &exit{exitRefused, errors.New("not everything in the file verifies with what was given")}
			}
			return err
		},
	}
	v.trust.add(c)
	v.identity.add(c)
	c.Flags().BoolVar(&payload, "payload", false, "print predicates in full (JSON output always does)")
	return c
}

// anybody trusts whoever the shipped instances certify, to tell who that is.
func (a *app) anybody(cmd *cobra.Command, v *verifyFlags, h *home.Home) (verify.Options, error) {
	o := verify.Options{Identities: []verify.CertificateIdentity{{Name: "anybody", SANRegexp: `(?s).*`, IssuerRegexp: `(?s).*`}}}
	var err error
	if o.At, err = v.identity.instant(); err != nil {
		return o, err
	}
	o.Instances, err = a.instances(cmd.Context(), &v.identity, h, v.trust.log.root)
	return o, err
}

// inspect reads a piece, and verifies it for the artifact that it names itself.
func inspect(it store.Item, o verify.Options, full bool) inspectedJSON {
	out := inspectedJSON{Digest: it.Digest, Form: "DSSE envelope"}
	env, artifact, err := out.read(it)
	if err != nil {
		out.Problem = err.Error()
		return out
	}
	if env != nil {
		out.PayloadType = env.PayloadType
		if artifact, err = out.statement(env, full); err != nil {
			out.Problem = err.Error()
			return out
		}
	}
	a, err := verify.DigestArtifact(artifact)
	if err != nil {
		out.Reason = "it names no artifact by SHA-256, SHA-384 or SHA-512"
		return out
	}
	e, err := verify.Files(a, []store.Item{it}, o)
	if err != nil {
		out.Reason = err.Error()
		var none *verify.NoEvidenceError
		if errors.As(err, &none) && len(none.Rejected) > 0 {
			out.Reason = none.Rejected[0].Reason
		}
		return out
	}
	out.Verified = true
	for _, s := range e.Signatures() {
		out.Signer = &s.Identity
	}
	for _, s := range e.Statements() {
		out.Signer = &s.Identity
	}
	return out
}

// read is what kind of piece it is; an envelope, or the digest that is signed.
func (o *inspectedJSON) read(it store.Item) (*dsse.Envelope, string, error) {
	if it.Err != nil {
		return nil, "", it.Err
	}
	if it.Format == verify.FormatEnvelopeFile {
		env, err := dsse.Parse(it.Content)
		return env, "", err
	}
	b, err := bundle.Parse(it.Content)
	if err != nil {
		o.Form = "Sigstore bundle"
		return nil, "", err
	}
	o.Form, o.LogEntries = "Sigstore bundle, "+b.MediaType, b.LogEntries
	if b.Envelope != nil {
		return b.Envelope, "", nil
	}
	o.Message = b.Message.Algorithm + ":" + hex.EncodeToString(b.Message.Digest)
	return nil, o.Message, nil
}

// statement fills in what an envelope says and returns the first artifact of it.
func (o *inspectedJSON) statement(env *dsse.Envelope, full bool) (string, error) {
	if env.PayloadType != api.PayloadTypeInToto {
		return "", nil
	}
	s, err := intoto.ParseUntyped(env.Payload)
	if err != nil {
		return "", err
	}
	o.StatementType, o.PredicateType, o.Known = s.Type, s.PredicateType, predicate.Known(s.PredicateType)
	artifact := ""
	for _, sub := range s.Subjects {
		o.Subjects = append(o.Subjects, subjectJSON{sub.Name, sub.Digest})
		for _, algorithm := range []string{"sha256", "sha384", "sha512"} {
			if d := sub.Digest[algorithm]; d != "" && artifact == "" {
				artifact = algorithm + ":" + d
			}
		}
	}
	if full {
		o.Predicate = json.RawMessage(s.Predicate)
	}
	p, err := predicate.Parse(s.PredicateType, s.Predicate)
	if err != nil {
		return "", err
	}
	switch p := p.(type) {
	case predicate.Provenance:
		source := p.Source()
		o.Builder, o.Outcome, o.Source = p.BuilderID(), p.Outcome(), &source
	case *predicate.Observation:
		o.Builder, o.Outcome = p.Builder, p.Outcome()
	}
	return artifact, nil
}

func (a *app) printInspected(list []inspectedJSON) {
	for i, o := range list {
		if i > 0 {
			fmt.Fprintln(a.out)
		}
		switch {
		case o.Problem != "":
			fmt.Fprintf(a.out, "UNREADABLE    %s: %s\n", o.Form, legible(o.Problem))
			continue
		case o.Verified:
			fmt.Fprintf(a.out, "verified      %s\n", legible(o.Form))
			fmt.Fprintf(a.out, "  signed by   %s\n", legible(o.Signer.KeyName))
			a.printSigner(*o.Signer)
		default:
			fmt.Fprintf(a.out, "NOT VERIFIED  %s\n  because     %s\n  what follows is anybody's word\n", legible(o.Form), legible(o.Reason))
		}
		if o.Message != "" {
			fmt.Fprintf(a.out, "  signs       %s\n", o.Message)
		}
		if o.PayloadType != "" && o.StatementType == "" {
			fmt.Fprintf(a.out, "  payload     %s\n", legible(o.PayloadType))
		}
		if o.StatementType != "" {
			known := ""
			if !o.Known {
				known = " (not known here)"
			}
			fmt.Fprintf(a.out, "  statement   %s%s\n", legible(first(o.PredicateType, "of no type")), known)
		}
		for n, s := range o.Subjects {
			if n == 10 {
				fmt.Fprintf(a.out, "  …           %d more subjects\n", len(o.Subjects)-n)
				break
			}
			var digests []string
			for _, algorithm := range sortedKeys(s.Digest) {
				digests = append(digests, algorithm+":"+s.Digest[algorithm])
			}
			slices.Sort(digests)
			fmt.Fprintf(a.out, "  about       %s %s\n", legible(first(s.Name, "(no name)")), legible(strings.Join(digests, " ")))
		}
		if o.Builder != "" {
			fmt.Fprintf(a.out, "  builder     %s\n", legible(o.Builder))
		}
		if s := o.Source; s != nil && s.Repository != "" {
			fmt.Fprintf(a.out, "  source      %s at %s, commit %s\n", legible(s.Repository), legible(first(s.Ref, "no ref")), legible(first(s.Commit, "unknown")))
		}
		if o.Outcome != "" {
			fmt.Fprintf(a.out, "  outcome     %s\n", o.Outcome)
		}
		if o.LogEntries > 0 && !o.Verified {
			fmt.Fprintf(a.out, "  log         %d entries, not verified\n", o.LogEntries)
		}
		if len(o.Predicate) > 0 {
			var b bytes.Buffer
			if json.Indent(&b, o.Predicate, "  ", "  ") == nil {
				fmt.Fprintf(a.out, "  %s\n", legibleLines(b.String()))
			}
		}
	}
}

// legible is a stranger's text without what would move the cursor, colour the screen
// or begin a line that looks like ours.
func legible(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0x2028 || r == 0x2029 {
			return '\uFFFD'
		}
		return r
	}, s)
}

// legibleLines is legible for text of several lines.
func legibleLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = legible(l)
	}
	return strings.Join(lines, "\n")
}
