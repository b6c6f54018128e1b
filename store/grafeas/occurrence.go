package grafeas

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	pb "github.com/grafeas/grafeas/proto/v1/grafeas_go_proto"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/store"
)

// plan is what a record becomes.
type plan struct {
	noteID string
	note   *pb.Note
	// occurrences differ in their resource URI only.
	occurrences []*pb.Occurrence
	skipped     []string
}

// plan makes notes and occurrences. It fails on predicates that Grafeas has no
// field for.
func (k *Keeper) plan(r store.Record) (plan, error) {
	if r.Statement == nil {
		return k.planImage(r), nil
	}
	return k.planStatement(r)
}

// noteID names the note of a run's images or statements.
func (k *Keeper) noteID(run store.Run, image bool) string {
	id := k.o.Note
	if id == "" {
		id = "tekton-" + run.Namespace
	}
	if image {
		return id + "-simplesigning"
	}
	return id + "-" + strings.ToLower(run.Kind) + "-intoto"
}

func (k *Keeper) noteName(id string) string { return "projects/" + k.o.Project + "/notes/" + id }

func (k *Keeper) planImage(r store.Record) plan {
	p := plan{
		noteID: k.noteID(r.Run, true),
		note: &pb.Note{
			ShortDescription: "OCI Artifact Attestation Note",
			Type: &pb.Note_Attestation{Attestation: &pb.AttestationNote{
				Hint: &pb.AttestationNote_Hint{HumanReadableName: k.o.NoteHint},
			}},
		},
	}
	details := &pb.AttestationOccurrence{SerializedPayload: r.Payload}
	envelope := &pb.Envelope{Payload: r.Payload, PayloadType: simplesigning.MediaType}
	for _, s := range r.Signatures {
		id := k.keyID(r, s)
		details.Signatures = append(details.Signatures, &pb.Signature{Signature: s.Sig, PublicKeyId: id})
		envelope.Signatures = append(envelope.Signatures, &pb.EnvelopeSignature{Sig: s.Sig, Keyid: id})
	}
	p.occurrences = []*pb.Occurrence{{
		ResourceUri: r.Image,
		NoteName:    k.noteName(p.noteID),
		Remediation: about(r.Run),
		Details:     &pb.Occurrence_Attestation{Attestation: details},
		Envelope:    envelope,
	}}
	return p
}

func (k *Keeper) planStatement(r store.Record) (plan, error) {
	p := plan{
		noteID: k.noteID(r.Run, false),
		note: &pb.Note{
			// Upstream's words, of PipelineRuns too.
			ShortDescription: "Build Provenance Note for TaskRun",
			Type:             &pb.Note_Build{Build: &pb.BuildNote{BuilderVersion: r.Run.APIVersion + "/" + r.Run.Kind}},
		},
	}
	var uris []string
	for _, s := range r.Statement.Subjects {
		if s.Name == "" {
			p.skipped = append(p.skipped, fmt.Sprintf("%v: a subject without name has no resource URI", s.Digest))
			continue
		}
		for _, algorithm := range slices.Sorted(maps.Keys(s.Digest)) {
			uri := s.Name + "@" + algorithm + ":" + s.Digest[algorithm]
			if !slices.Contains(uris, uri) {
				uris = append(uris, uri)
			}
		}
	}
	if len(r.Statement.Subjects) == 0 {
		p.skipped = append(p.skipped, "the statement: it has no subject, and Grafeas files by subject")
	}
	if len(uris) == 0 {
		return p, nil
	}
	details, err := build(r)
	if err != nil {
		return plan{}, err
	}
	sig, err := r.SignatureBytes()
	if err != nil {
		return plan{}, err
	}
	for _, uri := range uris {
		p.occurrences = append(p.occurrences, &pb.Occurrence{
			ResourceUri: uri,
			NoteName:    k.noteName(p.noteID),
			Remediation: about(r.Run),
			Details:     &pb.Occurrence_Build{Build: details},
			Envelope: &pb.Envelope{
				Payload:     r.Payload,
				PayloadType: store.PayloadType,
				Signatures:  []*pb.EnvelopeSignature{{Sig: sig, Keyid: k.keyID(r, r.Signatures[0])}},
			},
		})
	}
	return p, nil
}

// keyID names the key of a signature. Upstream's word for it, the KMS key of the
// settings, cannot be true of several.
func (k *Keeper) keyID(r store.Record, s store.Signature) string {
	if k.o.KMSRef != "" && len(r.Signatures) == 1 {
		return k.o.KMSRef
	}
	der, err := x509.MarshalPKIXPublicKey(s.Key.Crypto())
	if err != nil {
		return s.KeyID
	}
	sum := sha256.Sum256(der)
	return "ni:///sha-256;" + base64.RawURLEncoding.EncodeToString(sum[:])
}

// build is the statement in the form that Grafeas answers queries from. Its
// messages' JSON is that of in-toto and SLSA but for the names mended here.
func build(r store.Record) (*pb.BuildOccurrence, error) {
	into := protojson.UnmarshalOptions{DiscardUnknown: true}
	switch r.Statement.PredicateType {
	case api.PredicateSLSAv1:
		var s pb.InTotoSlsaProvenanceV1
		if err := into.Unmarshal(r.Payload, &s); err != nil {
			return nil, fmt.Errorf("converting the statement to Grafeas' form of SLSA v1: %w", err)
		}
		return &pb.BuildOccurrence{InTotoSlsaProvenanceV1: &s}, nil
	case api.PredicateSLSAv02:
		var members, predicate map[string]json.RawMessage
		if err := json.Unmarshal(r.Payload, &members); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(members["predicate"], &predicate); err != nil {
			return nil, err
		}
		var metadata map[string]json.RawMessage
		if err := json.Unmarshal(predicate["metadata"], &metadata); err == nil && metadata["buildInvocationID"] != nil {
			metadata["buildInvocationId"] = metadata["buildInvocationID"]
			delete(metadata, "buildInvocationID")
			if predicate["metadata"], err = json.Marshal(metadata); err != nil {
				return nil, err
			}
		}
		inner, err := json.Marshal(predicate)
		if err != nil {
			return nil, err
		}
		delete(members, "predicate")
		members["slsaProvenanceZeroTwo"] = inner
		data, err := json.Marshal(members)
		if err != nil {
			return nil, err
		}
		var s pb.InTotoStatement
		if err := into.Unmarshal(data, &s); err != nil {
			return nil, fmt.Errorf("converting the statement to Grafeas' form of SLSA v0.2: %w", err)
		}
		return &pb.BuildOccurrence{IntotoStatement: &s}, nil
	}
	return nil, fmt.Errorf("predicate type %q has no field in Grafeas; known are %s and %s", r.Statement.PredicateType, api.PredicateSLSAv02, api.PredicateSLSAv1)
}

// about says which run an occurrence is about, in the only free text that every
// occurrence has.
func about(run store.Run) string {
	return fmt.Sprintf("None needed: signed for %s %s/%s (uid %s)", run.Kind, run.Namespace, run.Name, run.UID)
}

var uidForm = regexp.MustCompile(`\(uid ([^()\s]+)\)$`)

// sameRun says whether an occurrence is about the run, as far as it tells:
// upstream's do not.
func sameRun(o *pb.Occurrence, run store.Run) bool {
	m := uidForm.FindStringSubmatch(o.GetRemediation())
	return m == nil || m[1] == run.UID
}

// kept is what an occurrence holds: one record for each signature.
func kept(o *pb.Occurrence) []store.Kept {
	var out []store.Kept
	for _, s := range o.GetEnvelope().GetSignatures() {
		out = append(out, store.Kept{Where: o.GetName(), Payload: o.GetEnvelope().GetPayload(), Signature: s.GetSig()})
	}
	return out
}

// covers says whether an occurrence that is there makes the one planned for the
// record unnecessary: about the same artifact, run and payload, and signed by one
// of the same keys. Where certificates name the signer, whose keys last minutes
// and which have no place here, a signature of the payload is all that can be
// asked for.
func covers(there, planned *pb.Occurrence, r store.Record) bool {
	if there.GetResourceUri() != planned.GetResourceUri() || (there.GetBuild() == nil) != (planned.GetBuild() == nil) || !sameRun(there, r.Run) {
		return false
	}
	keyless := slices.ContainsFunc(r.Signatures, func(s store.Signature) bool { return len(s.Cert) > 0 })
	return slices.ContainsFunc(kept(there), func(k store.Kept) bool {
		return r.Same(k) || keyless && string(k.Payload) == string(r.Payload) && len(k.Signature) > 0
	})
}

// size is what an occurrence takes on the wire.
func size(o *pb.Occurrence) int { return proto.Size(o) }
