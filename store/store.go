// Package store is the contract for keeping evidence: signed statements and
// image signatures, put beside the artifact that they speak of and found again
// by its digest. Package store/oci keeps them in a registry, in the forms that
// today's and yesterday's tools look for; storetest is the suite that every
// implementation passes.
//
// A store is not believed. Whoever can write to it can put anything there, so
// List returns what is there, bytes and all, and package verify decides what is
// true. Put checks what it is given nonetheless, since a bad signature that was
// published is worse than an error.
package store

import (
	"context"
	"errors"
	"fmt"
	"regexp"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/simplesigning"
)

// Errors that callers may tell apart with errors.Is.
var (
	// ErrNotFound says that the artifact, or the repository, is not there.
	ErrNotFound = errors.New("not found")
	// ErrConflict says that other writers kept changing the same place until
	// the tries ran out. Nothing is lost; trying again later is the remedy.
	ErrConflict = errors.New("other writers kept interfering")
	// ErrTooMuch says that there is more evidence than the bounds allow to
	// read. Reading a part could hide what matters, so nothing is returned.
	ErrTooMuch = errors.New("more evidence than the bounds allow")
	// ErrAltered says that bytes are not those that their digest stands for:
	// somebody, or a disk, changed them.
	ErrAltered = errors.New("the bytes were altered")
)

// Subject is the artifact that evidence is about.
type Subject struct {
	Repo      string // repository as references spell it: localhost:5055/staging/x
	Digest    string // sha256:…
	MediaType string // of its manifest
	Size      int64  // of its manifest
}

// Ref is repo@digest.
func (s Subject) Ref() string { return s.Repo + "@" + s.Digest }

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// Check returns an error unless all fields are set and Digest is a sha256
// digest.
func (s Subject) Check() error {
	switch {
	case s.Repo == "":
		return errors.New("subject without repository")
	case !digestForm.MatchString(s.Digest):
		return fmt.Errorf("subject digest %q is not a sha256 digest", s.Digest)
	case s.MediaType == "" || s.Size <= 0:
		return fmt.Errorf("subject %s without media type or size of its manifest", s.Ref())
	}
	return nil
}

// Evidence is one signed piece about a subject.
type Evidence struct {
	// Envelope holds an in-toto statement that names the subject. For an image
	// signature it is the statement of intoto.ImageSignature.
	Envelope *dsse.Envelope
	// Simple is set for an image signature, and only then.
	Simple *Simple
	// Key made the signatures. A store tells evidence that it already holds by
	// payload and key, since signing twice gives two signatures.
	Key dsse.PublicKey
	// Log says where the signatures were logged, if they were: entries about any of
	// the evidence's forms. They are kept beside each of them.
	Log []LogEntry
}

// Simple is an image signature in the form of cosign's .sig tags.
type Simple struct {
	Payload []byte // simple signing JSON
	Sig     []byte // of Payload
}

// Check verifies the evidence with its own key and that it speaks of the
// subject, and returns the statement.
func (e Evidence) Check(subject Subject) (*intoto.Statement, error) {
	if e.Envelope == nil {
		return nil, errors.New("evidence without envelope")
	}
	if e.Envelope.PayloadType != api.PayloadTypeInToto {
		return nil, fmt.Errorf("payload type %q; want %s", e.Envelope.PayloadType, api.PayloadTypeInToto)
	}
	if _, err := e.Envelope.Verify(1, e.Key); err != nil {
		return nil, err
	}
	s, err := intoto.Parse(e.Envelope.Payload)
	if err != nil {
		return nil, err
	}
	if !s.About(subject.Digest) {
		return nil, fmt.Errorf("the statement (%s) has no subject %s", s.PredicateType, subject.Digest)
	}
	if (s.PredicateType == intoto.PredicateImageSignature) != (e.Simple != nil) {
		return nil, errors.New("an image signature needs both forms, simple signing and statement, and nothing else has the first")
	}
	if e.Simple == nil {
		return s, nil
	}
	if err := e.Key.Verify(e.Simple.Payload, e.Simple.Sig); err != nil {
		return nil, err
	}
	p, err := simplesigning.Parse(e.Simple.Payload)
	if err != nil {
		return nil, err
	}
	if p.Digest != subject.Digest {
		return nil, fmt.Errorf("the simple signing payload is about %s, not %s", p.Digest, subject.Digest)
	}
	return s, nil
}

// ReferrerOnly says whether evidence of a predicate type is kept from the .att
// tag. Observations are: the tag holds what tools of the field expect there,
// provenance, and observations can be large.
func ReferrerOnly(predicateType string) bool {
	return predicateType == api.PredicateObservation
}

// Stored says where a piece of evidence is now.
type Stored struct {
	PredicateType string
	// Referrer is the digest of the referrer manifest.
	Referrer string
	// Tag is the tag whose manifest lists it, empty for evidence kept as a
	// referrer only.
	Tag string
	// Existing: the same payload signed by the same key was there before, and
	// the signature given was not stored. Its log entries were not either: they
	// are about that signature. Evidence that was logged is stored where what was
	// there before was not.
	Existing bool
}

// Format says in which form evidence was found.
type Format string

// Formats.
const (
	FormatTag    Format = "cosign-tag"      // a layer of sha256-<hex>.sig or .att
	FormatBundle Format = "bundle-referrer" // a Sigstore bundle that refers to the artifact
)

// Item is one piece of evidence as found, not verified.
type Item struct {
	Format Format
	// Digest is that of the layer (FormatTag) or the manifest (FormatBundle).
	Digest string
	// MediaType says what Content is: a simple signing payload, a DSSE
	// envelope or a Sigstore bundle.
	MediaType   string
	Annotations map[string]string // of the layer or the manifest
	Content     []byte            // its bytes match the digest they were found by
	// Err says why there is no content, for this item alone: too large, gone,
	// other bytes than its digest says.
	Err error
}

// Reader finds evidence.
type Reader interface {
	// List returns all evidence about the artifact with this digest, in a
	// stable order; none is no error. ErrTooMuch where there is more than the
	// reader's bounds allow; any other error means that the list could not be
	// read completely, and then nothing is returned.
	List(ctx context.Context, digest string) ([]Item, error)
}

// Writer keeps evidence.
type Writer interface {
	// Put stores the evidence beside the subject. When it returns nil, every
	// piece was read back or acknowledged in all the forms it is kept in; the
	// result says where, in the order given. On an error nothing may be
	// claimed as stored, though some of it may be there: putting the same
	// again completes it and adds nothing twice. Evidence that does not verify
	// with its own key, or does not name the subject, is refused before
	// anything is written. Concurrent calls, from other processes too, lose
	// none of each other's evidence; ErrConflict says that the tries ran out.
	Put(ctx context.Context, subject Subject, evidence ...Evidence) ([]Stored, error)
}

// Store is both.
type Store interface {
	Reader
	Writer
}
