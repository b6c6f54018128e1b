package ec

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/ec/compare"
	"assay.dev/assay/policy/spec"
)

// compareCommand says whether two configurations are equivalent, and ends with 0
// either way, as Conforma does.
func compareCommand(g *globals) *cobra.Command {
	var (
		when, form string
		past       bool
		image      compare.Image
	)
	c := &cobra.Command{
		Use: "compare POLICY POLICY", Short: "Say whether two policy configurations are equivalent", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			at, err := effectiveTime(when, past)
			if err != nil {
				return err
			}
			if at.IsZero() { // there is no attestation
				at = time.Now().UTC()
			}
			if form != "text" && form != "json" {
				return fmt.Errorf("--output %s: this command writes text and json", form)
			}
			var specs [2]*spec.Spec
			for i, name := range []string{"first", "second"} {
				raw, err := readFile(args[i])
				if err != nil {
					return fmt.Errorf("failed to load %s policy: %w", name, err)
				}
				if specs[i], err = spec.Parse(raw); err != nil {
					return fmt.Errorf("failed to load %s policy: %s: %w", name, args[i], err)
				}
			}
			var of *compare.Image
			if image != (compare.Image{}) {
				of = &image
			}
			diff, err := compare.Differences(specs[0], specs[1], at, of)
			if err != nil {
				return fmt.Errorf("failed to compare policies: %w", err)
			}
			out := cmd.OutOrStdout()
			if form == "json" {
				report := map[string]any{"equivalent": len(diff) == 0, "effective_time": at.Format(time.RFC3339), "policy1": args[0], "policy2": args[1]}
				if of != nil {
					report["image_info"] = of
				}
				e := json.NewEncoder(out)
				e.SetIndent("", "  ")
				return e.Encode(report)
			}
			if len(diff) == 0 {
				fmt.Fprintln(out, "✅ Policies are equivalent")
			} else {
				fmt.Fprintln(out, "❌ Policies are not equivalent")
			}
			fmt.Fprintf(out, "Effective time: %s\n", at.Format(time.RFC3339))
			if of != nil {
				fmt.Fprintf(out, "Image digest: %s\nImage ref: %s\nImage URL: %s\n", of.Digest, of.Ref, of.URL)
			}
			for _, d := range diff {
				g.debugf("%s of %s: %q, %q", d.Field, d.Group, d.First, d.Second)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&when, "effective-time", "now", "compare as of this time: now, RFC 3339 or YYYY-MM-DD")
	f.BoolVar(&past, "allow-past-effective-time", false, "accept an --effective-time in the past")
	f.StringVar(&image.Digest, "image-digest", "", "digest of the image that volatile items may be bound to")
	f.StringVar(&image.Ref, "image-ref", "", "its digest, for items with imageRef")
	f.StringVar(&image.URL, "image-url", "", "its repository")
	f.StringVar(&form, "output", "text", "text or json")
	return c
}
