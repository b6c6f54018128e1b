package ec

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	rekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/store"
	"assay.dev/assay/verify"
)

// maxSearches is how many pieces of evidence of one image a log is asked about.
const maxSearches = 32

// searches ask transparency logs for entries that do not come with the evidence.
type searches struct {
	transport http.RoundTripper

	mu    sync.Mutex
	logs  map[string]*tlog.Rekor // guarded by mu, by address
	asked []string               // guarded by mu
}

// log is the client of a log.
func (s *searches) log(address string) (*tlog.Rekor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.logs[address]; l != nil {
		return l, nil
	}
	l, err := tlog.NewRekor(tlog.RekorOptions{URL: address, Version: tlog.Rekor1, Transport: s.transport})
	if err != nil {
		return nil, err
	}
	if s.logs == nil {
		s.logs = map[string]*tlog.Rekor{}
	}
	s.logs[address] = l
	s.asked = append(s.asked, address)
	return l, nil
}

// hosts are the logs that were asked, sorted.
func (s *searches) hosts() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(slices.Values(s.asked))
}

// unansweredError says that a log did not answer, so that nobody knows what it holds.
type unansweredError struct{ error }

func (e *unansweredError) Unwrap() error { return e.error }

// unlogged says whether a piece needs an entry in a log, has none with it, and is of
// the kind whose entry may be looked for. Bundles carry theirs.
func unlogged(it store.Item, d *demand) bool {
	return !d.IgnoreRekor && it.Err == nil && it.Format != store.FormatBundle && it.Annotations[tlog.AnnotationBundle] == ""
}

// online looks for the log entry of a piece that did not verify for want of one, and
// verifies it with that. The error is why it does not count: first where nobody is
// to be asked, or where it is nobody's whom the demand could mean.
func (v *verifier) online(ctx context.Context, ref name.Digest, manifest []byte, it store.Item, d *demand, first error) (*verify.Evidence, error) {
	signed, cert, ok := question(it, d)
	if !ok {
		return nil, first
	}
	if d.RekorURL == "" {
		return nil, errors.New("no log entry is kept with the signature, and rekor client not provided for online verification: name a log with --rekor-url, or use --ignore-rekor if the signature is enough")
	}
	log, err := v.search.log(d.RekorURL)
	if err != nil {
		return nil, err
	}
	var envelope []byte
	if signed.PayloadType != simplesigning.MediaType {
		envelope = it.Content
	}
	entries, err := log.Lookup(ctx, signed, envelope, cert)
	if errors.Is(err, tlog.ErrNoEntry) {
		return nil, err
	}
	if err != nil {
		return nil, &unansweredError{err}
	}
	slices.SortStableFunc(entries, func(a, b *rekor.TransparencyLogEntry) int {
		return int(a.GetIntegratedTime() - b.GetIntegratedTime())
	})
	var errs []error
	for _, e := range entries {
		// All that the log says must hold, its proof too, of which the annotation keeps
		// nothing.
		if _, err := tlog.CheckRekor(e, signed, tlog.Trust{Rekor: d.logs}); err != nil {
			errs = append(errs, err)
			continue
		}
		with := it
		with.Annotations = map[string]string{tlog.AnnotationBundle: annotation(e)}
		for k, v := range it.Annotations {
			with.Annotations[k] = v
		}
		out, err := verifyOne(ref, manifest, with, d)
		if err == nil {
			return out, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 1 {
		return nil, errs[0]
	}
	return nil, fmt.Errorf("none of the %d entries that log %s has counts: %w", len(errs), d.RekorURL, errors.Join(errs...))
}

// question is what to ask a log about a piece: the signature by the demanded key, or
// by the certificate that comes with it. A signature that neither made is not asked
// about.
func question(it store.Item, d *demand) (s tlog.Signed, cert []byte, ok bool) {
	public := d.key.Public
	if d.keyless() {
		chain, err := chainOf(it)
		if err != nil || len(chain) == 0 {
			return s, nil, false
		}
		public, cert = chain[0].PublicKey, pemOf(chain[0])
	}
	key, err := dsse.NewPublicKey(public)
	if err != nil {
		return s, nil, false
	}
	if it.MediaType == simplesigning.MediaType {
		sig, err := dsse.Base64(it.Annotations[annotationSignature])
		if err != nil || key.Verify(it.Content, sig) != nil {
			return s, nil, false
		}
		return tlog.Signed{PayloadType: simplesigning.MediaType, Payload: it.Content, Sig: sig, Key: key}, cert, true
	}
	env, err := envelope(it)
	if err != nil || env == nil {
		return s, nil, false
	}
	by, err := env.Verify(1, key)
	if err != nil || len(by) == 0 {
		return s, nil, false
	}
	sig := by[0].Signature
	return tlog.Signed{PayloadType: env.PayloadType, Payload: env.Payload, Sig: sig.Sig, Key: key, Envelope: it.Content, KeyID: sig.KeyID}, cert, true
}

// annotation is an entry as cosign keeps it beside a signature.
func annotation(e *rekor.TransparencyLogEntry) string {
	type payload struct {
		Body           string `json:"body"`
		IntegratedTime int64  `json:"integratedTime"`
		LogIndex       int64  `json:"logIndex"`
		LogID          string `json:"logID"`
	}
	raw, err := json.Marshal(struct {
		SignedEntryTimestamp []byte
		Payload              payload
	}{
		e.GetInclusionPromise().GetSignedEntryTimestamp(),
		payload{base64.StdEncoding.EncodeToString(e.GetCanonicalizedBody()), e.GetIntegratedTime(), e.GetLogIndex(), hex.EncodeToString(e.GetLogId().GetKeyId())},
	})
	if err != nil { // strings and numbers
		panic(err)
	}
	return string(raw)
}
