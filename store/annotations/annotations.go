// Package annotations keeps records on the run itself, in annotations, as Tekton
// Chains' back end tekton does:
//
//	chains.tekton.dev/payload-<key>     the payload, base64
//	chains.tekton.dev/signature-<key>   a statement's envelope, an image's signature, base64
//	chains.tekton.dev/cert-<key>        PEM, base64; there and empty for a bare key
//	chains.tekton.dev/chain-<key>       as cert
//
// The package writes nothing. Keep returns the annotations, and whoever marks the
// run writes them in the same request as the mark, so that a run is never marked
// without them and one request is enough for both.
//
// # Limits
//
// Kubernetes allows 262,144 bytes for all annotations of an object together, names
// and values, whoever wrote them. A statement takes about 3.1 times its size here
// (itself, and again inside the envelope, which is base64 in base64), so one of
// more than about 84 kB does not fit, and provenance of a large pipeline is larger
// than that. Such a record is refused with a message that says what to do; the
// run's other records are kept.
//
// One signature of an image fits, the first: the form has no place for a second.
// A statement's envelope takes all.
package annotations

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"assay.dev/assay/store"
)

// Prefix is that of Chains' annotations.
const Prefix = "chains.tekton.dev/"

// Limit is what Kubernetes allows for the annotations of one object.
const Limit = 256 << 10

// reserve is left for what is written beside records: the mark, a reason, the
// place in a transparency log.
const reserve = 4 << 10

// parts are what is kept of a record, in the order of Kept's fields.
var parts = [...]string{"payload-", "signature-", "cert-", "chain-"}

// Getter returns the annotations that a run's object has now, as far as the
// caller knows: a cache will do, since whoever writes checks again. It fails if
// the object cannot be had.
type Getter func(ctx context.Context, run store.Run) (map[string]string, error)

// Keeper is the back end. It holds no state and is safe for concurrent use.
type Keeper struct{ get Getter }

var _ store.Keeper = (*Keeper)(nil)

// New returns a keeper that asks get for what is on an object already. It panics
// without get: sizes could not be told.
func New(get Getter) *Keeper {
	if get == nil {
		panic("annotations.New without a Getter")
	}
	return &Keeper{get}
}

// Name implements store.Keeper.
func (*Keeper) Name() string { return "tekton" }

// Close implements store.Keeper.
func (*Keeper) Close() error { return nil }

// Keep implements store.Keeper. An existing record's annotations are returned
// too: a server-side apply that left them out would remove them.
func (k *Keeper) Keep(ctx context.Context, records []store.Record) []store.Outcome {
	out := make([]store.Outcome, len(records))
	if len(records) == 0 {
		return out
	}
	err := ctx.Err()
	var have map[string]string
	if err == nil {
		have, err = k.get(ctx, records[0].Run)
	}
	if err != nil {
		for i := range out {
			out[i].Err = fmt.Errorf("reading annotations of %s: %w", records[i].Run, err)
		}
		return out
	}
	total := Size(have)
	for i, r := range records {
		out[i] = keep(r, records[0].Run, have, &total)
	}
	return out
}

// keep adds what the record takes to total, if it fits.
func keep(r store.Record, run store.Run, have map[string]string, total *int) store.Outcome {
	refuse := func(err error) store.Outcome {
		return store.Outcome{Err: store.As(store.Permanent, fmt.Errorf("keeping %s in annotations of %s: %w", r.Key, r.Run, err))}
	}
	if r.Run != run {
		return refuse(fmt.Errorf("it is about another run than the first record, %s", run))
	}
	if err := r.Check(); err != nil {
		return refuse(err)
	}
	if err := checkKey(r.Key); err != nil {
		return refuse(err)
	}
	o := store.Outcome{Where: []string{fmt.Sprintf("annotation %s%s%s of %s", Prefix, parts[0], r.Key, r.Run)}}
	if old, ok, err := read(have, r.Key); err == nil && ok && r.Same(old) {
		o.Existing = true
		o.Annotations = map[string]string{}
		for _, p := range parts {
			o.Annotations[Prefix+p+r.Key] = have[Prefix+p+r.Key]
		}
		return o
	}
	sig, err := r.SignatureBytes()
	if err != nil {
		return refuse(err)
	}
	o.Annotations = map[string]string{}
	for i, b := range [][]byte{r.Payload, sig, r.Signatures[0].Cert, r.Signatures[0].Chain} {
		o.Annotations[Prefix+parts[i]+r.Key] = base64.StdEncoding.EncodeToString(b)
	}
	more := Size(o.Annotations)
	for name := range o.Annotations {
		if v, ok := have[name]; ok {
			more -= len(name) + len(v)
		}
	}
	if *total+more > Limit-reserve {
		return refuse(fmt.Errorf("it takes %d bytes beside %d that are there or come with it, and Kubernetes allows %d in all; "+
			"keep statements elsewhere: set artifacts.%s.storage in chains-config to oci, for instance",
			Size(o.Annotations), *total, Limit, artifact(r)))
	}
	*total += more
	return o
}

func artifact(r store.Record) string {
	if r.Image != "" {
		return "oci"
	}
	return strings.ToLower(r.Run.Kind)
}

// Size is what Kubernetes counts of annotations: bytes of names and values.
func Size(annotations map[string]string) int {
	n := 0
	for k, v := range annotations {
		n += len(k) + len(v)
	}
	return n
}

// keyForm is what may follow "signature-" in an annotation's name.
var keyForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*[A-Za-z0-9]$`)

func checkKey(key string) error {
	if !keyForm.MatchString(key) || len(parts[1])+len(key) > 63 {
		return fmt.Errorf("key %q makes no annotation's name (letters, digits and .-_, %d at most)", key, 63-len(parts[1]))
	}
	return nil
}

// Find implements store.Keeper. It fails if the object cannot be had, or if its
// annotations are not as Chains writes them.
func (k *Keeper) Find(ctx context.Context, run store.Run, key string) ([]store.Kept, error) {
	have, err := k.get(ctx, run)
	if err != nil {
		return nil, fmt.Errorf("reading annotations of %s: %w", run, err)
	}
	kept, ok, err := read(have, key)
	if err != nil {
		return nil, fmt.Errorf("reading record %s of %s: %w", key, run, err)
	}
	if !ok {
		return nil, nil
	}
	kept.Where = fmt.Sprintf("annotation %s%s%s of %s", Prefix, parts[0], key, run)
	return []store.Kept{kept}, nil
}

// Read returns all records among an object's annotations by their keys, not
// verified. It fails if one of them is not as Chains writes it, and then returns
// the others beside the error.
func Read(annotations map[string]string) (map[string]store.Kept, error) {
	out := map[string]store.Kept{}
	var faults []error
	for name := range annotations {
		key, ok := strings.CutPrefix(name, Prefix+parts[0])
		if !ok {
			if key, ok = strings.CutPrefix(name, Prefix+parts[1]); !ok {
				continue
			}
			if _, both := annotations[Prefix+parts[0]+key]; both {
				continue
			}
		}
		kept, _, err := read(annotations, key)
		if err != nil {
			faults = append(faults, fmt.Errorf("reading record %s: %w", key, err))
			continue
		}
		kept.Where = "annotation " + Prefix + parts[0] + key
		out[key] = kept
	}
	slices.SortFunc(faults, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return out, errors.Join(faults...)
}

// read is false where there is nothing under the key.
func read(annotations map[string]string, key string) (store.Kept, bool, error) {
	var k store.Kept
	found := 0
	for i, to := range []*[]byte{&k.Payload, &k.Signature, &k.Cert, &k.Chain} {
		name := Prefix + parts[i] + key
		v, ok := annotations[name]
		if !ok {
			continue
		}
		if i < 2 {
			found++
		}
		b, err := base64.StdEncoding.Strict().DecodeString(v)
		if err != nil {
			return store.Kept{}, false, fmt.Errorf("annotation %s: decoding base64: %w", name, err)
		}
		if len(b) > 0 {
			*to = b
		}
	}
	if found == 1 {
		return store.Kept{}, false, fmt.Errorf("it needs both annotations %s and %s", Prefix+parts[0]+key, Prefix+parts[1]+key)
	}
	return k, found == 2, nil
}
