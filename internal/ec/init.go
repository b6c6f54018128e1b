package ec

import (
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

// sampleRego is a policy to begin with: one rule with all that rules are known by.
const sampleRego = `# A policy to begin with: one rule, which never finds anything.
package main

# METADATA
# title: Sample rule
# description: Replace the condition by what must not be, and this text by why.
# custom:
#   short_name: sample
#   failure_msg: This is what a violation says.
#   solution: This is what makes it pass.
#   collections:
#   - A
deny contains result if {
	false
	result := "This is what a violation says."
}
`

func initCommand() *cobra.Command {
	var dest string
	policies := &cobra.Command{
		Use: "policies", Short: "Write a policy to begin with", Args: cobra.NoArgs,
		Example: "  ec init policies --dest-dir my-policy",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dest == "" {
				_, err := io.WriteString(cmd.OutOrStdout(), sampleRego)
				return err
			}
			if err := os.MkdirAll(dest, 0o755); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dest, "sample.rego"), []byte(sampleRego), 0o644)
		},
	}
	policies.Flags().StringVarP(&dest, "dest-dir", "d", "", "folder for sample.rego; without one it is printed")
	c := &cobra.Command{Use: "init", Short: "Begin with a policy", Args: cobra.ArbitraryArgs, RunE: onlyCommands}
	c.AddCommand(policies)
	return c
}
