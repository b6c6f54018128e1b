package signing

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/store"
)

// MaxMessage is the size in bytes of the largest message that is signed.
// Statements of large builds take some 400 kB.
const MaxMessage = 32 << 20

// MessageKind says what a message is.
type MessageKind string

// Kinds of messages.
const (
	Statement MessageKind = "statement" // the DSSE PAE of an in-toto statement
	Image     MessageKind = "image"     // a simple signing document
)

// Message is what may be signed, looked at. Get one from Inspect; the zero value
// is nothing that a driver signs.
type Message struct {
	Kind   MessageKind
	Bytes  []byte
	SHA256 [sha256.Size]byte // of Bytes
	// PredicateType and Subjects are a statement's: Subjects counts them.
	PredicateType string
	Subjects      int
}

var pae = []byte("DSSEv1 " + strconv.Itoa(len(store.PayloadType)) + " " + store.PayloadType + " ")

// Inspect reads a message and refuses, as store.Permanent, whatever is neither the
// DSSE PAE of an in-toto statement nor a simple signing document, so that who holds
// a key cannot be talked into signing a certificate request, a token or another
// protocol's message. Documents that two readers could read differently are refused
// too: see strictjson.
//
// Statements need no subject here. Tekton Chains signs those of runs that built
// nothing, and intoto.Parse, which is for verifiers, does not read them.
func Inspect(message []byte) (Message, error) {
	m := Message{Bytes: message}
	var err error
	switch {
	case len(message) > MaxMessage:
		err = fmt.Errorf("it has %d bytes, at most %d are signed", len(message), MaxMessage)
	case bytes.HasPrefix(message, []byte("DSSEv1 ")):
		err = m.statement()
	case bytes.HasPrefix(message, []byte("{")):
		m.Kind, m.Subjects = Image, 1
		_, err = simplesigning.Parse(message)
	default:
		err = errors.New("want the DSSE PAE of an in-toto statement or a simple signing document")
	}
	if err != nil {
		return Message{}, store.As(store.Permanent, fmt.Errorf("refusing to sign this message: %w", err))
	}
	m.SHA256 = sha256.Sum256(message)
	return m, nil
}

func (m *Message) statement() error {
	m.Kind = Statement
	rest, ok := bytes.CutPrefix(m.Bytes, pae)
	if !ok {
		return fmt.Errorf("its payload type is not %s", store.PayloadType)
	}
	length, payload, ok := bytes.Cut(rest, []byte(" "))
	// Compared as text: a length has one spelling.
	if !ok || string(length) != strconv.Itoa(len(payload)) {
		return errors.New("its length and its payload differ")
	}
	top, err := members(payload)
	if err != nil {
		return fmt.Errorf("reading its statement: %w", err)
	}
	get := func(name string) []byte { at := top[name]; return payload[at.from:at.to] }
	typ, err := strictjson.String(get("_type"))
	if err != nil {
		return fmt.Errorf("reading its statement's _type: %w", err)
	}
	if typ != api.StatementV01 && typ != api.StatementV1 {
		return fmt.Errorf("its statement's type %q is not known; known are %s and %s", typ, api.StatementV01, api.StatementV1)
	}
	if m.PredicateType, err = strictjson.String(get("predicateType")); err != nil {
		return fmt.Errorf("reading its statement's predicateType: %w", err)
	}
	if m.PredicateType == "" {
		return errors.New("its statement's predicateType is empty")
	}
	if k := strictjson.Kind(get("predicate")); k != "object" && k != "nothing" && k != "null" {
		return fmt.Errorf("reading its statement's predicate: want an object, have %s", k)
	}
	if k := strictjson.Kind(get("subject")); k == "nothing" || k == "null" {
		return nil
	}
	subjects, err := strictjson.Array(get("subject"))
	if err != nil {
		return fmt.Errorf("reading its statement's subject: %w", err)
	}
	if m.Subjects = len(subjects); m.Subjects > intoto.MaxSubjects {
		return fmt.Errorf("its statement has %d subjects, at most %d are signed", m.Subjects, intoto.MaxSubjects)
	}
	for i, raw := range subjects {
		if k := strictjson.Kind(raw); k != "object" {
			return fmt.Errorf("reading its statement's subject %d: want an object, have %s", i, k)
		}
	}
	return nil
}
