package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/kubeobject"
	"assay.dev/assay/policy/source/fetch"
)

// policies is the resource of which a cluster has policy configurations.
const policies = "enterprisecontractpolicies.appstudio.redhat.com"

func (a *app) policyVendorCommand() *cobra.Command {
	var (
		policy, dest, push, kubeconfig string
		here, check                    bool
		lock                           string
	)
	c := &cobra.Command{
		Use:   "vendor",
		Short: "Put everything that a policy needs into one folder",
		Long: `Fetches a policy's configuration, what it extends, and all its sources, and writes
them into one folder, with a lock (policy.lock.json) that says what each was and its
digest. The folder is a policy like any other, and takes no network:

  assay gate --policy FOLDER …
  assay ec validate image --policy FOLDER …

With --push the folder goes into a registry, too, as one artifact. The same policy
gives the same folder and the same artifact, byte for byte.

A folder that this command wrote before is replaced. --check compares a folder with
its lock instead, and writes nothing.`,
		Example: "  assay policy vendor --policy github.com/org/config//policy --dest ./policy\n  assay policy vendor --policy ./policy.yaml --dest ./vendored --push oci::registry.example.com/org/policy:v1\n  assay policy vendor --check --dest ./vendored",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.outputIs("text", "json"); err != nil {
				return err
			}
			ctx := cmd.Context()
			if check {
				return a.checkVendored(ctx, dest)
			}
			if policy == "" || dest == "" {
				return usagef("name what to vendor and where: --policy POLICY --dest FOLDER")
			}
			o := fetch.Options{}
			if lock != "" {
				l, err := fetch.ReadLock(lock)
				if err != nil {
					return err
				}
				o.Lock = l
			}
			f, err := fetch.New(o)
			if err != nil {
				return err
			}
			vo := fetch.VendorOptions{Resource: func(ctx context.Context, name string) (json.RawMessage, error) {
				return kubeobject.Get(ctx, kubeconfig, policies, name)
			}}
			if here {
				if vo.Base, err = filepath.Abs("."); err != nil {
					return err
				}
			}
			v, err := fetch.Vendor(ctx, f, policy, dest, vo)
			if err != nil {
				return err
			}
			for _, left := range v.Left {
				fmt.Fprintf(a.err, "assay: not in the folder, and needed: %s\n", left)
			}
			pinned := ""
			if push != "" {
				if pinned, err = fetch.Push(ctx, dest, push, fetch.Options{}); err != nil {
					return err
				}
			}
			return a.vendored(v.Lock, dest, pinned)
		},
	}
	f := c.Flags()
	f.StringVarP(&policy, "policy", "p", "", "policy: a file, a folder, an address (git, https, registry), k8s://[NAMESPACE/]NAME, or written out")
	f.StringVarP(&dest, "dest", "d", "", "folder to write (required)")
	f.StringVar(&push, "push", "", "registry, repository and tag to push the folder to, for example oci::registry.example.com/org/policy:v1")
	f.StringVar(&lock, "lock", "", "take what this lock says, and nothing that is not in it")
	f.BoolVar(&here, "relative-to-here", false, "take relative addresses in the configuration from the working folder, as Conforma does, and not from its own")
	f.BoolVar(&check, "check", false, "compare the folder with its lock, and write nothing")
	f.StringVar(&kubeconfig, "kubeconfig", "", "file that says how to reach the cluster, for k8s://")
	c.MarkFlagsMutuallyExclusive("check", "policy")
	c.MarkFlagsMutuallyExclusive("check", "push")
	return c
}

// checkVendored holds a folder against its lock.
func (a *app) checkVendored(ctx context.Context, dir string) error {
	if dir == "" {
		return usagef("name the folder: --dest FOLDER")
	}
	l, err := fetch.ReadLock(filepath.Join(dir, fetch.LockName))
	if err != nil {
		return err
	}
	if err := l.Check(ctx); err != nil {
		return err
	}
	return a.vendored(l, dir, "")
}

// vendored says what is in a folder.
func (a *app) vendored(l *fetch.Lock, dir, pushed string) error {
	if a.output == "json" {
		return a.json(struct {
			Folder string      `json:"folder"`
			Pushed string      `json:"pushed,omitempty"`
			Lock   *fetch.Lock `json:"lock"`
		}{dir, pushed, l})
	}
	for _, at := range sortedKeys(l.Sources) {
		s := l.Sources[at]
		fmt.Fprintf(a.out, "%s\n  from    %s\n  digest  %s\n", at, s.Pinned, s.Digest)
	}
	fmt.Fprintf(a.out, "policy in %s\n", filepath.Join(dir, l.Policy))
	if pushed != "" {
		fmt.Fprintf(a.out, "pushed to %s\n", pushed)
	}
	return nil
}
