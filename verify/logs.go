package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	rekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/store"
)

// maxLogEntries is how many log entries of one piece of evidence are looked at.
const maxLogEntries = 8

// LogTrust says which transparency logs and witnesses the caller believes, and
// whether evidence must be in one. Its zero value believes none and requires
// nothing. As JSON it has the form that a trust file has for them, see ParseTrust.
type LogTrust struct {
	tlog.Trust
	// Require counts evidence only if one of the logs proves that it holds its
	// signature, under a checkpoint that the quorum of witnesses cosigned. A thief
	// who signs unseen with a stolen key makes evidence that does not.
	Require bool
}

// known says whether there is a log to look for.
func (t LogTrust) known() bool { return len(t.Logs)+len(t.Rekor) > 0 }

// check returns an error unless the trust makes sense.
func (t LogTrust) check() error {
	if err := t.Trust.Check(); err != nil {
		return err
	}
	if t.Require && !t.known() {
		return errors.New("evidence must be in a log and no log is trusted; name one with --log-key, --rekor-key, or logs in the trust file")
	}
	if len(t.Witnesses) > 0 && !t.known() {
		return errors.New("witnesses without a log to be witnesses of; name one with --log-key or logs in the trust file")
	}
	return nil
}

// errNoLogEntry is why evidence without any is not logged.
var errNoLogEntry = errors.New("no log entry is kept with it")

// logged asks the trusted logs for a signature and returns what they prove. The
// error says why there is nothing; it is nil where no log is trusted.
func (c *checker) logged(it store.Item, s tlog.Signed) ([]tlog.Inclusion, error) {
	if !c.log.known() {
		return nil, nil
	}
	var (
		out  []tlog.Inclusion
		errs []error
	)
	add := func(in tlog.Inclusion, err error) {
		if err != nil {
			errs = append(errs, err)
			return
		}
		if !slices.ContainsFunc(out, func(o tlog.Inclusion) bool { return o.Log == in.Log && o.Index == in.Index }) {
			out = append(out, in)
		}
	}
	proofs, err := tlog.ParseProofs(it.Annotations[tlog.AnnotationProof])
	if err != nil {
		errs = append(errs, err)
	}
	for _, p := range proofs {
		add(tlog.CheckProof(p, s, c.log.Trust))
	}
	entries, err := rekorEntries(it)
	if err != nil {
		errs = append(errs, err)
	}
	for _, e := range entries {
		add(tlog.CheckRekor(e, s, c.log.Trust))
	}
	if len(out) > 0 {
		return out, nil
	}
	if len(errs) == 0 {
		errs = append(errs, errNoLogEntry)
	}
	return nil, errors.Join(errs...)
}

// rekorEntries are the Rekor entries kept with a piece of evidence.
func rekorEntries(it store.Item) ([]*rekor.TransparencyLogEntry, error) {
	if it.Format != store.FormatBundle {
		text := it.Annotations[tlog.AnnotationBundle]
		if text == "" {
			return nil, nil
		}
		e, err := tlog.ParseCosignBundle(text)
		if err != nil {
			return nil, err
		}
		return []*rekor.TransparencyLogEntry{e}, nil
	}
	// The document passed bundle.Parse.
	m, err := strictjson.Object(it.Content)
	if err != nil {
		return nil, err
	}
	if m, err = strictjson.Object(m["verificationMaterial"]); err != nil {
		return nil, err
	}
	if k := strictjson.Kind(m["tlogEntries"]); k == "nothing" || k == "null" {
		return nil, nil
	}
	list, err := strictjson.Array(m["tlogEntries"])
	if err != nil {
		return nil, fmt.Errorf("reading tlogEntries: %w", err)
	}
	if len(list) > maxLogEntries {
		return nil, fmt.Errorf("reading tlogEntries: %d entries; at most %d are read", len(list), maxLogEntries)
	}
	var out []*rekor.TransparencyLogEntry
	for i, raw := range list {
		e := new(rekor.TransparencyLogEntry)
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, e); err != nil {
			return nil, fmt.Errorf("reading log entry %d: %w", i, err)
		}
		out = append(out, e)
	}
	return out, nil
}

// demand turns the lack of a log entry into a refusal where entries are required.
func (c *checker) demand(entries []tlog.Inclusion, why error) error {
	if !c.log.Require || len(entries) > 0 {
		return nil
	}
	return fmt.Errorf("the signature verifies, but no trusted log (%s) holds it, so its key may have been used unseen: %w",
		strings.Join(c.log.Names(), ", "), why)
}

// reason is why there is no log entry, for reports.
func reason(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// mergeLog adds what a second copy of the same evidence proves.
func mergeLog(to *[]tlog.Inclusion, why *string, more []tlog.Inclusion) {
	for _, in := range more {
		if !slices.ContainsFunc(*to, func(o tlog.Inclusion) bool { return o.Log == in.Log && o.Index == in.Index }) {
			*to = append(*to, in)
		}
	}
	if len(*to) > 0 {
		*why = ""
	}
}

// logTrustJSON is a LogTrust as a trust file has it.
type logTrustJSON struct {
	Logs      []logJSON     `json:"logs,omitempty"`
	Witnesses []witnessJSON `json:"witnesses,omitempty"`
	Quorum    int           `json:"quorum,omitempty"`
	Require   bool          `json:"requireLog,omitempty"`
}

type logJSON struct {
	Name      string `json:"name"`
	Key       string `json:"key,omitempty"`
	PEM       string `json:"pem,omitempty"`
	Witnessed bool   `json:"witnessed,omitempty"`
}

type witnessJSON struct {
	Name string `json:"name"`
	Key  string `json:"key"`
}

// MarshalJSON implements json.Marshaler: keys by value, no files.
func (t LogTrust) MarshalJSON() ([]byte, error) {
	out := logTrustJSON{Quorum: t.Quorum, Require: t.Require}
	for _, l := range t.Logs {
		out.Logs = append(out.Logs, logJSON{Name: l.Name, Key: l.String()})
	}
	for _, r := range t.Rekor {
		out.Logs = append(out.Logs, logJSON{Name: r.Name, PEM: string(r.PEM()), Witnessed: r.Witnessed})
	}
	for _, w := range t.Witnesses {
		out.Witnesses = append(out.Witnesses, witnessJSON{w.Name, w.String()})
	}
	return json.Marshal(out)
}

// UnmarshalJSON implements json.Unmarshaler, as strictly as ParseTrust.
func (t *LogTrust) UnmarshalJSON(data []byte) error {
	if err := strictjson.Check(data, MaxTrust); err != nil {
		return err
	}
	m, err := strictjson.Object(data)
	if err != nil {
		return err
	}
	if err := strictjson.Only(m, logMembers()...); err != nil {
		return err
	}
	out, err := parseLogTrust(m, nil)
	if err != nil {
		return err
	}
	*t = out
	return nil
}

func logMembers() []string { return []string{"logs", "witnesses", "quorum", "requireLog"} }

// parseLogTrust reads the members of a trust file that are about logs.
func parseLogTrust(m map[string]json.RawMessage, read func(string) ([]byte, error)) (t LogTrust, err error) {
	names := map[string]bool{}
	own := func(name string) error {
		if name == "" {
			return errors.New("reading name: empty")
		}
		if names[name] {
			return fmt.Errorf("a second one named %q", name)
		}
		names[name] = true
		return nil
	}
	logs, err := optionalArray(m["logs"])
	if err != nil {
		return t, fmt.Errorf("reading logs: %w", err)
	}
	for i, raw := range logs {
		name, err := trustLog(raw, read, &t)
		if err == nil {
			err = own(name)
		}
		if err != nil {
			return t, fmt.Errorf("reading log %d: %w", i, err)
		}
	}
	witnesses, err := optionalArray(m["witnesses"])
	if err != nil {
		return t, fmt.Errorf("reading witnesses: %w", err)
	}
	for i, raw := range witnesses {
		w, err := trustWitness(raw)
		if err == nil {
			err = own(w.Name)
		}
		if err != nil {
			return t, fmt.Errorf("reading witness %d: %w", i, err)
		}
		t.Witnesses = append(t.Witnesses, w)
	}
	if m["quorum"] != nil {
		if err := json.Unmarshal(m["quorum"], &t.Quorum); err != nil || t.Quorum < 1 {
			return t, fmt.Errorf("reading quorum: want a number of witnesses, 1 or more, not %.20s", m["quorum"])
		}
	}
	switch string(m["requireLog"]) {
	case "", "false":
	case "true":
		t.Require = true
	default:
		return t, fmt.Errorf("reading requireLog: want true or false, not %.20s", m["requireLog"])
	}
	return t, t.check()
}

func optionalArray(raw json.RawMessage) ([]json.RawMessage, error) {
	if raw == nil {
		return nil, nil
	}
	return strictjson.Array(raw)
}

// trustLog reads one log and adds it.
func trustLog(raw json.RawMessage, read func(string) ([]byte, error), t *LogTrust) (string, error) {
	m, err := strictjson.Object(raw)
	if err != nil {
		return "", err
	}
	if err := strictjson.Only(m, "name", "key", "pem", "file", "trustedRoot", "witnessed"); err != nil {
		return "", err
	}
	text := map[string]string{}
	for _, k := range []string{"name", "key", "pem", "file", "trustedRoot"} {
		if m[k] == nil {
			continue
		}
		if text[k], err = strictjson.String(m[k]); err != nil {
			return "", fmt.Errorf("reading %s: %w", k, err)
		}
	}
	if n := len(text); n != 2 || m["name"] == nil {
		return "", errors.New("want a name and one of key (a tile log's), pem, file (a Rekor log's) and trustedRoot (Sigstore's)")
	}
	witnessed := false
	if m["witnessed"] != nil {
		if err := json.Unmarshal(m["witnessed"], &witnessed); err != nil {
			return "", fmt.Errorf("reading witnessed: %w", err)
		}
	}
	name := text["name"]
	for _, k := range []string{"file", "trustedRoot"} {
		if m[k] == nil {
			continue
		}
		if read == nil {
			return "", fmt.Errorf("%s %q: this trust cannot refer to files; use pem", k, text[k])
		}
		data, err := read(text[k])
		if err != nil {
			return "", fmt.Errorf("reading %s %q: %w", k, text[k], err)
		}
		text[k] = string(data)
	}
	var keys []tlog.RekorKey
	switch {
	case m["key"] != nil:
		if m["witnessed"] != nil {
			return "", errors.New("witnessed is said of Rekor logs; tile logs always must be, where there are witnesses")
		}
		k, err := tlog.ParseLogKey(text["key"])
		if err != nil {
			return "", err
		}
		k.Name = name
		t.Logs = append(t.Logs, k)
		return name, nil
	case m["trustedRoot"] != nil:
		if keys, err = tlog.ParseTrustedRoot([]byte(text["trustedRoot"])); err != nil {
			return "", err
		}
	default:
		k, err := tlog.ParseRekorKey(name, []byte(text["pem"]+text["file"]))
		if err != nil {
			return "", err
		}
		keys = []tlog.RekorKey{k}
	}
	for _, k := range keys {
		k.Witnessed = witnessed
		t.Rekor = append(t.Rekor, k)
	}
	return name, nil
}

func trustWitness(raw json.RawMessage) (tlog.WitnessKey, error) {
	m, err := strictjson.Object(raw)
	if err != nil {
		return tlog.WitnessKey{}, err
	}
	if err := strictjson.Only(m, "name", "key"); err != nil {
		return tlog.WitnessKey{}, err
	}
	name, err := strictjson.String(m["name"])
	if err != nil {
		return tlog.WitnessKey{}, fmt.Errorf("reading name: %w", err)
	}
	text, err := strictjson.String(m["key"])
	if err != nil {
		return tlog.WitnessKey{}, fmt.Errorf("reading key: %w", err)
	}
	k, err := tlog.ParseWitnessKey(text)
	k.Name = name
	return k, err
}
