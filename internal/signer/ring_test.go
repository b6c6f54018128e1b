package signer

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"assay.dev/assay/attest"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/signing"
	"assay.dev/assay/store"
)

// driver is one whose troubles a test chooses.
type driver struct {
	key    *attest.Key
	named  *attest.Key // the key it says it has
	err    error
	stale  atomic.Bool
	closed atomic.Int32
}

func (d *driver) Sign(ctx context.Context, m signing.Message) (store.Signature, error) {
	if d.err != nil {
		return store.Signature{}, d.err
	}
	raw, err := d.key.Sign(ctx, m.Bytes)
	if err != nil {
		return store.Signature{}, err
	}
	public, err := dsse.NewPublicKey(d.named.Public())
	return store.Signature{KeyID: d.named.KeyID(), Sig: raw, Key: public}, err
}

func (d *driver) Stale() bool { return d.stale.Load() }

func (d *driver) Close() error { d.closed.Add(1); return nil }

func inspected(t *testing.T) signing.Message {
	t.Helper()
	m, err := signing.Inspect(statement(t))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestRing(t *testing.T) {
	a, b := newKey(t, attest.ECDSAP256), newKey(t, attest.Ed25519)
	good := func(k *attest.Key) *driver { return &driver{key: k, named: k} }
	for _, tc := range []struct {
		name  string
		first *driver
		want  string // key id, or empty: an error
		opens int32
	}{
		{"a good one is opened once", good(a), a.KeyID(), 1},
		{"after a rotation in the service the key is asked for anew", &driver{key: a, named: b}, b.KeyID(), 2},
		{"a service that is away is not opened anew", &driver{err: errors.New("gone")}, "", 1},
		{"a refusal right after opening stands", &driver{err: store.As(store.Configuration, errors.New("403"))}, "", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var opens atomic.Int32
			r := newRing(func(context.Context, driverID) (signing.Driver, error) {
				if opens.Add(1) == 1 {
					return tc.first, nil
				}
				return good(b), nil
			}, slog.New(slog.DiscardHandler))
			m := inspected(t)
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for range 4 {
						sig, _, err := r.sign(t.Context(), driverID{kind: signing.KMS}, m)
						if (err == nil) != (tc.want != "") || sig.KeyID != tc.want {
							t.Errorf("%s, %v", sig.KeyID, err)
						}
					}
				})
			}
			wg.Wait()
			if n := opens.Load(); n != tc.opens {
				t.Errorf("opened %d times, want %d", n, tc.opens)
			}
		})
	}
}

// TestRingStale: what a driver was opened with changed; the old one is closed, once.
func TestRingStale(t *testing.T) {
	k := newKey(t, attest.ECDSAP256)
	var all []*driver
	var mu sync.Mutex
	r := newRing(func(context.Context, driverID) (signing.Driver, error) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, &driver{key: k, named: k})
		return all[len(all)-1], nil
	}, slog.New(slog.DiscardHandler))
	m := inspected(t)
	for range 3 {
		if _, _, err := r.sign(t.Context(), driverID{}, m); err != nil {
			t.Fatal(err)
		}
		all[len(all)-1].stale.Store(true)
	}
	// Settings that nobody uses any more make room.
	for i := range maxDrivers + 1 {
		if _, _, err := r.sign(t.Context(), driverID{kms: signing.KMSSettings{Ref: strings.Repeat("x", i+1)}}, m); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.slots) != maxDrivers || len(all) != 3+maxDrivers+1 {
		t.Errorf("%d drivers in the ring, %d opened", len(r.slots), len(all))
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for i, d := range all {
		for d.closed.Load() == 0 { // closing happens beside
			runtime.Gosched()
		}
		if n := d.closed.Load(); n != 1 {
			t.Errorf("driver %d closed %d times", i, n)
		}
	}
	if _, _, err := r.sign(t.Context(), driverID{}, m); err == nil {
		t.Error("a closed ring signs")
	}
}

// held is an error that must not be provoked again.
type held struct{ error }

func (held) Held() bool { return true }

func TestRingHeld(t *testing.T) {
	opens := 0
	r := newRing(func(context.Context, driverID) (signing.Driver, error) {
		opens++
		return nil, store.As(store.Configuration, held{errors.New("wrong PIN")})
	}, slog.New(slog.DiscardHandler))
	for range 3 {
		if _, _, err := r.sign(t.Context(), driverID{}, inspected(t)); store.ClassOf(err) != store.Configuration {
			t.Fatal(err)
		}
		r.slots[driverID{}].opened = r.slots[driverID{}].opened.Add(-2 * openPause)
	}
	if opens != 1 {
		t.Errorf("a wrong PIN was tried %d times", opens)
	}
}

// TestSeveralKinds: one signature of each kind in the order of the settings, or none.
func TestSeveralKinds(t *testing.T) {
	dir := t.TempDir()
	file, kms := newKey(t, attest.ECDSAP256), newKey(t, attest.Ed25519)
	write(t, dir, map[string][]byte{"x509.pem": keyPEM(t, file, nil)})
	s := newSigner(t, Options{Secrets: dir})
	d := &driver{key: kms, named: kms}
	s.ring.open = func(context.Context, driverID) (signing.Driver, error) { return d, nil }
	set := signing.Settings{Kinds: []signing.Kind{signing.KMS, signing.X509}, KMS: signing.KMSSettings{Ref: "hashivault://k"}}
	c := serve(t, s)
	sigs, err := c.Sign(t.Context(), set, statement(t))
	if err != nil || len(sigs) != 2 || sigs[0].KeyID != kms.KeyID() || sigs[1].KeyID != file.KeyID() {
		t.Fatalf("%+v, %v", sigs, err)
	}
	if keys, err := c.Keys(t.Context()); err != nil || len(keys) != 2 {
		t.Errorf("keys %+v, %v", keys, err)
	}
	d.err = store.As(store.Configuration, errors.New("permission denied"))
	if sigs, err := c.Sign(t.Context(), set, statement(t)); store.ClassOf(err) != store.Configuration || sigs != nil || !strings.Contains(err.Error(), "kind kms: permission denied") {
		t.Errorf("half signed: %+v, %v", sigs, err)
	}
	if h := s.Health(); len(h.Faults) != 1 {
		t.Errorf("health %+v", h)
	}
}

// TestTokensAreNoSecrets: settings choose both what is read as a token and where it
// is sent, so the keys must not pass for one, whatever links lead there.
func TestTokensAreNoSecrets(t *testing.T) {
	secrets, other := t.TempDir(), t.TempDir()
	volume(t, secrets, "..1", map[string][]byte{"cosign.password": []byte("hunter2"), "x509.pem": []byte("a\nb")})
	write(t, other, map[string][]byte{"token": []byte("s.token\n"), "lines": []byte("a\nb"), "empty": nil, "large": []byte(strings.Repeat("x", maxToken+1))})
	if err := os.Symlink(filepath.Join(secrets, "cosign.password"), filepath.Join(other, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(secrets, "..1", "cosign.password"), filepath.Join(other, "hard")); err != nil {
		t.Fatal(err)
	}
	read := tokens{secrets: secrets}.read
	if token, err := read(filepath.Join(other, "token")); err != nil || token != "s.token" {
		t.Errorf("%q, %v", token, err)
	}
	for _, path := range []string{
		filepath.Join(secrets, "cosign.password"), filepath.Join(secrets, "..1", "cosign.password"), filepath.Join(other, "link"), filepath.Join(other, "hard"),
		filepath.Join(other, "lines"), filepath.Join(other, "empty"), filepath.Join(other, "large"), filepath.Join(other, "none"), other, "relative", "/dev/zero",
	} {
		if token, err := read(path); err == nil || store.ClassOf(err) != store.Configuration {
			t.Errorf("%s was read as %q, %v", path, token, err)
		}
	}
}

func TestRules(t *testing.T) {
	r := Rules{Addresses: []string{"https://vault.test", "kms.test"}}
	set := func(kms signing.KMSSettings) signing.Settings {
		return signing.Settings{Kinds: []signing.Kind{signing.KMS}, KMS: kms}
	}
	for _, tc := range []struct {
		set signing.Settings
		ok  bool
	}{
		{set(signing.KMSSettings{Ref: "hashivault://k", Address: "https://vault.test"}), true},
		{set(signing.KMSSettings{Ref: "hashivault://k", Address: "https://evil.test"}), false},
		{set(signing.KMSSettings{Ref: "awskms://kms.test/alias/k"}), true},
		{set(signing.KMSSettings{Ref: "awskms:///alias/k"}), true},
		{set(signing.KMSSettings{Ref: "azurekms://evil.test/k"}), false},
		{signing.Settings{Kinds: []signing.Kind{signing.X509}, Fulcio: signing.Fulcio{Enabled: true, Address: "https://evil.test"}}, false},
		{signing.Settings{Kinds: []signing.Kind{signing.X509}, Fulcio: signing.Fulcio{Address: "https://evil.test"}}, true},
	} {
		if err := r.check(tc.set); (err == nil) != tc.ok {
			t.Errorf("%+v: %v", tc.set, err)
		}
	}
	if err := (Rules{}).check(set(signing.KMSSettings{Address: "https://any.test"})); err != nil {
		t.Errorf("no list allows any: %v", err)
	}
}
