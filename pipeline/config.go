package pipeline

import (
	"context"
	"fmt"

	"github.com/tektoncd/pipeline/pkg/apis/config"
)

// defaultFlags are the feature flags that differ from Tekton's defaults: they
// only allow more, and need nothing of a cluster. They stand in
// status.provenance.featureFlags like all others.
func defaultFlags() map[string]string {
	return map[string]string{
		config.EnableCELInWhenExpression: "true",
		config.EnableParamEnum:           "true",
	}
}

// tektonContext is a context in which Tekton's packages find their
// configuration. flags are as featureFlags reads them; nil means ours.
func tektonContext(ctx context.Context, flags *config.FeatureFlags) context.Context {
	c := config.FromContextOrDefaults(context.Background())
	if flags == nil {
		flags, _ = config.NewFeatureFlagsFromMap(defaultFlags())
	}
	c.FeatureFlags = flags
	return config.ToContext(ctx, c)
}

// featureFlags reads flags by the names of Tekton's ConfigMap feature-flags.
func featureFlags(flags map[string]string) (*config.FeatureFlags, error) {
	all := defaultFlags()
	for k, v := range flags {
		all[k] = v
	}
	f, err := config.NewFeatureFlagsFromMap(all)
	if err != nil {
		return nil, fmt.Errorf("reading feature flags: %w", err)
	}
	return f, nil
}
