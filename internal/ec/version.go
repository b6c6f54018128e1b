package ec

import (
	"encoding/json"
	"fmt"
	"runtime/debug"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// versionInfo is what `version --json` prints.
type versionInfo struct {
	Version    string
	Commit     string
	ChangedOn  time.Time
	Components []componentVersion
}

type componentVersion struct{ Name, Version string }

// parts are what ec tells the versions of. Those that are not in here are N/A.
var parts = []struct{ name, module string }{
	{"ECC", "github.com/conforma/crds/api"},
	{"OPA", "github.com/open-policy-agent/opa"},
	{"Conftest", "github.com/open-policy-agent/conftest"},
	{"Cosign", "github.com/sigstore/cosign/v3"},
	{"Sigstore", "github.com/sigstore/sigstore"},
	{"Rekor", "github.com/sigstore/rekor"},
	{"Tekton Pipeline", "github.com/tektoncd/pipeline"},
	{"Kubernetes Client", "k8s.io/api"},
}

func computeVersion() versionInfo {
	v := versionInfo{Version: Version()}
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		bi = &debug.BuildInfo{}
	}
	for _, s := range bi.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.time":
			v.ChangedOn, _ = time.Parse(time.RFC3339, s.Value)
		}
	}
	for _, p := range parts {
		c := componentVersion{p.name, "N/A"}
		for _, d := range bi.Deps {
			if d.Path == p.module {
				c.Version = d.Version
			}
		}
		v.Components = append(v.Components, c)
	}
	return v
}

func versionCommand() *cobra.Command {
	var asJSON, short bool
	c := &cobra.Command{
		Use: "version", Short: "Print versions", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := computeVersion()
			switch out := cmd.OutOrStdout(); {
			case asJSON:
				return json.NewEncoder(out).Encode(v)
			case short:
				_, err := fmt.Fprint(out, v.Version)
				return err
			default:
				w := tabwriter.NewWriter(out, 10, 1, 2, ' ', 0)
				fmt.Fprintf(w, "Version\t%s\nSource ID\t%s\nChange date\t%s (%s ago)\n", v.Version, v.Commit, v.ChangedOn, age(time.Since(v.ChangedOn)))
				for _, c := range v.Components {
					fmt.Fprintf(w, "%s\t%s\n", c.Name, c.Version)
				}
				return w.Flush()
			}
		},
	}
	c.Flags().BoolVarP(&asJSON, "json", "j", false, "as JSON")
	c.Flags().BoolVarP(&short, "short", "s", false, "the version alone")
	return c
}

// age is a duration in its largest unit.
func age(d time.Duration) string {
	const day = 24 * time.Hour
	for _, u := range []struct {
		of   time.Duration
		name string
	}{{365 * day, "year"}, {7 * day, "week"}, {day, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"}} {
		if n := d / u.of; n > 0 {
			if n == 1 {
				return "1 " + u.name
			}
			return fmt.Sprintf("%d %ss", n, u.name)
		}
	}
	return "0 seconds"
}
