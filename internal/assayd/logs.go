package assayd

import (
	"fmt"
	"os"

	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/provenance"
)

// logs opens the transparency log that settings name.
type logs struct {
	state string // folder for keys seen; empty: none
}

// log implements watch.Logs: the log of our own where one is named, else Rekor.
func (l *logs) log(cfg provenance.Config) (tlog.Log, error) {
	if cfg.Own.LogURL != "" {
		t, err := tlog.NewTile(tlog.TileOptions{
			URL: cfg.Own.LogURL, LogKey: cfg.Own.LogKey, Witnesses: cfg.Own.LogWitnesses, TokenFile: cfg.Own.LogTokenFile,
		})
		if err != nil {
			return nil, fmt.Errorf("opening the log at %s: %w", cfg.Own.LogURL, err)
		}
		return t, nil
	}
	var key []byte
	if cfg.Own.RekorKeyFile != "" {
		var err error
		if key, err = os.ReadFile(cfg.Own.RekorKeyFile); err != nil {
			return nil, fmt.Errorf("reading assay.transparency.rekor-key-path: %w", err)
		}
	}
	r, err := tlog.NewRekor(tlog.RekorOptions{
		URL: cfg.Transparency.URL, Version: tlog.RekorVersion(cfg.Own.RekorVersion), Key: key, ReadURL: cfg.Own.RekorReadURL, PinFile: pinFile(l.state, "rekor.pub"),
	})
	if err != nil {
		return nil, fmt.Errorf("opening the log at %s: %w", cfg.Transparency.URL, err)
	}
	return r, nil
}
