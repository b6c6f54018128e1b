package fetch

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/internal/pullcache"
	"assay.dev/assay/policy/source"
)

// Options are how sources are fetched. The zero value works.
type Options struct {
	// Base is the folder that relative paths are relative to. Default: the working
	// folder.
	Base string
	// Cache is the folder that keeps what was fetched. Default: assay/policy in the
	// user's cache folder; where there is none, as in many containers, one in the
	// folder for temporary files that is the user's alone.
	Cache string
	// Transport carries all requests but ssh's. Default: one that tries again with
	// Retry.
	Transport http.RoundTripper
	// Retry is how failures that may pass are tried again. Default: 3 times, after
	// 1, 2 and 3 seconds.
	Retry *pullcache.Retry
	// Keychain has the credentials of registries. Default: docker's configuration.
	Keychain authn.Keychain
	// Lock, if any, is what addresses stand for. What is not in it is refused.
	Lock *Lock
	// Checksums are the digests (source.Tree.Digest) that sources must have, by
	// address. With any, a source that is not among them is refused.
	Checksums map[string]string
	// Signed, if any, says whether an OCI artifact was signed by somebody who may
	// sign sources; its error refuses the artifact. See SignedBy. Sources of other
	// kinds carry no signature, and it is not asked about them: Checksums hold those.
	Signed func(ctx context.Context, artifact name.Digest) error
	// Limits bound what one source may be.
	Limits Limits
}

// Limits bound one source. What is zero has the default.
type Limits struct {
	// Transfer is how many bytes come over the network. Default: 256 MiB.
	Transfer int64
	// Bytes is how large its files are in all. Default: 512 MiB.
	Bytes int64
	// File is how large one file is. Default: 64 MiB.
	File int64
	// Files is how many it has. Default: 20000.
	Files int
}

func (l Limits) withDefaults() Limits {
	if l.Transfer <= 0 {
		l.Transfer = 256 << 20
	}
	if l.Bytes <= 0 {
		l.Bytes = source.MaxBytes
	}
	if l.File <= 0 {
		l.File = source.MaxFileBytes
	}
	if l.Files <= 0 {
		l.Files = source.MaxFiles
	}
	return l
}

// Fetcher fetches sources of all kinds. Make one with New; it is safe for concurrent
// use.
type Fetcher struct {
	opts  Options
	local source.Local
	cache *cache
	once  source.Fetcher

	mu   sync.Mutex
	seen map[string]*source.Tree // guarded by mu; by address
}

var _ source.Fetcher = (*Fetcher)(nil)

// New makes a Fetcher. The cache folder is made when it is needed, and not for files.
// It fails on options that contradict each other; there are none yet.
func New(o Options) (*Fetcher, error) {
	c := &cache{dir: o.Cache}
	if o.Cache == "" {
		if dir, err := os.UserCacheDir(); err == nil {
			c.dir = filepath.Join(dir, "assay", "policy")
		}
		c.other = filepath.Join(os.TempDir(), fmt.Sprintf("assay-policy-%d", os.Getuid()))
	}
	if o.Retry == nil {
		o.Retry = &pullcache.Retry{Max: 3, Wait: time.Second, MaxWait: 3 * time.Second, Factor: 2, Jitter: 0.1}
	}
	if o.Transport == nil {
		base := http.DefaultTransport.(*http.Transport).Clone()
		base.ResponseHeaderTimeout = time.Minute
		o.Transport = pullcache.New(base, pullcache.Options{Retry: *o.Retry})
	}
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	o.Limits = o.Limits.withDefaults()
	c.limits = o.Limits
	f := &Fetcher{opts: o, local: source.Local{Base: o.Base}, cache: c, seen: map[string]*source.Tree{}}
	f.once = source.Once(fetcherFunc(f.fetch))
	return f, nil
}

type fetcherFunc func(context.Context, string) (*source.Tree, error)

func (f fetcherFunc) Fetch(ctx context.Context, address string) (*source.Tree, error) {
	return f(ctx, address)
}

// Fetch implements source.Fetcher. It fails on what cannot be reached or read, is
// beyond the limits, is not what a lock or a checksum says, or is not signed where
// that is asked for.
func (f *Fetcher) Fetch(ctx context.Context, address string) (*source.Tree, error) {
	return f.once.Fetch(ctx, address)
}

func (f *Fetcher) fetch(ctx context.Context, address string) (*source.Tree, error) {
	read, want := address, ""
	if f.opts.Lock != nil {
		e, ok := f.opts.Lock.find(f.opts.Base, address)
		if !ok {
			e, ok = f.opts.Lock.beside(address)
		}
		if !ok {
			return nil, fmt.Errorf("source %q: the lock has no entry for it; add one (`assay policy vendor`)", Redacted(address))
		}
		if e.Path != "" {
			t, err := f.opts.Lock.vendored(ctx, address, e)
			if err != nil {
				return nil, err
			}
			return t, CheckSum(f.opts.Checksums, address, t)
		}
		read, want = withUser(address, e.Pinned), e.Digest
	}
	t, err := f.get(ctx, read)
	if err != nil {
		return nil, err
	}
	if want != "" && t.Digest != want {
		return nil, fmt.Errorf("source %q: it has the digest %s, and the lock says %s; if it was meant to change, write the lock anew", Redacted(address), t.Digest, want)
	}
	if err := CheckSum(f.opts.Checksums, address, t); err != nil {
		return nil, err
	}
	out := &source.Tree{Address: address, Pinned: t.Pinned, Digest: t.Digest, Path: t.Path}
	if err := out.Share(t); err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.seen[Redacted(address)] = out
	f.mu.Unlock()
	return out, nil
}

// CheckSum says whether a tree has the digest that sums has for its address. It fails,
// with both digests, if it has another; and if sums has entries, and none for it.
func CheckSum(sums map[string]string, address string, t *source.Tree) error {
	if len(sums) == 0 {
		return nil
	}
	want, ok := sums[address]
	switch {
	case !ok:
		return fmt.Errorf("source %q: the policy's checksums do not list it; its digest is %s", Redacted(address), t.Digest)
	case want != t.Digest:
		return fmt.Errorf("source %q: it has the digest %s, and the policy's checksums say %s", Redacted(address), t.Digest, want)
	}
	return nil
}

// get fetches an address as it is written.
func (f *Fetcher) get(ctx context.Context, address string) (*source.Tree, error) {
	kind, err := f.local.Kind(address)
	if err != nil {
		return nil, err
	}
	var t *source.Tree
	switch kind {
	case source.File:
		return f.local.Fetch(ctx, address) // it names itself
	case source.Git:
		t, err = f.git(ctx, address)
	case source.OCI:
		t, err = f.oci(ctx, address)
	case source.HTTPS:
		t, err = f.https(ctx, address)
	}
	if err != nil {
		return nil, fmt.Errorf("source %q: %w", Redacted(address), err)
	}
	return t, nil
}

// Pinned is what this Fetcher has read so far, as a lock.
func (f *Fetcher) Pinned() *Lock {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := &Lock{Version: lockVersion, Sources: map[string]Locked{}}
	for address, t := range f.seen {
		l.Sources[address] = Locked{Pinned: t.Pinned, Digest: t.Digest}
	}
	return l
}

// Redacted is an address without credentials.
func Redacted(address string) string {
	before, user, after := splitUser(address)
	if user == "" || strings.HasSuffix(before, "ssh://") && !strings.Contains(user, ":") {
		return address
	}
	return before + after
}

// splitUser takes user and password, with the @, out of an address.
func splitUser(address string) (before, user, after string) {
	i := strings.Index(address, "://")
	if i < 0 {
		return address, "", ""
	}
	rest := address[i+3:]
	host := rest[:strings.IndexAny(rest+"/", "/?#")]
	at := strings.LastIndexByte(host, '@') + 1
	return address[:i+3], rest[:at], rest[at:]
}

// withUser is a pinned address with the credentials that were taken out of it.
func withUser(address, pinned string) string {
	if Redacted(address) == address {
		return pinned
	}
	_, user, _ := splitUser(address)
	switch kind, _ := source.KindOf(pinned); kind {
	case source.Git:
		return "git::https://" + user + strings.TrimPrefix(strings.TrimPrefix(pinned, "git::"), "https://")
	case source.HTTPS:
		return "https://" + user + strings.TrimPrefix(pinned, "https://")
	}
	return pinned
}

var errNoTree = errors.New("there are no files in it")
