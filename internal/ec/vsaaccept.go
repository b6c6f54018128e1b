package ec

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/internal/ec/compare"
	internal "assay.dev/assay/internal/vsa"
	"assay.dev/assay/policy/conforma"
	"assay.dev/assay/policy/vsa"
	"assay.dev/assay/verify"
)

func fileDigest(path string) (string, error) {
	raw, err := readFile(path)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256(raw)), nil
}

// summaries finds verification summaries and says whether one stands in for judging an
// image. Its rules are Conforma's, with these differences, each towards judging: the
// signature is always verified before anything is read, a summary counts for the image
// that its statement names and no other, not from the future, and only where the key
// that it says images were checked with is the one at hand.
type summaries struct {
	place  internal.Place
	key    verify.Key // nil Public: signatures are not verified
	maxAge time.Duration
	spec   *conforma.Spec
}

// vsaResult is what became of looking for a summary, in Conforma's terms.
type vsaResult struct {
	Passed    bool
	Message   string
	Verified  bool
	Outcome   string // the summary's status
	Code      string // one of vsa.Reason…
	Added     int
	Removed   int
	Changed   int
	HasDiff   bool
	predicate *vsa.Conforma
}

// takenSummary is what the report says of a summary that stood in for judging.
type takenSummary struct {
	Verifier  string    `json:"verifier"`
	Timestamp string    `json:"timestamp"`
	Key       string    `json:"key"`
	From      string    `json:"from"`
	Expires   time.Time `json:"expires,omitzero"`
}

// lookup is the finder of validate image; nil where nothing is to be looked for.
func (v *vsaFlags) lookup(ctx context.Context, r *runner, spec *conforma.Spec) (*summaries, error) {
	if v.expiration <= 0 {
		return nil, nil
	}
	for _, p := range v.places(r) {
		if p.Backend != internal.Rekor {
			continue
		}
		key, _, err := r.verify.publicKey(ctx, v.publicKey)
		if err != nil {
			return nil, fmt.Errorf("reading --vsa-public-key: %w", err)
		}
		return &summaries{place: p, key: key, maxAge: time.Duration(v.expiration), spec: spec}, nil
	}
	return nil, nil
}

// stand says whether a summary stands in for judging an image; nil: none does.
func (s *summaries) stand(ctx context.Context, r *runner, image string, when time.Time, publicKey string) *takenSummary {
	if when.IsZero() {
		when = time.Now()
	}
	res, err := s.find(ctx, image, digestIn(image), when, time.Now())
	switch {
	case errors.Is(err, internal.ErrNotThere):
		r.debugf("No VSA of %s: %v", image, err)
		return nil
	case err != nil:
		r.warn("Failed to validate existing VSA for image %s: %v", image, err)
		return nil
	case !res.Passed:
		r.debugf("VSA validation did not pass for image %s: %s", image, res.Message)
		return nil
	}
	if got := strings.TrimSpace(res.predicate.PublicKey); got != strings.TrimSpace(publicKey) || !s.sameIdentity(res.predicate.Policy) {
		r.warn("The VSA of image %s is not taken: it was made with another key or identity of signers than is demanded here", image)
		return nil
	}
	pub, err := dsse.NewPublicKey(s.key.Public)
	if err != nil {
		return nil
	}
	taken := &takenSummary{Verifier: res.predicate.Verifier, Timestamp: res.predicate.Timestamp, Key: "sha256:" + pub.Fingerprint(), From: s.place.String()}
	if made, err := time.Parse(time.RFC3339, res.predicate.Timestamp); err == nil && s.maxAge > 0 {
		taken.Expires = made.Add(s.maxAge).UTC()
	}
	return taken
}

func (s *summaries) sameIdentity(policy json.RawMessage) bool {
	var p struct {
		Identity *conforma.Identity `json:"identity"`
	}
	return json.Unmarshal(policy, &p) == nil && reflect.DeepEqual(p.Identity, s.spec.Identity)
}

// digestIn is the digest that a reference names; empty: none.
func digestIn(ref string) string {
	if d := ref[strings.LastIndex(ref, "@")+1:]; strings.HasPrefix(d, "sha256:") {
		return d
	}
	return ""
}

// read is a summary whose signature was verified, or was not to be.
type read struct {
	predicate *vsa.Conforma
	statement *intoto.Statement
	at        time.Time
}

// find looks for the newest summary and checks it. An error says that none could be
// found, or none whose signature verifies.
func (s *summaries) find(ctx context.Context, identifier, digest string, when, now time.Time) (*vsaResult, error) {
	list, err := s.place.Get(ctx, identifier, nil)
	if err != nil {
		return nil, fmt.Errorf("failed to check existing VSA: failed to retrieve VSA envelope: %w", err)
	}
	var good []read
	var bad error
	for _, env := range list {
		one, err := s.verified(env)
		if err != nil {
			bad = err
			continue
		}
		good = append(good, *one)
	}
	if len(good) == 0 {
		return nil, fmt.Errorf("failed to check existing VSA: %w", bad)
	}
	// The newest says how things stand: one that failed later counts.
	slices.SortStableFunc(good, func(a, b read) int { return b.at.Compare(a.at) })
	return s.check(good[0], digest, when, now), nil
}

func (s *summaries) verified(env *dsse.Envelope) (*read, error) {
	if s.key.Public != nil {
		pub, err := dsse.NewPublicKey(s.key.Public)
		if err != nil {
			return nil, fmt.Errorf("VSA signature verification failed: %w", err)
		}
		if _, err := env.Verify(1, pub); err != nil {
			return nil, fmt.Errorf("VSA signature verification failed: %w", err)
		}
	}
	p, st, err := vsa.ParseConforma(env.Payload)
	if err != nil {
		return nil, fmt.Errorf("failed to extract predicate from VSA envelope: %w", err)
	}
	at, err := time.Parse(time.RFC3339, p.Timestamp)
	if err != nil {
		return nil, fmt.Errorf("failed to parse VSA timestamp: %w", err)
	}
	return &read{p, st, at}, nil
}

// check judges a summary: image, age, status, policy.
func (s *summaries) check(one read, digest string, when, now time.Time) *vsaResult {
	res := &vsaResult{Verified: s.key.Public != nil, Outcome: one.predicate.Status, predicate: one.predicate}
	if r := vsa.CheckConforma(one.predicate, one.statement, digest, now, s.maxAge); r != nil {
		res.Message, res.Code = r.Message, r.Code
		return res
	}
	if len(s.spec.Sources) == 0 {
		res.Message = "the supplied policy has no sources, so nothing can be compared"
		return res
	}
	theirs := new(conforma.Spec)
	if err := json.Unmarshal(one.predicate.Policy, theirs); err != nil {
		res.Message = fmt.Sprintf("policy comparison failed: %v", err)
		return res
	}
	about := &compare.Image{Digest: digest, Ref: digest}
	diffs, err := compare.Differences(theirs, s.spec, when, about)
	if err != nil {
		res.Message = fmt.Sprintf("policy comparison failed: %v", err)
		return res
	}
	if len(diffs) > 0 {
		res.Code, res.HasDiff = vsa.ReasonPolicy, true
		var b strings.Builder
		for _, d := range diffs {
			switch {
			case d.Field == "ruleData" || d.First != "" && d.Second != "":
				res.Changed++
			case d.First == "":
				res.Added++
			default:
				res.Removed++
			}
			fmt.Fprintf(&b, "\n# source entry: %s\n%s:\n", d.Group, d.Field)
			if d.First != "" {
				fmt.Fprintf(&b, "- %s\n", d.First)
			}
			if d.Second != "" {
				fmt.Fprintf(&b, "+ %s\n", d.Second)
			}
		}
		res.Message = fmt.Sprintf("❌ Policy mismatch detected — %d added, %d removed, %d changed; %d differences\n--- VSA Policy\n+++ Release Policy%s",
			res.Added, res.Removed, res.Changed, len(diffs), b.String())
		return res
	}
	res.Passed, res.Message = true, "Policy matches"
	return res
}
