package watchtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/signing"
	"assay.dev/assay/store"
)

// Resources of Tekton's runs.
var (
	TaskRuns     = schema.GroupVersionResource{Group: "tekton.dev", Version: "v1", Resource: "taskruns"}
	PipelineRuns = schema.GroupVersionResource{Group: "tekton.dev", Version: "v1", Resource: "pipelineruns"}
)

// Create makes the PipelineRun and its TaskRuns as Tekton does: the PipelineRun
// is there first, its TaskRuns belong to it and end, and it ends last. With
// finish it returns before that, and finish ends it. It fails with the first
// request that does.
func Create(ctx context.Context, client dynamic.Interface, r Run) (finish func(context.Context) error, err error) {
	parent, end, err := create(ctx, client, PipelineRuns, r.PipelineRun, "")
	if err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	errs := make(chan error, len(r.TaskRuns))
	limit := make(chan struct{}, 8)
	for _, tr := range r.TaskRuns {
		wg.Add(1)
		limit <- struct{}{}
		go func() {
			defer func() { <-limit; wg.Done() }()
			_, end, err := create(ctx, client, TaskRuns, tr, parent)
			if err == nil {
				err = end(ctx)
			}
			if err != nil {
				errs <- err
			}
		}()
	}
	wg.Wait()
	select {
	case err := <-errs:
		return nil, err
	default:
	}
	return end, nil
}

// Load creates runs that have ended, several at a time. It fails with the first
// request that does.
func Load(ctx context.Context, client dynamic.Interface, runs ...Run) error {
	errs := make(chan error, len(runs))
	limit := make(chan struct{}, 4)
	for _, r := range runs {
		limit <- struct{}{}
		go func() {
			defer func() { <-limit }()
			finish, err := Create(ctx, client, r)
			if err == nil {
				err = finish(ctx)
			}
			errs <- err
		}()
	}
	for range runs {
		if err := <-errs; err != nil {
			return err
		}
	}
	return nil
}

// create makes one object without its status, owned by owner if that is given,
// and returns its uid and what sets the status.
func create(ctx context.Context, client dynamic.Interface, res schema.GroupVersionResource, object metav1.Object, owner types.UID) (types.UID, func(context.Context) error, error) {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		return "", nil, fmt.Errorf("encoding %s: %w", object.GetName(), err)
	}
	u := &unstructured.Unstructured{Object: fields}
	status := u.Object["status"]
	delete(u.Object, "status")
	unstructured.RemoveNestedField(u.Object, "metadata", "uid")
	unstructured.RemoveNestedField(u.Object, "metadata", "creationTimestamp")
	if owner != "" {
		refs := u.GetOwnerReferences()
		for i := range refs {
			refs[i].UID = owner
		}
		u.SetOwnerReferences(refs)
	}
	at := client.Resource(res).Namespace(object.GetNamespace())
	made, err := at.Create(ctx, u, metav1.CreateOptions{})
	if err != nil {
		return "", nil, fmt.Errorf("creating %s %s: %w", res.Resource, object.GetName(), err)
	}
	return made.GetUID(), func(ctx context.Context) error {
		for try := 0; ; try++ {
			made.Object["status"] = status
			_, err := at.UpdateStatus(ctx, made, metav1.UpdateOptions{})
			if err == nil || try == 5 {
				return err
			}
			// A finalizer came between, as it does to Tekton's controller.
			if made, err = at.Get(ctx, made.GetName(), metav1.GetOptions{}); err != nil {
				return err
			}
		}
	}, nil
}

// Signer signs with a key in memory, for tests of everything but signing.
type Signer struct {
	key    *ecdsa.PrivateKey
	public dsse.PublicKey

	mu    sync.Mutex
	fail  error
	signs int
}

// NewSigner makes a key.
func NewSigner() (*Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	public, err := dsse.NewPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	return &Signer{key: key, public: public}, nil
}

var _ signing.Service = (*Signer)(nil)

// Public is the key that verifies.
func (s *Signer) Public() dsse.PublicKey { return s.public }

// Fail makes every further call fail with err, until it is nil.
func (s *Signer) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

// Signs is how many messages were signed.
func (s *Signer) Signs() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.signs
}

// Sign implements signing.Service.
func (s *Signer) Sign(_ context.Context, _ signing.Settings, message []byte) ([]store.Signature, error) {
	s.mu.Lock()
	fail := s.fail
	if fail == nil {
		s.signs++
	}
	s.mu.Unlock()
	if fail != nil {
		return nil, fail
	}
	sum := sha256.Sum256(message)
	sig, err := ecdsa.SignASN1(rand.Reader, s.key, sum[:])
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return []store.Signature{{KeyID: s.public.KeyID(), Sig: sig, Key: s.public}}, nil
}
