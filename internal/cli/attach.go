package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/store/attached"
	"assay.dev/assay/store/oci"
)

// attachFlags are those of the commands below attach.
type attachFlags struct {
	files              []string
	as, platform       string
	key, certificate   string
	chain              string
	payload            string
	rekor, timestamp   string
	unnamed, overwrite bool
}

// attachment is one of the commands below attach: how it is called, and what it makes of
// the files. All else they share.
type attachment struct {
	use, short, long, example string
	// alias is what cosign calls --file, and file what the files are.
	alias, file string
	as          string // default of --as; empty: there is one place only
	one         bool   // takes one file
	signed      bool   // has the flags for a signer
	flags       func(*pflag.FlagSet, *attachFlags)
	// pieces are what is to be stored. Its errors name the file.
	pieces func(*attaching) (pieces, error)
}

// attaching is a command that runs.
type attaching struct {
	*app
	*attachFlags
	tag, referrer bool // places
	data          [][]byte
	by            attached.Signer
	h             *hanger
}

// pieces are stored in this order: what is in a tag, tools that know both have.
type pieces struct {
	sbom      *oci.Layer // for the tag that holds one
	referrers []oci.Referrer
	suffix    string // of the tag for layers
	layers    []oci.Layer
}

func (a *app) attachCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "attach",
		Short: "Put what is signed elsewhere beside an image, signing nothing",
	}
	c.AddCommand(a.attach(attestations()), a.attach(signatures()), a.attach(bundles()), a.attach(sboms()))
	return c
}

func (a *app) attach(t attachment) *cobra.Command {
	var f attachFlags
	c := &cobra.Command{
		Use: t.use, Short: t.short, Long: t.long, Example: t.example, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			r := &attaching{app: a, attachFlags: &f, tag: true}
			if t.as != "" {
				if r.tag, r.referrer, err = f.place(); err != nil {
					return err
				}
			}
			if r.data, err = a.read(&f, t.one); err != nil {
				return err
			}
			if t.signed {
				if r.by, err = f.signer(cmd.Context()); err != nil {
					return err
				}
				if r.referrer && r.by.Key == nil && r.by.Leaf == nil {
					return usagef("--as %s: a bundle names its signer; give --key or --certificate", f.as)
				}
			}
			if r.h, err = a.hangOn(cmd.Context(), args[0], f.platform); err != nil {
				return err
			}
			p, err := t.pieces(r)
			if err != nil {
				return err
			}
			return r.store(cmd.Context(), p)
		},
	}
	flags := c.Flags()
	flags.StringArrayVarP(&f.files, "file", "f", nil, t.file+", - for standard input; also --"+t.alias)
	flags.StringVar(&f.platform, "platform", "", "attach to the image of an index for this platform: linux/amd64")
	flags.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == t.alias {
			name = "file"
		}
		return pflag.NormalizedName(name)
	})
	if t.as != "" {
		flags.StringVar(&f.as, "as", t.as, "tag, referrer or both")
	}
	if t.signed {
		flags.StringVar(&f.key, "key", "", "public key that the signature must verify with: a file, or one of the addresses that assay verify --key knows")
		flags.StringVar(&f.certificate, "certificate", "", "certificate that the signature must verify with, PEM; it is stored beside it")
		flags.StringVar(&f.chain, "certificate-chain", "", "certificates above it, PEM, the root last")
	}
	if t.flags != nil {
		t.flags(flags, &f)
	}
	return c
}

// place reads --as.
func (f *attachFlags) place() (tag, referrer bool, err error) {
	switch f.as {
	case "tag":
		return true, false, nil
	case "referrer":
		return false, true, nil
	case "both":
		return true, true, nil
	}
	return false, false, usagef("--as %q: want tag, referrer or both", f.as)
}

func (f *attachFlags) signer(ctx context.Context) (attached.Signer, error) {
	var s attached.Signer
	if f.key != "" && f.certificate != "" {
		return s, usagef("--key and --certificate: a signature is by one of them")
	}
	if f.key != "" {
		ring, err := loadPublicKeys(ctx, f.key)
		if err != nil {
			return s, err
		}
		s.Key = &ring[0].Public
		return s, nil
	}
	if f.chain != "" && f.certificate == "" {
		return s, usagef("--certificate-chain needs --certificate")
	}
	for i, path := range []string{f.certificate, f.chain} {
		if path == "" {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return s, fmt.Errorf("reading certificates: %w", err)
		}
		certs, err := attached.ParseCertificates(b)
		if err != nil {
			return s, fmt.Errorf("%s: %w", path, err)
		}
		if i == 0 {
			s.Leaf, s.Chain = certs[0], certs[1:]
			continue
		}
		s.Chain = certs
	}
	return s, nil
}

// placed is what was attached, for printing.
type placed struct {
	What     string `json:"what"`
	As       string `json:"as"` // the tag, or referrer
	Digest   string `json:"digest"`
	Existing bool   `json:"existing"`
}

func place(what string, at oci.Attached) placed {
	p := placed{what, "referrer", at.Digest, at.Existing}
	if at.Tag != "" {
		p.As = at.Tag
	}
	return p
}

func (a *app) printPlaced(h *hanger, list []placed) error {
	if a.output == "json" {
		return a.json(struct {
			Image    string   `json:"image"`
			Attached []placed `json:"attached"`
		}{h.subject.Ref(), list})
	}
	for _, p := range list {
		word := "attached"
		if p.Existing {
			word = "existing"
		}
		if _, err := fmt.Fprintf(a.out, "%s  %s  %s  %s\n", word, clean(p.What), p.As, p.Digest); err != nil {
			return err
		}
	}
	return nil
}

// read are the given files, bounded.
func (a *app) read(f *attachFlags, one bool) ([][]byte, error) {
	if len(f.files) == 0 {
		return nil, usagef("nothing to attach: give it with --file")
	}
	if one && len(f.files) > 1 {
		return nil, usagef("%d files; want one", len(f.files))
	}
	var out [][]byte
	for _, path := range f.files {
		b, err := a.readFile(path, dsse.MaxEnvelope)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		out = append(out, b)
	}
	return out, nil
}

// documents calls for each document of the files.
func (r *attaching) documents(each func([]byte) error) error {
	for i, data := range r.data {
		docs, err := attached.Documents(data)
		if err != nil {
			return fmt.Errorf("%s: %w", r.files[i], err)
		}
		for k, d := range docs {
			if err := each(d); err != nil {
				return fmt.Errorf("%s, document %d: %w", r.files[i], k+1, err)
			}
		}
	}
	return nil
}

func (r *attaching) note(notes []string) {
	for _, n := range notes {
		fmt.Fprintf(r.err, "assay: %s\n", clean(n))
	}
}

func (r *attaching) store(ctx context.Context, p pieces) error {
	var list []placed
	if p.sbom != nil {
		at, err := r.h.AttachSBOM(ctx, r.h.subject, *p.sbom, r.overwrite)
		if errors.Is(err, oci.ErrOccupied) {
			return fmt.Errorf("%w; --replace puts yours in its place, --as referrer puts it beside", err)
		}
		if err != nil {
			return err
		}
		list = append(list, place(p.sbom.MediaType, at))
	}
	for _, ref := range p.referrers {
		at, err := r.h.AttachReferrer(ctx, r.h.subject, ref)
		if err != nil {
			return err
		}
		list = append(list, place(whatIs(ref.ArtifactType, ref.Annotations), at))
	}
	if len(p.layers) > 0 {
		ats, err := r.h.AttachLayers(ctx, r.h.subject, p.suffix, p.layers...)
		if err != nil {
			return err
		}
		for i, at := range ats {
			list = append(list, place(whatIs(p.layers[i].MediaType, p.layers[i].Annotations), at))
		}
	}
	return r.printPlaced(r.h, list)
}

// whatIs names what was attached: an attestation by what it says it is.
func whatIs(mediaType string, annotations map[string]string) string {
	for _, k := range []string{"dev.sigstore.bundle.predicateType", "predicateType"} {
		if p := annotations[k]; p != "" {
			return p
		}
	}
	if mediaType == api.MediaTypeDSSE {
		return "attestation"
	}
	return mediaType
}
