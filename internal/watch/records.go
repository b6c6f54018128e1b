package watch

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/internal/watch/scan"
	"assay.dev/assay/provenance"
	"assay.dev/assay/store"
)

// want is one record that a run calls for, not signed yet.
type want struct {
	record   store.Record
	artifact provenance.ArtifactConfig
}

// message is what is signed.
func (w want) message() []byte {
	if w.record.Statement != nil {
		return dsse.PAE(store.PayloadType, w.record.Payload)
	}
	return w.record.Payload
}

// refusal is a part of a run that cannot be stated, ever: the rest goes on.
type refusal struct {
	what string // for metrics: payload_creation, storage, …
	why  string
}

// recordsOf lists what there is to sign about a run, a pure function of run and
// settings. What cannot be stated is refused and costs only itself.
//
// Images are those of the run's TaskRuns: a TaskRun's own; a PipelineRun's
// where its TaskRuns are not processed one by one.
func recordsOf(in provenance.Input, cfg provenance.Config, p plan) (wants []want, refusals []refusal) {
	run, artifact := runOf(in), cfg.TaskRuns
	if in.PipelineRun != nil {
		artifact = cfg.PipelineRuns
	}
	if artifact.Enabled() {
		w, err := statement(in, cfg, artifact, run)
		if err != nil {
			refusals = append(refusals, refusal{"payload_creation", err.Error()})
		} else {
			wants = append(wants, w)
		}
	}
	if !cfg.OCI.Enabled() {
		return wants, refusals
	}
	var of []*v1.TaskRun
	switch {
	case in.TaskRun != nil:
		of = []*v1.TaskRun{in.TaskRun}
	case p.taskRuns != allTaskRuns:
		of = in.Children
	}
	seen := map[string]bool{}
	for _, tr := range of {
		images, err := provenance.SimpleSigning(provenance.OfTaskRun(tr), provenance.Options{})
		if err != nil {
			refusals = append(refusals, refusal{"payload_creation", fmt.Sprintf("images of TaskRun %s: %v", tr.Name, err)})
			continue
		}
		account := run
		account.ServiceAccount = tr.Spec.ServiceAccountName
		for _, img := range images {
			if seen[img.FullKey] {
				continue
			}
			seen[img.FullKey] = true
			wants = append(wants, want{artifact: cfg.OCI, record: store.Record{
				Run: account, Key: img.ShortKey, Format: string(provenance.Simplesigning),
				Payload: img.Payload, Image: img.FullKey,
			}})
		}
	}
	return wants, refusals
}

func runOf(in provenance.Input) store.Run {
	if tr := in.TaskRun; tr != nil {
		return store.Run{APIVersion: "tekton.dev/v1", Kind: "TaskRun", Namespace: tr.Namespace, Name: tr.Name,
			UID: string(tr.UID), ServiceAccount: tr.Spec.ServiceAccountName}
	}
	pr := in.PipelineRun
	return store.Run{APIVersion: "tekton.dev/v1", Kind: "PipelineRun", Namespace: pr.Namespace, Name: pr.Name,
		UID: string(pr.UID), ServiceAccount: pr.Spec.TaskRunTemplate.ServiceAccountName}
}

func statement(in provenance.Input, cfg provenance.Config, a provenance.ArtifactConfig, run store.Run) (w want, err error) {
	// Formatters read objects that strangers may have written. One run that
	// makes them panic must not take the others with it.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("stating provenance of %s: the formatter cannot read this run: %v", run, p)
		}
	}()
	payload, err := provenance.Statement(in, cfg, a.Format, provenance.Options{})
	if err != nil {
		return want{}, err
	}
	s, err := readStatement(payload)
	if err != nil {
		return want{}, err
	}
	key := "taskrun-" + run.UID
	if in.PipelineRun != nil {
		key = "pipelinerun-" + run.UID
	}
	return want{artifact: a, record: store.Record{
		Run: run, Key: key, Format: string(a.Format), Payload: payload, Statement: s,
	}}, nil
}

// readStatement reads a statement of our own making, in one pass. Package intoto
// reads strangers' and is stricter: it refuses a statement without subjects,
// which Chains writes for a run that made nothing.
func readStatement(payload []byte) (*intoto.Statement, error) {
	s := &intoto.Statement{}
	var subjects []byte
	c := scan.New(payload)
	err := c.Object(func(key []byte) (err error) {
		switch string(key) {
		case "_type":
			return c.String(&s.Type)
		case "predicateType":
			return c.String(&s.PredicateType)
		case "subject":
			subjects, err = c.Raw()
		case "predicate":
			var raw []byte
			raw, err = c.Raw()
			s.Predicate = raw
		default:
			err = c.Skip()
		}
		return err
	})
	var list []struct {
		Name   string            `json:"name"`
		Digest map[string]string `json:"digest"`
	}
	if err == nil && len(subjects) > 0 {
		err = json.Unmarshal(subjects, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("reading back the statement: %w", err)
	}
	for _, sub := range list {
		s.Subjects = append(s.Subjects, intoto.Subject{Name: sub.Name, Digest: sub.Digest})
	}
	return s, nil
}

// made is a record in the making, kept from one attempt to the next so that no
// attempt does again what another has done.
type made struct {
	want
	digest    [32]byte // of the payload
	logged    bool
	confirmed []string // back ends that have it
	// annotations that the back end on the object itself asks for.
	annotations map[string]string
	skipped     []string
	// elsewhere says why the annotations went without it.
	elsewhere string
	fatal     *refusal // why it can never be signed or kept
	unlogged  *refusal // why it can never be logged; it is kept all the same
}

func (m *made) has(keeper string) bool { return slices.Contains(m.confirmed, keeper) }

// memo is what was made of one run so far. Made under the same settings and with
// its payloads at hand, it is taken up where the last attempt left it; otherwise
// the run is read and stated again, and what comes out equal counts as made.
type memo struct {
	records []*made
	// session and the rest below are what the records came of.
	session  *session
	refusals []refusal
	notes    map[string]string
	whole    bool   // payloads are at hand
	told     string // kind of trouble that the run's owner was told of last
}

// size is how many bytes of payload it holds.
func (m *memo) size() int {
	if m == nil || !m.whole {
		return 0
	}
	n := 0
	for _, r := range m.records {
		n += len(r.record.Payload)
	}
	return n
}

// take returns a record as it was made before, or begins one. What was made of
// another payload, before a change of settings say, counts for nothing.
func (m *memo) take(w want) *made {
	digest := sha256.Sum256(w.record.Payload)
	for _, old := range m.records {
		r := old.record
		if r.Key != w.record.Key || r.Image != w.record.Image || old.digest != digest ||
			r.Format != w.record.Format || !slices.Equal(old.artifact.Signers, w.artifact.Signers) || old.artifact.Signer != w.artifact.Signer {
			continue
		}
		// The bytes may have been dropped to save memory; they are equal.
		old.record.Payload, old.record.Statement = w.record.Payload, w.record.Statement
		old.artifact = w.artifact
		return old
	}
	return &made{want: w, digest: digest}
}

// lighten drops what can be made again from the run: the payloads. Signatures
// and log entries stay, since they cannot.
func (m *memo) lighten() {
	m.whole = false
	for _, r := range m.records {
		r.record.Payload, r.record.Statement = nil, nil
	}
}
