package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"assay.dev/assay/store/attached"
)

// readAll reads at most max bytes; more is an error.
func readAll(r io.Reader, name string, max int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, max+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if int64(len(b)) > max {
		return nil, fmt.Errorf("reading %s: larger than %d bytes", name, max)
	}
	return b, nil
}

func (a *app) treeCommand() *cobra.Command {
	var keys []string
	c := &cobra.Command{
		Use:   "tree IMAGE",
		Short: "List everything that hangs on an image",
		Long: `Lists what hangs on an image: cosign's tags (.sig, .att, .sbom) with their layers,
what refers to it (OCI 1.1) and what refers to that, and for an index the same of
each of its images; with types, sizes and who signed.

A signer is named as verified only if one of the --key files verifies the signature.
What a certificate says is printed as that, and not checked: assay verify does.`,
		Example: "  assay tree $IMAGE\n  assay tree $IMAGE --key cosign.pub --output json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.outputIs("text", "json"); err != nil {
				return err
			}
			ring, err := loadPublicKeys(cmd.Context(), keys...)
			if err != nil {
				return err
			}
			h, err := a.hangsOn(cmd.Context(), args[0], "")
			if err != nil {
				return err
			}
			root, err := attached.Tree(cmd.Context(), h.Store, h.subject.Digest, attached.TreeOptions{Keys: ring})
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(struct {
					Image string         `json:"image"`
					Tree  *attached.Node `json:"tree"`
				}{h.subject.Ref(), root})
			}
			var b strings.Builder
			fmt.Fprintf(&b, "%s  %s, %s\n", clean(h.subject.Ref()), root.Kind, size(root.Total))
			drawTree(&b, root.Kids, "")
			if len(root.Kids) == 0 {
				b.WriteString("nothing hangs on it\n")
			}
			_, err = io.WriteString(a.out, b.String())
			return err
		},
	}
	c.Flags().StringArrayVarP(&keys, "key", "k", nil, "public key to try on signatures (repeatable)")
	return c
}

func drawTree(b *strings.Builder, kids []*attached.Node, indent string) {
	for i, k := range kids {
		branch, below := "├─ ", "│  "
		if i == len(kids)-1 {
			branch, below = "└─ ", "   "
		}
		b.WriteString(indent + branch + clean(line(k)) + "\n")
		rest := indent + below
		inner := "   "
		if len(k.Kids) > 0 {
			inner = "│  "
		}
		for _, by := range k.By {
			b.WriteString(rest + inner + "by " + clean(signer(by)) + "\n")
		}
		if k.Problem != "" {
			b.WriteString(rest + inner + "problem: " + clean(k.Problem) + "\n")
		}
		drawTree(b, k.Kids, rest)
	}
}

// line is one node as text.
func line(n *attached.Node) string {
	words := []string{n.Kind}
	switch {
	case n.Tag != "":
		words = append(words, n.Tag)
	default:
		words = append(words, n.Digest)
	}
	if n.Platform != "" {
		words = append(words, n.Platform)
	}
	switch {
	case n.PredicateType != "":
		words = append(words, n.PredicateType)
	case n.ArtifactType != "":
		words = append(words, n.ArtifactType)
	case n.Kind != attached.KindTag && n.MediaType != "":
		words = append(words, n.MediaType)
	}
	total := n.Size
	if n.Total > 0 {
		total = n.Total
	}
	return strings.Join(words, "  ") + ", " + size(total)
}

func signer(by attached.By) string {
	switch {
	case by.Verified:
		return by.Key + " (verified)"
	case by.Identity != "" && by.Issuer != "":
		return fmt.Sprintf("%s, issuer %s (certificate, not checked)", by.Identity, by.Issuer)
	case by.Identity != "":
		return by.Identity + " (certificate, not checked)"
	case by.Hint != "":
		return "key " + by.Hint + " (not checked)"
	}
	return "a key that is not named (not checked)"
}

// size is a number of bytes for people.
func size(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}

// clean keeps strangers' words from steering a terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '·'
		}
		return r
	}, s)
}
