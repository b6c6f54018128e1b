//go:build cgo

package pkcs11

import (
	"context"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"os"
	"sync/atomic"
	"syscall"

	p11 "github.com/miekg/pkcs11"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/signing"
	"assay.dev/assay/store"
)

// Numbers of PKCS #11 v3.0, which the bindings do not name.
const (
	eddsa   = 0x1057 // CKM_EDDSA
	edwards = 0x40   // CKK_EC_EDWARDS
)

// sessions is how many signatures one token makes at a time.
const sessions = 8

// Driver signs with one key of a token.
type Driver struct {
	ctx     *p11.Ctx
	handle  p11.ObjectHandle
	public  dsse.PublicKey
	mech    uint
	pin     string
	each    bool // the PIN is wanted for each signature
	free    chan p11.SessionHandle
	closed  chan struct{}
	broken  atomic.Bool
	pinFile string
	print   print
}

var _ signing.Driver = (*Driver)(nil)

// Open loads the library, logs in and finds the key. It fails with
// store.Configuration if the URI, the library, the PIN or the key is wrong; a wrong
// PIN is a *PINError.
func Open(set signing.PKCS11Settings, modules []string, read ReadToken) (signing.Driver, error) {
	d, err := open(set, modules, read)
	if err != nil {
		return nil, classify(fmt.Errorf("opening a PKCS #11 key: %w", err))
	}
	return d, nil
}

func open(set signing.PKCS11Settings, modules []string, read ReadToken) (*Driver, error) {
	u, err := ParseURI(set.URI)
	if err != nil {
		return nil, store.As(store.Configuration, err)
	}
	library, err := u.module(modules)
	if err != nil {
		return nil, err
	}
	d := &Driver{pinFile: set.PINFile, free: make(chan p11.SessionHandle, sessions), closed: make(chan struct{})}
	if d.pinFile == "" {
		d.pinFile = u.PINSource
	}
	if d.pinFile != "" {
		d.print = look(d.pinFile)
		if d.pin, err = read(d.pinFile); err != nil {
			return nil, err
		}
	}
	if err := d.load(library); err != nil {
		return nil, err
	}
	slot, info, err := d.slot(u)
	if err != nil {
		return nil, err
	}
	for range sessions {
		s, err := d.ctx.OpenSession(slot, p11.CKF_SERIAL_SESSION)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("opening a session: %w", err), d.Close())
		}
		d.free <- s
	}
	if err := d.prepare(u, info); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// load loads the library. It is neither finalized nor unloaded again: other keys of
// this process may be in use by it.
func (d *Driver) load(library string) error {
	if d.ctx = p11.New(library); d.ctx == nil {
		return refuse(fmt.Sprintf("library %s cannot be loaded; is it there, and for this machine", library))
	}
	if err := d.ctx.Initialize(); err != nil && !errors.Is(err, p11.Error(p11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
		return fmt.Errorf("initializing library %s: %w", library, err)
	}
	return nil
}

func refuse(text string) error { return store.As(store.Configuration, errors.New(text)) }

// slot finds the one token that the URI means.
func (d *Driver) slot(u URI) (uint, p11.TokenInfo, error) {
	list, err := d.ctx.GetSlotList(true)
	if err != nil {
		return 0, p11.TokenInfo{}, fmt.Errorf("listing tokens: %w", err)
	}
	var at uint
	var found []p11.TokenInfo
	for _, s := range list {
		info, err := d.ctx.GetTokenInfo(s)
		if err != nil || info.Flags&p11.CKF_TOKEN_INITIALIZED == 0 {
			continue // another token's trouble
		}
		if match(u.Token, info.Label) && match(u.Manufacturer, info.ManufacturerID) &&
			match(u.Serial, info.SerialNumber) && match(u.Model, info.Model) {
			at = s
			found = append(found, info)
		}
	}
	switch len(found) {
	case 1:
		return at, found[0], nil
	case 0:
		return 0, p11.TokenInfo{}, refuse(fmt.Sprintf("no token %q is there", u.Token))
	}
	return 0, p11.TokenInfo{}, refuse(fmt.Sprintf("%d tokens fit the URI; say which with token and serial", len(found)))
}

func match(want, have string) bool { return want == "" || want == have }

// prepare logs in and finds the key.
func (d *Driver) prepare(u URI, info p11.TokenInfo) error {
	s := <-d.free
	defer func() { d.free <- s }()
	if info.Flags&p11.CKF_LOGIN_REQUIRED != 0 {
		if d.pin == "" {
			return refuse("the token wants a PIN; name a file with it (assay.signers.pkcs11.pin-path)")
		}
		switch err := d.ctx.Login(s, p11.CKU_USER, d.pin); {
		case errors.Is(err, p11.Error(p11.CKR_PIN_INCORRECT)), errors.Is(err, p11.Error(p11.CKR_PIN_LOCKED)):
			file, before := d.pinFile, d.print
			return store.As(store.Configuration, &PINError{
				fmt.Errorf("logging in with the PIN in %s, which is not tried again before it changes: %w", file, err),
				func() bool { return look(file) != before },
			})
		case err != nil && !errors.Is(err, p11.Error(p11.CKR_USER_ALREADY_LOGGED_IN)):
			return fmt.Errorf("logging in: %w", err)
		}
	}
	keys, err := d.find(s, p11.CKO_PRIVATE_KEY, u.Object, u.ID)
	if err != nil {
		return err
	}
	if len(keys) != 1 {
		return refuse(fmt.Sprintf("%d private keys fit the URI, want one", len(keys)))
	}
	d.handle = keys[0]
	if err := d.publicKey(s); err != nil {
		return err
	}
	always, err := d.ctx.GetAttributeValue(s, d.handle, []*p11.Attribute{p11.NewAttribute(p11.CKA_ALWAYS_AUTHENTICATE, nil)})
	d.each = err == nil && len(always) == 1 && len(always[0].Value) == 1 && always[0].Value[0] != 0
	return nil
}

func (d *Driver) find(s p11.SessionHandle, class uint, label, id string) ([]p11.ObjectHandle, error) {
	template := []*p11.Attribute{p11.NewAttribute(p11.CKA_CLASS, class)}
	if label != "" {
		template = append(template, p11.NewAttribute(p11.CKA_LABEL, label))
	}
	if id != "" {
		template = append(template, p11.NewAttribute(p11.CKA_ID, []byte(id)))
	}
	if err := d.ctx.FindObjectsInit(s, template); err != nil {
		return nil, fmt.Errorf("looking for the key: %w", err)
	}
	list, _, err := d.ctx.FindObjects(s, 8)
	if err := errors.Join(err, d.ctx.FindObjectsFinal(s)); err != nil {
		return nil, fmt.Errorf("looking for the key: %w", err)
	}
	return list, nil
}

// Sign implements signing.Driver.
func (d *Driver) Sign(ctx context.Context, m signing.Message) (store.Signature, error) {
	var s p11.SessionHandle
	select {
	case s = <-d.free:
	case <-d.closed:
		return store.Signature{}, errors.New("the PKCS #11 key is closed")
	case <-ctx.Done():
		return store.Signature{}, fmt.Errorf("waiting for the token: %w", ctx.Err())
	}
	defer func() { d.free <- s }()
	raw, err := d.sign(s, m)
	if err != nil {
		var code p11.Error
		// Whatever else the token says, sessions may be gone with it.
		if errors.As(err, &code) {
			d.broken.Store(true)
		}
		return store.Signature{}, classify(fmt.Errorf("asking the token for a signature: %w", err))
	}
	return store.Signature{KeyID: d.public.KeyID(), Sig: raw, Key: d.public}, nil
}

// digestInfo is what stands before a SHA-256 digest in PKCS #1 v1.5.
const digestInfo = "\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20"

func (d *Driver) sign(s p11.SessionHandle, m signing.Message) ([]byte, error) {
	input := m.SHA256[:]
	switch d.mech {
	case p11.CKM_RSA_PKCS:
		input = append([]byte(digestInfo), input...)
	case eddsa:
		input = m.Bytes
	}
	if err := d.ctx.SignInit(s, []*p11.Mechanism{p11.NewMechanism(d.mech, nil)}, d.handle); err != nil {
		return nil, err
	}
	if d.each {
		if err := d.ctx.Login(s, p11.CKU_CONTEXT_SPECIFIC, d.pin); err != nil {
			return nil, err
		}
	}
	raw, err := d.ctx.Sign(s, input)
	if err != nil || d.mech != p11.CKM_ECDSA {
		return raw, err
	}
	// The token gives two numbers side by side; everybody else wants DER.
	if len(raw) == 0 || len(raw)%2 != 0 {
		return nil, fmt.Errorf("the token gave %d bytes for a signature", len(raw))
	}
	n := len(raw) / 2
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(raw[:n]), new(big.Int).SetBytes(raw[n:])})
}

// Stale implements signing.Driver: the token failed, or the PIN's file changed.
func (d *Driver) Stale() bool {
	return d.broken.Load() || d.pinFile != "" && look(d.pinFile) != d.print
}

// Close implements signing.Driver. It ends the sessions, with the last of which
// the token logs out.
func (d *Driver) Close() error {
	close(d.closed)
	for {
		select {
		case s := <-d.free:
			// A token that is gone has ended its sessions itself.
			d.ctx.CloseSession(s) //nolint:errcheck // see above
		default:
			return nil
		}
	}
}

// classify gives errors their class. What a token refuses it will refuse again;
// that it is gone, or failed, may pass.
func classify(err error) error {
	var fault *store.Fault
	if errors.As(err, &fault) {
		return store.As(fault.Class, err)
	}
	var code p11.Error
	if errors.As(err, &code) {
		switch code {
		case p11.CKR_DEVICE_ERROR, p11.CKR_DEVICE_MEMORY, p11.CKR_DEVICE_REMOVED, p11.CKR_HOST_MEMORY, p11.CKR_GENERAL_ERROR,
			p11.CKR_FUNCTION_FAILED, p11.CKR_SESSION_CLOSED, p11.CKR_SESSION_COUNT, p11.CKR_SESSION_HANDLE_INVALID,
			p11.CKR_USER_NOT_LOGGED_IN, p11.CKR_OPERATION_ACTIVE, p11.CKR_TOKEN_NOT_PRESENT:
			return store.As(store.Transient, err)
		}
		return store.As(store.Configuration, err)
	}
	return store.As(store.Transient, err)
}

// print tells whether a file changed.
type print struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

func look(path string) print {
	if info, err := os.Stat(path); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			return print{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
		}
	}
	return print{}
}
