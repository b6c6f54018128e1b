package oci

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/store"
)

// Encodings: chains-config's words for storage.oci.encoding-format.
const (
	EncodingDSSE   = "dsse"            // cosign's tags, .sig and .att
	EncodingBundle = "sigstore-bundle" // Sigstore bundles as referrers
)

// KeeperOptions are the settings of a Keeper; the zero value keeps cosign's tags
// beside the images, without credentials.
type KeeperOptions struct {
	// Repository takes what is about any image: storage.oci.repository. Empty:
	// each image's own. Bundles are always in the image's own.
	Repository string
	// Insecure allows http, and certificates that nobody vouches for:
	// storage.oci.repository.insecure.
	Insecure bool
	// Encoding is EncodingDSSE, the default, or EncodingBundle.
	Encoding string
	// Keychain finds the credentials for a run's images. Nil: there are none. It
	// is asked once per Keep; registries' answers to it are remembered.
	Keychain func(ctx context.Context, run store.Run) (authn.Keychain, error)
	// Images names the images of a run, repository@sha256:…, so that Find knows
	// where to look: a registry does not know runs. Nil: Find is
	// store.ErrWriteOnly.
	Images func(ctx context.Context, run store.Run) ([]string, error)
	// Transport carries requests. Nil: one of the keeper's own, made for many
	// small requests to few hosts.
	Transport http.RoundTripper
	// Parallel is how many tags of one Keep are written at once. Default 16.
	Parallel int
	// Attempts is how often a request is sent while the registry is overloaded or
	// unreachable. Default 2: who keeps records tries again anyway, later.
	Attempts int
	// Rounds is how often a tag is written while others change it. Default 8.
	Rounds int
	// Settle is how long a keeper waits before it looks whether a tag still has
	// what it wrote, where the registry does not honour conditional writes. It
	// must be longer than another keeper takes from reading a tag to having
	// written it. Default: four times what that took here of late, between 50 ms
	// and 2 s.
	Settle time.Duration
	// Now is the time. Default time.Now.
	Now func() time.Time
}

// Keeper keeps records in the registries that their images are in, as Tekton
// Chains' back end oci does. It is safe for concurrent use, and meant to live as
// long as its settings: it remembers what registries are like and what tokens
// they gave.
//
// An image's signature goes to the tag sha256-<hex>.sig, a statement to
// sha256-<hex>.att of each of its subjects that is an image with a sha256 digest;
// other subjects are named in Outcome.Skipped. With EncodingBundle both are
// referrers of the image, as cosign 3 writes them.
//
// # What it costs
//
// A tag that is new takes 3 requests: read, write, look again. Where the registry
// honours conditional writes, which the keeper finds out with one request, it
// takes 2. Besides, each blob goes up once in each repository and Keep: the
// payload of an image's signature, the envelope of a statement, whatever number
// of images it is about. New tags of one layer share one config, which goes up
// once in the keeper's life for each repository: its layer's digest is left open
// (cosign and everything else read the manifest's list of layers; the config's
// list only counts them). A blob takes one request, or two where the registry does
// not take it in one. For six images in one repository that is 43 requests after
// the first time, in six repositories 48, or 36 where conditional writes are
// honoured: the envelope goes up in each.
//
// Bundles take 7 requests for each image with a signature and a statement: look for
// the image, list, two blobs, two manifests, list again. A registry without the API
// for referrers takes 9, for the list is a tag then; that it has none is remembered.
//
// # What holds where others write
//
// Keepers of one process take turns at a tag. Conditional writes keep other
// processes and other makes apart, where the registry honours them. Where it does
// not, a keeper looks again after Settle, and writes again if its layer is gone;
// keepers lose nothing to each other then, as long as none takes longer than that
// between reading and writing. What cosign or Chains add in those milliseconds can
// still be lost, as it can to each other.
type Keeper struct {
	opts  KeeperOptions
	repo  *name.Repository // where everything goes; nil: beside the image
	names []name.Option
	hosts *hosts
	locks tagLocks
	close func()
}

var _ store.Keeper = (*Keeper)(nil)

// NewKeeper returns a keeper. It fails on settings that it does not understand and
// speaks to no registry.
func NewKeeper(opts KeeperOptions) (*Keeper, error) {
	if opts.Encoding == "" {
		opts.Encoding = EncodingDSSE
	}
	if opts.Encoding != EncodingDSSE && opts.Encoding != EncodingBundle {
		return nil, store.As(store.Configuration, fmt.Errorf("unknown storage.oci.encoding-format %q; accepted: %s, %s", opts.Encoding, EncodingDSSE, EncodingBundle))
	}
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&opts.Parallel, 16)
	def(&opts.Attempts, 2)
	def(&opts.Rounds, 8)
	if opts.Now == nil {
		opts.Now = time.Now
	}
	k := &Keeper{opts: opts, locks: tagLocks{held: map[string]*tagLock{}}, close: func() {}}
	if opts.Insecure {
		k.names = append(k.names, name.Insecure)
	}
	if opts.Repository != "" && opts.Encoding == EncodingDSSE {
		repo, err := name.NewRepository(opts.Repository, k.names...)
		if err != nil {
			return nil, store.As(store.Configuration, fmt.Errorf("reading storage.oci.repository: %w", err))
		}
		k.repo = &repo
	}
	base := opts.Transport
	if base == nil {
		t := newTransport(opts.Insecure)
		base, k.close = t, t.CloseIdleConnections
	}
	k.hosts = &hosts{base: base, now: opts.Now, byName: map[string]*host{}}
	return k, nil
}

// newTransport keeps as many connections as it uses at once, and gives up on a
// registry that says nothing.
func newTransport(insecure bool) *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		MaxIdleConns:          256,
		MaxIdleConnsPerHost:   64,
		MaxConnsPerHost:       128,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: time.Minute,
		ExpectContinueTimeout: time.Second,
		DisableCompression:    true, // evidence is asked for by the digest of its bytes
		WriteBufferSize:       64 << 10,
		TLSClientConfig:       &tls.Config{InsecureSkipVerify: insecure}, //nolint:gosec // the setting says so
	}
}

// Name implements store.Keeper.
func (*Keeper) Name() string { return "oci" }

// Close implements store.Keeper.
func (k *Keeper) Close() error { k.close(); return nil }

// target is one image's place for evidence of one kind.
type target struct {
	repo   name.Repository // where it goes
	image  name.Digest
	suffix string // of the tag; empty for bundles
}

func (t target) digest() string { return t.image.DigestStr() }

// job is what goes into one target, and the records it comes from.
type job struct {
	target
	layers  []*layer  // for a tag
	bundles []*hanger // for referrers
	records []int
	where   string
	err     error
}

// Keep implements store.Keeper.
func (k *Keeper) Keep(ctx context.Context, records []store.Record) []store.Outcome {
	out := make([]store.Outcome, len(records))
	if len(records) == 0 {
		return out
	}
	fail := func(i int, err error) {
		err = fmt.Errorf("keeping %s of %s in a registry: %w", records[i].Key, records[i].Run, classify(err))
		out[i] = store.Outcome{Skipped: out[i].Skipped, Err: join(out[i].Err, err)}
	}
	jobs := k.plan(records, out, fail)
	var keychain authn.Keychain
	err := ctx.Err()
	if err == nil && k.opts.Keychain != nil && len(jobs) > 0 {
		if keychain, err = k.opts.Keychain(ctx, records[0].Run); err != nil {
			err = fmt.Errorf("finding registry credentials of %s: %w", records[0].Run, err)
		}
	}
	if err != nil {
		for i := range records {
			if out[i].Err == nil {
				fail(i, err)
			}
		}
		return out
	}
	k.run(ctx, keychain, jobs)

	for i := range records {
		if out[i].Err != nil {
			continue
		}
		var faults []error
		for _, j := range jobs {
			if !slices.Contains(j.records, i) {
				continue
			}
			existing, err := j.outcome(i)
			if err != nil {
				faults = append(faults, err)
				continue
			}
			out[i].Where = append(out[i].Where, j.where)
			out[i].Existing = existing && (out[i].Existing || len(out[i].Where) == 1)
		}
		for _, err := range faults {
			fail(i, err)
		}
	}
	return out
}

// outcome says whether all that the job has of a record was there before, or what
// went wrong with it.
func (j *job) outcome(record int) (existing bool, err error) {
	if j.err != nil {
		return false, j.err
	}
	existing = true
	for _, p := range j.pieces() {
		if p.index == record {
			existing = existing && p.existing
			err = join(err, p.err)
		}
	}
	return existing, err
}

// pieces are what the job brings in, of either kind.
func (j *job) pieces() []*kept {
	var out []*kept
	for _, l := range j.layers {
		out = append(out, &l.kept)
	}
	for _, h := range j.bundles {
		out = append(out, &h.kept)
	}
	return out
}

// kept is what became of one piece of a record.
type kept struct {
	index    int  // of the record
	existing bool // it was there before we wrote
	written  bool
	err      error // it cannot be kept; others can
}

// plan says what goes where. What cannot be kept it says in out and by fail.
func (k *Keeper) plan(records []store.Record, out []store.Outcome, fail func(int, error)) []*job {
	var jobs []*job
	for i, r := range records {
		err := r.Check()
		if err == nil && r.Run != records[0].Run {
			err = fmt.Errorf("it is about another run than the first record, %s", records[0].Run)
		}
		if err != nil {
			fail(i, store.As(store.Permanent, err))
			continue
		}
		targets, skipped, err := k.targets(r)
		if err == nil {
			out[i].Skipped = skipped
			jobs, err = k.add(jobs, i, r, targets)
		}
		if err != nil {
			fail(i, store.As(store.Permanent, err))
		}
	}
	return jobs
}

// targets are the places for a record. An image must have one; of a statement's
// subjects those that have none are named.
func (k *Keeper) targets(r store.Record) (targets []target, skipped []string, err error) {
	at := func(d name.Digest, suffix string) target {
		if k.opts.Encoding == EncodingBundle {
			suffix = ""
		}
		t := target{repo: d.Repository, image: d, suffix: suffix}
		if k.repo != nil {
			t.repo = *k.repo
		}
		return t
	}
	if r.Image != "" {
		d, err := k.image(r.Image)
		if err != nil {
			return nil, nil, err
		}
		return []target{at(d, suffixSig)}, nil, nil
	}
	for _, s := range r.Statement.Subjects {
		hex := s.Digest["sha256"]
		if hex == "" {
			skipped = append(skipped, s.Name+": it has no sha256 digest, so it is no image in a registry")
			continue
		}
		d, err := k.image(s.Name + "@sha256:" + hex)
		if err != nil {
			skipped = append(skipped, s.Name+": it names no image in a registry")
			continue
		}
		targets = append(targets, at(d, suffixAtt))
	}
	return targets, skipped, nil
}

// image reads a reference as upstream does, but for a name without any slash: that
// is a file's, and not one of the Docker Hub's own images, which nobody can write
// beside.
func (k *Keeper) image(ref string) (name.Digest, error) {
	d, err := name.NewDigest(ref, k.names...)
	if err != nil {
		return name.Digest{}, fmt.Errorf("no image reference: %w", err)
	}
	if !digestForm.MatchString(d.DigestStr()) {
		return name.Digest{}, fmt.Errorf("digest %q is not a sha256 digest", d.DigestStr())
	}
	if said, _, _ := strings.Cut(ref, "@"); !strings.Contains(said, "/") {
		return name.Digest{}, errors.New("the name has no repository in a registry")
	}
	return d, nil
}

// add puts a record into the jobs of its targets, which it makes where needed.
func (k *Keeper) add(jobs []*job, i int, r store.Record, targets []target) ([]*job, error) {
	var (
		layers []*layer
		hung   []*hanger
		err    error
	)
	if k.opts.Encoding == EncodingBundle {
		hung, err = hangersOf(r)
	} else {
		layers, err = layersOf(r)
	}
	if err != nil {
		return jobs, err
	}
	for _, t := range targets {
		at := slices.IndexFunc(jobs, func(j *job) bool {
			return j.repo.Name() == t.repo.Name() && j.digest() == t.digest() && j.suffix == t.suffix
		})
		if at < 0 {
			at = len(jobs)
			jobs = append(jobs, &job{target: t})
		}
		j := jobs[at]
		if slices.Contains(j.records, i) {
			continue // a subject named twice
		}
		j.records = append(j.records, i)
		// Each target has its own fate.
		for _, l := range layers {
			c := *l
			c.index = i
			j.layers = append(j.layers, &c)
		}
		for _, b := range hung {
			c := *b
			c.index = i
			j.bundles = append(j.bundles, &c)
		}
	}
	return jobs, nil
}

// run does the jobs, each of which ends with where or err.
func (k *Keeper) run(ctx context.Context, keychain authn.Keychain, jobs []*job) {
	var (
		wg      sync.WaitGroup
		turns   = make(chan struct{}, k.opts.Parallel)
		ups     = &uploads{done: map[string]func() error{}}
		clients = map[string]*client{}
	)
	for _, j := range jobs {
		c := clients[j.repo.Name()]
		if c == nil {
			a, err := k.hosts.newAccess(ctx, j.repo, keychain)
			if err != nil {
				j.err = err
				continue
			}
			c = k.client(a)
			clients[j.repo.Name()] = c
		}
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			if k.opts.Encoding == EncodingBundle {
				j.err = k.hang(ctx, c, ups, j)
			} else {
				j.err = k.tag(ctx, c, ups, j)
			}
		})
	}
	wg.Wait()
	for _, c := range clients {
		c.access.host.kept.Store(true)
	}
}

// patience is how long a request waits when a registry asks for it; more than that
// is for whoever calls Keep again.
const patience = time.Second

func (k *Keeper) client(a *access) *client {
	return &client{
		repo: a.repo, http: &http.Client{Transport: k.hosts.base}, attempts: k.opts.Attempts,
		noMonolithic: &a.host.noMonolithic, access: a, patience: patience,
	}
}
