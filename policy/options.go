package policy

import (
	"context"
	"encoding/json"

	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/policy/source"
	"assay.dev/assay/policy/spec"
)

// Options change how a policy is loaded. The zero value is a policy of local files
// whose rules reach no registry.
type Options struct {
	// Sources brings what the policy names. Default: files and folders only. Paths are
	// asked for whole, addresses as they are written.
	Sources source.Fetcher
	// Signed says whether one of those that a policy lists in assay.sourceSigners has
	// signed an OCI source; its error refuses the source. Default: Sources does it, and
	// a policy that has the list from one it extends is refused.
	Signed func(ctx context.Context, t *source.Tree, by []spec.Signer) error
	// Builtins answer the ec.* functions. Default: functions that reach nothing, so
	// that a rule that calls one ends Unchecked.
	Builtins *builtin.Set
	// Data names data files (JSON or YAML objects) that every source sees
	// beside its own, such as a generated list of trusted tasks. They count in
	// the policy's digest.
	Data []string
	// RuleData are strings put at the top of every source's ruleData, over what is
	// there. They count in the digest.
	RuleData map[string]string
	// Resource reads a policy of a cluster, k8s://[namespace/]name. Default: none,
	// and such names are refused.
	Resource func(ctx context.Context, name string) (json.RawMessage, error)
	// PublicKey reads a key that the policy names by address (k8s://, a KMS, PKCS#11)
	// as PEM. Default: none, and such keys are refused.
	PublicKey func(ctx context.Context, address string) ([]byte, error)
	// Limits bound each evaluation.
	Limits Limits
}
