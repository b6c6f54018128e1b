package verify

import (
	"errors"
	"fmt"
)

// Kind says in one word why a piece of evidence does not count, so that callers need
// not read sentences. docs/verify.md maps the names that slsa-verifier uses.
type Kind string

// Kinds. Empty is any other reason.
const (
	// KindMalformed: it cannot be read, or two readers could read it differently.
	KindMalformed Kind = "malformed"
	// KindAltered: the bytes are not those that their digest stands for.
	KindAltered Kind = "altered"
	// KindUnreadable: it is listed, and it is gone, too large, or refused by its keeper.
	KindUnreadable Kind = "unreadable"
	// KindInvalidSignature: no signature of a trusted signer over these bytes.
	KindInvalidSignature Kind = "invalid-signature"
	// KindNotLogged: signed, and nobody vouches for it being seen, or for when.
	KindNotLogged Kind = "not-logged"
	// KindUntrustedIdentity: signed by somebody who is not among the trusted.
	KindUntrustedIdentity Kind = "untrusted-identity"
	// KindOtherArtifact: true, and about another artifact.
	KindOtherArtifact Kind = "other-artifact"
	// KindOutcome: provenance of a run that failed or had not ended.
	KindOutcome Kind = "outcome"
	// KindMismatchText: signed words and the readable copy beside them differ.
	KindMismatchText Kind = "mismatch-text"

	// What an Expectation does not find.
	KindMismatchBuilder        Kind = "mismatch-builder"
	KindInvalidBuilder         Kind = "invalid-builder"     // none, or not enough of one, is named
	KindUnsupportedBuilder     Kind = "unsupported-builder" // nobody here knows what this builder says
	KindMismatchSource         Kind = "mismatch-source"
	KindMismatchBranch         Kind = "mismatch-branch"
	KindMismatchTag            Kind = "mismatch-tag"
	KindMismatchVersionedTag   Kind = "mismatch-versioned-tag"
	KindInvalidRef             Kind = "invalid-ref" // a tag is asked for and a branch was built, or the other way
	KindMismatchInputs         Kind = "mismatch-inputs"
	KindMismatchPackageName    Kind = "mismatch-package-name"
	KindMismatchPackageVersion Kind = "mismatch-package-version"
)

// kindError is an error with its kind.
type kindError struct {
	kind Kind
	err  error
}

func (e *kindError) Error() string { return e.err.Error() }
func (e *kindError) Unwrap() error { return e.err }

func kindf(k Kind, format string, a ...any) error { return &kindError{k, fmt.Errorf(format, a...)} }

// as gives an error a kind unless it has one.
func as(k Kind, err error) error {
	if err == nil || kindOf(err) != "" {
		return err
	}
	return &kindError{k, err}
}

// kindOf is the kind that an error was given; empty for none.
func kindOf(err error) Kind {
	var e *kindError
	if errors.As(err, &e) {
		return e.kind
	}
	return ""
}
