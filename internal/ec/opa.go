package ec

import (
	opa "github.com/open-policy-agent/opa/cmd"
	"github.com/spf13/cobra"
)

// opaCommand is OPA's own command line, which knows the ec.* functions as well.
// They are given to all of OPA in this process, and only when it is asked for.
func opaCommand(g *globals) *cobra.Command {
	c := opa.Command(nil, "OPA")
	before := c.PersistentPreRunE
	c.PersistentPreRunE = func(cmd *cobra.Command, args []string) error {
		if before != nil {
			if err := before(cmd, args); err != nil {
				return err
			}
		}
		if err := g.start(cmd); err != nil {
			return err
		}
		r, err := newRunner(g, cmd.ErrOrStderr(), 1)
		if err != nil {
			return err
		}
		r.builtins.Register()
		return nil
	}
	return c
}
