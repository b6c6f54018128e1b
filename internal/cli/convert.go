package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/store"
	"assay.dev/assay/store/attached"
	"assay.dev/assay/store/oci"
)

// converted is what became of one piece.
type converted struct {
	Digest string `json:"digest"` // of what was there
	// Result is converted, existing, kept (it has no other form) or failed.
	Result string   `json:"result"`
	To     []placed `json:"to,omitempty"`
	Reason string   `json:"reason,omitempty"`
	Notes  []string `json:"notes,omitempty"`
}

func (a *app) convertCommand() *cobra.Command {
	var keys []string
	var to, platform string
	c := &cobra.Command{
		Use:   "convert IMAGE --to bundles|tags",
		Short: "Store attestations in the other form too, signing nothing again",
		Long: `Copies an image's attestations from cosign's .att tag to Sigstore bundles that refer
to the image (--to bundles), or the other way (--to tags), with certificates, log
entries and timestamps. What is there stays, and running it again changes nothing.

Only what is signed alike in both forms can be copied. Image signatures cannot: a
.sig tag's are over another document than a bundle's. They are listed as kept.

Bills of materials that hang unsigned move too: from cosign's .sbom tag to a referrer
with the same bytes, and back where the tag is free, which holds one. What is no SPDX or
CycloneDX in JSON is listed as kept.

A bundle names its signer, so for signatures by a bare key --key gives the public key.

Exit codes: 0 all that can be copied is there, 1 something could not be, 2 usage.`,
		Example: "  assay convert $IMAGE --to bundles --key cosign.pub\n  assay convert $IMAGE --to tags",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.outputIs("text", "json"); err != nil {
				return err
			}
			if to != "bundles" && to != "tags" {
				return usagef("--to %q: want bundles or tags", to)
			}
			ring, err := loadPublicKeys(cmd.Context(), keys...)
			if err != nil {
				return err
			}
			h, err := a.hangOn(cmd.Context(), args[0], platform)
			if err != nil {
				return err
			}
			items, err := h.List(cmd.Context(), h.subject.Digest)
			if err != nil {
				return err
			}
			var list []converted
			for _, it := range items {
				var c converted
				switch {
				case to == "bundles" && it.Format == store.FormatTag:
					c, err = h.toBundles(cmd.Context(), it, ring)
				case to == "tags" && it.Format == store.FormatBundle:
					c, err = h.toTag(cmd.Context(), it)
				default:
					continue
				}
				if err != nil {
					return err
				}
				list = append(list, c)
			}
			sboms, err := h.convertSBOMs(cmd.Context(), to == "bundles")
			if err != nil {
				return err
			}
			return a.printConverted(h, append(list, sboms...))
		},
	}
	c.Flags().StringVar(&to, "to", "", "bundles or tags")
	c.Flags().StringArrayVarP(&keys, "key", "k", nil, "public key of signatures that are to become bundles (repeatable)")
	c.Flags().StringVar(&platform, "platform", "", "the image of an index for this platform: linux/amd64")
	return c
}

// toBundles hangs one layer of a tag as bundles. An error is the registry's; what is
// wrong with the layer is in the result.
func (h *hanger) toBundles(ctx context.Context, it store.Item, keys []attached.Key) (converted, error) {
	c := converted{Digest: it.Digest}
	var ring []dsse.PublicKey
	for _, k := range keys {
		ring = append(ring, k.Public)
	}
	referrers, notes, err := attached.Bundles(it, h.subject.Digest, ring)
	if c.failed(err) {
		return c, nil
	}
	c.Notes = notes
	for _, r := range referrers {
		at, err := h.AttachReferrer(ctx, h.subject, r)
		if err != nil {
			return c, err
		}
		c.To = append(c.To, place(whatIs(r.ArtifactType, r.Annotations), at))
	}
	c.done()
	return c, nil
}

// toTag is the other way.
func (h *hanger) toTag(ctx context.Context, it store.Item) (converted, error) {
	c := converted{Digest: it.Digest}
	layer, notes, err := attached.Layer(it, h.subject.Digest)
	if c.failed(err) {
		return c, nil
	}
	c.Notes = notes
	ats, err := h.AttachLayers(ctx, h.subject, ".att", layer)
	if err != nil {
		return c, err
	}
	c.To = append(c.To, place(whatIs(layer.MediaType, layer.Annotations), ats[0]))
	c.done()
	return c, nil
}

// convertSBOMs hangs the bill of materials of the tag as a referrer (referrer is true), or
// those of referrers behind the tag. The bytes stay what they are.
func (h *hanger) convertSBOMs(ctx context.Context, referrer bool) ([]converted, error) {
	docs, err := h.sboms(ctx)
	if err != nil {
		return nil, err
	}
	var out []converted
	for _, d := range docs {
		if (d.Format == string(store.FormatTag)) != referrer {
			continue
		}
		c := converted{Digest: d.Digest}
		l, err := attached.SBOMLayer(d.Content, h.subject.Digest)
		if errors.Is(err, attached.ErrUnnamed) {
			c.Notes, err = append(c.Notes, "it does not name the image by its digest; it hangs on it all the same"), nil
		}
		if err != nil {
			c.Result, c.Reason = "kept", err.Error()
			out = append(out, c)
			continue
		}
		var at oci.Attached
		if referrer {
			at, err = h.AttachReferrer(ctx, h.subject, attached.SBOMReferrer(l))
		} else {
			at, err = h.AttachSBOM(ctx, h.subject, l, false)
		}
		switch {
		case errors.Is(err, oci.ErrOccupied):
			c.Result, c.Reason = "kept", "the .sbom tag holds another one, and holds one only"
		case err != nil:
			return nil, err
		default:
			c.To = append(c.To, place(l.MediaType, at))
			c.done()
		}
		out = append(out, c)
	}
	return out, nil
}

func (c *converted) failed(err error) bool {
	switch {
	case err == nil:
		return false
	case errors.Is(err, attached.ErrForm):
		c.Result = "kept"
	default:
		c.Result = "failed"
	}
	c.Reason = err.Error()
	return true
}

func (c *converted) done() {
	c.Result = "existing"
	for _, p := range c.To {
		if !p.Existing {
			c.Result = "converted"
		}
	}
}

func (a *app) printConverted(h *hanger, list []converted) error {
	failed := 0
	for _, c := range list {
		if c.Result == "failed" {
			failed++
		}
	}
	if a.output == "json" {
		if err := a.json(struct {
			Image  string      `json:"image"`
			Pieces []converted `json:"pieces"`
		}{h.subject.Ref(), list}); err != nil {
			return err
		}
	} else {
		for _, c := range list {
			fmt.Fprintf(a.out, "%-9s  %s", c.Result, c.Digest)
			if c.Reason != "" {
				fmt.Fprintf(a.out, "  %s", clean(c.Reason))
			}
			fmt.Fprintln(a.out)
			for _, p := range c.To {
				fmt.Fprintf(a.out, "           → %s  %s  %s\n", p.As, p.Digest, clean(p.What))
			}
			for _, n := range c.Notes {
				fmt.Fprintf(a.out, "           note: %s\n", clean(n))
			}
		}
		if len(list) == 0 {
			fmt.Fprintln(a.out, "there is nothing in that form")
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d could not be converted", failed, len(list))
	}
	return nil
}
