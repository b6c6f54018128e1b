// Package fulcio signs without a key to keep: it makes one in memory, shows an
// OIDC token to a certificate authority that speaks Fulcio's API (v2), and gets a
// certificate of minutes that names the token's identity. Signatures carry the
// certificate and its chain.
//
//	token source ─▶ token ─▶ authority ─▶ certificate ─▶ signatures, while more than
//	(Sources)                 (v2 API)     (Trust)        a quarter of its time is left
//
// One certificate serves every signature while it is valid with a margin, which is
// for logs and stores that look at the time after us; the next is fetched in the
// background at half time, so that an authority that is away for a minute is not
// noticed. A token that the authority refuses is store.Configuration, an authority
// that does not answer store.Transient.
//
// The issuer setting of chains-config (signers.x509.fulcio.issuer) has no effect,
// as upstream: the authority decides which issuers it believes.
//
// Tests run against Fulcio itself with an OIDC issuer in the test, and the token
// sources against what each documents.
package fulcio

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/signing"
	"assay.dev/assay/store"
)

// Audience is for whom tokens are made out: authorities of Sigstore's expect it.
const Audience = "sigstore"

// Bounds and times.
const (
	maxAnswer    = 1 << 20
	maxChain     = 16
	fetchTimeout = 30 * time.Second
	// retryPause keeps an authority that refuses from being asked for every
	// message.
	retryPause = 2 * time.Second
)

// ReadToken reads a file that settings name as a token. Who implements it decides
// which files may be read.
type ReadToken func(path string) (string, error)

// Options are what a driver is opened with besides settings.
type Options struct {
	Trust     Trust
	ReadToken ReadToken
	// Log takes what operators should know. Nil: nobody is told.
	Log *slog.Logger
	// Client speaks with authority and token sources. Nil: one with time-outs.
	Client *http.Client
}

// Driver signs with a certificate of the moment.
type Driver struct {
	set     signing.Fulcio
	url     string
	options Options
	fetches singleflight.Group

	mu    sync.Mutex // guards what follows
	now   *identity
	err   error     // of the last fetch, nil if it went well
	again time.Time // no fetch before
}

var _ signing.Driver = (*Driver)(nil)

// identity is a key and its certificate.
type identity struct {
	key         *ecdsa.PrivateKey
	public      dsse.PublicKey
	cert, chain []byte // PEM
	from, until time.Time
}

// left says whether more than 1/part of the time is left.
func (i *identity) left(part time.Duration) bool {
	return i != nil && time.Until(i.until) > i.until.Sub(i.from)/part
}

// Open makes a driver; the first signature asks for a certificate. It fails with
// store.Configuration on settings that cannot be right.
func Open(set signing.Fulcio, o Options) (*Driver, error) {
	u, err := url.Parse(set.Address)
	switch {
	case err != nil:
		err = fmt.Errorf("reading the address of Fulcio: %w", err)
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		err = fmt.Errorf("the address of Fulcio (signers.x509.fulcio.address) is no URL: %q", set.Address)
	case o.ReadToken == nil:
		err = errors.New("opening Fulcio: no way to read tokens")
	default:
		_, err = source(set.Provider)
	}
	if err != nil {
		return nil, store.As(store.Configuration, err)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Client == nil {
		o.Client = &http.Client{Timeout: fetchTimeout}
	}
	return &Driver{set: set, options: o, url: strings.TrimSuffix(set.Address, "/") + "/api/v2/signingCert"}, nil
}

// Sign implements signing.Driver.
func (d *Driver) Sign(ctx context.Context, m signing.Message) (store.Signature, error) {
	id, err := d.identity(ctx)
	if err != nil {
		return store.Signature{}, err
	}
	raw, err := ecdsa.SignASN1(rand.Reader, id.key, m.SHA256[:])
	if err != nil {
		return store.Signature{}, fmt.Errorf("signing: %w", err)
	}
	return store.Signature{KeyID: id.public.KeyID(), Sig: raw, Key: id.public, Cert: id.cert, Chain: id.chain}, nil
}

// Stale implements signing.Driver. Tokens are read when they are needed.
func (d *Driver) Stale() bool { return false }

// Close implements signing.Driver. The key is forgotten.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now, d.err, d.again = nil, errors.New("the keyless identity is closed"), time.Now().Add(time.Hour)
	d.options.Client.CloseIdleConnections()
	return nil
}

// identity is one whose certificate still has time.
func (d *Driver) identity(ctx context.Context) (*identity, error) {
	d.mu.Lock()
	id, err, wait := d.now, d.err, time.Now().Before(d.again)
	d.mu.Unlock()
	if id.left(4) {
		if !id.left(2) && !wait {
			// Others wait for nothing; whether it goes well is seen next time.
			d.fetches.DoChan("", d.fetch)
		}
		return id, nil
	}
	if wait && err != nil {
		return nil, err
	}
	select {
	case r := <-d.fetches.DoChan("", d.fetch):
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*identity), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for a certificate: %w", ctx.Err())
	}
}

// fetch gets a certificate. One call runs at a time.
func (d *Driver) fetch() (any, error) {
	d.mu.Lock()
	id, err, wait := d.now, d.err, time.Now().Before(d.again)
	d.mu.Unlock()
	switch {
	case id.left(2):
		return id, nil // the call before ours got it
	case wait && err != nil:
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	id, err = d.certify(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("getting a certificate from %s: %w", d.set.Address, err)
		d.options.Log.Warn("keyless signing", "error", err)
		d.err, d.again = err, time.Now().Add(retryPause)
		return nil, err
	}
	d.now, d.err = id, nil
	return id, nil
}

// certify makes a key and has it certified.
func (d *Driver) certify(ctx context.Context) (*identity, error) {
	token, err := d.token(ctx)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	certs, err := d.request(ctx, token, key)
	if err != nil {
		return nil, fmt.Errorf("showing a token %s: %w", describe(token), err)
	}
	public, err := dsse.NewPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	leaf := certs[0]
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	id := &identity{key: key, public: public, from: leaf.NotBefore, until: leaf.NotAfter}
	if !id.left(4) || time.Until(id.from) > time.Minute {
		return nil, store.As(store.Configuration, fmt.Errorf("the certificate is for %s to %s, and it is %s: do the clocks agree", id.from.UTC().Format(time.RFC3339), id.until.UTC().Format(time.RFC3339), time.Now().UTC().Format(time.RFC3339)))
	}
	if err := d.check(ctx, certs); err != nil {
		return nil, err
	}
	for i, c := range certs {
		block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
		if i == 0 {
			id.cert = block
		} else {
			id.chain = append(id.chain, block...)
		}
	}
	return id, nil
}

// Wire types of Fulcio's API v2, as its protobuf description maps to JSON.
type certificateRequest struct {
	Credentials struct {
		Token string `json:"oidcIdentityToken"`
	} `json:"credentials"`
	CSR string `json:"certificateSigningRequest"` // base64 of PEM
}

type certificateAnswer struct {
	Embedded *certificates `json:"signedCertificateEmbeddedSct"`
	Detached *certificates `json:"signedCertificateDetachedSct"`
}

type certificates struct {
	Chain struct {
		Certificates []string `json:"certificates"`
	} `json:"chain"`
}

// request asks the authority. A request signed with the key proves that we have
// it; its other content does not count.
func (d *Driver) request(ctx context.Context, token string, key *ecdsa.PrivateKey) ([]*x509.Certificate, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	var body certificateRequest
	body.Credentials.Token = token
	body.CSR = base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	answer, err := ask(d.options.Client, req)
	if err != nil {
		return nil, err
	}
	return parse(answer)
}

// ask makes a request and gives what fails its class.
func ask(client *http.Client, req *http.Request) ([]byte, error) {
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch code := resp.StatusCode; {
	case err != nil:
		return nil, err
	case len(answer) > maxAnswer:
		return nil, fmt.Errorf("an answer of more than %d bytes", maxAnswer)
	case code >= 200 && code < 300:
		return answer, nil
	case code == http.StatusTooManyRequests || code == http.StatusRequestTimeout || code >= 500:
		return nil, store.As(store.Transient, refusal(resp.Status, answer))
	default:
		return nil, store.As(store.Configuration, refusal(resp.Status, answer))
	}
}

func refusal(status string, answer []byte) error {
	var m struct {
		Message string `json:"message"`
		Error   struct {
			Message string `json:"message"`
		} `json:"error"` // as Google's services have it
	}
	_ = json.Unmarshal(answer, &m) // what is no JSON is shown as it is
	if m.Message == "" {
		m.Message = m.Error.Message
	}
	if m.Message == "" {
		m.Message = string(bytes.TrimSpace(answer[:min(len(answer), 300)]))
	}
	return fmt.Errorf("%s: %s", status, m.Message)
}

// parse reads an authority's answer: the certificate first, then its issuers.
func parse(data []byte) ([]*x509.Certificate, error) {
	var a certificateAnswer
	if err := json.Unmarshal(data, &a); err != nil {
		return nil, fmt.Errorf("reading the authority's answer: %w", err)
	}
	list := a.Embedded
	if list == nil {
		list = a.Detached
	}
	if list == nil || len(list.Chain.Certificates) == 0 || len(list.Chain.Certificates) > maxChain {
		return nil, errors.New("reading the authority's answer: no certificates, or too many")
	}
	var out []*x509.Certificate
	for i, text := range list.Chain.Certificates {
		block, rest := pem.Decode([]byte(text))
		if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
			return nil, fmt.Errorf("reading certificate %d of the authority's answer: want one CERTIFICATE", i)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading certificate %d of the authority's answer: %w", i, err)
		}
		out = append(out, c)
	}
	return out, nil
}
