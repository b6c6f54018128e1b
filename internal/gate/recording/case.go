package recording

import (
	"time"

	"assay.dev/assay/internal/gate"
	"assay.dev/assay/policy"
)

// Case is what a recording is of, beside what was read.
type Case struct {
	Trust    gate.Trust       `json:"trust"`
	Snapshot *policy.Snapshot `json:"snapshot,omitempty"`
	// Embedded is the registry that wanted no credentials.
	Embedded string `json:"embedded,omitempty"`
	// Now is when the judgement was made, EffectiveTime what it was as of (zero: Now,
	// or with AttestationTime each build's end).
	Now             time.Time `json:"now"`
	EffectiveTime   time.Time `json:"effectiveTime,omitzero"`
	AttestationTime bool      `json:"attestationTime,omitempty"`
	AllowPast       bool      `json:"allowPast,omitempty"`
	Destination     string    `json:"destination,omitempty"`
}

// Apply sets a gate up as the recorded one was, but for its policy.
func (r *Recording) Apply(g *gate.Gate) error {
	c := r.doc.Case
	if err := c.Trust.Apply(g); err != nil {
		return err
	}
	g.Embedded, g.AttestationTime, g.Tap = c.Embedded, c.AttestationTime, r.Tap
	g.Context = policy.Context{Now: c.Now, EffectiveTime: c.EffectiveTime, AllowPast: c.AllowPast, Destination: c.Destination}
	return nil
}
