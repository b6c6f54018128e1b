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
	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/store"
	"assay.dev/assay/store/attached"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/verify"
)

// attachFlags are what the commands below attach share.
type attachFlags struct {
	files              []string
	as, platform       string
	key, certificate   string
	chain              string
	payload            string
	rekor, timestamp   string
	unnamed, overwrite bool
}

func (a *app) attachCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "attach",
		Short: "Put what is signed elsewhere beside an image, signing nothing",
	}
	c.AddCommand(a.attachAttestation(), a.attachSignature(), a.attachBundle(), a.attachSBOM())
	return c
}

// files adds --file, which is also called what cosign calls it.
func (f *attachFlags) add(c *cobra.Command, alias, what, as string) {
	c.Flags().StringArrayVarP(&f.files, "file", "f", nil, what+", - for standard input; also --"+alias)
	c.Flags().StringVar(&f.platform, "platform", "", "attach to the image of an index for this platform: linux/amd64")
	c.Flags().SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == alias {
			name = "file"
		}
		return pflag.NormalizedName(name)
	})
	if as != "" {
		c.Flags().StringVar(&f.as, "as", as, "tag, referrer or both")
	}
}

func (f *attachFlags) addSigner(c *cobra.Command) {
	c.Flags().StringVar(&f.key, "key", "", "public key that the signature must verify with")
	c.Flags().StringVar(&f.certificate, "certificate", "", "certificate that the signature must verify with, PEM; it is stored beside it")
	c.Flags().StringVar(&f.chain, "certificate-chain", "", "certificates above it, PEM, the root last")
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

func (f *attachFlags) signer() (attached.Signer, error) {
	var s attached.Signer
	if f.key != "" && f.certificate != "" {
		return s, usagef("--key and --certificate: a signature is by one of them")
	}
	if f.key != "" {
		k, err := verify.LoadPublicKey(f.key)
		if err != nil {
			return s, err
		}
		p, err := dsse.NewPublicKey(k.Public)
		s.Key = &p
		return s, err
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
func (a *app) read(f *attachFlags, only int) ([][]byte, error) {
	if len(f.files) == 0 {
		return nil, usagef("nothing to attach: give it with --file")
	}
	if only > 0 && len(f.files) > only {
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

func (a *app) attachAttestation() *cobra.Command {
	var f attachFlags
	c := &cobra.Command{
		Use:   "attestation IMAGE --file FILE",
		Short: "Store DSSE envelopes beside an image",
		Long: `Stores DSSE envelopes, one document or one a line, as layers of cosign's .att tag.
Each must hold a statement that names the image's digest, and, with --key or
--certificate, a signature by that. With --as referrer or both they are stored as
Sigstore bundles too, for which one of these is needed.

Nothing is signed, and nothing is stored twice: attaching again changes nothing.`,
		Example: "  assay attach attestation $IMAGE --file build.intoto.jsonl\n  assay attach attestation $IMAGE --file build.intoto.json --key ci.pub --as both",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			tag, referrer, err := f.place()
			if err != nil {
				return err
			}
			files, err := a.read(&f, 0)
			if err != nil {
				return err
			}
			by, err := f.signer()
			if err != nil {
				return err
			}
			if referrer && by.Key == nil && by.Leaf == nil {
				return usagef("--as %s: a bundle names its signer; give --key or --certificate", f.as)
			}
			h, err := a.hangOn(cmd.Context(), args[0], f.platform)
			if err != nil {
				return err
			}
			var (
				layers    []oci.Layer
				referrers []oci.Referrer
			)
			for i, data := range files {
				docs, err := attached.Documents(data)
				if err != nil {
					return fmt.Errorf("%s: %w", f.files[i], err)
				}
				for k, d := range docs {
					l, _, err := attached.AttestationLayer(d, h.subject.Digest, by)
					if err != nil {
						return fmt.Errorf("%s, document %d: %w", f.files[i], k+1, err)
					}
					layers = append(layers, l)
					if !referrer {
						continue
					}
					rs, err := a.bundlesFrom(h, l, by)
					if err != nil {
						return fmt.Errorf("%s, document %d: %w", f.files[i], k+1, err)
					}
					referrers = append(referrers, rs...)
				}
			}
			if !tag {
				layers = nil
			}
			return a.attachAll(cmd.Context(), h, ".att", layers, referrers)
		},
	}
	f.add(c, "attestation", "envelopes, one document or one a line (repeatable)", "tag")
	f.addSigner(c)
	return c
}

// bundlesFrom makes bundles of a layer that is about to be stored.
func (a *app) bundlesFrom(h *hanger, l oci.Layer, by attached.Signer) ([]oci.Referrer, error) {
	var keys []dsse.PublicKey
	if by.Key != nil {
		keys = append(keys, *by.Key)
	}
	rs, notes, err := attached.Bundles(store.Item{Format: store.FormatTag, MediaType: l.MediaType, Annotations: l.Annotations, Content: l.Content}, h.subject.Digest, keys)
	for _, n := range notes {
		fmt.Fprintf(a.err, "assay: %s\n", clean(n))
	}
	return rs, err
}

// attachAll stores referrers first: what is in a tag, tools that know both have.
func (a *app) attachAll(ctx context.Context, h *hanger, suffix string, layers []oci.Layer, referrers []oci.Referrer) error {
	var list []placed
	for _, r := range referrers {
		at, err := h.AttachReferrer(ctx, h.subject, r)
		if err != nil {
			return err
		}
		list = append(list, place(whatIs(r.ArtifactType, r.Annotations), at))
	}
	if len(layers) > 0 {
		ats, err := h.AttachLayers(ctx, h.subject, suffix, layers...)
		if err != nil {
			return err
		}
		for i, at := range ats {
			list = append(list, place(whatIs(layers[i].MediaType, layers[i].Annotations), at))
		}
	}
	return a.printPlaced(h, list)
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

func (a *app) attachBundle() *cobra.Command {
	var f attachFlags
	c := &cobra.Command{
		Use:   "bundle IMAGE --file FILE",
		Short: "Hang Sigstore bundles on an image",
		Long: `Stores Sigstore bundles, one document or one a line, byte for byte as referrers of
the image (OCI 1.1), or through the referrers tag where the registry has no such API.
Each must be about the image. With --as tag or both an attestation is stored in
cosign's .att tag as well.`,
		Example: "  assay attach bundle $IMAGE --file provenance.sigstore.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			tag, referrer, err := f.place()
			if err != nil {
				return err
			}
			files, err := a.read(&f, 0)
			if err != nil {
				return err
			}
			h, err := a.hangOn(cmd.Context(), args[0], f.platform)
			if err != nil {
				return err
			}
			var (
				layers    []oci.Layer
				referrers []oci.Referrer
			)
			for i, data := range files {
				docs, err := attached.Documents(data)
				if err != nil {
					return fmt.Errorf("%s: %w", f.files[i], err)
				}
				for k, d := range docs {
					r, _, err := attached.BundleReferrer(d, h.subject.Digest)
					if err != nil {
						return fmt.Errorf("%s, document %d: %w", f.files[i], k+1, err)
					}
					referrers = append(referrers, r)
					if !tag {
						continue
					}
					l, notes, err := attached.Layer(store.Item{Format: store.FormatBundle, MediaType: r.MediaType, Annotations: r.Annotations, Content: d}, h.subject.Digest)
					if err != nil {
						return fmt.Errorf("%s, document %d: %w", f.files[i], k+1, err)
					}
					for _, n := range notes {
						fmt.Fprintf(a.err, "assay: %s\n", clean(n))
					}
					layers = append(layers, l)
				}
			}
			if !referrer {
				referrers = nil
			}
			return a.attachAll(cmd.Context(), h, ".att", layers, referrers)
		},
	}
	f.add(c, "bundle", "bundles, one document or one a line (repeatable)", "referrer")
	return c
}

func (a *app) attachSignature() *cobra.Command {
	var f attachFlags
	c := &cobra.Command{
		Use:   "signature IMAGE --file FILE",
		Short: "Store an image signature beside an image",
		Long: `Stores an image signature as a layer of cosign's .sig tag. The file is what assay
download signature or cosign sign --output-signature wrote: a document, or the
signature alone, with what it signs in --payload. Without a payload it is that which
cosign makes for this reference, and --key or --certificate must show that.

A Sigstore bundle that signs an image is attached by assay attach bundle.`,
		Example: "  assay attach signature $IMAGE --file image.sig --payload image.payload --key cosign.pub",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			files, err := a.read(&f, 1)
			if err != nil {
				return err
			}
			by, err := f.signer()
			if err != nil {
				return err
			}
			s, within, err := attached.ParseSignature(files[0])
			if err != nil {
				return err
			}
			if by.Key == nil && by.Leaf == nil {
				by = within
			}
			for path, into := range map[string]*[]byte{f.payload: &s.Payload, f.rekor: &s.LogBundle, f.timestamp: &s.Timestamp} {
				if path == "" {
					continue
				}
				if *into, err = a.readFile(path, bundle.Max); err != nil {
					return err
				}
			}
			h, err := a.hangOn(cmd.Context(), args[0], f.platform)
			if err != nil {
				return err
			}
			l, err := attached.SignatureLayer(s, h.subject.Repo, h.subject.Digest, by)
			if err != nil {
				return fmt.Errorf("%s: %w", f.files[0], err)
			}
			return a.attachAll(cmd.Context(), h, ".sig", []oci.Layer{l}, nil)
		},
	}
	f.add(c, "signature", "the signature", "")
	f.addSigner(c)
	c.Flags().StringVar(&f.payload, "payload", "", "the simple signing document that was signed")
	c.Flags().StringVar(&f.rekor, "rekor-response", "", "cosign's JSON of the transparency log's entry")
	c.Flags().StringVar(&f.timestamp, "tsr", "", "cosign's JSON of an RFC 3161 timestamp")
	return c
}

func (a *app) attachSBOM() *cobra.Command {
	var f attachFlags
	c := &cobra.Command{
		Use:   "sbom IMAGE --file FILE",
		Short: "Store a bill of materials beside an image, unsigned",
		Long: `Stores an SBOM (SPDX 2 or CycloneDX, JSON) behind cosign's .sbom tag and as a
referrer of the image. What it describes must be the image: the package it describes
names the image's digest in its version, package URL or checksums. One that names no
digest is refused unless --unnamed says that you know.

Nobody vouches for a document that is attached so. Attest it to be sure of it.`,
		Example: "  assay attach sbom $IMAGE --file sbom.spdx.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			tag, referrer, err := f.place()
			if err != nil {
				return err
			}
			files, err := a.read(&f, 1)
			if err != nil {
				return err
			}
			h, err := a.hangOn(cmd.Context(), args[0], f.platform)
			if err != nil {
				return err
			}
			l, err := attached.SBOMLayer(files[0], h.subject.Digest)
			if errors.Is(err, attached.ErrUnnamed) && f.unnamed {
				err = nil
			}
			if errors.Is(err, attached.ErrUnnamed) {
				return fmt.Errorf("%s: %w; --unnamed attaches it all the same", f.files[0], err)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", f.files[0], err)
			}
			var list []placed
			if tag {
				at, err := h.AttachSBOM(cmd.Context(), h.subject, l, f.overwrite)
				if errors.Is(err, oci.ErrOccupied) {
					return fmt.Errorf("%w; --replace puts yours in its place, --as referrer puts it beside", err)
				}
				if err != nil {
					return err
				}
				list = append(list, place(l.MediaType, at))
			}
			if referrer {
				at, err := h.AttachReferrer(cmd.Context(), h.subject, attached.SBOMReferrer(l))
				if err != nil {
					return err
				}
				list = append(list, place(l.MediaType, at))
			}
			return a.printPlaced(h, list)
		},
	}
	f.add(c, "sbom", "the SBOM", "both")
	c.Flags().BoolVar(&f.unnamed, "unnamed", false, "attach an SBOM that does not name what it describes by digest")
	c.Flags().BoolVar(&f.overwrite, "replace", false, "replace another SBOM behind the tag, which holds one")
	return c
}
