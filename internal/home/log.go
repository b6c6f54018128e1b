package home

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strings"
)

// Log is a transparency log, as config.json names it.
type Log struct {
	// URL is http://, https:// or unix:///SOCKET; empty means the home's own log,
	// which `assay log init` makes.
	URL string `json:"url,omitempty"`
	// Key is the log's verifier key. It is read by whoever asks the log.
	Key string `json:"key"`
	// Witnesses are verifier keys of the witnesses of which Quorum (0: one, if there
	// are any) must have cosigned what is kept with evidence.
	Witnesses []string `json:"witnesses,omitempty"`
	Quorum    int      `json:"quorum,omitempty"`
	// TokenFile holds the secret that lets the observer add entries; its user must
	// be able to read it. A Unix socket needs none.
	TokenFile string `json:"tokenFile,omitempty"`
}

// check finds what is wrong without asking what makes a key: this package is part of
// programs that know none. The observer reads the keys before it serves.
func (l *Log) check() error {
	if strings.Count(l.Key, "+") < 2 {
		return fmt.Errorf("key %q: want a verifier key, NAME+HASH+BASE64, as `assay log init` prints it", l.Key)
	}
	for _, w := range l.Witnesses {
		if strings.Count(w, "+") < 2 {
			return fmt.Errorf("witness %q: want a verifier key, NAME+HASH+BASE64", w)
		}
	}
	if l.Quorum < 0 || l.Quorum > len(l.Witnesses) {
		return fmt.Errorf("quorum %d: there are %d witnesses", l.Quorum, len(l.Witnesses))
	}
	if u, err := url.Parse(l.URL); err == nil && u.Scheme == "http" && l.TokenFile != "" && u.Hostname() != "localhost" {
		if ip := net.ParseIP(u.Hostname()); ip == nil || !ip.IsLoopback() {
			return fmt.Errorf("url %s: the token would cross the network in the clear; use https://", l.URL)
		}
	}
	return nil
}

// Files of the home's own log and of the witness beside it.
func (h *Home) LogSocket() string    { return h.Path("run", "log", "sock") }
func (h *Home) LogTiles() string     { return h.Path("log", "tiles") }
func (h *Home) LogKey() string       { return h.Path("log", "key") }
func (h *Home) WitnessKey() string   { return h.Path("witness", "key") }
func (h *Home) WitnessState() string { return h.Path("witness", "state") }

// LogURL is where a log of this home's config is.
func (h *Home) LogURL(l *Log) string {
	if l.URL == "" {
		return "unix://" + h.LogSocket()
	}
	return l.URL
}

// MakeLog makes the folders of the home's own log and its witness, and gives each to
// its owner.
func (h *Home) MakeLog() error {
	return h.own([]folder{
		{"log", UIDLog, 0o755},
		{"run/log", UIDLog, 0o755},
		{"witness", UIDWitness, 0o700},
	})
}

// OwnLog says how the home's own log is run.
type OwnLog struct {
	// Witness is the verifier key of the witness on this machine; empty: none.
	Witness string `json:"witness,omitempty"`
	// Witnesses are others, each URL=VERIFIER-KEY.
	Witnesses []string `json:"witnesses,omitempty"`
	// Quorum is how many of all of them must cosign; 0: all.
	Quorum int `json:"quorum,omitempty"`
}

// OwnLog reads how the home's own log is run. It fails if there is none.
func (h *Home) OwnLog() (o OwnLog, err error) {
	b, err := os.ReadFile(h.Path("log.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return o, fmt.Errorf("%s has no log of its own: make one with `assay log init`", h.Dir)
	}
	if err != nil {
		return o, fmt.Errorf("reading how the log is run: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&o); err != nil {
		return o, fmt.Errorf("parsing %s: %w; it has witness, witnesses and quorum", h.Path("log.json"), err)
	}
	return o, nil
}

// SetLog writes how the home's own log is run and puts it into config.json, whose
// other members stay as they are. It fails if config.json names a log already.
func (h *Home) SetLog(l Log, own OwnLog) error {
	if err := l.check(); err != nil {
		return err
	}
	members := map[string]json.RawMessage{}
	b, err := os.ReadFile(h.Path("config.json"))
	if err == nil {
		err = json.Unmarshal(b, &members)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("reading the home's configuration: %w", err)
	}
	if members["log"] != nil {
		return fmt.Errorf("%s names a log already", h.Path("config.json"))
	}
	if members["log"], err = json.Marshal(l); err != nil {
		return err
	}
	if err := writeJSON(h.Path("log.json"), own); err != nil {
		return err
	}
	return writeJSON(h.Path("config.json"), members)
}

// writeJSON writes a file whole or not at all.
func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".tmp", append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
