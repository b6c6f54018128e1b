// Package signer is the process with the keys: assay-observer signer. It serves
// signing.Service on a Unix socket to a controller that reads strangers' objects,
// and does nothing else: it parses no Tekton, talks to no Kubernetes and executes
// nothing.
//
//	controller ─▶ socket ─▶ peer's uid ─▶ Inspect ─▶ driver ─▶ journal ─▶ signatures
//	                        (SO_PEERCRED)  a statement  │ file   (before the
//	                                       or an image, │ KMS     answer)
//	                                       or refused   │ PKCS#11
//	                                                    └ Fulcio
//
// A compromised controller can have it sign false statements; that is what
// controllers are trusted not to make, and what the journal is for. It cannot get
// at the keys, nor have another protocol's message signed. Settings come from the
// controller too, so what they name is guarded: files are read as tokens only if
// they are not the secrets themselves, libraries are loaded and, where a list is
// given, addresses asked only if the command line allows them (Rules).
//
// Keys are loaded once and again when they change. A key is never used after its
// file was replaced: while the new one is incomplete signing waits a moment, and is
// refused as store.Configuration after it, until the file is good.
package signer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"assay.dev/assay/attest/fulcio"
	"assay.dev/assay/attest/kms"
	"assay.dev/assay/attest/pkcs11"
	"assay.dev/assay/attest/signing"
	"assay.dev/assay/store"
)

// Options are what a signer is started with.
type Options struct {
	// Secrets is the folder with x509.pem, or cosign.key and cosign.password.
	// Empty: there are no keys in files.
	Secrets string
	// Journal is the file to which a line is appended for every message signed;
	// empty: none. FILE.keys beside it remembers former keys.
	Journal string
	// Rules say what settings may name.
	Rules Rules
	// Trust says how certificates of keyless signing are checked.
	Trust fulcio.Trust
	// Log takes what operators should know. Nil: nobody is told.
	Log *slog.Logger

	settle time.Duration // tests set it; 0: settle
}

// Rules say what settings may name. The zero value allows no library and any
// address.
type Rules struct {
	// Modules are the PKCS#11 libraries that may be loaded: code in this process.
	Modules []string
	// Addresses are the key services, Fulcio and TUF mirrors that may be asked, as
	// settings write them. Empty: any.
	Addresses []string
}

// Signer signs with the keys that it holds or reaches. Make one with New; it is
// safe for concurrent use.
type Signer struct {
	files   *fileKeys
	ring    *ring
	history *history
	journal *journal
	rules   Rules
	secrets string
	trust   fulcio.Trust
	log     *slog.Logger

	started         time.Time
	signed, refused atomic.Uint64
	mu              sync.Mutex        // guards faults
	faults          map[string]string // by kind of key
}

var _ signing.Service = (*Signer)(nil)

// New makes a signer. It fails if the journal cannot be written; keys that are
// missing or bad are an error of the signatures that want them.
func New(o Options) (*Signer, error) {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Signer{
		rules: o.Rules, secrets: o.Secrets, trust: o.Trust, log: log,
		started: time.Now(), faults: map[string]string{},
	}
	var err error
	if s.history, err = openHistory(o.Journal); err != nil {
		return nil, err
	}
	if s.journal, err = openJournal(o.Journal, log); err != nil {
		return nil, err
	}
	s.ring = newRing(s.open, log)
	s.files = watchFiles(o.Secrets, cmp.Or(o.settle, settle), log)
	return s, nil
}

// Close releases keys and clients and brings the journal to disk.
func (s *Signer) Close() error {
	return errors.Join(s.files.Close(), s.ring.Close(), s.journal.Close())
}

// Sign implements signing.Service.
func (s *Signer) Sign(ctx context.Context, set signing.Settings, message []byte) ([]store.Signature, error) {
	return s.SignFor(ctx, 0, set, message)
}

// SignFor is Sign for a user, whom the journal names.
func (s *Signer) SignFor(ctx context.Context, uid uint32, set signing.Settings, message []byte) ([]store.Signature, error) {
	sigs, err := s.sign(ctx, uid, set, message)
	if err != nil {
		s.refused.Add(1)
		return nil, err
	}
	s.signed.Add(uint64(len(sigs)))
	return sigs, nil
}

func (s *Signer) sign(ctx context.Context, uid uint32, set signing.Settings, message []byte) ([]store.Signature, error) {
	if err := set.Check(); err != nil {
		return nil, err
	}
	if err := s.rules.check(set); err != nil {
		return nil, err
	}
	m, err := signing.Inspect(message)
	if err != nil {
		return nil, err
	}
	sigs := make([]store.Signature, len(set.Kinds))
	errs := make([]error, len(set.Kinds))
	var wg sync.WaitGroup
	for i, kind := range set.Kinds[1:] {
		wg.Go(func() { sigs[i+1], errs[i+1] = s.one(ctx, kind, set, m) })
	}
	sigs[0], errs[0] = s.one(ctx, set.Kinds[0], set, m)
	wg.Wait()
	if err := worst(errs); err != nil {
		return nil, err
	}
	// Before anybody has the signatures, or one could exist that is not listed.
	if err := s.journal.add(uid, m, sigs); err != nil {
		return nil, store.As(store.Transient, err)
	}
	return sigs, nil
}

// worst joins errors under the class that needs people most: trying again helps
// only where that is all that is needed.
func worst(errs []error) error {
	class := store.Transient
	var all []error
	for _, err := range errs {
		if err != nil {
			all = append(all, err)
			class = max(class, store.ClassOf(err))
		}
	}
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return store.As(class, errors.Join(all...))
}

// one signs with one kind of key.
func (s *Signer) one(ctx context.Context, kind signing.Kind, set signing.Settings, m signing.Message) (store.Signature, error) {
	sig, source, generation, err := s.with(ctx, kind, set, m)
	if err != nil {
		err = fmt.Errorf("signing with kind %s: %w", kind, err)
		if ctx.Err() == nil {
			s.fault(kind, err.Error())
		}
		return store.Signature{}, err
	}
	s.fault(kind, "")
	// A keyless key signs for minutes and is published by its certificate.
	if len(sig.Cert) == 0 {
		if err := s.history.used(kind, source, generation, sig.Key, time.Now()); err != nil {
			return store.Signature{}, store.As(store.Transient, err)
		}
	}
	return sig, nil
}

func (s *Signer) with(ctx context.Context, kind signing.Kind, set signing.Settings, m signing.Message) (sig store.Signature, source string, generation uint64, err error) {
	if kind == signing.X509 && !set.Fulcio.Enabled {
		key, err := s.files.key(ctx)
		if err != nil {
			return store.Signature{}, "", 0, err
		}
		sig, err := key.sign(ctx, m)
		return sig, "x509", key.generation, err
	}
	id := driverID{kind: kind}
	source = string(kind)
	switch kind {
	case signing.X509:
		id.fulcio = set.Fulcio
	case signing.KMS:
		id.kms, source = set.KMS, "kms "+set.KMS.Ref
	case signing.PKCS11:
		id.pkcs11, source = set.PKCS11, "pkcs11 "+set.PKCS11.URI
	}
	sig, generation, err = s.ring.sign(ctx, id, m)
	return sig, source, generation, err
}

// open opens a driver; the ring keeps it.
func (s *Signer) open(ctx context.Context, id driverID) (signing.Driver, error) {
	read := tokens{secrets: s.secrets}.read
	switch id.kind {
	case signing.X509:
		return fulcio.Open(id.fulcio, fulcio.Options{Trust: s.trust, ReadToken: read, Log: s.log})
	case signing.KMS:
		return kms.Open(ctx, id.kms, read)
	case signing.PKCS11:
		return pkcs11.Open(id.pkcs11, s.rules.Modules, read)
	}
	return nil, store.As(store.Configuration, fmt.Errorf("kind %q is not known", id.kind))
}

// fault notes what keeps a kind of key from signing; empty: nothing.
func (s *Signer) fault(kind signing.Kind, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch before := s.faults[string(kind)]; {
	case before == text:
		return
	case text == "":
		delete(s.faults, string(kind))
		s.log.Info("signing again", "kind", kind)
	default:
		s.faults[string(kind)] = text
		s.log.Error("not signing", "kind", kind, "error", text)
	}
}

// Keys are the keys that signed, the current ones first, and the key in the folder
// of secrets although it may not have signed yet.
func (s *Signer) Keys(ctx context.Context) ([]signing.Key, error) {
	if key, err := s.files.key(ctx); err == nil {
		if err := s.history.used(signing.X509, "x509", key.generation, key.public, time.Now()); err != nil {
			return nil, store.As(store.Transient, err)
		}
	}
	return s.history.list(), nil
}

// Health says how the signer is.
func (s *Signer) Health() signing.Health {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := signing.Health{Started: s.started, Signed: s.signed.Load(), Refused: s.refused.Load()}
	for _, kind := range []signing.Kind{signing.X509, signing.KMS, signing.PKCS11} {
		if f := s.faults[string(kind)]; f != "" {
			h.Faults = append(h.Faults, f)
		}
	}
	return h
}
