package observer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"assay.dev/assay/api"
	"assay.dev/assay/attest"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/internal/channel"
	"assay.dev/assay/internal/registry"
	"assay.dev/assay/ledger"
	"assay.dev/assay/observe"
	"assay.dev/assay/provenance"
	"assay.dev/assay/store"
)

// ErrNoSubject is what a run gets that claims artifacts of which none is its
// own: no provenance, since there is nothing it could be about.
var ErrNoSubject = errors.New("no claimed artifact is this run's own")

// Notary makes, signs and stores the statements of executed runs.
type Notary struct {
	Signer       attest.Signer // the key for executed runs
	PublicKey    string        // its public half's file, told to the launcher
	Instance     string
	RegistryName string
	Bundles      Bundles
	// Uploads is what the registry remembers of a run.
	Uploads func(run string) ([]registry.Upload, error)
	// Head describes a manifest; it goes to the registry.
	Head func(ctx context.Context, ref string) (v1.Descriptor, error)
	// Store keeps evidence in a repository.
	Store func(repo string) (store.Store, error)
	// Logbook is the transparency log that evidence is put into before it is stored;
	// nil: there is none.
	Logbook Logbook
	Log     *slog.Logger
}

var _ Statements = (*Notary)(nil)

// State compares, checks, states, signs, logs and stores, in this order. An error
// leaves the run unsigned; evidence that was stored before a later store failed
// is the same evidence a second try makes. Nothing is stored that was not logged
// where there is a log: one that is down delays.
func (n *Notary) State(ctx context.Context, rec *ledger.Record, s channel.State) (*channel.Stated, error) {
	if rec.Ending.Outcome != ledger.Succeeded {
		return nil, fmt.Errorf("run %s %s: only a run that succeeded is attested", s.Run, rec.Ending.Outcome)
	}
	r, err := collect(rec)
	if err != nil {
		return nil, err
	}
	a, err := agree(r, s)
	if err != nil {
		return nil, err
	}
	refs, pipeline, err := checkRefs(ctx, n.Bundles, a)
	if err != nil {
		return nil, err
	}
	uploads, err := n.Uploads(s.Run)
	if err != nil {
		return nil, err
	}
	// Manifests only: a blob that somebody pushed is no image.
	uploads = slices.DeleteFunc(uploads, func(u registry.Upload) bool { return u.MediaType == "" })
	repo := repository(n.RegistryName, s.Run)
	c := check(a, repo, uploads)
	for _, f := range c.failed() {
		n.Log.Warn("claim failed", "run", s.Run, "task", f.TaskRun, "field", f.Field, "value", f.Value, "reason", f.Reason)
	}
	builder := api.BuilderID(api.Executed, api.KeySeparation(rec.Admission.KeySeparation), n.Instance)
	out := &channel.Stated{Claims: c.list, Builder: builder, Key: n.PublicKey, Subjects: []string{}, Payloads: []observe.Payload{}}

	if c.outputs == 0 {
		return out, nil // the run claims nothing; there is nothing to attest
	}
	format := provenance.InToto
	if s.Format != "" {
		format = provenance.Format(s.Format)
	}
	cfg, err := provenance.ParseConfig(map[string]string{
		"builder.id": builder,
		"artifacts.pipelinerun.enable-deep-inspection": "true",
	})
	if err != nil {
		return nil, err
	}
	payload, err := provenance.Statement(a.in, cfg, format, c.options())
	if errors.Is(err, provenance.ErrNoSubjects) {
		var reasons []string
		for _, f := range c.failed() {
			reasons = append(reasons, fmt.Sprintf("%s %s: %s", f.Field, f.Value, f.Reason))
		}
		return nil, fmt.Errorf("%w: %s", ErrNoSubject, strings.Join(reasons, "; "))
	}
	if err != nil {
		return nil, err
	}
	subjects, err := subjectsOf(payload)
	if err != nil {
		return nil, err
	}
	if len(subjects) == 0 {
		return nil, ErrNoSubject
	}
	obs := observation(a, c, refs, pipeline, uploads, builder)
	obs.Provenance = []observe.Payload{{PredicateType: predicateOf(format), Digest: digest(payload)}}
	obsPayload, err := observationStatement(subjects, obs)
	if err != nil {
		return nil, err
	}
	list, err := n.sign(ctx, subjects, payload, obsPayload)
	if err != nil {
		return nil, err
	}
	if err := logAll(ctx, n.Logbook, list); err != nil {
		return nil, err
	}
	out.Payloads = append(obs.Provenance, observe.Payload{PredicateType: api.PredicateObservation, Digest: digest(obsPayload)})
	for _, e := range list {
		if err := n.put(ctx, e); err != nil {
			return nil, fmt.Errorf("storing evidence for %s: %w", e.subject.Repo, err)
		}
		out.Subjects = append(out.Subjects, e.subject.Ref())
	}
	return out, nil
}

// evidence is what is kept about one image; pieces may be shared with others.
type evidence struct {
	subject store.Subject
	pieces  []*store.Evidence
}

// sign makes signature, provenance and observation of each image, in this order.
func (n *Notary) sign(ctx context.Context, subjects []subject, payloads ...[]byte) ([]evidence, error) {
	key, err := dsse.NewPublicKey(n.Signer.Public())
	if err != nil {
		return nil, err
	}
	var statements []*store.Evidence
	for _, p := range payloads {
		env, err := attest.Statement(ctx, n.Signer, p)
		if err != nil {
			return nil, err
		}
		statements = append(statements, &store.Evidence{Envelope: env, Key: key})
	}
	var out []evidence
	for _, sub := range subjects {
		d := "sha256:" + sub.Digest["sha256"]
		desc, err := n.Head(ctx, sub.Name+"@"+d)
		if err != nil {
			return nil, fmt.Errorf("storing evidence for %s: %w", sub.Name, err)
		}
		sig, err := attest.Image(ctx, n.Signer, sub.Name, d)
		if err != nil {
			return nil, err
		}
		image := &store.Evidence{Envelope: sig.Envelope, Simple: &store.Simple{Payload: sig.Payload, Sig: sig.Sig}, Key: key}
		out = append(out, evidence{
			store.Subject{Repo: sub.Name, Digest: d, MediaType: string(desc.MediaType), Size: desc.Size},
			append([]*store.Evidence{image}, statements...),
		})
	}
	return out, nil
}

// put stores what belongs to one image.
func (n *Notary) put(ctx context.Context, e evidence) error {
	st, err := n.Store(e.subject.Repo)
	if err != nil {
		return err
	}
	var list []store.Evidence
	for _, p := range e.pieces {
		list = append(list, *p)
	}
	_, err = st.Put(ctx, e.subject, list...)
	return err
}

type subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// subjectsOf reads back what was stated, so that nothing is signed about a
// digest that the statement does not name.
func subjectsOf(statement []byte) ([]subject, error) {
	var s struct {
		Subject []subject `json:"subject"`
	}
	if err := json.Unmarshal(statement, &s); err != nil {
		return nil, fmt.Errorf("reading back the statement: %w", err)
	}
	for _, sub := range s.Subject {
		if len(sub.Digest["sha256"]) != 64 {
			return nil, fmt.Errorf("subject %s has no sha256 digest", sub.Name)
		}
	}
	return s.Subject, nil
}

func observationStatement(subjects []subject, o *observe.Observation) ([]byte, error) {
	return json.Marshal(struct {
		Type          string               `json:"_type"`
		Subject       []subject            `json:"subject"`
		PredicateType string               `json:"predicateType"`
		Predicate     *observe.Observation `json:"predicate"`
	}{api.StatementV1, subjects, api.PredicateObservation, o})
}

func predicateOf(f provenance.Format) string {
	switch f {
	case provenance.SLSAv2alpha3, provenance.SLSAv2alpha4:
		return api.PredicateSLSAv1
	}
	return api.PredicateSLSAv02
}
