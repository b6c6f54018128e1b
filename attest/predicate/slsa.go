package predicate

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/strictjson"
)

// Builder is who made an artifact.
type Builder struct {
	ID      string            `json:"id"`
	Version map[string]string `json:"version,omitempty"`
	// BuilderDependencies is v1's.
	BuilderDependencies []Resource `json:"builderDependencies,omitempty"`
}

// Resource is in-toto's ResourceDescriptor, and SLSA v0's material.
type Resource struct {
	URI              string                     `json:"uri,omitempty"`
	Digest           map[string]string          `json:"digest,omitempty"`
	Name             string                     `json:"name,omitempty"`
	DownloadLocation string                     `json:"downloadLocation,omitempty"`
	MediaType        string                     `json:"mediaType,omitempty"`
	Content          []byte                     `json:"content,omitempty"`
	Annotations      map[string]json.RawMessage `json:"annotations,omitempty"`
}

// Metadata are the times of a run, v0.1 and v0.2.
type Metadata struct {
	BuildInvocationID string    `json:"buildInvocationID,omitempty"`
	BuildStartedOn    time.Time `json:"buildStartedOn,omitzero"`
	BuildFinishedOn   time.Time `json:"buildFinishedOn,omitzero"`
	Reproducible      bool      `json:"reproducible,omitempty"`
}

// UnmarshalJSON implements json.Unmarshaler. npm, GitHub's generator and Chains spell
// the id differently: both spellings are read, not at once.
func (m *Metadata) UnmarshalJSON(data []byte) error {
	members, err := strictjson.Object(data)
	if err != nil {
		return err
	}
	return readMetadata(members, "buildInvocation", &m.BuildInvocationID, map[string]any{
		"buildStartedOn": &m.BuildStartedOn, "buildFinishedOn": &m.BuildFinishedOn, "reproducible": &m.Reproducible,
	})
}

// RunMetadata are the times of a run, v1.
type RunMetadata struct {
	InvocationID string    `json:"invocationId,omitempty"`
	StartedOn    time.Time `json:"startedOn,omitzero"`
	FinishedOn   time.Time `json:"finishedOn,omitzero"`
}

// UnmarshalJSON implements json.Unmarshaler. The specification has invocationId; what
// is made with in-toto's Go types, by Tekton Chains for one, has invocationID.
func (m *RunMetadata) UnmarshalJSON(data []byte) error {
	members, err := strictjson.Object(data)
	if err != nil {
		return err
	}
	return readMetadata(members, "invocation", &m.InvocationID, map[string]any{"startedOn": &m.StartedOn, "finishedOn": &m.FinishedOn})
}

// readMetadata reads the members that a type knows; id is the name of one without its
// ending, which is spelt in two ways. A time may be empty: so some writers say that
// they do not know it.
func readMetadata(members map[string]json.RawMessage, id string, into *string, known map[string]any) error {
	if members[id+"ID"] != nil && members[id+"Id"] != nil {
		return fmt.Errorf("at [metadata]: both %[1]sID and %[1]sId", id)
	}
	known[id+"ID"], known[id+"Id"] = into, into
	for name, raw := range members {
		v, ok := known[name]
		if _, when := v.(*time.Time); !ok || when && string(raw) == `""` {
			for other := range known {
				if !ok && strings.EqualFold(other, name) {
					return fmt.Errorf("at [metadata]: member %q differs from %q in case alone", name, other)
				}
			}
			continue
		}
		if err := json.Unmarshal(raw, v); err != nil {
			return fmt.Errorf("at [metadata %s]: %w", name, err)
		}
	}
	return nil
}

// ConfigSource is where v0.2's build definition came from.
type ConfigSource struct {
	URI        string            `json:"uri,omitempty"`
	Digest     map[string]string `json:"digest,omitempty"`
	EntryPoint string            `json:"entryPoint,omitempty"`
}

// Index is the place of something in a list, or -1 for none. Some writers put it in
// quotes.
type Index int

// UnmarshalJSON implements json.Unmarshaler.
func (i *Index) UnmarshalJSON(data []byte) error {
	n, err := strconv.Atoi(strings.Trim(string(data), `"`))
	if err != nil || n < -1 || n > 1<<20 {
		return fmt.Errorf("%.40s is no place in a list", data)
	}
	*i = Index(n)
	return nil
}

// Provenance01 is SLSA provenance v0.1.
type Provenance01 struct {
	Builder Builder `json:"builder"`
	Recipe  struct {
		Type              string          `json:"type"`
		DefinedInMaterial *Index          `json:"definedInMaterial,omitempty"`
		EntryPoint        string          `json:"entryPoint,omitempty"`
		Arguments         json.RawMessage `json:"arguments,omitempty"`
		Environment       json.RawMessage `json:"environment,omitempty"`
	} `json:"recipe"`
	Metadata  *Metadata  `json:"metadata,omitempty"`
	Materials []Resource `json:"materials,omitempty"`
}

// Type implements Predicate.
func (*Provenance01) Type() string { return SLSAv01 }

// BuilderID implements Provenance.
func (p *Provenance01) BuilderID() string { return p.Builder.ID }

func (p *Provenance01) check() error {
	if p.Builder.ID == "" {
		return missing("builder id")
	}
	if p.Recipe.Type == "" {
		return missing("recipe type")
	}
	if i := p.Recipe.DefinedInMaterial; i != nil && int(*i) >= len(p.Materials) {
		return fmt.Errorf("at [recipe definedInMaterial]: %d of %d materials", *i, len(p.Materials))
	}
	return nil
}

// Source implements Provenance: the material that the recipe names, or the only one.
func (p *Provenance01) Source() Source {
	switch i := p.Recipe.DefinedInMaterial; {
	case i != nil && *i >= 0:
		return sourceOf(p.Materials[*i].URI, p.Materials[*i].Digest)
	case len(p.Materials) == 1:
		return sourceOf(p.Materials[0].URI, p.Materials[0].Digest)
	}
	return Source{}
}

// Outcome implements Provenance. Google Cloud Build tells the state of each step.
func (p *Provenance01) Outcome() Outcome {
	var a struct {
		Steps []struct {
			Status string `json:"status"`
		} `json:"steps"`
	}
	if strictjson.Kind(p.Recipe.Arguments) != "object" || json.Unmarshal(p.Recipe.Arguments, &a) != nil || len(a.Steps) == 0 {
		return Unstated
	}
	out := Succeeded
	for _, s := range a.Steps {
		out = worse(out, map[string]Outcome{
			"SUCCESS": Succeeded, "": Unstated, "QUEUED": Unfinished, "WORKING": Unfinished, "PENDING": Unfinished,
			"FAILURE": Failed, "INTERNAL_ERROR": Failed, "TIMEOUT": Failed, "CANCELLED": Failed, "EXPIRED": Failed,
		}, s.Status)
	}
	return out
}

// worse is the outcome of several: one failure is a failure. A word that is not
// known says nothing.
func worse(so Outcome, words map[string]Outcome, word string) Outcome {
	this, ok := words[word]
	if !ok {
		this = Unstated
	}
	for _, o := range []Outcome{Failed, Unfinished, Unstated} {
		if so == o || this == o {
			return o
		}
	}
	return Succeeded
}

// Provenance02 is SLSA provenance v0.2.
type Provenance02 struct {
	Builder    Builder `json:"builder"`
	BuildType  string  `json:"buildType"`
	Invocation struct {
		ConfigSource ConfigSource    `json:"configSource,omitzero"`
		Parameters   json.RawMessage `json:"parameters,omitempty"`
		Environment  json.RawMessage `json:"environment,omitempty"`
	} `json:"invocation,omitzero"`
	BuildConfig json.RawMessage `json:"buildConfig,omitempty"`
	Metadata    *Metadata       `json:"metadata,omitempty"`
	Materials   []Resource      `json:"materials,omitempty"`
}

// Type implements Predicate.
func (*Provenance02) Type() string { return api.PredicateSLSAv02 }

// BuilderID implements Provenance.
func (p *Provenance02) BuilderID() string { return p.Builder.ID }

func (p *Provenance02) check() error {
	if p.Builder.ID == "" {
		return missing("builder id")
	}
	if p.BuildType == "" {
		return missing("buildType")
	}
	return nil
}

// Source implements Provenance.
func (p *Provenance02) Source() Source {
	return sourceOf(p.Invocation.ConfigSource.URI, p.Invocation.ConfigSource.Digest)
}

// Outcome implements Provenance. Tekton Chains and Assay tell the state of each
// task; a run that has started and not ended is unfinished.
func (p *Provenance02) Outcome() Outcome {
	var c struct {
		Tasks []struct {
			Status string `json:"status"`
		} `json:"tasks"`
	}
	if strictjson.Kind(p.BuildConfig) == "object" && json.Unmarshal(p.BuildConfig, &c) == nil && len(c.Tasks) > 0 {
		out := Succeeded
		for _, t := range c.Tasks {
			out = worse(out, map[string]Outcome{"Succeeded": Succeeded, "Failed": Failed, "Running": Unfinished}, t.Status)
		}
		if out != Succeeded {
			return out
		}
		if m := p.Metadata; m == nil || m.BuildFinishedOn.IsZero() {
			return Unfinished
		}
		return Succeeded
	}
	if m := p.Metadata; strings.HasPrefix(p.BuildType, "tekton.dev/") && m != nil && !m.BuildStartedOn.IsZero() && m.BuildFinishedOn.IsZero() {
		return Unfinished
	}
	return Unstated
}

// Provenance1 is SLSA provenance v1, with the members of 1.1 and 1.2.
type Provenance1 struct {
	BuildDefinition struct {
		BuildType            string                     `json:"buildType"`
		ExternalParameters   map[string]json.RawMessage `json:"externalParameters"`
		InternalParameters   map[string]json.RawMessage `json:"internalParameters,omitempty"`
		ResolvedDependencies []Resource                 `json:"resolvedDependencies,omitempty"`
	} `json:"buildDefinition"`
	RunDetails struct {
		Builder    Builder      `json:"builder"`
		Metadata   *RunMetadata `json:"metadata,omitempty"`
		Byproducts []Resource   `json:"byproducts,omitempty"`
	} `json:"runDetails"`
}

// Type implements Predicate.
func (*Provenance1) Type() string { return api.PredicateSLSAv1 }

// BuilderID implements Provenance.
func (p *Provenance1) BuilderID() string { return p.RunDetails.Builder.ID }

func (p *Provenance1) check() error {
	if p.RunDetails.Builder.ID == "" {
		return missing("runDetails builder id")
	}
	if p.BuildDefinition.BuildType == "" {
		return missing("buildDefinition buildType")
	}
	return nil
}

// Source implements Provenance: GitHub's workflow, the source of container-based
// builds, or the dependency that both agree to be first.
func (p *Provenance1) Source() Source {
	d := p.BuildDefinition
	var w struct {
		Ref        string `json:"ref"`
		Repository string `json:"repository"`
	}
	named := d.ExternalParameters["workflow"]
	if named == nil {
		named = d.ExternalParameters["buildConfigSource"] // Google Cloud Build's
	}
	if json.Unmarshal(named, &w) == nil && w.Repository != "" {
		s := sourceOf(w.Repository, nil)
		s.Ref = w.Ref
		for _, r := range d.ResolvedDependencies {
			if of := sourceOf(r.URI, r.Digest); of.Repository == s.Repository {
				s.Commit = of.Commit
				break
			}
		}
		return s
	}
	var r Resource
	if strictjson.Kind(d.ExternalParameters["source"]) == "object" && json.Unmarshal(d.ExternalParameters["source"], &r) == nil && r.URI != "" {
		return sourceOf(r.URI, r.Digest)
	}
	for _, r := range d.ResolvedDependencies {
		if strings.HasPrefix(r.URI, "git+") || r.Digest["gitCommit"] != "" {
			return sourceOf(r.URI, r.Digest)
		}
	}
	return Source{}
}

// Outcome implements Provenance. A run of Tekton that has started and not ended is
// unfinished; nothing in the format tells a success.
func (p *Provenance1) Outcome() Outcome {
	if m := p.RunDetails.Metadata; strings.HasPrefix(p.BuildDefinition.BuildType, "https://tekton.dev/") && m != nil && !m.StartedOn.IsZero() && m.FinishedOn.IsZero() {
		return Unfinished
	}
	return Unstated
}

// sourceOf splits git+https://host/owner/name[.git]@ref.
func sourceOf(uri string, digest map[string]string) Source {
	s := Source{Repository: strings.TrimPrefix(uri, "git+")}
	// An @ before the host's slash is a user's.
	if i := strings.LastIndex(s.Repository, "@"); i > strings.Index(s.Repository, "://")+2 && strings.Contains(s.Repository[:i], "/") {
		s.Repository, s.Ref = s.Repository[:i], s.Repository[i+1:]
	}
	// Google's spellings: …/commit/SHA, and gs://…#GENERATION.
	if at, commit, ok := strings.Cut(s.Repository, "/commit/"); ok && commit != "" && strings.Trim(commit, "0123456789abcdef") == "" {
		s.Repository, s.Commit = at, commit
	}
	if strings.HasPrefix(s.Repository, "gs://") {
		s.Repository, _, _ = strings.Cut(s.Repository, "#")
	}
	s.Repository = strings.TrimSuffix(s.Repository, ".git")
	for _, algorithm := range []string{"gitCommit", "sha1"} {
		if s.Commit == "" {
			s.Commit = digest[algorithm]
		}
	}
	return s
}
