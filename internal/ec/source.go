package ec

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/spf13/pflag"

	"assay.dev/assay/internal/kubeobject"
	"assay.dev/assay/policy/conforma"
	"assay.dev/assay/policy/source"
	"assay.dev/assay/policy/source/fetch"
)

// policies is the resource of which a cluster has policy configurations.
const policies = "enterprisecontractpolicies.appstudio.redhat.com"

// sourceFlags says where policies and their sources come from.
type sourceFlags struct {
	lock string

	fetcher source.Fetcher // made when it is first asked for
}

func (s *sourceFlags) add(f *pflag.FlagSet) {
	f.StringVar(&s.lock, "policy-lock", "", "read sources as this lock says (policy.lock.json), and refuse what is not in it")
}

// sources is the Fetcher of the run.
func (g *globals) sources() (source.Fetcher, error) {
	if g.policySources.fetcher != nil {
		return g.policySources.fetcher, nil
	}
	o := fetch.Options{Retry: &g.retry}
	if g.policySources.lock != "" {
		l, err := fetch.ReadLock(g.policySources.lock)
		if err != nil {
			return nil, fmt.Errorf("--policy-lock: %w", err)
		}
		o.Lock = l
	}
	return g.fetchWith(o)
}

// policies is sources, which may not be known before the configuration is read.
func (g *globals) policies() source.Fetcher { return lateSources{g} }

type lateSources struct{ g *globals }

func (l lateSources) Fetch(ctx context.Context, address string) (*source.Tree, error) {
	f, err := l.g.sources()
	if err != nil {
		return nil, err
	}
	return f.Fetch(ctx, address)
}

func (g *globals) fetchWith(o fetch.Options) (source.Fetcher, error) {
	f, err := fetch.New(o)
	if err != nil {
		return nil, err
	}
	g.policySources.fetcher = f
	return f, nil
}

// loadSpec reads a policy configuration as the argument of --policy gives it, in the
// order of Conforma: JSON, an address in git or on https, a file, YAML, a name in a
// cluster. New are artifacts in a registry, and folders that were vendored: what lies
// in those is read by the sources of this run.
func (g *globals) loadSpec(ctx context.Context, arg string) (*conforma.Spec, error) {
	raw, err := g.readConfig(ctx, arg)
	if err != nil {
		return nil, err
	}
	if raw == nil {
		return &conforma.Spec{}, nil
	}
	return conforma.ParseSpec(raw)
}

// readConfig returns the document that an argument names or is; nil for none. Where
// its sources lie with it, this run reads them.
func (g *globals) readConfig(ctx context.Context, arg string) ([]byte, error) {
	switch {
	case arg == "":
		return nil, nil
	case strings.HasPrefix(arg, "{"), strings.ContainsFunc(arg, unicode.IsSpace):
		return []byte(arg), nil
	}
	// Text with a colon is read as YAML; only what KindOf takes for an address is one.
	kind, err := source.Local{}.Kind(arg)
	if err != nil && strings.HasPrefix(strings.ToLower(arg), "http:") {
		return nil, fmt.Errorf("--policy: %w", err)
	}
	document := hasExt(arg, ".json", ".yaml", ".yml")
	if err == nil && (kind != source.File || document || vendored(arg)) {
		f, err := g.sources()
		if err != nil {
			return nil, err
		}
		c, err := fetch.ReadConfig(ctx, f, "", arg)
		if err != nil {
			return nil, err
		}
		if len(c.Raw) == 0 {
			return nil, fmt.Errorf("file %s is empty", arg)
		}
		if c.Lock != nil && g.policySources.lock == "" {
			if _, err := g.fetchWith(fetch.Options{Retry: &g.retry, Lock: c.Lock, Base: c.Base}); err != nil {
				return nil, err
			}
		}
		return c.Raw, nil
	}
	if strings.Contains(arg, ":") {
		return []byte(arg), nil
	}
	raw, err := kubeobject.Get(ctx, g.kubeconfig, policies, arg)
	if err != nil {
		return nil, fmt.Errorf("unable to fetch EnterpriseContractPolicy: %w", err)
	}
	return raw, nil
}

func hasExt(name string, ext ...string) bool {
	for _, e := range ext {
		if strings.HasSuffix(strings.ToLower(name), e) {
			return true
		}
	}
	return false
}

// vendored says whether a folder was written by `assay policy vendor`.
func vendored(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, fetch.LockName))
	return err == nil
}
