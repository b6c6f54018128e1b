// Package blob keeps records as objects in a bucket: Amazon S3 and what speaks
// its protocol, Azure Blob Storage, Google Cloud Storage, or a folder. It is two
// of the words of artifacts.*.storage: gcs, which is Tekton Chains' own, and
// blob, which takes any of these places by URL.
//
// The layout is that of Chains' gcs back end, for each record
//
//	taskrun-<namespace>-<name>/<key>.signature    or pipelinerun-…
//	taskrun-<namespace>-<name>/<key>.cert
//	taskrun-<namespace>-<name>/<key>.chain
//	taskrun-<namespace>-<name>/<key>.payload
//
// where the signature is the DSSE envelope of a statement, or an image's
// signature itself. Chains writes .cert and .chain even if they are empty, and so
// does the word gcs; blob leaves empty ones out.
//
// Chains overwrites what another record left under the same names, such as the
// signature of the same image in a second repository, whose key is the same
// twelve characters. We keep both: the second record's names have the SHA-256 of
// its payload in them, <key>-<hex>.payload and so on. The same happens where the
// payload is ours and the signature is by nobody that we know, such as the key
// before a rotation, or nonsense that somebody put there.
//
// # Order
//
// Four objects cannot be written at once, so their order carries the meaning.
// The signature is created first, on condition that there is none: whoever
// succeeds owns the names. The payload comes last: where it is, the record is
// whole. A writer that finds a signature without a payload completes the record if
// the signature is of the same payload by its own key. If it is by another key, or
// belongs to a certificate that only its maker has, the writer gives the other one
// time, and then writes all of it anew and reads it back until what is there is its
// own. So two writers, or one that was killed and its successor, leave one whole
// record.
//
// A bucket whose server ignores conditions (If-None-Match) is served as well, but
// two observers that run by mistake may then overwrite each other's signatures of
// the same payload.
//
// Nothing counts as kept before its upload was acknowledged, digest and all, and
// the object was found there afterwards with the size and digest that it must
// have. (Chains drops the error of the last step of an upload, which is where a
// failed one shows.)
//
// An image has room for one signature here, as in Chains: the record's first.
// Others are named in Outcome.Skipped. Statements keep all of theirs.
//
// The clouds' drivers are in package cloud, since each brings its vendor's
// library along; folders need none.
package blob

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	gcblob "gocloud.dev/blob"

	"assay.dev/assay/store"
)

// Driver opens buckets of one cloud.
type Driver struct {
	// Scheme of the URLs it opens: s3.
	Scheme string
	// Open opens a bucket. It may look for credentials; it is called again later
	// when it fails, and its errors count as Configuration unless they are
	// store.Faults.
	Open func(ctx context.Context, u *url.URL) (*gcblob.Bucket, error)
	// Fault recognises the vendor's errors; nil where it knows nothing, and then
	// gocloud.dev's code decides.
	Fault func(err error) *store.Fault
	// Upload sets how an object of a size is sent, so that it goes in one request
	// and without large buffers; nil leaves the driver's ways.
	Upload func(o *gcblob.WriterOptions, size int)
}

// fault is what the driver knows of an error, a Fault that it returned itself
// included, or nil.
func (d Driver) fault(err error) *store.Fault {
	if f, ok := errors.AsType[*store.Fault](err); ok {
		return f
	}
	if d.Fault != nil {
		return d.Fault(err)
	}
	return nil
}

// Options are what New may be told.
type Options struct {
	// Drivers for the schemes that are wanted beside file.
	Drivers []Driver
	// Timeout bounds the work on one record; default 30 seconds.
	Timeout time.Duration
	// Patience is how long another writer, seen half-way, may take to finish;
	// default three seconds.
	Patience time.Duration
	// AtOnce is how many records are written side by side; default 8.
	AtOnce int
}

// Keeper is a bucket of records. It is safe for concurrent use, also beside
// keepers of other processes.
type Keeper struct {
	word    string
	where   string // the bucket in messages
	empties bool   // write empty .cert and .chain
	opts    Options
	driver  Driver
	connect func(ctx context.Context) (bucket, error)

	mu     sync.Mutex
	open   bucket // guarded by mu; nil until first used
	closed bool
}

var _ store.Keeper = (*Keeper)(nil)

// New returns the keeper of a bucket. word is its name in chains-config, gcs or
// blob; raw is the bucket's URL: gs://bucket, s3://bucket?region=…,
// azblob://container, file:///folder?create_dir=true. The parameters are those of
// gocloud.dev's packages gcsblob, s3blob and azureblob, and prefix=a/b/ puts
// everything below a name; file knows create_dir only.
//
// New refuses an unknown word, a URL that it cannot read and a scheme without a
// driver. It connects to nothing: that is done when the first record comes, and
// again as long as it fails, so that a place that is down delays records only.
func New(word, raw string, opts Options) (*Keeper, error) {
	setting, ok := map[string]string{"gcs": "storage.gcs.bucket", "blob": "assay.storage.blob.url"}[word]
	if !ok {
		return nil, fmt.Errorf("unknown storage word %q; accepted: gcs, blob", word)
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("parsing the bucket of storage %s (setting %s): %w", word, setting, withoutURL(err))
	}
	if opts.Timeout <= 0 {
		opts.Timeout = 30 * time.Second
	}
	if opts.Patience <= 0 {
		opts.Patience = 3 * time.Second
	}
	if opts.AtOnce <= 0 {
		opts.AtOnce = 8
	}
	k := &Keeper{word: word, empties: word == "gcs", opts: opts, where: u.Scheme + "://" + u.Host + strings.TrimSuffix(u.Path, "/")}
	if u.Scheme == "file" && word == "blob" {
		create, err := fileParams(u)
		if err != nil {
			return nil, fmt.Errorf("parsing setting %s: %w", setting, err)
		}
		k.connect = func(context.Context) (bucket, error) { return openFolder(u.Path, create) }
		return k, nil
	}
	schemes := []string{"file"}
	var mux gcblob.URLMux
	for _, d := range opts.Drivers {
		if slices.Contains(schemes, d.Scheme) {
			return nil, fmt.Errorf("two drivers for scheme %s", d.Scheme)
		}
		schemes = append(schemes, d.Scheme)
		mux.RegisterBucket(d.Scheme, opener(d.Open))
		if d.Scheme == u.Scheme {
			k.driver = d
		}
	}
	switch {
	case word == "gcs" && u.Scheme != "gs":
		return nil, fmt.Errorf("storage gcs is a bucket of Google Cloud Storage, gs://…, not %s; use storage blob with assay.storage.blob.url", k.where)
	case u.Scheme == "" || !mux.ValidBucketScheme(u.Scheme):
		return nil, fmt.Errorf("setting %s: no driver for %q; accepted: %s", setting, k.where, strings.Join(schemes, "://, ")+"://")
	case u.Host == "":
		return nil, fmt.Errorf("storage %s has no bucket; set %s", word, setting)
	case u.User != nil:
		return nil, fmt.Errorf("setting %s must not carry a credential: it is in a ConfigMap; give it through the environment as the cloud's tools do", setting)
	}
	if prefix := u.Query().Get("prefix"); prefix != "" {
		k.where += "/" + strings.Trim(prefix, "/")
	}
	k.connect = func(ctx context.Context) (bucket, error) {
		b, err := mux.OpenBucketURL(ctx, u)
		if err != nil {
			return nil, err
		}
		return &cloudBucket{b: b, driver: k.driver}, nil
	}
	return k, nil
}

// withoutURL drops the URL from an error of url.Parse, since it may hold a secret.
func withoutURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

type opener func(ctx context.Context, u *url.URL) (*gcblob.Bucket, error)

func (o opener) OpenBucketURL(ctx context.Context, u *url.URL) (*gcblob.Bucket, error) {
	return o(ctx, u)
}

// Name implements store.Keeper.
func (k *Keeper) Name() string { return k.word }

// bucket returns the open bucket, or opens it.
func (k *Keeper) bucket(ctx context.Context) (bucket, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, errors.New("the keeper is closed")
	}
	if k.open != nil {
		return k.open, nil
	}
	b, err := k.connect(ctx)
	if err != nil {
		f := &store.Fault{Class: store.Configuration, Err: fmt.Errorf("opening %s: %w", k.where, err)}
		if known := k.driver.fault(err); known != nil {
			f.Class, f.RetryAfter = known.Class, known.RetryAfter
		} else if _, ok := errors.AsType[net.Error](err); ok || ctx.Err() != nil {
			f.Class = store.Transient
		}
		return nil, f
	}
	k.open = b
	return b, nil
}

// Close implements store.Keeper. Calls of Keep must have returned before.
func (k *Keeper) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	if k.open == nil {
		return nil
	}
	b := k.open
	k.open = nil
	return b.close()
}

// Keep implements store.Keeper. Records are written side by side; the order of
// outcomes is that of the records.
func (k *Keeper) Keep(ctx context.Context, records []store.Record) []store.Outcome {
	return store.KeepEach(k.where, records, k.opts.AtOnce, func(r store.Record) store.Outcome { return k.keep(ctx, r) })
}

func (k *Keeper) keep(ctx context.Context, r store.Record) store.Outcome {
	fail := func(err error) store.Outcome { return store.Outcome{Err: err} }
	s, err := newSet(r, k.empties)
	if err != nil {
		return fail(store.As(store.Permanent, err))
	}
	ctx, cancel := context.WithTimeout(ctx, k.opts.Timeout)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	b, err := k.bucket(ctx)
	if err != nil {
		return fail(err)
	}
	w := writer{b: b, s: s, patience: k.opts.Patience}
	name, existing, err := w.write(ctx)
	if err != nil {
		return fail(err)
	}
	o := store.Outcome{Where: []string{k.where + "/" + name + ".payload"}, Existing: existing}
	if r.Image != "" {
		for _, s := range r.Signatures[1:] {
			o.Skipped = append(o.Skipped, fmt.Sprintf("signature of %s by %s: %s keeps one signature of an image", r.Image, s.KeyID, k.word))
		}
	}
	return o
}

// Find implements store.Keeper. A record that was written in part only, its
// payload missing, counts as not there.
func (k *Keeper) Find(ctx context.Context, run store.Run, key string) ([]store.Kept, error) {
	base, err := baseName(run, key)
	if err != nil {
		return nil, store.As(store.Permanent, err)
	}
	b, err := k.bucket(ctx)
	if err != nil {
		return nil, err
	}
	names, err := b.list(ctx, base)
	if err != nil {
		return nil, fmt.Errorf("listing %s/%s: %w", k.where, base, err)
	}
	var kept []store.Kept
	for _, payload := range names {
		name, ok := strings.CutSuffix(payload, ".payload")
		if !ok || name != base && !secondName(base, name) {
			continue
		}
		found := store.Kept{Where: k.where + "/" + payload}
		for _, part := range []struct {
			suffix string
			to     *[]byte
			must   bool
		}{
			{".payload", &found.Payload, true}, {".signature", &found.Signature, true},
			{".cert", &found.Cert, false}, {".chain", &found.Chain, false},
		} {
			*part.to, err = b.get(ctx, name+part.suffix)
			if errors.Is(err, errAbsent) && !part.must {
				err = nil
			}
			if errors.Is(err, errAbsent) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("reading %s/%s%s: %w", k.where, name, part.suffix, err)
			}
			if len(*part.to) == 0 {
				*part.to = nil
			}
		}
		if err == nil {
			kept = append(kept, found)
		}
	}
	return kept, nil
}
