package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/store"
	"assay.dev/assay/store/attached"
	"assay.dev/assay/store/oci"
)

// attestations are envelopes, stored in the tag, and as bundles.
func attestations() attachment {
	return attachment{
		use:   "attestation IMAGE --file FILE",
		short: "Store DSSE envelopes beside an image",
		long: `Stores DSSE envelopes, one document or one a line, as layers of cosign's .att tag.
Each must hold a statement that names the image's digest, and, with --key or
--certificate, a signature by that. With --as referrer or both they are stored as
Sigstore bundles too, for which one of these is needed.

Nothing is signed, and nothing is stored twice: attaching again changes nothing.`,
		example: "  assay attach attestation $IMAGE --file build.intoto.jsonl\n  assay attach attestation $IMAGE --file build.intoto.json --key ci.pub --as both",
		alias:   "attestation", file: "envelopes, one document or one a line (repeatable)", as: "tag", signed: true,
		pieces: func(r *attaching) (p pieces, err error) {
			p.suffix = ".att"
			var keys []dsse.PublicKey
			if r.by.Key != nil {
				keys = append(keys, *r.by.Key)
			}
			return p, r.documents(func(d []byte) error {
				l, _, err := attached.AttestationLayer(d, r.h.subject.Digest, r.by)
				if err != nil {
					return err
				}
				if r.tag {
					p.layers = append(p.layers, l)
				}
				if !r.referrer {
					return nil
				}
				rs, notes, err := attached.Bundles(store.Item{Format: store.FormatTag, MediaType: l.MediaType, Annotations: l.Annotations, Content: l.Content}, r.h.subject.Digest, keys)
				r.note(notes)
				p.referrers = append(p.referrers, rs...)
				return err
			})
		},
	}
}

// bundles are stored as referrers, and, where they are attestations, in the tag.
func bundles() attachment {
	return attachment{
		use:   "bundle IMAGE --file FILE",
		short: "Hang Sigstore bundles on an image",
		long: `Stores Sigstore bundles, one document or one a line, byte for byte as referrers of
the image (OCI 1.1), or through the referrers tag where the registry has no such API.
Each must be about the image. With --as tag or both an attestation is stored in
cosign's .att tag as well.`,
		example: "  assay attach bundle $IMAGE --file provenance.sigstore.json",
		alias:   "bundle", file: "bundles, one document or one a line (repeatable)", as: "referrer",
		pieces: func(r *attaching) (p pieces, err error) {
			p.suffix = ".att"
			return p, r.documents(func(d []byte) error {
				ref, _, err := attached.BundleReferrer(d, r.h.subject.Digest)
				if err != nil {
					return err
				}
				if r.referrer {
					p.referrers = append(p.referrers, ref)
				}
				if !r.tag {
					return nil
				}
				l, notes, err := attached.Layer(store.Item{Format: store.FormatBundle, MediaType: ref.MediaType, Annotations: ref.Annotations, Content: d}, r.h.subject.Digest)
				if err != nil {
					return err
				}
				r.note(notes)
				p.layers = append(p.layers, l)
				return nil
			})
		},
	}
}

// signatures are stored in their tag.
func signatures() attachment {
	return attachment{
		use:   "signature IMAGE --file FILE",
		short: "Store an image signature beside an image",
		long: `Stores an image signature as a layer of cosign's .sig tag. The file is what assay
download signature or cosign sign --output-signature wrote: a document, or the
signature alone, with what it signs in --payload. Without a payload it is that which
cosign makes for this reference, and --key or --certificate must show that.

A Sigstore bundle that signs an image is attached by assay attach bundle.`,
		example: "  assay attach signature $IMAGE --file image.sig --payload image.payload --key cosign.pub",
		alias:   "signature", file: "the signature", one: true, signed: true,
		flags: func(flags *pflag.FlagSet, f *attachFlags) {
			flags.StringVar(&f.payload, "payload", "", "the simple signing document that was signed")
			flags.StringVar(&f.rekor, "rekor-response", "", "cosign's JSON of the transparency log's entry")
			flags.StringVar(&f.timestamp, "tsr", "", "cosign's JSON of an RFC 3161 timestamp")
		},
		pieces: func(r *attaching) (p pieces, err error) {
			s, within, err := attached.ParseSignature(r.data[0])
			if err != nil {
				return p, fmt.Errorf("%s: %w", r.files[0], err)
			}
			if r.by.Key == nil && r.by.Leaf == nil {
				r.by = within
			}
			for _, part := range []struct {
				path string
				into *[]byte
			}{{r.payload, &s.Payload}, {r.rekor, &s.LogBundle}, {r.timestamp, &s.Timestamp}} {
				if part.path == "" {
					continue
				}
				if *part.into, err = r.readFile(part.path, bundle.Max); err != nil {
					return p, err
				}
			}
			l, err := attached.SignatureLayer(s, r.h.subject.Repo, r.h.subject.Digest, r.by)
			if err != nil {
				return p, fmt.Errorf("%s: %w", r.files[0], err)
			}
			return pieces{suffix: ".sig", layers: []oci.Layer{l}}, nil
		},
	}
}

// sboms are stored in their tag, which holds one, and as a referrer.
func sboms() attachment {
	return attachment{
		use:   "sbom IMAGE --file FILE",
		short: "Store a bill of materials beside an image, unsigned",
		long: `Stores an SBOM (SPDX 2 or CycloneDX, JSON) behind cosign's .sbom tag and as a
referrer of the image. What it describes must be the image: the package it describes
names the image's digest in its version, package URL or checksums. One that names no
digest is refused unless --unnamed says that you know.

Nobody vouches for a document that is attached so. Attest it to be sure of it.`,
		example: "  assay attach sbom $IMAGE --file sbom.spdx.json",
		alias:   "sbom", file: "the SBOM", as: "both", one: true,
		flags: func(flags *pflag.FlagSet, f *attachFlags) {
			flags.BoolVar(&f.unnamed, "unnamed", false, "attach an SBOM that does not name what it describes by digest")
			flags.BoolVar(&f.overwrite, "replace", false, "replace another SBOM behind the tag, which holds one")
		},
		pieces: func(r *attaching) (p pieces, err error) {
			l, err := attached.SBOMLayer(r.data[0], r.h.subject.Digest)
			switch unnamed := errors.Is(err, attached.ErrUnnamed); {
			case unnamed && r.unnamed:
			case unnamed:
				return p, fmt.Errorf("%s: %w; --unnamed attaches it all the same", r.files[0], err)
			case err != nil:
				return p, fmt.Errorf("%s: %w", r.files[0], err)
			}
			if r.tag {
				p.sbom = &l
			}
			if r.referrer {
				p.referrers = append(p.referrers, attached.SBOMReferrer(l))
			}
			return p, nil
		},
	}
}
