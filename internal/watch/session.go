package watch

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"assay.dev/assay/attest/signing"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/provenance"
	"assay.dev/assay/store"
)

// Keepers makes the back ends that settings name, by their words in
// chains-config. It is called whenever the settings change; the observer closes
// what the former settings made once the last run that used it is done with.
type Keepers func(provenance.Config) (map[string]store.Keeper, error)

// Logs makes the transparency log that settings name. It is not called where
// transparency is off.
type Logs func(provenance.Config) (tlog.Log, error)

// session is everything that follows from one set of settings. Runs in work keep
// theirs while the observer has moved on to the next.
type session struct {
	cfg     provenance.Config
	plan    plan
	keepers map[string]store.Keeper
	log     tlog.Log
	users   sync.WaitGroup
}

// plan says what to watch.
type plan struct {
	pipelineRuns bool
	taskRuns     taskRuns
	// protectChildren: TaskRuns of a PipelineRun need a finalizer of their own,
	// since the PipelineRun's does not hold them.
	protectChildren bool
}

type taskRuns int

const (
	noTaskRuns taskRuns = iota
	// standalone: those that no PipelineRun made. The others are fetched with
	// their PipelineRun, once, when it has ended.
	standalone
	allTaskRuns
)

func planFor(cfg provenance.Config) plan {
	p := plan{}
	switch {
	case cfg.TaskRuns.Enabled() || cfg.Own.MarkTaskRuns:
		p.taskRuns = allTaskRuns
		p.pipelineRuns = cfg.PipelineRuns.Enabled()
		p.protectChildren = cfg.Own.MarkTaskRuns || !p.pipelineRuns
	case cfg.OCI.Enabled():
		p.taskRuns = standalone
		p.pipelineRuns = true
	default:
		p.pipelineRuns = cfg.PipelineRuns.Enabled()
	}
	return p
}

// newSession makes what settings need. It fails where a back end cannot be made
// or is missing, and then nothing is left open.
func newSession(cfg provenance.Config, keepers Keepers, logs Logs) (*session, error) {
	s := &session{cfg: cfg, plan: planFor(cfg)}
	var err error
	if s.keepers, err = keepers(cfg); err != nil {
		return nil, fmt.Errorf("preparing storage: %w", err)
	}
	var missing []string
	for _, a := range []provenance.ArtifactConfig{cfg.TaskRuns, cfg.PipelineRuns, cfg.OCI} {
		if !a.Enabled() {
			continue
		}
		for _, name := range a.Storage {
			if s.keepers[name] == nil && !slices.Contains(missing, name) {
				missing = append(missing, name)
			}
		}
	}
	if len(missing) > 0 {
		return nil, errors.Join(fmt.Errorf("preparing storage: this observer has no back end %q", missing), s.close())
	}
	if cfg.Transparency.Enabled {
		if logs == nil {
			return nil, errors.Join(errors.New("preparing the transparency log: this observer has none; set transparency.enabled to false"), s.close())
		}
		if s.log, err = logs(cfg); err != nil {
			return nil, errors.Join(fmt.Errorf("preparing the transparency log: %w", err), s.close())
		}
	}
	return s, nil
}

// close waits for the session's last run and closes its back ends.
func (s *session) close() error {
	s.users.Wait()
	var errs []error
	for _, k := range s.keepers {
		if err := k.Close(); err != nil {
			errs = append(errs, fmt.Errorf("closing storage %s: %w", k.Name(), err))
		}
	}
	return errors.Join(errs...)
}

// signingSettings say which keys sign an artifact.
func signingSettings(cfg provenance.Config, a provenance.ArtifactConfig) signing.Settings {
	kinds := a.Signers
	if len(kinds) == 0 {
		kinds = []string{a.Signer}
	}
	set := signing.Settings{
		Fulcio: signing.Fulcio{
			Enabled: cfg.X509.Fulcio, Address: cfg.X509.FulcioAddress, Issuer: cfg.X509.FulcioIssuer,
			Provider: cfg.X509.FulcioProvider, TokenFile: cfg.X509.IdentityTokenFile, TUFMirror: cfg.X509.TUFMirror,
		},
		KMS: signing.KMSSettings{
			Ref: cfg.KMS.Ref, Address: cfg.KMS.Address, Token: cfg.KMS.Token, TokenPath: cfg.KMS.TokenPath,
			OIDCPath: cfg.KMS.OIDCPath, OIDCRole: cfg.KMS.OIDCRole, OIDCTokenPath: cfg.KMS.OIDCTokenPath,
			SpireSock: cfg.KMS.SpireSock, SpireAudience: cfg.KMS.SpireAudience,
		},
		PKCS11: signing.PKCS11Settings{URI: cfg.Own.PKCS11URI, PINFile: cfg.Own.PKCS11PINFile},
	}
	for _, k := range kinds {
		set.Kinds = append(set.Kinds, signing.Kind(k))
	}
	return set
}
