// Package provenance turns the record of a finished run into the in-toto
// statement that says how its artifacts came to be. For the same Tekton objects
// and settings it states what Tekton Chains states, value by value, so whoever
// reads the one reads the other.
//
//	Load ─▶ Input ─┐
//	               ├─▶ Statement      in-toto, slsa/v1: SLSA provenance v0.2
//	ParseConfig ───┘                  slsa/v2alpha3, slsa/v2alpha4: v1.0
//	        Input ───▶ SimpleSigning  one payload per image of a TaskRun
//
// Everything here is a pure function of its arguments: no clock, no network, no
// key, and the objects handed in are only read. The same input gives the same
// bytes. Where upstream's answer depends on the iteration order of a map, ours
// is the declared order of results.
//
// What a run claims to have made comes from package hint and is believed by
// default, as upstream believes it. Whoever knows better, as the observer does
// of runs it watched step by step, says with Options which claims to keep.
//
// Deliberate differences from upstream:
//
//   - A child that finished without ever starting makes upstream crash; here it
//     is stated without startedOn.
//   - A child that cannot be written as JSON is skipped upstream under
//     buildType slsa-tekton, images and all; here it is an error.
//   - Configuration is parsed strictly: what upstream silently ignores, unknown
//     keys and words for a boolean, is an error, and so is an empty builder.id,
//     and a back end or key that is used and not said where to find.
//   - The tasks that a task came after are in the order of the keys where a
//     parameter is an object; upstream's order is random there.
//   - Objects with a field given twice are refused.
//   - Statements never change the objects they are made of.
//
// Each wire version has its file: slsa02.go, slsa1.go and what distinguishes
// its two forms in v2alpha3.go and v2alpha4.go, simplesigning.go.
package provenance

import (
	"errors"
	"fmt"

	"assay.dev/assay/hint"
)

// Format names a wire version, in chains-config's words.
type Format string

const (
	InToto        Format = "in-toto"       // SLSA v0.2
	SLSAv1        Format = "slsa/v1"       // the same; an alias, whatever its name suggests
	SLSAv2alpha3  Format = "slsa/v2alpha3" // SLSA v1.0
	SLSAv2alpha4  Format = "slsa/v2alpha4" // SLSA v1.0 with StepActions and isBuildArtifact
	Simplesigning Format = "simplesigning" // images; see SimpleSigning
)

// ErrNoSubjects is returned by Statement when Options.Keep refused every
// subject: there is nothing left that a provenance could be about.
var ErrNoSubjects = errors.New("no subject left: every claim of an output was refused")

// Options narrow what a statement says. The zero value states every claim.
type Options struct {
	// Keep decides about each claim of an output before claims of the same
	// subject are merged, so that an unchecked digest cannot ride along with a
	// checked one. Nil keeps all.
	Keep func(Subject) bool
	// KeepInput decides likewise about each claim of an input: git commits and
	// *ARTIFACT_INPUTS. Images of steps and sources of definitions come from
	// the status, not from hints, and always stay. Nil keeps all.
	KeepInput func(hint.Claim) bool
}

// Subject is one claim of an output as it would be stated.
type Subject struct {
	Name   string
	Digest hint.Digest
	Claim  hint.Claim // where it comes from
}

// Statement writes the in-toto statement about in as one line of JSON. Format
// decides the wire version; it is the caller's to choose, since config carries
// one for TaskRuns and one for PipelineRuns (see Config.Format).
//
// It fails for a zero Input or Config, an unknown format, a step or sidecar
// whose image id carries no digest (the step never started, or its image was
// not recorded), values no statement can carry, and with ErrNoSubjects.
func Statement(in Input, cfg Config, format Format, opts Options) ([]byte, error) {
	if err := in.check(); err != nil {
		return nil, fmt.Errorf("stating provenance: %w", err)
	}
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("stating provenance: %w", err)
	}
	s := &statement{cfg: cfg, opts: opts, run: newRun(in)}
	var err error
	switch format {
	case InToto, SLSAv1:
		err = s.slsa02()
	case SLSAv2alpha3:
		err = s.v2alpha3()
	case SLSAv2alpha4:
		err = s.v2alpha4()
	case Simplesigning:
		err = errors.New("format simplesigning is no statement; it is written per image by SimpleSigning")
	default:
		err = fmt.Errorf("unknown format %q; accepted: %s, %s, %s, %s", format, InToto, SLSAv1, SLSAv2alpha3, SLSAv2alpha4)
	}
	if err == nil {
		err = s.enc.err
	}
	if err != nil {
		return nil, fmt.Errorf("stating provenance of %s %s: %w", s.run.kind, s.run.meta.Name, err)
	}
	return s.enc.buf, nil
}

// statement is the making of one statement.
type statement struct {
	cfg  Config
	opts Options
	run  *run
	enc  encoder
	// values holds what byproducts say, one behind the other.
	values []byte
}
