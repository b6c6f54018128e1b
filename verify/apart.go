package verify

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	rekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	sgtlog "github.com/sigstore/sigstore-go/pkg/tlog"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/store"
)

// Two things are verified here without the library's verifier as a whole, because it
// does not read them: log entries of kind intoto 0.0.1, which cosign before 2.2 kept
// beside its attestations, and layers that are signed by a key. The entry is package
// tlog's to verify; certificates and timestamps remain the library's.

// apart is a piece signed by a certificate, with its log entry apart from the rest.
type apart struct {
	sgverify.SignedEntity // knows of no entry
	entry                 *rekor.TransparencyLogEntry
	message               []byte // what the signature is over
	signed                func(dsse.PublicKey) tlog.Signed
}

// TlogEntries fails, so that nobody takes the piece for one without a log entry.
func (a *apart) TlogEntries() ([]*sgtlog.Entry, error) {
	return nil, errors.New("the log entry is of a kind that is verified apart")
}

// isOldEntry says whether an entry is of the kind that the library does not read.
func isOldEntry(e *rekor.TransparencyLogEntry) bool {
	return e.GetKindVersion().GetKind() == "intoto" && e.GetKindVersion().GetVersion() == "0.0.1"
}

// apart verifies such a piece as entity does others: the log's entry with its time, the
// certificate at that time and every other that is known, its log's promise, and the
// signature. What the instance demands more of than one entry can give is refused.
func (c *checker) apart(a *apart, leaf *x509.Certificate, key dsse.PublicKey, in *Instance) (*seen, error) {
	out, err := c.checkApart(a, leaf, key, in)
	if err != nil {
		return nil, fmt.Errorf("verifying against instance %q: %w", in.name, err)
	}
	return out, nil
}

func (c *checker) checkApart(a *apart, leaf *x509.Certificate, key dsse.PublicKey, in *Instance) (*seen, error) {
	need := in.need
	if err := need.check(); err != nil {
		return nil, err
	}
	s := a.signed(key)
	if err := key.Verify(a.message, s.Sig); err != nil {
		return nil, fmt.Errorf("the certificate's key did not sign this: %w", err)
	}
	trust, err := in.oldLogs()
	if err != nil {
		return nil, err
	}
	entry, err := tlog.CheckRekorCertificate(a.entry, s, leaf.Raw, trust)
	if err == nil {
		err = enough(entry, need)
	}
	if err != nil {
		return nil, as(KindNotLogged, err)
	}
	out := &seen{logged: []tlog.Inclusion{entry}, times: []Timestamp{{Time: entry.Time, Kind: TimeLog, Source: entry.Log}}}
	stamps, refused, err := sgverify.VerifySignedTimestamp(a, in.root)
	if err != nil {
		return nil, err
	}
	// As in the library, a log's time counts where log entries are asked for.
	if n := len(stamps); n < need.SignedTimestamps || n+min(1, need.LogEntries) < need.Timestamps {
		short := fmt.Errorf("%d signed timestamps and the log's verify; needed are %d signed, %d times in all and %d log entries", n, need.SignedTimestamps, need.Timestamps, need.LogEntries)
		return nil, errors.Join(append([]error{short}, refused...)...)
	}
	for _, t := range stamps {
		out.times = append(out.times, Timestamp{Time: t.Time.UTC(), Kind: TimeAuthority, Source: t.URI})
	}
	var chains [][]*x509.Certificate
	for _, t := range out.times {
		if err := c.before(t.Time); err != nil {
			return nil, err
		}
		if chains, err = sgverify.VerifyLeafCertificate(t.Time, leaf, in.root); err != nil {
			return nil, fmt.Errorf("the certificate (valid %s to %s) was not valid, or not by an authority of the instance, at %s: %w",
				leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339), t.Time.Format(time.RFC3339), err)
		}
	}
	if need.Current {
		for _, t := range []time.Time{c.at, time.Now()} {
			if _, err := sgverify.VerifyLeafCertificate(t, leaf, in.root); err != nil {
				return nil, fmt.Errorf("the certificate is not valid at the instant of verification, %s, and nobody is asked when it was used: %w", t.UTC().Format(time.RFC3339), err)
			}
		}
	}
	if need.SCTs > 0 {
		if err := sgverify.VerifySignedCertificateTimestamp(chains, need.SCTs, in.root); err != nil {
			return nil, fmt.Errorf("verifying the certificate log's promise: %w", err)
		}
	}
	return out, nil
}

// oldLogs are the instance's logs for entries that the library does not see. As there,
// a log without a beginning signs no time.
func (i *Instance) oldLogs() (tlog.Trust, error) {
	keys, err := i.RekorKeys()
	if err != nil {
		return tlog.Trust{}, err
	}
	return tlog.Trust{Rekor: slices.DeleteFunc(keys, func(k tlog.RekorKey) bool { return k.From.IsZero() })}, nil
}

// enough says whether the one entry that a layer has is what an instance needs, with a
// time that its log signed.
func enough(in tlog.Inclusion, need Thresholds) error {
	if need.LogEntries > 1 {
		return fmt.Errorf("not enough verified log entries: it carries 1, needed are %d", need.LogEntries)
	}
	if in.Time.IsZero() {
		return errors.New("the log signs no time of its entry")
	}
	return nil
}

// before refuses what was made after the instant of verification.
func (c *checker) before(t time.Time) error {
	if t.After(c.at) {
		return fmt.Errorf("the signature was made at %s, after the instant of verification, %s", t.UTC().Format(time.RFC3339), c.at.UTC().Format(time.RFC3339))
	}
	return nil
}

// keyedLayer does for a layer of .att or .sig what keyed does for a bundle: one of the
// instances' logs holds the signature, and gives a time when the key was valid.
func (c *checker) keyedLayer(it store.Item, s tlog.Signed, k trusted) (*seen, error) {
	text := it.Annotations[tlog.AnnotationBundle]
	if it.Format != store.FormatTag || text == "" {
		return nil, errors.New("there is neither a bundle nor an annotation with a log's entry")
	}
	e, err := tlog.ParseCosignBundle(text)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, in := range c.instances {
		if in.need.LogEntries == 0 {
			continue
		}
		out, err := c.keyedBy(in, e, s, k)
		if err == nil {
			return out, nil
		}
		errs = append(errs, fmt.Errorf("verifying against instance %q: %w", in.name, err))
	}
	if len(errs) == 0 {
		return nil, errors.New("none of the trusted instances has a log in which a key's signature could be")
	}
	return nil, errors.Join(errs...)
}

func (c *checker) keyedBy(in *Instance, e *rekor.TransparencyLogEntry, s tlog.Signed, k trusted) (*seen, error) {
	trust, err := in.oldLogs()
	if err != nil {
		return nil, err
	}
	entry, err := tlog.CheckRekor(e, s, trust)
	if err != nil {
		return nil, err
	}
	if err := enough(entry, in.need); err != nil {
		return nil, err
	}
	if in.need.Timestamps > 1 {
		return nil, fmt.Errorf("%d times are needed, and a layer signed by a key has its log's alone", in.need.Timestamps)
	}
	if err := c.before(entry.Time); err != nil {
		return nil, err
	}
	if !k.From.IsZero() && entry.Time.Before(k.From) || !k.Until.IsZero() && entry.Time.After(k.Until) {
		return nil, fmt.Errorf("the log has it from %s, when the key was not valid", entry.Time.Format(time.RFC3339))
	}
	return &seen{
		key: k.public, by: k.Name, logged: []tlog.Inclusion{entry},
		times: []Timestamp{{Time: entry.Time, Kind: TimeLog, Source: entry.Log}},
	}, nil
}
