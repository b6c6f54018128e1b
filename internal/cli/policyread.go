package cli

import (
	"context"
	"encoding/json"
	"time"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/kubeobject"
	"assay.dev/assay/policy"
	"assay.dev/assay/policy/spec"
)

// policyFlags are how the policy commands read policies.
type policyFlags struct {
	data       []string
	lock       string
	kubeconfig string
	offline    bool
}

func (p *policyFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringArrayVar(&p.data, "data", nil, "data file for the policy beside its own, such as trusted tasks (repeatable)")
	f.StringVar(&p.lock, "lock", "", "policy.lock.json that says what the policy's sources must be")
	f.StringVar(&p.kubeconfig, "kubeconfig", "", "file that says how to reach the cluster, for k8s://")
	f.BoolVar(&p.offline, "offline", false, "fetch nothing that is not in the cache")
}

// open is what a policy is read with: its name, absolute where it is a path, and the
// options. Its rules reach no registry.
func (p *policyFlags) open(ctx context.Context, a *app, ref string) (string, policy.Options, error) {
	g := &gateFlags{policy: ref, data: p.data, lock: p.lock}
	g.trust.kubeconfig, g.identity.offline = p.kubeconfig, p.offline
	o := policy.Options{
		Data: p.data,
		Resource: func(ctx context.Context, name string) (json.RawMessage, error) {
			return kubeobject.Get(ctx, p.kubeconfig, policies, name)
		},
		PublicKey: g.publicKey,
	}
	h, _, err := findHome()
	if err != nil {
		return "", o, err
	}
	if ref, err = absolute(ref); err != nil {
		return "", o, err
	}
	o.Sources, err = g.sources(ctx, a, h)
	return ref, o, err
}

// load reads and compiles a policy.
func (p *policyFlags) load(ctx context.Context, a *app, ref string) (*policy.Policy, error) {
	name, o, err := p.open(ctx, a, ref)
	if err != nil {
		return nil, err
	}
	return policy.Load(ctx, name, o)
}

// day reads a flag that is now, a time or a day.
func day(flag, value string) (time.Time, error) {
	if value == "" || value == "now" {
		return time.Now().UTC().Round(time.Second), nil
	}
	t, err := spec.ParseTime(value)
	if err != nil {
		return t, usagef("--%s: %v", flag, err)
	}
	return t, nil
}
