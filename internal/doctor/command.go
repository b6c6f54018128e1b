package doctor

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/kubeaccess"
)

// ErrNotReady is returned by the command when something is wrong or unknown.
var ErrNotReady = errors.New("not ready to change over")

// Command is `assayd doctor`.
func Command() *cobra.Command {
	doctor := &cobra.Command{
		Use:   "doctor",
		Short: "Say what a change-over would change, and what is in its way",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 { // cobra would print its help and succeed
				return fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
			}
			return cmd.Help()
		},
	}
	doctor.AddCommand(chainsCommand())
	return doctor
}

func chainsCommand() *cobra.Command {
	var (
		o      Options
		access kubeaccess.Options
		output string
	)
	c := &cobra.Command{
		Use:   "chains",
		Short: "Read a live installation of Tekton Chains",
		Long: `Reads ConfigMap chains-config, the names in Secret signing-secrets, Tekton's
custom resource definitions, the observer's rights and the finished runs, and
says what will be the same with Assay's observer in Chains' place, what differs
and what to apply. It changes nothing.

Exit codes: 0 ready, 1 something is wrong or could not be read, 2 wrong usage.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("invalid argument %q for --output: want text or json", output)
			}
			config, _, err := kubeaccess.Find(access)
			if err != nil {
				return err
			}
			config.QPS, config.Burst = 100, 200
			w, err := Read(cmd.Context(), config, o)
			if err != nil {
				return err
			}
			r := Diagnose(w)
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				err = e.Encode(r)
			} else {
				err = r.Text(cmd.OutOrStdout())
			}
			if err == nil && !r.Ready() {
				err = ErrNotReady
			}
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&access.Kubeconfig, "kubeconfig", "", "kubeconfig file; "+kubeaccess.Default)
	f.StringVar(&access.Context, "context", "", "context of the kubeconfig")
	f.StringVar(&access.Server, "server", "", "address of the API server")
	f.StringVarP(&o.Namespace, "namespace", "n", Namespace, "namespace of Tekton Chains")
	f.StringSliceVar(&o.Namespaces, "watch", nil, "namespaces that the observer is to watch; default: what --namespace of its Deployment, or Chains', says, else all")
	f.IntVar(&o.MaxRuns, "max-runs", 5000, "how many runs of each kind to look at")
	f.StringVarP(&output, "output", "o", "text", "text or json")
	return c
}
