package verify

import (
	"encoding/json"
	"strings"

	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/attest/strictjson"
)

// Omission is something that a reader of provenance may take for said.
type Omission struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

// Codes of omissions.
const (
	UnsaidSteps        = "steps"
	UnsaidActions      = "actions"
	UnsaidDependencies = "dependencies"
	UnsaidNetwork      = "network"
	UnsaidSecrets      = "secrets"
	UnsaidMachine      = "machine"
	UnsaidSubject      = "subject-origin"
	UnsaidOutcome      = "outcome"
	UnsaidTimes        = "times"
	UnsaidInputs       = "inputs"
	UnsaidRunner       = "runner"
)

// Unsaid lists what provenance of a GitHub workflow leaves open. It looks at what this
// statement holds, so a builder that says more has fewer. Nil where p is no provenance
// or the signer is no workflow of GitHub's.
func Unsaid(p predicate.Predicate, c *Certificate) []Omission {
	provenance, ok := p.(predicate.Provenance)
	if !ok || c == nil {
		return nil
	}
	if _, ok := workflowHost(c.Issuer); !ok {
		return nil
	}
	s := sayings(p)
	var out []Omission
	add := func(when bool, code, text string) {
		if when {
			out = append(out, Omission{code, text})
		}
	}
	add(!s.steps, UnsaidSteps, "what the workflow's steps did: it names the workflow, not what ran of it")
	add(!s.actions, UnsaidActions, "which actions ran, and at which commits")
	add(s.dependencies < 2, UnsaidDependencies, "what the build fetched besides its source: no other dependency is listed")
	add(true, UnsaidNetwork, "what the build could reach over the network, and what it sent there")
	add(true, UnsaidSecrets, "which secrets, caches and other jobs' files it could use")
	add(!s.machine, UnsaidMachine, "what was on the runner: the version of its image is not stated")
	add(!s.builds, UnsaidSubject, "that the artifact came out of this build: a step gave its digest to be signed")
	add(provenance.Outcome() == predicate.Unstated, UnsaidOutcome, "whether the run succeeded: it was signed before the run ended")
	add(!s.times, UnsaidTimes, "when the build started and ended")
	add(c.Trigger() == "workflow_dispatch" && !s.inputs, UnsaidInputs, "what it was given by hand: it was started so, and no inputs are listed")
	add(c.RunnerEnvironment == "" && !s.runner, UnsaidRunner, "on whose machine it ran")
	return out
}

// said is what is in a provenance.
type said struct {
	steps, actions, machine, builds, times, inputs, runner bool
	dependencies                                           int
}

func sayings(p predicate.Predicate) said {
	var s said
	var materials []predicate.Resource
	switch p := p.(type) {
	case *predicate.Provenance1:
		d := p.BuildDefinition
		materials = d.ResolvedDependencies
		m := p.RunDetails.Metadata
		s.times = m != nil && !m.StartedOn.IsZero() && !m.FinishedOn.IsZero()
		s.inputs = has(d.ExternalParameters["inputs"]) || has(d.ExternalParameters["workflow"], "inputs")
		s.runner = has(d.InternalParameters["github"], "runner_environment")
		s.machine = mentions(d.InternalParameters, "ImageVersion", "image_version", "RUNNER_IMAGE")
		s.builds = strings.HasPrefix(d.BuildType, "https://slsa.dev/container-based-build/")
	case *predicate.Provenance02:
		materials = p.Materials
		s.times = p.Metadata != nil && !p.Metadata.BuildStartedOn.IsZero() && !p.Metadata.BuildFinishedOn.IsZero()
		s.steps = has(p.BuildConfig, "steps")
		s.inputs = has(p.Invocation.Parameters, "event_inputs") || has(p.Invocation.Parameters)
		s.machine = has(p.Invocation.Environment, "os") || has(p.Invocation.Environment, "github_image_version")
		// Builders that make the artifact themselves list the commands.
		s.builds = s.steps
	case *predicate.Provenance01:
		materials = p.Materials
		s.times = p.Metadata != nil && !p.Metadata.BuildStartedOn.IsZero() && !p.Metadata.BuildFinishedOn.IsZero()
		s.inputs = has(p.Recipe.Arguments)
	}
	s.dependencies = len(materials)
	for _, m := range materials {
		if strings.Contains(m.URI, "/.github/actions/") || strings.Contains(m.Name, "action") {
			s.actions = true
		}
	}
	return s
}

// has says whether JSON holds something that is not empty, at a member where one is
// named.
func has(raw []byte, member ...string) bool {
	for _, name := range member {
		m, err := strictjson.Object(raw)
		if err != nil {
			return false
		}
		raw = m[name]
	}
	switch string(raw) {
	case "", "null", "{}", "[]", `""`:
		return false
	}
	return true
}

// mentions says whether one of the names is a member somewhere.
func mentions(parameters map[string]json.RawMessage, names ...string) bool {
	for key, raw := range parameters {
		for _, n := range names {
			if key == n || strings.Contains(string(raw), `"`+n+`"`) {
				return true
			}
		}
	}
	return false
}
