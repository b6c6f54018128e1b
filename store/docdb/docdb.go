// Package docdb keeps records as documents of a database: MongoDB, DynamoDB,
// Firestore, or a map in memory. It is the word docdb of artifacts.*.storage, and
// storage.docdb.url says where, as gocloud.dev's docstore spells it:
//
//	mongo://database/collection?id_field=Name
//	dynamodb://table?partition_key=Name&region=…
//	firestore://projects/p/databases/(default)/documents/collection?name_field=Name
//	mem://collection/Name
//
// A document has exactly the fields that Tekton Chains gives it: Signed (the
// payload), Signature (base64 of the DSSE envelope, or of an image's signature),
// Cert, Chain, Object (the payload as a structure, so that it can be asked for)
// and Name, which is the record's key.
//
// # Names
//
// Chains puts a record under its key and overwrites what was there. A statement's
// key holds the run's uid, an image's only twelve characters of its digest, so
// each run that signs an image replaces the document of the run before, and an
// image in a second repository that in the first.
//
// We create documents and overwrite none. A statement is under its key, and
// under <key>-2, <key>-3 … if the same run states something else. An image's
// signature is under its key if nobody has that, which is where readers of
// Chains' documents look, and always under <key>-<uid of the run>, then
// <key>-<uid>-2 … for further repositories. A document with our payload counts as
// ours if one of the record's signers has signed it, and is passed by otherwise.
// That second document is what makes a
// record count as kept. A document is created whole or not at all, on condition
// that there is none of its name, so writers need no other order.
//
// # Size
//
// Documents are bounded: 16 MB in MongoDB, 1 MiB in Firestore, 400 KB in DynamoDB.
// A payload is in its document three times, and statements of large pipelines
// reach these bounds. Where Object makes the difference, or a database does not
// take it (too deep, an array in an array), the document is created without it,
// which Outcome.Where says. What is too large even so is refused as Permanent.
//
// # MongoDB's address
//
// The server is what storage.docdb.mongo-server-url-path names (a file), else
// storage.docdb.mongo-server-url-dir (a folder with a file MONGO_SERVER_URL), else
// storage.docdb.mongo-server-url itself, else the environment's MONGO_SERVER_URL.
// The files are read whenever records are kept, so a rotated Secret counts from
// the next record on; records under way end on the connection that they began
// with. A file that cannot be read is an error of class Configuration and delays
// records; the connection before it is not used in its stead.
//
// An image has room for one signature here, as in Chains: the record's first.
// Others are named in Outcome.Skipped. Statements keep all of theirs.
//
// The databases' drivers are in package cloud, since each brings its vendor's
// library along; Memory needs none.
package docdb

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

	"gocloud.dev/docstore"

	"assay.dev/assay/store"
)

// Driver opens collections of one kind of database.
type Driver struct {
	// Scheme of the URLs it opens: mongo.
	Scheme string
	// KeyParam is the parameter that must name the field Name; empty: none.
	KeyParam string
	// Server: the URL does not say where the database is; Options.Mongo does.
	Server bool
	// Limit is how many bytes a document may have, and LimitSays says it for
	// people; 0: there is none.
	Limit     int
	LimitSays string
	// Open opens a collection, at the server if there is one. It is called again
	// later when it fails, and its errors count as Configuration unless they are
	// store.Faults. What it returns closes the collection and all connections.
	Open func(ctx context.Context, u *url.URL, server string) (*docstore.Collection, func() error, error)
	// Fault recognises the vendor's errors; nil where it knows nothing, and then
	// gocloud.dev's code decides.
	Fault func(err error) *store.Fault
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
	// Drivers for the schemes that are wanted.
	Drivers []Driver
	// Mongo says where a MongoDB server is.
	Mongo MongoServer
	// Timeout bounds the work on one record; default 30 seconds.
	Timeout time.Duration
	// AtOnce is how many records are written side by side; default 8.
	AtOnce int
}

// Keeper is a collection of records. It is safe for concurrent use, also beside
// keepers of other processes.
type Keeper struct {
	url    *url.URL
	where  string
	driver Driver
	opts   Options

	opening chan struct{} // holds one while somebody opens
	mu      sync.Mutex
	now     *handle // guarded by mu; nil until first used
	closed  bool    // guarded by mu
	failed  failure // guarded by mu: of the last try to open
}

// failure spares records that wait for the same connection their own try.
type failure struct {
	err    error
	server string
	at     time.Time
}

const failureLasts = time.Second

var _ store.Keeper = (*Keeper)(nil)

// New returns the keeper of the collection that storage.docdb.url names.
//
// It refuses a URL that it cannot read, a scheme without a driver, a collection
// whose key is not the field Name, and MongoDB without any server set. It connects
// to nothing: that is done when the first record comes, and again as long as it
// fails.
func New(raw string, opts Options) (*Keeper, error) {
	const setting = "storage.docdb.url"
	u, err := url.Parse(raw)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // the URL may hold a secret
		}
		return nil, fmt.Errorf("parsing setting %s: %w", setting, err)
	}
	if opts.Timeout <= 0 {
		opts.Timeout = 30 * time.Second
	}
	if opts.AtOnce <= 0 {
		opts.AtOnce = 8
	}
	i := slices.IndexFunc(opts.Drivers, func(d Driver) bool { return d.Scheme == u.Scheme })
	if i < 0 || u.Scheme == "" {
		var schemes []string
		for _, d := range opts.Drivers {
			schemes = append(schemes, d.Scheme+"://")
		}
		return nil, fmt.Errorf("setting %s: no driver for scheme %q; accepted: %s", setting, u.Scheme, strings.Join(schemes, ", "))
	}
	k := &Keeper{url: u, driver: opts.Drivers[i], opts: opts, opening: make(chan struct{}, 1), where: u.Scheme + "://" + u.Host + strings.TrimSuffix(u.Path, "/")}
	if u.User != nil {
		return nil, fmt.Errorf("setting %s must not carry a credential: it is in a ConfigMap", setting)
	}
	// docstore compares fields without case, and Chains' documentation writes name.
	if p := k.driver.KeyParam; p != "" && !strings.EqualFold(u.Query().Get(p), "Name") {
		return nil, fmt.Errorf("setting %s: %s must have the parameter %s=Name, the field that documents are found by", setting, k.where, p)
	}
	if k.driver.Server && opts.Mongo == (MongoServer{}) {
		return nil, fmt.Errorf("setting %s is of MongoDB, and nothing says where its server is; set one of storage.docdb.mongo-server-url-path, "+
			"storage.docdb.mongo-server-url-dir, storage.docdb.mongo-server-url or the environment's MONGO_SERVER_URL", setting)
	}
	return k, nil
}

// Name implements store.Keeper.
func (k *Keeper) Name() string { return "docdb" }

// handle is an open collection and how many use it.
type handle struct {
	coll   *docstore.Collection
	close  func() error
	server string
	users  int  // guarded by Keeper.mu
	old    bool // guarded by Keeper.mu: closed by its last user
}

// acquire returns the collection at the server that is set now.
func (k *Keeper) acquire(ctx context.Context) (*handle, error) {
	var server string
	if k.driver.Server {
		var err error
		if server, err = k.opts.Mongo.read(); err != nil {
			return nil, store.As(store.Configuration, err)
		}
	}
	if h, err := k.present(server); h != nil || err != nil {
		return h, err
	}
	// Opening can take as long as a server does not answer. One record does it,
	// the others wait as long as they have time.
	select {
	case k.opening <- struct{}{}:
		defer func() { <-k.opening }()
	case <-ctx.Done():
		return nil, store.As(store.Transient, fmt.Errorf("opening %s: %w", k.where, ctx.Err()))
	}
	if h, err := k.present(server); h != nil || err != nil {
		return h, err
	}
	coll, closing, err := k.driver.Open(ctx, k.url, server)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		err = k.openingFailed(ctx, err)
		k.failed = failure{err: err, server: server, at: time.Now()}
		return nil, err
	}
	h := &handle{coll: coll, close: closing, server: server, users: 1}
	if k.closed {
		h.old = true // its only user closes it
		return h, nil
	}
	_ = k.retire() // what it was used for has been answered
	k.now = h
	return h, nil
}

// present is the open collection at a server, if there is one, or why there is
// none, if that is known.
func (k *Keeper) present(server string) (*handle, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.closed:
		return nil, errors.New("the keeper is closed")
	case k.now != nil && k.now.server == server:
		k.now.users++
		return k.now, nil
	case k.failed.err != nil && k.failed.server == server && time.Since(k.failed.at) < failureLasts:
		return nil, k.failed.err
	}
	return nil, nil
}

func (k *Keeper) openingFailed(ctx context.Context, err error) error {
	f := &store.Fault{Class: store.Configuration}
	if known := k.driver.fault(err); known != nil {
		f.Class, f.RetryAfter = known.Class, known.RetryAfter
	} else if _, ok := errors.AsType[net.Error](err); ok || ctx.Err() != nil {
		f.Class = store.Transient
	}
	f.Err = fmt.Errorf("opening %s: %w", k.where, err)
	return f
}

// retire lets the present handle go; k.mu is held.
func (k *Keeper) retire() error {
	h := k.now
	if h == nil {
		return nil
	}
	k.now, h.old = nil, true
	if h.users > 0 {
		return nil
	}
	return h.close()
}

func (k *Keeper) release(h *handle) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if h.users--; h.users == 0 && h.old {
		_ = h.close() // what it was used for has been answered
	}
}

// Close implements store.Keeper. Connections close when records under way have
// ended.
func (k *Keeper) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	return k.retire()
}

// Keep implements store.Keeper. Records are written side by side; the order of
// outcomes is that of the records.
func (k *Keeper) Keep(ctx context.Context, records []store.Record) []store.Outcome {
	return store.KeepEach(k.where, records, k.opts.AtOnce, func(r store.Record) store.Outcome { return k.keep(ctx, r) })
}

func (k *Keeper) keep(ctx context.Context, r store.Record) store.Outcome {
	fail := func(err error) store.Outcome { return store.Outcome{Err: err} }
	doc, err := newDocument(r)
	if err != nil {
		return fail(store.As(store.Permanent, err))
	}
	ctx, cancel := context.WithTimeout(ctx, k.opts.Timeout)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	h, err := k.acquire(ctx)
	if err != nil {
		return fail(err)
	}
	defer k.release(h)
	w := writer{coll: h.coll, driver: k.driver, doc: doc}
	name, existing, err := w.write(ctx, r)
	if err != nil {
		return fail(err)
	}
	where := k.where + " " + name
	if w.bare != "" {
		where += " (without Object: " + w.bare + ")"
	}
	o := store.Outcome{Where: []string{where}, Existing: existing}
	if r.Image != "" {
		for _, s := range r.Signatures[1:] {
			o.Skipped = append(o.Skipped, fmt.Sprintf("signature of %s by %s: docdb keeps one signature of an image", r.Image, s.KeyID))
		}
	}
	return o
}

// Find implements store.Keeper. Of an image's signature that this run has not
// kept itself, it returns the document under the key, which is what Chains wrote
// for this or another run.
func (k *Keeper) Find(ctx context.Context, run store.Run, key string) ([]store.Kept, error) {
	if err := checkNames(run, key); err != nil {
		return nil, store.As(store.Permanent, err)
	}
	h, err := k.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer k.release(h)
	w := writer{coll: h.coll, driver: k.driver}
	var kept []store.Kept
	for _, own := range []bool{true, false} {
		base := key
		if own {
			base += "-" + run.UID
		}
		if len(kept) > 0 {
			break
		}
		for n := 1; n <= maxSame; n++ {
			doc := &document{Name: nth(base, n)}
			err := h.coll.Get(ctx, doc)
			if isAbsent(err) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("finding %s in %s: %w", doc.Name, k.where, w.fail(ctx, err))
			}
			// What is no record must not hide the ones that are.
			if found, err := doc.kept(k.where); err == nil {
				kept = append(kept, found)
			}
		}
	}
	return kept, nil
}
