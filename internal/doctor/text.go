package doctor

import (
	"fmt"
	"io"
	"iter"
	"maps"
	"strings"
)

func mapKeys[V any](m map[string]V) iter.Seq[string] { return maps.Keys(m) }

// Text writes the report for people.
func (r Report) Text(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Tekton Chains in namespace %s, and Assay's observer in its place\n", r.Namespace)
	topic := ""
	for _, i := range r.Items {
		if i.Topic != topic {
			fmt.Fprintf(&b, "\n%s\n", i.Topic)
			topic = i.Topic
		}
		fmt.Fprintf(&b, "  %-8s %s\n", i.Verdict, i.What)
		if i.Remedy != "" {
			fmt.Fprintf(&b, "           → %s\n", i.Remedy)
		}
	}
	fmt.Fprintf(&b, "\nTo change over\n")
	for _, s := range r.Steps {
		fmt.Fprintf(&b, "  %s\n", s)
	}
	fmt.Fprintf(&b, "\nAnd back\n")
	for _, s := range r.Back {
		fmt.Fprintf(&b, "  %s\n", s)
	}
	if !r.Ready() {
		fmt.Fprintf(&b, "\nNot ready: see to what is wrong or unknown first.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}
