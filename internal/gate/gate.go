// Package gate puts verification and policy together for a whole image: an
// index is judged with every image it lists, each on its own evidence, and
// passes when all do.
//
// The gate and the releaser call the same code, the releaser a second time just
// before it copies.
package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/policy"
	"assay.dev/assay/report"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/verify"
)

// maxMembers bounds the images of an index.
const maxMembers = 256

var sha256Digest = regexp.MustCompile(`^sha256:[a-f0-9]{64}$`)

// Gate judges images.
type Gate struct {
	Keys []verify.Key
	// Log says which transparency logs are believed, and whether evidence must be in
	// one.
	Log    verify.LogTrust
	Policy *policy.Policy
	// Transport reaches registries; Embedded is the registry that needs no
	// credentials.
	Transport http.RoundTripper
	Embedded  string
	// Context of every judgement; what it says of a single image is filled in.
	Context policy.Context
}

// Judgement is what came of one reference.
type Judgement struct {
	Ref     string // repo@sha256:…
	Entries []report.Entry
	// Digests are all manifests judged, the reference's first.
	Digests []string
	// Rejected is evidence that hangs on them and did not verify.
	Rejected []verify.Rejected
}

// Passed says whether every image was judged and passed.
func (j *Judgement) Passed() bool {
	for _, e := range j.Entries {
		if e.Err != nil || e.Verdict == nil || e.Verdict.Result != policy.Pass {
			return false
		}
	}
	return len(j.Entries) > 0
}

// Unchecked says whether some image could not be judged.
func (j *Judgement) Unchecked() bool {
	for _, e := range j.Entries {
		if e.Err != nil {
			return true
		}
	}
	return len(j.Entries) == 0
}

// Judge verifies and judges a reference and what it lists. An error is about
// the reference itself; an image below it that cannot be checked is an entry.
func (g *Gate) Judge(ctx context.Context, ref string) (*Judgement, error) {
	top, err := g.Verify(ctx, ref)
	if err != nil {
		return nil, err
	}
	members, err := membersOf(top.Manifest())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", top.Ref(), err)
	}
	j := &Judgement{Ref: top.Ref(), Digests: append([]string{top.Digest()}, members...)}
	parent := componentOf(top.Ref())
	j.add(g, ctx, top, policy.Context{}, j.Digests)
	repo, _, _ := strings.Cut(top.Ref(), "@")
	for i, d := range members {
		e, err := g.Verify(ctx, repo+"@"+d)
		if err != nil {
			j.Entries = append(j.Entries, report.Entry{Image: repo + "@" + d, Err: err})
			continue
		}
		j.add(g, ctx, e, policy.Context{Component: fmt.Sprintf("%s-%d", parent, i), Parent: parent}, []string{d})
	}
	return j, nil
}

func (j *Judgement) add(g *Gate, ctx context.Context, e *verify.Evidence, c policy.Context, digests []string) {
	j.Rejected = append(j.Rejected, e.Rejected()...)
	merged := g.Context
	merged.Component, merged.Parent, merged.Digests = c.Component, c.Parent, digests
	merged.Logs = g.Log.Names()
	for _, w := range g.Log.Witnesses {
		merged.Witnesses = append(merged.Witnesses, w.Name)
	}
	v, err := g.Policy.Evaluate(ctx, e, merged)
	j.Entries = append(j.Entries, report.Entry{Image: e.Ref(), Verdict: v, Err: err})
}

// Verify finds and verifies the evidence of one image.
func (g *Gate) Verify(ctx context.Context, ref string) (*verify.Evidence, error) {
	rt, err := Authorized(ctx, ref, g.Transport, g.Embedded)
	if err != nil {
		return nil, err
	}
	return verify.Image(ctx, ref, verify.Options{Keys: g.Keys, Log: g.Log, Transport: rt})
}

// Authorized adds the user's docker credentials for registries that want some.
func Authorized(ctx context.Context, ref string, rt http.RoundTripper, embedded string) (http.RoundTripper, error) {
	r, err := name.ParseReference(ref)
	if err != nil {
		return nil, fmt.Errorf("reading the reference %q: %w", ref, err)
	}
	if r.Context().RegistryStr() == embedded {
		return rt, nil
	}
	return oci.Authorize(ctx, r.Context(), rt, authn.DefaultKeychain, false)
}

func componentOf(ref string) string {
	repo, _, _ := strings.Cut(ref, "@")
	return repo[strings.LastIndex(repo, "/")+1:]
}

// membersOf lists the manifests of an index; an image has none.
func membersOf(manifest []byte) ([]string, error) {
	var m struct {
		Manifests []struct {
			MediaType string `json:"mediaType"`
			Digest    string `json:"digest"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(manifest, &m); err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
	}
	if len(m.Manifests) > maxMembers {
		return nil, fmt.Errorf("the index lists %d images, at most %d are judged", len(m.Manifests), maxMembers)
	}
	var out []string
	for _, d := range m.Manifests {
		if strings.Contains(d.MediaType, "index") || strings.Contains(d.MediaType, "manifest.list") {
			return nil, errors.New("the index lists another index, which is not judged: name that one itself")
		}
		if !sha256Digest.MatchString(d.Digest) {
			return nil, fmt.Errorf("the index lists %q, which is no sha256 digest", d.Digest)
		}
		out = append(out, d.Digest)
	}
	return out, nil
}
