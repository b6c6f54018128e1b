package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
)

// Run names the run that a record is about.
type Run struct {
	APIVersion string // tekton.dev/v1
	Kind       string // TaskRun or PipelineRun
	Namespace  string
	Name       string
	UID        string
	// ServiceAccount is the account whose registry credentials are used for the
	// run's images; empty: default.
	ServiceAccount string
}

// String is kind namespace/name.
func (r Run) String() string { return r.Kind + " " + r.Namespace + "/" + r.Name }

// Record is one signed object about a run: a statement, or the signature of an
// image. It is what Tekton Chains hands to each of its storage back ends.
type Record struct {
	Run Run
	// Key names the record among those of its run, in Chains' words:
	// taskrun-<uid>, pipelinerun-<uid>, or the first twelve hex characters of an
	// image's digest.
	Key string
	// Format is chains-config's word: in-toto, slsa/v1, … or simplesigning.
	Format string
	// Payload are the bytes that are stated: a statement, or a simple signing
	// document.
	Payload []byte
	// Statement is Payload parsed; nil for simplesigning.
	Statement *intoto.Statement
	// Image is repository@sha256:… ; set for simplesigning, and only then.
	Image string
	// Signatures, one per key; one at least.
	Signatures []Signature
	// Log says where the signatures were logged, if they were.
	Log []LogEntry
}

// Signature is one signature of a record: over the DSSE PAE of a statement, over
// the payload's own bytes for an image.
type Signature struct {
	KeyID string
	Sig   []byte
	Key   dsse.PublicKey
	// Cert and Chain are PEM, leaf and issuers; empty for bare keys.
	Cert, Chain []byte
	// Statement is, for an image, the signature by the same key over the DSSE PAE
	// of intoto.ImageSignature(digest). Sigstore bundles sign images so; Sig cannot
	// stand in for it. Nil where no back end asks for it.
	Statement []byte
}

// LogEntry says where a transparency log keeps a record.
type LogEntry struct {
	// URL of the entry, as annotation chains.tekton.dev/transparency gives it.
	URL string
	// Rekor is the entry of a Rekor log, as Sigstore bundles carry it; nil for
	// other logs.
	Rekor *v1.TransparencyLogEntry
	// Proof is the proof of inclusion in a log of ours (package attest/tlog).
	Proof []byte
}

// PayloadType is the DSSE type of in-toto statements.
const PayloadType = "application/vnd.in-toto+json"

// Envelope is the DSSE envelope with all signatures; nil for an image.
func (r Record) Envelope() *dsse.Envelope {
	if r.Statement == nil {
		return nil
	}
	e := &dsse.Envelope{PayloadType: PayloadType, Payload: r.Payload}
	for _, s := range r.Signatures {
		e.Signatures = append(e.Signatures, dsse.Signature{KeyID: s.KeyID, Sig: s.Sig})
	}
	return e
}

// SignatureBytes is what Chains keeps as the record's signature: the envelope as
// JSON for a statement, the first signature itself for an image.
func (r Record) SignatureBytes() ([]byte, error) {
	if e := r.Envelope(); e != nil {
		return e.MarshalJSON()
	}
	if len(r.Signatures) == 0 {
		return nil, errors.New("record has no signature")
	}
	return r.Signatures[0].Sig, nil
}

// Check returns an error unless the record is whole and every signature
// verifies with its own key.
func (r Record) Check() error {
	switch {
	case r.Key == "" || r.Run.UID == "" || r.Run.Name == "":
		return errors.New("record without key or run")
	case len(r.Signatures) == 0:
		return fmt.Errorf("record %s has no signature", r.Key)
	case (r.Statement == nil) == (r.Image == ""):
		return fmt.Errorf("record %s must be either a statement or an image's signature", r.Key)
	}
	message := r.Payload
	if r.Statement != nil {
		message = dsse.PAE(PayloadType, r.Payload)
	}
	for _, s := range r.Signatures {
		if err := s.Key.Verify(message, s.Sig); err != nil {
			return fmt.Errorf("record %s: signature by %s: %w", r.Key, s.KeyID, err)
		}
	}
	return r.checkImage()
}

// checkImage verifies the second form of an image's signatures, where there is one.
func (r Record) checkImage() error {
	if !slices.ContainsFunc(r.Signatures, func(s Signature) bool { return s.Statement != nil }) {
		return nil
	}
	if r.Image == "" {
		return fmt.Errorf("record %s is a statement and cannot have an image's second signature", r.Key)
	}
	_, digest, _ := strings.Cut(r.Image, "@")
	statement, err := intoto.ImageSignature(digest)
	if err != nil {
		return fmt.Errorf("record %s: %w", r.Key, err)
	}
	message := dsse.PAE(PayloadType, statement)
	for _, s := range r.Signatures {
		if s.Statement == nil {
			continue
		}
		if err := s.Key.Verify(message, s.Statement); err != nil {
			return fmt.Errorf("record %s: image statement's signature by %s: %w", r.Key, s.KeyID, err)
		}
	}
	return nil
}

// Keeper is a storage back end for records.
//
// Keeping the same payload of the same run again, as after a crash or a retry,
// adds nothing where the back end can tell (Outcome.Existing), whoever signed
// first. Concurrent calls, from other processes too, lose none of each other's
// records. An outcome without an error means that the back end has confirmed the
// write, not that it was sent.
type Keeper interface {
	// Name is the back end's word in chains-config.
	Name() string
	// Keep stores records, all of one run, and returns an outcome for each in
	// the order given. One record that cannot be kept costs only itself; one
	// subject of a statement that the back end has no place for (no image, say)
	// is named in Outcome.Skipped and costs only itself.
	Keep(ctx context.Context, records []Record) []Outcome
	// Find returns what is kept under a record's run and key, not verified; none
	// is no error. Back ends that cannot read (queues) return ErrWriteOnly.
	Find(ctx context.Context, run Run, key string) ([]Kept, error)
	// Close releases connections.
	Close() error
}

// KeepEach keeps records one by one, at most atOnce of them side by side, and
// returns the outcomes in the order of the records. Errors get the record's and
// the back end's name; their class and delay stay. Records that fail their Check
// are Permanent faults and keep is not called for them.
func KeepEach(where string, records []Record, atOnce int, keep func(Record) Outcome) []Outcome {
	out := make([]Outcome, len(records))
	var wg sync.WaitGroup
	slots := make(chan struct{}, max(1, atOnce))
	for i, r := range records {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := r.Check(); err != nil {
				out[i].Err = As(Permanent, err)
			} else {
				out[i] = keep(r)
			}
			if err := out[i].Err; err != nil {
				out[i].Err = Because(err, fmt.Errorf("keeping %s of %s in %s: %w", r.Key, r.Run, where, err))
			}
		})
	}
	wg.Wait()
	return out
}

// Because is err with the class and the delay of another, which it explains.
func Because(other, err error) error {
	f := &Fault{Class: ClassOf(other), Err: err}
	if o, ok := errors.AsType[*Fault](other); ok {
		f.RetryAfter = o.RetryAfter
	}
	return f
}

// ErrWriteOnly says that a back end cannot read back what it was given.
var ErrWriteOnly = errors.New("this back end cannot be read")

// Outcome says what became of one record.
type Outcome struct {
	// Where says where the record is now, for people: references, URLs, names.
	Where []string
	// Existing: it was there before, and nothing was added.
	Existing bool
	// Skipped names subjects that the back end has no place for, with the reason.
	Skipped []string
	// Annotations must be on the run's object for the record to count as kept.
	// Whoever marks the run writes them in the same request. Only the back end
	// that keeps records on the object itself returns any.
	Annotations map[string]string
	// Err is why it was not kept; see ClassOf.
	Err error
}

// Kept is a record as it was found.
type Kept struct {
	Where       string
	Payload     []byte
	Signature   []byte // as SignatureBytes
	Cert, Chain []byte
}

// Class says what kind of trouble an error is, and so what helps.
type Class int

const (
	// Transient trouble goes away by itself: time-outs, 5xx, 429, lost connections.
	Transient Class = iota
	// Configuration trouble goes away when somebody changes settings, credentials
	// or rights: 401, 403, no key, unknown host, no such bucket.
	Configuration
	// Permanent trouble stays: the record itself cannot be kept, such as one
	// larger than the back end's limit, or of a kind that it cannot take.
	Permanent
)

// String is the class in one word, as metrics and annotations give it.
func (c Class) String() string {
	return [...]string{"transient", "configuration", "permanent"}[c]
}

// Fault is an error of a known class.
type Fault struct {
	Class Class
	Err   error
	// RetryAfter is how long the other side asked to be left alone; 0: it did not.
	RetryAfter time.Duration
}

// Error implements error.
func (f *Fault) Error() string { return f.Err.Error() }

// Unwrap implements errors.Unwrap.
func (f *Fault) Unwrap() error { return f.Err }

// As wraps an error with its class; nil stays nil.
func As(class Class, err error) error {
	if err == nil {
		return nil
	}
	return &Fault{Class: class, Err: err}
}

// ClassOf is the class of an error: that of the outermost Fault in its chain,
// else Transient, since trying again is what loses nothing.
func ClassOf(err error) Class {
	var f *Fault
	if errors.As(err, &f) {
		return f.Class
	}
	return Transient
}
