package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/store"
	"assay.dev/assay/store/attached"
)

// withDownloads adds what can be downloaded besides attestations.
func (a *app) withDownloads(c *cobra.Command) *cobra.Command {
	c.AddCommand(a.downloadSignature(), a.downloadBundle(), a.downloadSBOM())
	return c
}

// document is something as it is stored, for --output json.
type document struct {
	Format    string          `json:"format"` // cosign-tag, bundle-referrer, referrer
	Digest    string          `json:"digest"`
	MediaType string          `json:"mediaType"`
	Content   json.RawMessage `json:"content"`
}

// documents prints one a line, or a list.
func (a *app) documents(docs []document) error {
	if a.output == "json" {
		return a.json(docs)
	}
	for _, d := range docs {
		var line bytes.Buffer
		if err := json.Compact(&line, d.Content); err != nil {
			return fmt.Errorf("reading %s: %w", d.Digest, err)
		}
		line.WriteByte('\n')
		if _, err := a.out.Write(line.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) downloadSignature() *cobra.Command {
	var all bool
	var platform string
	c := &cobra.Command{
		Use:   "signature IMAGE",
		Short: "Print an image's signatures, one JSON document a line",
		Long: `Prints the signatures of cosign's .sig tag, in the form that cosign prints them:
Base64Signature, Payload, and Cert, Chain, Bundle, RFC3161Timestamp where there are
any. Where the tag has none, or with --all, also the Sigstore bundles that sign the
image, as they are stored. Nothing is verified; use assay verify for that.`,
		Example: "  assay download signature $IMAGE | jq -r .Base64Signature",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.outputIs("text", "json"); err != nil {
				return err
			}
			h, items, err := a.items(cmd.Context(), args[0], platform)
			if err != nil {
				return err
			}
			layers, err := attached.Signatures(items)
			if err != nil {
				return err
			}
			var docs []document
			for _, it := range layers {
				b, err := json.Marshal(it)
				if err != nil {
					return err
				}
				docs = append(docs, document{string(store.FormatTag), it.Digest, it.MediaType, b})
			}
			if all || len(docs) == 0 {
				bundles, err := bundlesOf(items, func(b *bundle.Bundle, predicateType string) bool {
					return b.Message != nil || predicateType == intoto.PredicateImageSignature
				})
				if err != nil {
					return err
				}
				docs = append(docs, bundles...)
			}
			if len(docs) == 0 {
				return fmt.Errorf("%s has no signatures", h.subject.Ref())
			}
			return a.documents(docs)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "also the bundles that sign the image")
	c.Flags().StringVar(&platform, "platform", "", "the image of an index for this platform: linux/amd64")
	return c
}

func (a *app) downloadBundle() *cobra.Command {
	var all bool
	var platform, predicateType string
	c := &cobra.Command{
		Use:   "bundle IMAGE",
		Short: "Print the Sigstore bundles of an image's attestations, one a line",
		Long: `Prints the Sigstore bundles that refer to an image, as they are stored; with --all
also those that sign the image itself. Each line is a bundle that assay verify
--bundle, cosign and gh read. Nothing is verified.`,
		Example: "  assay download bundle $IMAGE > image.sigstore.jsonl",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.outputIs("text", "json"); err != nil {
				return err
			}
			h, items, err := a.items(cmd.Context(), args[0], platform)
			if err != nil {
				return err
			}
			docs, err := bundlesOf(items, func(b *bundle.Bundle, has string) bool {
				if predicateType != "" {
					return has == predicateType
				}
				return all || b.Message == nil && has != intoto.PredicateImageSignature
			})
			if err != nil {
				return err
			}
			if len(docs) == 0 {
				return fmt.Errorf("%s has no such bundles; assay tree lists what it has, assay convert --to bundles makes them of attestations in tags", h.subject.Ref())
			}
			return a.documents(docs)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "also bundles that sign the image itself")
	c.Flags().StringVar(&predicateType, "predicate-type", "", "only those of this type")
	c.Flags().StringVar(&platform, "platform", "", "the image of an index for this platform: linux/amd64")
	return c
}

// envelopes prints one a line, or a list.
func (a *app) envelopes(list []*dsse.Envelope) error {
	if a.output == "json" {
		return a.json(list)
	}
	for _, e := range list {
		b, err := json.Marshal(e)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(a.out, "%s\n", b); err != nil {
			return err
		}
	}
	return nil
}

// envelopesOf are the attestations' envelopes among items, each payload once; with all
// also those in bundles. What cannot be read is in the error, piece by piece.
func envelopesOf(items []store.Item, all bool) (out []*dsse.Envelope, _ error) {
	seen := map[string]bool{}
	var unread []error
	for _, it := range items {
		var env *dsse.Envelope
		err := it.Err
		switch {
		case err != nil:
		case it.Format == store.FormatTag && it.MediaType == api.MediaTypeDSSE:
			env, err = dsse.Parse(it.Content)
		case it.Format == store.FormatBundle && all:
			var b *bundle.Bundle
			if b, err = bundle.Parse(it.Content); err == nil {
				env = b.Envelope
			}
		}
		if err != nil {
			unread = append(unread, fmt.Errorf("reading %s: %w", it.Digest, err))
			continue
		}
		if env == nil || seen[string(env.Payload)] {
			continue
		}
		seen[string(env.Payload)] = true
		if st, err := intoto.Parse(env.Payload); err == nil && st.PredicateType == intoto.PredicateImageSignature {
			continue // an image signature in cosign 3's form
		}
		out = append(out, env)
	}
	return out, errors.Join(unread...)
}

// items reads the signed things that hang on an image.
func (a *app) items(ctx context.Context, ref, platform string) (*hanger, []store.Item, error) {
	h, err := a.hangsOn(ctx, ref, platform)
	if err != nil {
		return nil, nil, err
	}
	items, err := h.List(ctx, h.subject.Digest)
	return h, items, err
}

// bundlesOf are the bundles among items that want takes, as they are stored.
func bundlesOf(items []store.Item, want func(b *bundle.Bundle, predicateType string) bool) ([]document, error) {
	var docs []document
	for _, it := range items {
		if it.Format != store.FormatBundle {
			continue
		}
		if it.Err != nil {
			return nil, fmt.Errorf("reading %s: %w", it.Digest, it.Err)
		}
		b, err := bundle.Parse(it.Content)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", it.Digest, err)
		}
		predicateType := ""
		if b.Envelope != nil {
			if s, err := intoto.Parse(b.Envelope.Payload); err == nil {
				predicateType = s.PredicateType
			}
		}
		if want(b, predicateType) {
			docs = append(docs, document{string(it.Format), it.Digest, it.MediaType, it.Content})
		}
	}
	return docs, nil
}

func (a *app) downloadSBOM() *cobra.Command {
	var all bool
	var platform string
	c := &cobra.Command{
		Use:   "sbom IMAGE",
		Short: "Print an image's bill of materials as it is stored",
		Long: `Prints the document behind cosign's .sbom tag; where there is no such tag, the one
that refers to the image (OCI 1.1). With --all every one, a line each. None of these
is signed: an SBOM that somebody vouches for is an attestation.`,
		Example: "  assay download sbom $IMAGE > sbom.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.outputIs("text", "json"); err != nil {
				return err
			}
			h, err := a.hangsOn(cmd.Context(), args[0], platform)
			if err != nil {
				return err
			}
			docs, err := h.sboms(cmd.Context())
			if err != nil {
				return err
			}
			switch {
			case len(docs) == 0:
				return h.noSBOM(cmd.Context())
			case all || a.output == "json":
				for i, d := range docs {
					if !json.Valid(d.Content) {
						// JSON lines hold JSON only.
						if docs[i].Content, err = json.Marshal(string(d.Content)); err != nil {
							return err
						}
					}
				}
				return a.documents(docs)
			case len(docs) > 1 && docs[0].Format != string(store.FormatTag):
				var have []string
				for _, d := range docs {
					have = append(have, d.MediaType+" "+d.Digest)
				}
				return fmt.Errorf("%s has %d of them; --all prints each:\n  %s", h.subject.Ref(), len(docs), strings.Join(have, "\n  "))
			}
			fmt.Fprintf(a.err, "assay: %s, %s\n", docs[0].MediaType, docs[0].Digest)
			_, err = a.out.Write(docs[0].Content)
			return err
		},
	}
	c.Flags().BoolVar(&all, "all", false, "every one, as JSON a line each")
	c.Flags().StringVar(&platform, "platform", "", "the image of an index for this platform: linux/amd64")
	return c
}

// sboms reads the bills of materials: the tag's first, then those of referrers.
func (h *hanger) sboms(ctx context.Context) ([]document, error) {
	var docs []document
	m, err := h.Tagged(ctx, h.subject.Digest, ".sbom")
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	if err == nil {
		if len(m.Layers) != 1 {
			return nil, fmt.Errorf("the tag %s has %d layers; an SBOM is one", m.Tag, len(m.Layers))
		}
		b, err := h.Blob(ctx, m.Layers[0].Digest, attached.MaxSBOM)
		if err != nil {
			return nil, err
		}
		docs = append(docs, document{string(store.FormatTag), m.Layers[0].Digest, m.Layers[0].MediaType, b})
	}
	refs, err := h.Referrers(ctx, h.subject.Digest)
	if err != nil {
		return nil, err
	}
	for _, d := range refs {
		if !attached.IsSBOM(d.ArtifactType) {
			continue
		}
		m, err := h.Manifest(ctx, d.Digest)
		if err != nil {
			return nil, err
		}
		if m.Subject != h.subject.Digest || len(m.Layers) != 1 {
			continue // assay tree says so
		}
		b, err := h.Blob(ctx, m.Layers[0].Digest, attached.MaxSBOM)
		if err != nil {
			return nil, err
		}
		docs = append(docs, document{"referrer", m.Layers[0].Digest, m.Layers[0].MediaType, b})
	}
	return docs, nil
}

func (h *hanger) noSBOM(ctx context.Context) error {
	m, err := h.Manifest(ctx, h.subject.Digest)
	if err != nil {
		return err
	}
	var platforms []string
	for _, d := range m.Members {
		if d.Platform != "" {
			platforms = append(platforms, d.Platform)
		}
	}
	if len(platforms) > 0 {
		return fmt.Errorf("the index %s has no SBOM of its own; try --platform with one of %s", h.subject.Ref(), strings.Join(platforms, ", "))
	}
	return fmt.Errorf("%s has no SBOM as a document; assay tree shows whether one is attested", h.subject.Ref())
}
