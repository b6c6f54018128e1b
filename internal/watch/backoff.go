package watch

import (
	"errors"
	"math/rand/v2"
	"net"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"assay.dev/assay/store"
)

// firstPause is how long a run rests after its first failure.
const firstPause = time.Second

// pause is how long a run rests after its attempts-th failure: twice as long
// each time, up to most, and spread so that what failed together does not come
// back together. A longer time that the other side asked for is kept, for up to
// an hour.
func pause(attempts int, most, asked time.Duration) time.Duration {
	if most <= 0 {
		most = 10 * time.Minute
	}
	d := most
	if attempts < 32 {
		d = min(firstPause<<max(attempts-1, 0), most)
	}
	d = d/2 + rand.N(d/2+1)
	return max(d, min(asked, time.Hour))
}

// fault is what went wrong in an attempt.
type fault struct {
	trouble string // what it was at: a back end's name, signer, log, api
	metric  string // upstream's error_type
	err     error
}

func (f fault) class() store.Class { return store.ClassOf(f.err) }

// asked is how long the other side asked to be left alone.
func (f fault) asked() time.Duration {
	var s *store.Fault
	if errors.As(f.err, &s) && s.RetryAfter > 0 {
		return s.RetryAfter
	}
	if after, ok := apierrors.SuggestsClientDelay(f.err); ok {
		return time.Duration(after) * time.Second
	}
	return 0
}

// apiClass gives errors of the API server a class.
func apiClass(err error) error {
	var netErr net.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &netErr):
		return store.As(store.Transient, err)
	case apierrors.IsUnauthorized(err), apierrors.IsForbidden(err):
		return store.As(store.Configuration, err)
	case apierrors.IsRequestEntityTooLargeError(err):
		return store.As(store.Permanent, err)
	}
	return store.As(store.Transient, err)
}
