// Package gate puts verification and policy together for whole snapshots.
//
//	references, snapshot ─▶ expand ─▶ images ─▶ evidence ─▶ policy ─▶ entries, in order ─▶ report
//	                          │                    │
//	                     indexes with all      once for each
//	                     that they list        distinct image
//
// An index is judged with every image it lists, each on its own evidence, and
// passes when all do. What an index lists that is no image (BuildKit's attestation
// manifests, which call themselves unknown/unknown) is not judged as one, and the
// report says so.
//
// Components keep what they are called: two with one image are judged twice, since
// exceptions hold for names, but their evidence is fetched and verified once.
//
// # Three outcomes
//
// An image passes, is refused, or could not be checked. It is refused by the policy,
// or because the registry answered and what it has does not verify: an unsigned
// image is no accident of the network. It could not be checked where somebody did
// not answer, or answered nonsense. The image beside it is judged all the same.
//
// # Time and memory
//
// Images are judged by several workers and reported in the order they came in, as
// soon as it is their turn; then nothing of them is kept. A slow image holds back
// at most Workers finished ones.
//
// The gate and the releaser call the same code, the releaser a second time just
// before it copies. A Gate lives for one run: what it asked a registry it does not
// ask again.
package gate

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/internal/pullcache"
	"assay.dev/assay/policy"
	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/report"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/verify"
)

// Gate judges images. The zero value trusts nobody and so verifies nothing. Fields
// must not change once it is in use; it is then safe for concurrent use.
type Gate struct {
	// Keys, and Identities with the Instances that vouch for them, are who is
	// believed; At is the instant of verification, which must be said where
	// certificates are.
	Keys       []verify.Key
	Instances  []*verify.Instance
	Identities []verify.CertificateIdentity
	At         time.Time
	// Log says which transparency logs are believed, and whether evidence must be in
	// one.
	Log verify.LogTrust
	// WithoutSignature and WithoutProvenance judge images that have no verified
	// signature, or provenance. Policy sees that there is none.
	WithoutSignature, WithoutProvenance bool

	Policy *policy.Policy
	// Transport reaches registries; Embedded is the registry that needs no
	// credentials.
	Transport http.RoundTripper
	Embedded  string
	// Tap, where there is one, is put between every reader and the cache: a recorder,
	// or what stands in for registries when a recording is judged again.
	Tap Tap
	// Retry is how failures of registries are tried again by the cache.
	Retry pullcache.Retry
	// Context of every judgement; what it says of a single image is filled in.
	Context policy.Context
	// AttestationTime judges each image as of the end of its build, as its
	// provenance says, instead of Context.EffectiveTime.
	AttestationTime bool
	// Accept, where set, looks for an earlier verdict that stands in for judging an image
	// in a context. Without a verdict the image is judged; Accepted may then say why.
	Accept func(ctx context.Context, ref string, c policy.Context) (*policy.Verdict, *report.Accepted, error)
	// Issue, where set, is told of every image that the policy passed. Where it fails the
	// image counts as one that could not be checked: what was asked for is not there.
	Issue func(ctx context.Context, e *verify.Evidence, v *policy.Verdict, c policy.Context) error
	// Workers is how many images are judged at a time. Default: two for each core, at
	// most eight. Of them no more than cores and one evaluate rules, which takes most
	// of the memory; the others wait for registries.
	Workers int
	// Progress, where set, is told how many images of how many are done. Calls
	// follow one another.
	Progress func(done, of int)

	once       sync.Once
	evaluating chan struct{} // a place for each evaluation under way
	cache      *pullcache.Cache
	base       http.RoundTripper // the cache behind the tap

	mu        sync.Mutex                   // guards what follows
	allowed   map[string]http.RoundTripper // by repository
	manifests map[string][]byte            // by repo@sha256:…, read by a tag
	size      int                          // of manifests
	evidence  memory
	functions *builtin.Set
}

// Bounds of the manifests that are kept from when a tag was read to when its image
// is judged.
const (
	maxKeptManifest  = 64 << 10
	maxKeptManifests = 16 << 20
)

// Tap is put between readers and what they read from.
type Tap func(http.RoundTripper) http.RoundTripper

// maxAuthorized bounds the repositories whose authorisation is remembered.
const maxAuthorized = 4096

func (g *Gate) open() {
	g.once.Do(func() {
		g.cache = pullcache.New(g.Transport, pullcache.Options{MaxTotal: 8 << 20, Retry: g.Retry})
		g.base = g.cache
		g.evaluating = make(chan struct{}, runtime.GOMAXPROCS(0)+1)
		if g.Tap != nil {
			g.base = g.Tap(g.base)
		}
		g.allowed, g.manifests = map[string]http.RoundTripper{}, map[string][]byte{}
		g.evidence.left, g.evidence.kept = map[string]int{}, map[string]*found{}
	})
}

// Registry is what all who read for this gate's images share, built-in functions
// of rules too: one cache, so that nothing is asked twice.
func (g *Gate) Registry() http.RoundTripper {
	g.open()
	return g.base
}

// Requests is how many requests went to registries so far.
func (g *Gate) Requests() int64 {
	g.open()
	return g.cache.Requests()
}

// evaluate asks the policy, when it is an image's turn.
func (g *Gate) evaluate(ctx context.Context, e *verify.Evidence, c policy.Context) (*policy.Verdict, error) {
	g.open()
	select {
	case g.evaluating <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-g.evaluating }()
	return g.Policy.Evaluate(ctx, e, c)
}

func (g *Gate) workers() int {
	if g.Workers > 0 {
		return g.Workers
	}
	return min(2*runtime.GOMAXPROCS(0), 8)
}

// Judgement is what came of one reference.
type Judgement struct {
	Ref     string // repo@sha256:…
	Entries []report.Entry
	// Digests are all manifests judged, the reference's first.
	Digests []string
	// Aside is what an index lists that is no image.
	Aside []report.Aside
	// Rejected is evidence that hangs on them and did not verify.
	Rejected []verify.Rejected
}

// Passed says whether every image was judged and passed.
func (j *Judgement) Passed() bool {
	for i := range j.Entries {
		if !j.Entries[i].Passed() {
			return false
		}
	}
	return len(j.Entries) > 0
}

// Unchecked says whether some image could not be judged.
func (j *Judgement) Unchecked() bool {
	for i := range j.Entries {
		if j.Entries[i].Unchecked() {
			return true
		}
	}
	return len(j.Entries) == 0
}

// Judge verifies and judges a reference and what it lists. An error is about
// the reference itself; an image below it that cannot be checked is an entry.
func (g *Gate) Judge(ctx context.Context, ref string) (*Judgement, error) {
	list, err := g.expand(ctx, policy.Component{Name: nameOf(ref), ContainerImage: ref}, new(resolved))
	if err != nil {
		return nil, err
	}
	j := &Judgement{Ref: list[0].ref, Digests: list[0].digests, Aside: list[0].aside}
	for i := range list {
		e := g.judge(ctx, &list[i], nil)
		j.Rejected = append(j.Rejected, e.Rejected...)
		j.Entries = append(j.Entries, e)
	}
	return j, nil
}

// Verify finds and verifies the evidence of one image, without the cache: bytes that
// are not what their digest says are then evidence that was altered, and told as that.
// Errors are those of verify.Image.
func (g *Gate) Verify(ctx context.Context, ref string) (*verify.Evidence, error) {
	rt, err := Authorized(ctx, ref, g.Transport, g.Embedded)
	if err != nil {
		return nil, err
	}
	o := g.options()
	o.Transport = rt
	return verify.Image(ctx, ref, o)
}

func (g *Gate) options() verify.Options {
	return verify.Options{
		Keys: g.Keys, Instances: g.Instances, Identities: g.Identities, At: g.At, Log: g.Log,
		WithoutSignature: g.WithoutSignature, WithoutProvenance: g.WithoutProvenance,
	}
}

func (g *Gate) verify(ctx context.Context, m *manifest) (*verify.Evidence, error) {
	s, err := g.store(ctx, m.repo)
	if err != nil {
		return nil, err
	}
	items, err := s.List(ctx, m.digest)
	if err != nil {
		return nil, fmt.Errorf("verifying %s: %w", m.ref(), err)
	}
	e, err := verify.Items(m.ref(), m.bytes, items, g.options())
	if none := (*verify.NoEvidenceError)(nil); errors.As(err, &none) {
		return nil, none
	}
	if err != nil {
		return nil, fmt.Errorf("verifying %s: %w", m.ref(), err)
	}
	return e, nil
}

// store reads one repository, authorised once.
func (g *Gate) store(ctx context.Context, repo name.Repository) (*oci.Store, error) {
	rt, err := g.authorized(ctx, repo)
	if err != nil {
		return nil, err
	}
	attempts := 0
	if g.Retry.Max > 0 {
		attempts = 2 // the cache tries again, but for answers that end midway
	}
	return oci.New(repo, rt, oci.Options{Attempts: attempts}), nil
}

func (g *Gate) authorized(ctx context.Context, repo name.Repository) (http.RoundTripper, error) {
	g.open()
	key := repo.Name()
	g.mu.Lock()
	rt := g.allowed[key]
	g.mu.Unlock()
	if rt != nil {
		return rt, nil
	}
	rt, err := authorize(ctx, repo, g.base, g.Embedded)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.allowed) >= maxAuthorized {
		clear(g.allowed)
	}
	g.allowed[key] = rt
	return rt, nil
}

// Authorized adds the user's docker credentials for registries that want some.
func Authorized(ctx context.Context, ref string, rt http.RoundTripper, embedded string) (http.RoundTripper, error) {
	r, err := name.ParseReference(ref)
	if err != nil {
		return nil, fmt.Errorf("reading the reference %q: %w", ref, err)
	}
	return authorize(ctx, r.Context(), rt, embedded)
}

func authorize(ctx context.Context, repo name.Repository, rt http.RoundTripper, embedded string) (http.RoundTripper, error) {
	if repo.RegistryStr() == embedded {
		return rt, nil
	}
	return oci.Authorize(ctx, repo, rt, authn.DefaultKeychain, false)
}

// nameOf is what a component is called that nobody named: the end of its
// repository.
func nameOf(ref string) string {
	repo, _, _ := strings.Cut(ref, "@")
	repo = repo[strings.LastIndex(repo, "/")+1:]
	repo, _, _ = strings.Cut(repo, ":")
	return repo
}
