package blob

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/store"
)

// set is a record as the objects it becomes.
type set struct {
	record    store.Record
	base      string // taskrun-<namespace>-<name>/<key>
	signature []byte
	cert      []byte
	chain     []byte
	empties   bool // cert and chain are written even if empty
}

func newSet(r store.Record, empties bool) (*set, error) {
	base, err := baseName(r.Run, r.Key)
	if err != nil {
		return nil, err
	}
	sig, err := r.SignatureBytes()
	if err != nil {
		return nil, err
	}
	first := r.Signatures[0]
	return &set{record: r, base: base, signature: sig, cert: first.Cert, chain: first.Chain, empties: empties}, nil
}

// Names become paths in a bucket, and in a folder.
var (
	namePart = regexp.MustCompile(`^[A-Za-z0-9]([-.A-Za-z0-9]*[A-Za-z0-9])?$`)
	keyForm  = regexp.MustCompile(`^[A-Za-z0-9][-_.A-Za-z0-9]{0,199}$`)
)

// baseName is what the names of a record's objects begin with.
func baseName(run store.Run, key string) (string, error) {
	var kind string
	switch run.Kind {
	case "TaskRun", "PipelineRun":
		kind = strings.ToLower(run.Kind)
	default:
		return "", fmt.Errorf("kind %q has no place in a bucket; accepted: TaskRun, PipelineRun", run.Kind)
	}
	if !namePart.MatchString(run.Name) || run.Namespace != "" && !namePart.MatchString(run.Namespace) {
		return "", fmt.Errorf("%q is no name of a run that a bucket could take", run.Namespace+"/"+run.Name)
	}
	if !keyForm.MatchString(key) {
		return "", fmt.Errorf("%q is no key that a bucket could take", key)
	}
	return fmt.Sprintf("%s-%s-%s/%s", kind, run.Namespace, run.Name, key), nil
}

// second is what the names begin with when another record has the first.
func (s *set) second() string {
	sum := sha256.Sum256(s.record.Payload)
	return s.base + "-" + hex.EncodeToString(sum[:])
}

// secondName says whether name is the second name of some record of base.
func secondName(base, name string) bool {
	sum, ok := strings.CutPrefix(name, base+"-")
	b, err := hex.DecodeString(sum)
	return ok && err == nil && len(b) == sha256.Size
}

// kin says how a signature that somebody left without a payload relates to ours.
type kin int

const (
	stranger kin = iota // it is of another payload, or nobody can tell of which
	sibling             // it is of the same payload, by another key
	twin                // it is of the same payload, by one of our keys
)

// kinOf tells by the envelope of a statement, which holds its payload; an image's
// signature tells only whoever has its key.
func (s *set) kinOf(signature []byte) kin {
	if s.record.Statement == nil {
		for _, mine := range s.record.Signatures {
			if mine.Key.Verify(s.record.Payload, signature) == nil {
				return twin
			}
		}
		return stranger
	}
	e, err := dsse.Parse(signature)
	if err != nil || e.PayloadType != store.PayloadType || !bytes.Equal(e.Payload, s.record.Payload) {
		return stranger
	}
	if len(e.Signatures) != len(s.record.Signatures) {
		return sibling
	}
	// Each of our keys must have signed it, or less would be kept than we have.
	for _, mine := range s.record.Signatures {
		if _, err := e.Verify(1, mine.Key); err != nil {
			return sibling
		}
	}
	return twin
}
