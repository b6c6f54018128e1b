package blob

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	gcblob "gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"assay.dev/assay/store"
)

// bucket is what keeping records needs of a place. Errors are store.Faults, or
// those of the context.
type bucket interface {
	// get returns an object, or errAbsent, or ErrDenied where rights are missing.
	get(ctx context.Context, name string) ([]byte, error)
	// create writes an object unless there is one, which is no error.
	create(ctx context.Context, name string, data []byte) (created bool, err error)
	// put writes an object, whatever was there.
	put(ctx context.Context, name string, data []byte) error
	// holds says whether an object is there with this content.
	holds(ctx context.Context, name string, data []byte) (bool, error)
	// list returns all names with a prefix, in order, or store.ErrTooMuch.
	list(ctx context.Context, prefix string) ([]string, error)
	close() error
}

// ErrDenied says that credentials are valid and rights are missing. Faults of a
// Driver wrap it where they mean that: a bucket that lets us create and not read
// is good enough.
var ErrDenied = errors.New("not allowed")

var errAbsent = errors.New("no such object")

// Bounds on what a bucket, which anybody may have written to, makes us read.
const (
	maxObject = 256 << 20
	maxNames  = 10_000
)

// cloudBucket is a bucket behind gocloud.dev.
type cloudBucket struct {
	b      *gcblob.Bucket
	driver Driver
}

func (c *cloudBucket) get(ctx context.Context, name string) ([]byte, error) {
	r, err := c.b.NewReader(ctx, name, nil)
	if err != nil {
		return nil, c.fail(ctx, "reading "+name, err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxObject+1))
	if err != nil {
		return nil, c.fail(ctx, "reading "+name, err)
	}
	if len(data) > maxObject {
		return nil, store.As(store.Permanent, fmt.Errorf("reading %s: more than %d bytes: %w", name, maxObject, store.ErrTooMuch))
	}
	return data, nil
}

func (c *cloudBucket) create(ctx context.Context, name string, data []byte) (bool, error) {
	err := c.upload(ctx, name, data, true)
	if err != nil && gcerrors.Code(err) == gcerrors.FailedPrecondition {
		return false, nil
	}
	return err == nil, c.fail(ctx, "writing "+name, err)
}

func (c *cloudBucket) put(ctx context.Context, name string, data []byte) error {
	return c.fail(ctx, "writing "+name, c.upload(ctx, name, data, false))
}

// upload gives the server the content's digest to compare.
func (c *cloudBucket) upload(ctx context.Context, name string, data []byte, fresh bool) error {
	sum := md5.Sum(data)
	o := &gcblob.WriterOptions{
		ContentType: http.DetectContentType(data), // as Chains' library does
		ContentMD5:  sum[:],
		IfNotExist:  fresh,
	}
	if c.driver.Upload != nil {
		c.driver.Upload(o, len(data))
	}
	return c.b.Upload(ctx, name, bytes.NewReader(data), o)
}

func (c *cloudBucket) holds(ctx context.Context, name string, data []byte) (bool, error) {
	a, err := c.b.Attributes(ctx, name)
	if err != nil {
		err = c.fail(ctx, "looking at "+name, err)
		return false, ignore(err, errAbsent)
	}
	if a.Size != int64(len(data)) {
		return false, nil
	}
	if len(a.MD5) > 0 {
		sum := md5.Sum(data)
		return bytes.Equal(a.MD5, sum[:]), nil
	}
	// Objects encrypted by a key service have no MD5.
	now, err := c.get(ctx, name)
	return err == nil && bytes.Equal(now, data), ignore(err, errAbsent)
}

func (c *cloudBucket) list(ctx context.Context, prefix string) ([]string, error) {
	var names []string
	for it := c.b.List(&gcblob.ListOptions{Prefix: prefix}); ; {
		o, err := it.Next(ctx)
		if errors.Is(err, io.EOF) {
			return names, nil
		}
		if err != nil {
			return nil, c.fail(ctx, "listing", err)
		}
		if len(names) == maxNames {
			return nil, store.As(store.Permanent, store.ErrTooMuch)
		}
		names = append(names, o.Key)
	}
}

func (c *cloudBucket) close() error { return c.b.Close() }

// fail gives an error its class. An absent object is told from an absent bucket
// by writing only, so reading either is errAbsent.
func (c *cloudBucket) fail(ctx context.Context, doing string, err error) error {
	if err == nil {
		return nil
	}
	if cause := ctx.Err(); cause != nil {
		if errors.Is(err, cause) {
			return store.As(store.Transient, fmt.Errorf("%s: %w", doing, err))
		}
		// Some drivers hide that it was the context.
		return store.As(store.Transient, fmt.Errorf("%s: %w: %w", doing, cause, err))
	}
	f := &store.Fault{Class: store.Transient}
	switch gcerrors.Code(err) {
	case gcerrors.NotFound:
		f.Class = store.Configuration
	case gcerrors.PermissionDenied:
		f.Class = store.Configuration
	case gcerrors.InvalidArgument, gcerrors.Unimplemented:
		f.Class = store.Permanent
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		f.Class = store.Configuration
	}
	// The vendor's own code knows more: gcsblob calls 403 not found, s3blob calls
	// bad keys unknown.
	if known := c.driver.fault(err); known != nil {
		f.Class, f.RetryAfter = known.Class, known.RetryAfter
		if errors.Is(known.Err, ErrDenied) {
			f.Err = fmt.Errorf("%s: %w: %w", doing, ErrDenied, err)
			return f
		}
	}
	if gcerrors.Code(err) == gcerrors.PermissionDenied {
		f.Err = fmt.Errorf("%s: %w: %w", doing, ErrDenied, err)
		return f
	}
	if gcerrors.Code(err) == gcerrors.NotFound {
		f.Err = fmt.Errorf("%s: %w: %w", doing, errAbsent, err)
		return f
	}
	f.Err = fmt.Errorf("%s: %w", doing, err)
	return f
}
