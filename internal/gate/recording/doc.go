// Package recording keeps everything that a verdict was made of, so that the same
// verdict can be made again: offline, and years later.
//
//	gate ──▶ Recorder ──▶ cache ──▶ registries        gate ──▶ Recording
//	            │                                                  ▲
//	            └──▶ DIR/blobs/sha256/…, DIR/recording.json ───────┘
//
// A Recorder is an http.RoundTripper above the cache and above whatever signs in to
// registries: it sees each thing as readers do, once, and never a credential. With
// the answers go the policy (configuration, rules, data, the keys that it names), whom
// the gate believed (keys, identities, trusted roots, logs), the snapshot, and the
// instants: of verification, of the judgement, and the effective time. A failure is an
// answer too: an image that could not be checked cannot be checked in the recording
// either, for the same reason.
//
// Contents are files named by their digest. Open reads every one of them and refuses a
// recording of which one differs, is missing or was added, by name; recording.json
// itself is held against the digest beside it, and against the one that Close returned
// if the caller kept that: only this tells a recording that was replaced as a whole.
//
// What it does not do: keep what was too large to be read (the gate did not read it
// either), or record the clock, the versions of programs, or what a terminal showed.
package recording

import "regexp"

// Format names the layout; others are refused.
const Format = "assay-recording/v1"

// Files of a recording.
const (
	mainFile   = "recording.json"
	digestFile = "recording.sha256"
	blobFolder = "blobs/sha256"
)

// Bounds of what is read back.
const (
	maxMain     = 256 << 20
	maxInMemory = 512 << 20
)

var digestForm = regexp.MustCompile(`^sha256:[a-f0-9]{64}$`)

// document is recording.json.
type document struct {
	Format   string    `json:"format"`
	Case     Case      `json:"case"`
	Policy   files     `json:"policy"`
	Requests []request `json:"requests"`
}

// request is one thing that was asked for, and what came of it.
type request struct {
	Method string              `json:"method"`
	URL    string              `json:"url"`
	Range  string              `json:"range,omitempty"`
	Status int                 `json:"status,omitempty"`
	Header map[string][]string `json:"header,omitempty"`
	Body   string              `json:"body,omitempty"` // digest of what was read
	Length int64               `json:"length"`         // as the answer said; -1: it did not
	// Cut is why reading ended before the body did: an error, or that the reader had
	// seen enough.
	Cut string `json:"cut,omitempty"`
	// Error is why there was no answer.
	Error string `json:"error,omitempty"`
}

// enough is the Cut of a body whose reader stopped.
const enough = "reader stopped"

func (r *request) key() string { return r.Method + " " + r.URL + " " + r.Range }

// final says that asking again would have changed nothing.
func (r *request) final() bool {
	return r.Error == "" && r.Status < 500 && r.Status != 429 && r.Status != 408
}

// files are what a policy was loaded from.
type files struct {
	// Ref is what names the policy: an absolute path, an address, or its text.
	Ref     string `json:"ref,omitempty"`
	Digest  string `json:"digest,omitempty"`
	Sources []tree `json:"sources,omitempty"`
	// Files are configurations and keys, by the absolute path they were read at.
	Files []content `json:"files,omitempty"`
	// Data are --data files in order; what counts of their paths is the last element.
	Data []content `json:"data,omitempty"`
	// Resources are objects of a cluster and Keys public keys at addresses.
	Resources []content         `json:"resources,omitempty"`
	Keys      []content         `json:"keys,omitempty"`
	RuleData  map[string]string `json:"ruleData,omitempty"`
}

// tree is a source.
type tree struct {
	Asked   string    `json:"asked"`
	Address string    `json:"address"`
	Pinned  string    `json:"pinned"`
	Digest  string    `json:"digest"`
	Path    string    `json:"path,omitempty"` // of one on this machine
	File    bool      `json:"file,omitempty"` // it is one file
	Files   []content `json:"files"`
}

// content is a named piece of a policy.
type content struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
}
