package ec

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/open-policy-agent/opa/v1/ast"

	"assay.dev/assay/policy/conforma"
	"assay.dev/assay/verify"
)

// judge judges the images of a snapshot.
type judge struct {
	*runner
	spec     *conforma.Spec
	policy   *conforma.Policy
	snapshot *snapshotSpec
	demand   *demand
	when     time.Time // zero: the attestation's
	// only are the components to judge; nil: all of the snapshot, which rules see.
	only []component
	// summaries finds what stands in for judging an image; nil: nothing does.
	summaries *summaries

	skipImageSig, skipAttSig bool
	info                     bool
}

// judged is what became of one component.
type judged struct {
	component    component
	violations   []conforma.Result
	warnings     []conforma.Result
	successes    []conforma.Result
	signatures   []signature
	attestations []attestation
	parsed       []*parsed
	input        []byte
	when         time.Time
	evaluation   *conforma.Evaluation
	taken        *takenSummary // it was not judged: this stands in for it
	by           []signedBy
	setAside     []verify.Rejected
	// unchecked is why something of the image could not be found out.
	unchecked string
}

// check is one of the checks that are no rules.
type check struct{ code, title, description string }

var (
	accessible       = check{"builtin.image.accessible", "Image URL is accessible", "The image URL is available and accessible."}
	imageSignature   = check{"builtin.image.signature_check", "Image signature check passed", "The image signature matches available signing materials."}
	attestationCheck = check{"builtin.attestation.signature_check", "Attestation signature check passed", "The attestation signature matches available signing materials."}
	syntaxCheck      = check{"builtin.attestation.syntax_check", "Attestation syntax check passed", "The attestation has correct syntax."}
)

func (c check) result(msg string) conforma.Result {
	return conforma.Result{Message: msg, Metadata: map[string]any{"code": c.code, "title": c.title, "description": c.description}}
}

func (j *judged) passed(c check) { j.successes = append(j.successes, c.result("Pass")) }

func (j *judged) failed(c check, format string, args ...any) {
	j.violations = append(j.violations, c.result(fmt.Sprintf(format, args...)))
}

// component judges one image. An error means that it could not be judged; an
// image that cannot be reached is a violation.
func (j *judge) component(ctx context.Context, c component) (*judged, error) {
	out := &judged{component: c}
	given, err := name.ParseReference(c.ContainerImage)
	if err != nil {
		return nil, err
	}
	desc, err := j.puller.Head(ctx, given)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		out.failed(accessible, "Image URL is not accessible: %v", err)
		if !absent(err) {
			out.unchecked = couldNot("reaching the image", err)
		}
		return out, nil
	}
	if err, ok := j.unexpanded.Load(c.ContainerImage); ok {
		return nil, fmt.Errorf("the images that it lists are not known: %w", err.(error))
	}
	ref := given.Context().Digest(desc.Digest.String())
	out.component.ContainerImage = ref.Name()
	if j.summaries != nil {
		if out.taken = j.summaries.stand(ctx, j.runner, ref.Name(), j.when, j.demand.PublicKey); out.taken != nil {
			out.when = j.when
			return out, nil
		}
	}
	if more, err := j.evidence(ctx, ref, out); err != nil || !more {
		return out, err
	}
	for _, a := range out.attestations {
		if t := finished(a.statement); t.After(out.when) {
			out.when = t
		}
	}
	if !j.when.IsZero() || out.when.IsZero() {
		out.when = j.when
	}
	if len(out.attestations) == 0 {
		out.violations = append(out.violations, conforma.Result{Message: "No attestations contain a subject that match the given image."})
		return out, nil
	}
	return out, j.rules(ctx, ref, out)
}

// evidence checks signatures and attestations, and says whether rules are to be
// asked.
func (j *judge) evidence(ctx context.Context, ref name.Digest, out *judged) (bool, error) {
	var e *evidence
	if !j.skipImageSig || !j.skipAttSig {
		var err error
		if e, err = j.verify.evidence(ctx, ref, j.demand); err != nil {
			if ctx.Err() != nil {
				return false, context.Cause(ctx)
			}
			e = &evidence{signatureErr: err, attestationErr: err}
			out.unchecked = couldNot("reading signatures and attestations", err)
		}
		out.by, out.setAside = e.by, e.setAside
		if e.unanswered != nil {
			out.unchecked = couldNot("looking for log entries", e.unanswered)
		}
	}
	var signatures []signature
	if !j.skipImageSig {
		if err := e.signatureErr; err != nil {
			out.failed(imageSignature, "%s", j.wording("signature", "No image signatures found matching the given public key. Verify the correct public key was provided, and a signature was created. Error: %s", err))
		} else {
			signatures = e.signatures
			out.passed(imageSignature)
		}
	}
	var list []attestation
	if j.skipAttSig {
		var err error
		if list, err = j.verify.unverified(ctx, ref); err != nil {
			out.failed(attestationCheck, "Image attestation check failed: failed to fetch attestations (signature check skipped): %v", err)
			out.unchecked = couldNot("reading attestations", err)
			return false, nil
		}
	} else {
		if err := e.attestationErr; err != nil {
			out.failed(attestationCheck, "%s", j.wording("attestation", "No image attestations found matching the given public key. Verify the correct public key was provided, and one or more attestations were created. Error: %s", err))
			return false, nil
		}
		list = e.attestations
	}
	var known []*parsed
	var syntax []error
	for _, a := range list {
		p, err := parseAttestation(a.statement)
		if a.bundle && err == nil {
			p.buildType = "" // Conforma does not look for it there
		}
		if a.bundle && err != nil && p != nil {
			// The form of what comes in a bundle is a check of its own.
			syntax, err = append(syntax, err), nil
		}
		if err != nil {
			out.failed(attestationCheck, "Image attestation check failed: %v", err)
			return false, nil
		}
		known = append(known, p)
	}
	out.passed(attestationCheck)
	out.signatures, out.attestations, out.parsed = signatures, list, known
	switch {
	case len(list) == 0:
		out.failed(syntaxCheck, "Attestation syntax check failed: no attestation data")
	case len(syntax) > 0:
		out.failed(syntaxCheck, "Attestation syntax check failed: attestation syntax validation failed: %v", errors.Join(syntax...))
	default:
		out.passed(syntaxCheck)
	}
	return true, nil
}

func (j *judge) wording(what, unmatched string, err error) string {
	var u *unmatchedError
	if !j.demand.keyless() && errors.As(err, &u) {
		return fmt.Sprintf(unmatched, err)
	}
	return fmt.Sprintf("Image %s check failed: %v", what, err)
}

// policyInput is what rules see. The order of its members is that of policy-input
// output.
type policyInput struct {
	Attestations  []inputAttestation `json:"attestations"`
	Image         inputImage         `json:"image"`
	Snapshot      *snapshotSpec      `json:"snapshot"`
	ComponentName string             `json:"component_name,omitempty"`
	PolicySpec    *conforma.Spec     `json:"policy_spec,omitempty"`
}

type inputAttestation struct {
	Statement  json.RawMessage `json:"statement"`
	Signatures []signature     `json:"signatures,omitempty"`
}

type inputImage struct {
	Ref        string           `json:"ref"`
	Signatures []signature      `json:"signatures,omitempty"`
	Config     json.RawMessage  `json:"config,omitempty"`
	Parent     *inputImage      `json:"parent,omitempty"`
	Files      json.RawMessage  `json:"files,omitempty"`
	Source     *componentSource `json:"source,omitempty"`
}

func (j *judge) rules(ctx context.Context, ref name.Digest, out *judged) error {
	in := policyInput{
		Image:         inputImage{Ref: ref.Name(), Signatures: out.signatures, Source: &out.component.Source},
		Snapshot:      j.snapshot,
		ComponentName: out.component.Name,
		PolicySpec:    j.spec,
	}
	for _, a := range out.attestations {
		in.Attestations = append(in.Attestations, inputAttestation{a.statement, a.signatures})
	}
	j.describe(ctx, ref, &in.Image)
	done, err := j.evaluate(ctx)
	if err != nil {
		return err
	}
	defer done()
	raw, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("making the policy's input: %w", err)
	}
	doc, err := ast.ValueFromReader(bytes.NewReader(raw))
	if err != nil {
		return fmt.Errorf("making the policy's input: %w", err)
	}
	e, err := j.policy.Evaluate(ctx, []conforma.Document{{Name: ref.Name(), Values: []ast.Value{doc}}}, conforma.Target{Image: ref.Name(), Component: out.component.Name, When: out.when})
	if err != nil {
		return err
	}
	out.input, out.evaluation = raw, e
	out.take(e.Outcomes)
	return nil
}

func (j *judged) take(outcomes []conforma.Outcome) {
	for _, o := range outcomes {
		j.violations = append(j.violations, o.Failures...)
		j.warnings = append(j.warnings, o.Warnings...)
		j.successes = append(j.successes, o.Successes...)
	}
}

// describe adds what is known of an image beside its evidence. None of it has to
// be there.
func (j *judge) describe(ctx context.Context, ref name.Digest, in *inputImage) {
	img, err := j.image(ctx, ref)
	if err != nil {
		return
	}
	in.Config = config(img)
	if parent, err := parentOf(img); err == nil {
		in.Parent = &inputImage{Ref: parent.String()}
		if p, err := j.image(ctx, parent); err == nil {
			in.Parent.Config = config(p)
		}
	}
	if c, err := img.ConfigFile(); err == nil && c.Config.Labels[olmManifests] != "" {
		if files, err := j.builtins.Files(ctx, img, []string{c.Config.Labels[olmManifests]}); err == nil && !bytes.Equal(files, []byte("{}")) {
			in.Files = files
		}
	}
}

// olmManifests is the label that says where an operator bundle has its manifests.
const olmManifests = "operators.operatorframework.io.bundle.manifests.v1"

func (j *judge) image(ctx context.Context, ref name.Reference) (v1.Image, error) {
	d, err := j.puller.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	return d.Image()
}

func config(img v1.Image) json.RawMessage {
	c, err := img.ConfigFile()
	if err != nil {
		return nil
	}
	raw, err := json.Marshal(c.Config)
	if err != nil {
		return nil
	}
	return raw
}

// parentOf is the base image that a manifest's annotations name.
func parentOf(img v1.Image) (name.Digest, error) {
	m, err := img.Manifest()
	if err != nil {
		return name.Digest{}, err
	}
	base := m.Annotations["org.opencontainers.image.base.name"]
	if base == "" {
		return name.Digest{}, errors.New("no base image is named")
	}
	if d := m.Annotations["org.opencontainers.image.base.digest"]; !bytes.ContainsRune([]byte(base), '@') {
		if d == "" {
			return name.Digest{}, errors.New("the base image has no digest")
		}
		base += "@" + d
	}
	return name.NewDigest(base)
}

// absent says that a registry answered, and that there is no such thing.
func absent(err error) bool {
	var t *transport.Error
	return errors.As(err, &t) && t.StatusCode == http.StatusNotFound
}
