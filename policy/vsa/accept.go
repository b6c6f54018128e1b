package vsa

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/verify"
)

// Want is the question that a summary would have to answer. Policy, Trust, Now and
// MaxAge must be set: without them nothing is taken.
type Want struct {
	// Verifier is the verifier.id that is believed; empty: DefaultVerifier.
	Verifier string
	// Policy is the digest of the policy at hand, rules, data and configuration: see
	// policy.Policy.Digest.
	Policy string
	// Trust is the digest of the trust at hand: see TrustDigest.
	Trust string
	// Circumstances are those that the image would be judged in.
	Circumstances
	// AnySnapshot takes summaries of a judgement in another snapshot, where rules that
	// look at other components looked at others.
	AnySnapshot bool
	// EffectiveTime is what the rules are to be taken as of; zero: now.
	EffectiveTime time.Time
	// Now is the time, and MaxAge how long ago the verification may have been.
	Now    time.Time
	MaxAge time.Duration
}

// Skew is how far another machine's clock may be ahead.
const Skew = time.Minute

// asked is how far apart the time of a verification and the time that its rules were
// taken as of may be where "now" was asked for: an evaluation takes that long at most.
const asked = 15 * time.Minute

// Code says in one word why a summary was not taken.
type Code string

// Codes.
const (
	CodeNone       Code = "none"       // there is no summary that a trusted verifier signed
	CodeMalformed  Code = "malformed"  // signed, and not of the form
	CodeIncomplete Code = "incomplete" // it does not say what the verdict depended on
	CodeVerifier   Code = "verifier"   // another verifier's
	CodeResult     Code = "result"     // it did not pass
	CodeImage      Code = "image"      // about another image, or this one under another name
	CodePolicy     Code = "policy"     // by another policy, or other data
	CodeTrust      Code = "trust"      // with another trust
	CodeContext    Code = "context"    // for another component, destination or effective time
	CodeFuture     Code = "future"     // of a time to come
	CodeTooOld     Code = "too-old"    // older than allowed
	CodeExpired    Code = "expired"    // the verdict itself had to be asked for again
)

// Refusal is why one summary was not taken.
type Refusal struct {
	Code   Code   `json:"code"`
	Reason string `json:"reason"`
	// Payload is the digest of the summary's payload; empty where there was none.
	Payload string `json:"payload,omitempty"`
}

// Error implements error.
func (r *Refusal) Error() string { return r.Reason }

// NotTaken says that no summary stands in for an evaluation, and why: the newest first.
type NotTaken struct {
	Image    string    `json:"image"`
	Refusals []Refusal `json:"refusals"`
}

// Error implements error.
func (n *NotTaken) Error() string {
	var why []string
	for _, r := range n.Refusals {
		why = append(why, r.Reason)
	}
	return fmt.Sprintf("no verification summary of %s is taken: %s", n.Image, strings.Join(why, "; "))
}

// Code is that of the newest summary.
func (n *NotTaken) Code() Code {
	if len(n.Refusals) == 0 {
		return CodeNone
	}
	return n.Refusals[0].Code
}

// Accepted is a summary that stands in for an evaluation.
type Accepted struct {
	Image    string            `json:"image"` // repo@sha256:…
	Payload  string            `json:"payload"`
	Verifier string            `json:"verifier"`
	Version  map[string]string `json:"version,omitempty"`
	// Signer is the name of the key or identity that signed it, Key the fingerprint.
	Signer string    `json:"signer"`
	Key    string    `json:"key"`
	Time   time.Time `json:"timeVerified"`
	// Expires is when it will not be taken any more.
	Expires time.Time `json:"expires"`
	Policy  string    `json:"policy"`
	// Levels are what the verifier claims.
	Levels []string `json:"verifiedLevels"`
	// Judgement is what the verdict depended on.
	Judgement Judgement `json:"judgement"`
}

// Find looks for a summary among verified evidence. The evidence must come from a
// verification that trusts nobody but the signers of summaries: whoever signed a
// statement in it is believed to have verified. It returns the newest that answers
// exactly what is wanted, or a *NotTaken; any other error is the caller's mistake.
func Find(e *verify.Evidence, w Want) (*Accepted, error) {
	if e == nil {
		return nil, errors.New("looking for a verification summary: no evidence")
	}
	switch {
	case !sha256Form.MatchString(w.Policy), !sha256Form.MatchString(w.Trust):
		return nil, errors.New("looking for a verification summary: no digest of policy and trust to compare with")
	case w.Now.IsZero() || w.MaxAge <= 0:
		return nil, errors.New("looking for a verification summary: how old it may be is not said")
	}
	if w.Verifier == "" {
		w.Verifier = DefaultVerifier
	}
	var seen []*summary
	not := &NotTaken{Image: e.Ref()}
	for _, s := range e.Statements() {
		if s.PredicateType != PredicateType {
			continue
		}
		x, r := read(s)
		if r != nil {
			not.Refusals = append(not.Refusals, *r)
			continue
		}
		seen = append(seen, x)
	}
	slices.SortStableFunc(seen, func(a, b *summary) int { return b.TimeVerified.Compare(a.TimeVerified) })
	var older []Refusal
	for _, x := range seen {
		if r := x.check(e, w); r != nil {
			r.Payload = x.signed.PayloadDigest
			older = append(older, *r)
			continue
		}
		expires := x.TimeVerified.Add(w.MaxAge)
		if x.Judgement.Expires.Before(expires) {
			expires = x.Judgement.Expires
		}
		return &Accepted{
			Image: e.Ref(), Payload: x.signed.PayloadDigest, Verifier: x.Verifier.ID, Version: x.Verifier.Version,
			Signer: cmp.Or(x.signed.TrustedAs, x.signed.KeyName), Key: x.signed.Key,
			Time: x.TimeVerified.UTC(), Expires: expires.UTC(), Policy: w.Policy,
			Levels: x.VerifiedLevels, Judgement: *x.Judgement,
		}, nil
	}
	not.Refusals = append(older, not.Refusals...)
	if len(not.Refusals) == 0 {
		not.Refusals = []Refusal{{Code: CodeNone, Reason: "there is none by a verifier that is trusted"}}
	}
	return nil, not
}

// summary is one that was signed and can be read.
type summary struct {
	slsa
	signed verify.Statement
}

func read(s verify.Statement) (*summary, *Refusal) {
	bad := func(code Code, format string, args ...any) (*summary, *Refusal) {
		return nil, &Refusal{Code: code, Reason: fmt.Sprintf(format, args...), Payload: s.PayloadDigest}
	}
	v, ok := s.Typed.(*predicate.VSA)
	if !ok {
		return bad(CodeMalformed, "one is not of the form that its type says")
	}
	var own struct {
		Judgement json.RawMessage `json:"assay_judgement"`
	}
	if err := json.Unmarshal(s.Predicate, &own); err != nil {
		return bad(CodeMalformed, "one cannot be read: %v", err)
	}
	if len(own.Judgement) == 0 {
		return bad(CodeIncomplete, "the one of %s does not say what its verdict depended on, so it is not known to answer this question", v.Verifier.ID)
	}
	x := &summary{slsa: slsa{VSA: *v, Judgement: new(Judgement)}, signed: s}
	dec := json.NewDecoder(strings.NewReader(string(own.Judgement)))
	// A member that is not known here may limit what the verdict is good for.
	dec.DisallowUnknownFields()
	if err := dec.Decode(x.Judgement); err != nil {
		return bad(CodeMalformed, "one cannot be read: assay_judgement: %v", err)
	}
	return x, nil
}

// check returns why a summary does not answer the question; nil: it does.
func (x *summary) check(e *verify.Evidence, w Want) *Refusal {
	no := func(code Code, format string, args ...any) *Refusal {
		return &Refusal{Code: code, Reason: fmt.Sprintf("the one of %s ", x.TimeVerified.UTC().Format(time.RFC3339)) + fmt.Sprintf(format, args...)}
	}
	resource, err := Resource(e.Ref())
	if err != nil {
		return no(CodeImage, "is asked for something else than an image: %v", err)
	}
	j := x.Judgement
	switch {
	case x.Verifier.ID != w.Verifier:
		return no(CodeVerifier, "is by the verifier %s; %s is believed", x.Verifier.ID, w.Verifier)
	case x.VerificationResult != Passed:
		return no(CodeResult, "says %s", x.VerificationResult)
	case x.ResourceURI != resource:
		return no(CodeImage, "is about %s", x.ResourceURI)
	case !slices.Contains(j.Digests, e.Digest()):
		return no(CodeImage, "is by a verdict that does not list %s", e.Digest())
	case len(x.Policy.Digest) != 1 || "sha256:"+x.Policy.Digest["sha256"] != w.Policy:
		return no(CodePolicy, "is by another policy or other data (sha256:%s; here %s)", x.Policy.Digest["sha256"], w.Policy)
	case j.Trust != w.Trust:
		return no(CodeTrust, "was made with another trust (%s; here %s)", j.Trust, w.Trust)
	case j.Component != w.Component || j.Parent != w.Parent:
		return no(CodeContext, "is for the component %q; this one is %q", named(j.Parent, j.Component), named(w.Parent, w.Component))
	case j.Destination != w.Destination:
		return no(CodeContext, "is for the destination %q, not %q", j.Destination, w.Destination)
	case j.Source != w.Source:
		return no(CodeContext, "is for another source of the component")
	case j.Snapshot != w.Snapshot && !w.AnySnapshot:
		return no(CodeContext, "was made in another snapshot, of which rules may have seen other components")
	case x.TimeVerified.IsZero() || j.EffectiveTime.IsZero() || j.Expires.IsZero():
		return no(CodeIncomplete, "lacks a time")
	case x.TimeVerified.After(w.Now.Add(Skew)):
		return no(CodeFuture, "is from the future (here it is %s)", w.Now.UTC().Format(time.RFC3339))
	case w.Now.Sub(x.TimeVerified) > w.MaxAge:
		return no(CodeTooOld, "is older than %s", w.MaxAge)
	case !w.Now.Before(j.Expires):
		return no(CodeExpired, "was good until %s", j.Expires.UTC().Format(time.RFC3339))
	case w.EffectiveTime.IsZero() && j.EffectiveTime.Sub(x.TimeVerified).Abs() > asked:
		return no(CodeContext, "took rules as of %s", j.EffectiveTime.UTC().Format(time.RFC3339))
	case !w.EffectiveTime.IsZero() && !j.EffectiveTime.Equal(w.EffectiveTime):
		return no(CodeContext, "took rules as of %s, not of %s", j.EffectiveTime.UTC().Format(time.RFC3339), w.EffectiveTime.UTC().Format(time.RFC3339))
	}
	for _, m := range members(e.Manifest()) {
		if !slices.Contains(j.Digests, m) {
			return no(CodeImage, "is by a verdict that does not list %s, which the index does", m)
		}
	}
	return nil
}

func named(parent, component string) string {
	if parent == "" {
		return component
	}
	return parent + "/" + component
}

// members are the digests that an index lists; an image has none. The manifest is the
// bytes that the evidence's digest is of.
func members(manifest []byte) []string {
	var m struct {
		Manifests []struct {
			Digest string `json:"digest"`
		} `json:"manifests"`
	}
	if json.Unmarshal(manifest, &m) != nil {
		return nil // an image's configuration of any form; only indexes have members
	}
	var out []string
	for _, d := range m.Manifests {
		out = append(out, d.Digest)
	}
	return out
}
