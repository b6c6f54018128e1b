package docdb

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"

	"gocloud.dev/docstore"
	"gocloud.dev/gcerrors"

	"assay.dev/assay/store"
)

// document has Chains' fields, and no others: its decoder is docstore's, which is
// strict about fields it does not know.
type document struct {
	Signed    []byte
	Signature string
	Cert      string
	Chain     string
	Object    any
	Name      string
}

func newDocument(r store.Record) (*document, error) {
	if err := checkNames(r.Run, r.Key); err != nil {
		return nil, err
	}
	sig, err := r.SignatureBytes()
	if err != nil {
		return nil, err
	}
	d := &document{
		Signed: r.Payload, Signature: base64.StdEncoding.EncodeToString(sig),
		Cert: string(r.Signatures[0].Cert), Chain: string(r.Signatures[0].Chain), Name: r.Key,
	}
	if err := json.Unmarshal(r.Payload, &d.Object); err != nil {
		return nil, fmt.Errorf("parsing the payload: %w", err)
	}
	return d, nil
}

// size is what a document takes at least, without Object.
func (d *document) size() int {
	return len(d.Signed) + len(d.Signature) + len(d.Cert) + len(d.Chain) + len(d.Name)
}

func (d *document) kept(where string) (store.Kept, error) {
	sig, err := base64.StdEncoding.DecodeString(d.Signature)
	if err != nil {
		return store.Kept{}, fmt.Errorf("reading %s in %s: field Signature: %w", d.Name, where, err)
	}
	out := store.Kept{Where: where + " " + d.Name, Payload: d.Signed, Signature: sig}
	if d.Cert != "" {
		out.Cert = []byte(d.Cert)
	}
	if d.Chain != "" {
		out.Chain = []byte(d.Chain)
	}
	return out, nil
}

// Names become document names, which Firestore puts into a path.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9][-_.A-Za-z0-9]{0,199}$`)

func checkNames(run store.Run, key string) error {
	if !nameForm.MatchString(key) {
		return fmt.Errorf("%q is no key that a document could be named by", key)
	}
	if !nameForm.MatchString(run.UID) {
		return fmt.Errorf("%q is no uid that a document could be named by", run.UID)
	}
	return nil
}

// maxSame bounds how many documents one run may have under one key.
const maxSame = 256

func nth(base string, n int) string {
	if n == 1 {
		return base
	}
	return base + "-" + strconv.Itoa(n)
}

// writer puts one document into a collection; see Names in the package's essay.
type writer struct {
	coll   *docstore.Collection
	driver Driver
	doc    *document
	bare   string // why Object was left out, if it was
}

// write returns the name of the record's document, and whether it was there
// before.
func (w *writer) write(ctx context.Context, r store.Record) (name string, existing bool, err error) {
	if limit := w.driver.Limit; limit > 0 {
		if w.doc.size() > limit {
			return "", false, w.tooLarge(nil)
		}
		if w.doc.size()+len(w.doc.Signed) > limit {
			w.leaveOut("the document would have more than " + w.driver.LimitSays)
		}
	}
	base := r.Key
	if r.Image != "" {
		base = r.Key + "-" + r.Run.UID
	}
	for n := 1; n <= maxSame; n++ {
		name = nth(base, n)
		there, err := w.there(ctx, name)
		if isAbsent(err) {
			// Where readers of Chains' documents look, first: the document of our
			// own marks the record as kept.
			if r.Image != "" {
				if _, err := w.create(ctx, r.Key); err != nil {
					return "", false, err
				}
			}
			created, err := w.create(ctx, name)
			if err != nil {
				return "", false, err
			}
			// Some drivers take a missed write concern for success.
			if there, err = w.there(ctx, name); isAbsent(err) {
				return "", false, store.As(store.Transient, fmt.Errorf("%s was acknowledged and is not there", name))
			}
			if err != nil {
				return "", false, w.fail(ctx, err)
			}
			if created && there.Signature == w.doc.Signature && bytes.Equal(there.Signed, w.doc.Signed) {
				return name, false, nil
			}
		} else if err != nil {
			return "", false, w.fail(ctx, err)
		}
		// What cannot be read is somebody's nonsense, and not this record.
		if found, err := there.kept(""); err == nil && r.Same(found) {
			return name, true, nil
		}
	}
	return "", false, store.As(store.Permanent, fmt.Errorf("%d documents of this run are under %s already", maxSame, base))
}

// there reads what tells whose a document is.
func (w *writer) there(ctx context.Context, name string) (*document, error) {
	d := &document{Name: name}
	err := w.coll.Get(ctx, d, "Signed", "Signature", "Cert")
	return d, err
}

// create creates the document under a name, without Object if the database does
// not take that.
func (w *writer) create(ctx context.Context, name string) (bool, error) {
	d := *w.doc
	d.Name = name
	err := w.coll.Create(ctx, &d)
	if err != nil && d.Object != nil && !isThere(err) && ctx.Err() == nil {
		if f := w.fault(err); f.Class == store.Permanent {
			d.Object = nil
			if err2 := w.coll.Create(ctx, &d); err2 == nil || isThere(err2) {
				w.leaveOut(err.Error())
				err = err2
			} else {
				err = err2
			}
		}
	}
	switch {
	case err == nil:
		return true, nil
	case isThere(err):
		return false, nil
	}
	err = w.fail(ctx, err)
	if store.ClassOf(err) == store.Permanent {
		err = w.tooLarge(err)
	}
	return false, fmt.Errorf("creating %s: %w", name, err)
}

func (w *writer) leaveOut(why string) {
	w.doc.Object, w.bare = nil, why
}

// tooLarge names the limit where it may be the reason.
func (w *writer) tooLarge(err error) error {
	switch {
	case err == nil:
		return store.As(store.Permanent, fmt.Errorf("the document would have %d bytes, and a document of %s", w.doc.size(), w.driver.LimitSays))
	case w.driver.Limit > 0 && w.doc.size() > w.driver.Limit/2:
		return store.As(store.Permanent, fmt.Errorf("%w (the document has some %d bytes; %s)", err, w.doc.size(), w.driver.LimitSays))
	}
	return err
}

func isAbsent(err error) bool { return err != nil && gcerrors.Code(err) == gcerrors.NotFound }

func isThere(err error) bool {
	code := gcerrors.Code(err)
	return err != nil && (code == gcerrors.AlreadyExists || code == gcerrors.FailedPrecondition)
}

// fault is an error's class and how long to wait.
func (w *writer) fault(err error) *store.Fault {
	if f := w.driver.fault(err); f != nil {
		return f
	}
	f := &store.Fault{Class: store.Transient}
	switch gcerrors.Code(err) {
	case gcerrors.NotFound, gcerrors.PermissionDenied:
		f.Class = store.Configuration
	case gcerrors.InvalidArgument, gcerrors.Unimplemented:
		f.Class = store.Permanent
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		f.Class = store.Configuration
	}
	return f
}

func (w *writer) fail(ctx context.Context, err error) error {
	if _, ok := errors.AsType[*store.Fault](err); ok {
		return err
	}
	f := w.fault(err)
	if cause := ctx.Err(); cause != nil {
		// A server that cannot be reached for a reason of configuration says so
		// only by then; a call that was given up is nobody's setting.
		if errors.Is(cause, context.Canceled) {
			f = &store.Fault{Class: store.Transient}
		}
		if !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
	}
	return &store.Fault{Class: f.Class, Err: err, RetryAfter: f.RetryAfter}
}
