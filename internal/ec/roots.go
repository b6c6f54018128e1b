package ec

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/sigstore/sigstore-go/pkg/tuf"

	"assay.dev/assay/policy/source"
	"assay.dev/assay/verify"
	"assay.dev/assay/verify/tufroot"
)

// maxPEM bounds files of keys and certificates that the environment names.
const maxPEM = 1 << 20

// Variables that put something else in the place of what the trusted root says.
const (
	envRoots      = "SIGSTORE_ROOT_FILE"
	envCTLog      = "SIGSTORE_CT_LOG_PUBLIC_KEY_FILE"
	envRekor      = "SIGSTORE_REKOR_PUBLIC_KEY"
	envTSA        = "SIGSTORE_TSA_CERTIFICATE_FILE"
	envTUFRoot    = "TUF_ROOT"
	envTUFMirror  = "TUF_MIRROR"
	envTUFRootDoc = "TUF_ROOT_JSON"
)

// roots are the Sigstore instances that are believed, in this order:
//
//	TUF_ROOT, or ~/.sigstore/root where `sigstore initialize` left something: that
//	  mirror's trusted root, alone unless it is the public one
//	else the public-good root, as TUF has it today or as it is shipped, and GitHub's
//	SIGSTORE_* files take the place of the parts that they name, and then nobody else
//	  is believed
//
// Nothing is read before somebody asks.
type roots struct {
	getenv    func(string) string
	transport http.RoundTripper // for TUF
	warn      func(format string, args ...any)

	once sync.Once
	kept base // what tuf gave
	err  error

	made sync.Map // what it takes → func() ([]*verify.Instance, error)
}

// base is a trusted root and whose it is.
type base struct {
	name   string
	json   []byte
	public bool // Sigstore's own, beside which GitHub's is believed
}

// instances are those to believe: for certificates, or for the entries of keys'
// signatures in their logs. With ignoreRekor no entry is needed, and nothing of when a
// signature was made is known: a certificate has to be valid now. A rekorKey takes the
// place of the logs' keys. It fails where a file that the environment names cannot be
// used, and for a TUF mirror of one's own that neither answers nor left anything valid.
func (r *roots) instances(ctx context.Context, keyless, ignoreRekor bool, rekorKey string) ([]*verify.Instance, error) {
	once, _ := r.made.LoadOrStore(fmt.Sprint(keyless, ignoreRekor, rekorKey), sync.OnceValues(func() ([]*verify.Instance, error) {
		b, err := r.read(context.WithoutCancel(ctx), keyless, ignoreRekor)
		if err != nil {
			return nil, err
		}
		if rekorKey != "" {
			if b.json, err = replace(b.json, "tlogs", func() ([]any, error) { return logsOf([]byte(rekorKey), "") }); err != nil {
				return nil, fmt.Errorf("adding rekor public key: %w", err)
			}
			b.public = false
		}
		in, err := instance(b, ignoreRekor)
		if err != nil {
			return nil, err
		}
		if !b.public {
			return []*verify.Instance{in}, nil
		}
		github, err := verify.GitHub()
		if err != nil {
			return nil, err
		}
		return []*verify.Instance{in, github}, nil
	}))
	return once.(func() ([]*verify.Instance, error))()
}

// instance asks of an instance what it can give.
func instance(b base, ignoreRekor bool) (*verify.Instance, error) {
	if !ignoreRekor {
		need, err := verify.DefaultThresholds(b.json)
		if err != nil {
			return nil, fmt.Errorf("using %s: %w", b.name, err)
		}
		return verify.NewInstance(b.name, b.json, need)
	}
	in, err := verify.NewInstance(b.name, b.json, verify.Thresholds{SCTs: 1, Current: true})
	if err == nil {
		return in, nil
	}
	// An authority of one's own need not have a certificate log.
	return verify.NewInstance(b.name, b.json, verify.Thresholds{Current: true})
}

// part is a part of a trusted root that a variable names.
type part struct {
	variable, member string
	make             func([]byte) ([]any, error)
	needed           bool
}

// read puts what the environment names in the place of what TUF gives, which is not
// asked where nothing of it would stay.
func (r *roots) read(ctx context.Context, keyless, ignoreRekor bool) (base, error) {
	logs := func(raw []byte) ([]any, error) { return logsOf(raw, "") }
	parts := []part{
		{envRoots, "certificateAuthorities", authoritiesOf, keyless},
		{envCTLog, "ctlogs", logs, keyless},
		{envRekor, "tlogs", logs, !ignoreRekor},
		{envTSA, "timestampAuthorities", timestampersOf, false},
	}
	b := base{name: "environment", json: []byte(`{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`)}
	if slices.ContainsFunc(parts, func(p part) bool { return p.needed && r.getenv(p.variable) == "" }) {
		r.once.Do(func() { r.kept, r.err = r.tuf(ctx) })
		if r.err != nil {
			return base{}, r.err
		}
		b = r.kept
	}
	for _, p := range parts {
		path := r.getenv(p.variable)
		if path == "" {
			continue
		}
		raw, err := source.ReadFile(path, maxPEM)
		if err == nil {
			b.json, err = replace(b.json, p.member, func() ([]any, error) { return p.make(raw) })
		}
		if err != nil {
			return base{}, fmt.Errorf("reading %s (%s): %w", p.variable, path, err)
		}
		b.name, b.public = "environment", false
	}
	return b, nil
}

// tuf is the trusted root of the mirror that was set up, or of Sigstore's.
func (r *roots) tuf(ctx context.Context) (base, error) {
	o, err := r.mirror()
	if err != nil {
		return base{}, err
	}
	public := o.Mirror == "" || o.Mirror == tuf.DefaultMirror
	b := base{name: verify.InstancePublicGood, public: public}
	if !public {
		b.name = o.Mirror
	}
	o.Transport, o.Timeout = r.transport, 30*time.Second
	if b.json, err = tufroot.Get(ctx, o); err == nil {
		return b, nil
	}
	if !public {
		return base{}, fmt.Errorf("using the TUF mirror %s: %w; `sigstore initialize` sets it up anew", o.Mirror, err)
	}
	if !errors.Is(err, tufroot.ErrLater) {
		r.warn("%v; using the trusted root that is shipped", err)
	}
	good, err := verify.PublicGood()
	if err != nil {
		return base{}, err
	}
	b.json = good.JSON()
	return b, nil
}

// mirror is where cosign keeps its TUF state, as far as somebody set that up; else
// Assay's own place.
func (r *roots) mirror() (tufroot.Options, error) {
	o := tufroot.Options{Mirror: r.getenv(envTUFMirror), Pause: time.Nanosecond}
	dir, err := tufDir(r.getenv)
	if err != nil {
		return o, err
	}
	o.Dir = dir
	raw, err := source.ReadFile(filepath.Join(dir, remoteFile), maxPEM)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return o, fmt.Errorf("reading the TUF mirror: %w", err)
	case o.Mirror == "":
		var remote remoteJSON
		if err := json.Unmarshal(raw, &remote); err != nil || remote.Mirror == "" {
			return o, fmt.Errorf("reading the TUF mirror: %s names none; `sigstore initialize` sets it up anew", filepath.Join(dir, remoteFile))
		}
		o.Mirror = remote.Mirror
	}
	if o.Mirror == "" || o.Mirror == tuf.DefaultMirror {
		if raw == nil && r.getenv(envTUFRoot) == "" { // nobody set anything up
			cache, err := os.UserCacheDir()
			if err != nil {
				cache = dir
			}
			o.Dir, o.Pause = filepath.Join(cache, "assay", "tuf"), 0
		}
		return o, nil
	}
	path := r.getenv(envTUFRootDoc)
	if path == "" {
		path = filepath.Join(dir, tuf.URLToPath(o.Mirror), "root.json")
	}
	if o.Root, err = source.ReadFile(path, maxPEM); err != nil {
		return o, fmt.Errorf("reading the root of the TUF mirror %s: %w; `sigstore initialize --mirror %[1]s --root FILE` sets it up", o.Mirror, err)
	}
	return o, nil
}

// tufDir is where cosign keeps its TUF state.
func tufDir(getenv func(string) string) (string, error) {
	if d := getenv(envTUFRoot); d != "" {
		return d, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("looking for the TUF state: %w; TUF_ROOT names its folder", err)
	}
	return filepath.Join(home, ".sigstore", "root"), nil
}

// replace puts a list of a trusted root anew.
func replace(root []byte, member string, make func() ([]any, error)) ([]byte, error) {
	list, err := make()
	if err != nil {
		return nil, err
	}
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(root, &doc); err != nil {
		return nil, err
	}
	if doc[member], err = json.Marshal(list); err != nil {
		return nil, err
	}
	return json.Marshal(doc)
}

// always is as long as anybody has had keys.
func always() any { return map[string]any{"start": time.Unix(0, 0).UTC()} }

// logsOf are logs with the public keys in PEM text.
func logsOf(text []byte, url string) ([]any, error) {
	var out []any
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("a PEM block %q; want PUBLIC KEY", block.Type)
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		details, err := keyDetails(key)
		if err != nil {
			return nil, err
		}
		id := sha256.Sum256(block.Bytes)
		out = append(out, map[string]any{
			"baseUrl": url, "hashAlgorithm": "SHA2_256", "logId": map[string]any{"keyId": id[:]},
			"publicKey": map[string]any{"rawBytes": block.Bytes, "keyDetails": details, "validFor": always()},
		})
	}
	if len(out) == 0 {
		return nil, errors.New("no public key as PEM in it")
	}
	return out, nil
}

// keyDetails names a key in a trusted root's words.
func keyDetails(key any) (string, error) {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if n := k.Curve.Params().BitSize; n == 256 || n == 384 || n == 521 {
			return map[int]string{256: "PKIX_ECDSA_P256_SHA_256", 384: "PKIX_ECDSA_P384_SHA_384", 521: "PKIX_ECDSA_P521_SHA_512"}[n], nil
		}
	case ed25519.PublicKey:
		return "PKIX_ED25519", nil
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n == 2048 || n == 3072 || n == 4096 {
			return fmt.Sprintf("PKIX_RSA_PKCS1V15_%d_SHA256", n), nil
		}
	}
	return "", fmt.Errorf("a key of type %T that logs do not have; want ECDSA (P-256, P-384, P-521), Ed25519 or RSA (2048, 3072, 4096)", key)
}

// authoritiesOf are the certificate authorities in PEM text: each self-signed
// certificate with all others as what may stand between it and a signer.
func authoritiesOf(text []byte) ([]any, error) {
	certs, err := certificatesOf(text)
	if err != nil {
		return nil, err
	}
	var between []any
	for _, c := range certs {
		if !selfSigned(c) {
			between = append(between, map[string]any{"rawBytes": c.Raw})
		}
	}
	var out []any
	for _, c := range certs {
		if selfSigned(c) {
			chain := append(append([]any{}, between...), map[string]any{"rawBytes": c.Raw})
			out = append(out, authority(c, chain))
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no self-signed certificate in it to be a root")
	}
	return out, nil
}

// timestampersOf is one timestamp authority: its own certificate, those between, and
// the root.
func timestampersOf(text []byte) ([]any, error) {
	certs, err := certificatesOf(text)
	if err != nil {
		return nil, err
	}
	var leaf, between, root []any
	var top *x509.Certificate
	for _, c := range certs {
		raw := map[string]any{"rawBytes": c.Raw}
		switch {
		case selfSigned(c):
			root, top = append(root, raw), c
		case c.IsCA:
			between = append(between, raw)
		default:
			leaf = append(leaf, raw)
		}
	}
	if len(leaf) > 1 || len(root) != 1 {
		return nil, fmt.Errorf("%d certificates of authorities and %d of roots; want at most one of the first and one of the second", len(leaf), len(root))
	}
	return []any{authority(top, append(append(leaf, between...), root...))}, nil
}

func authority(top *x509.Certificate, chain []any) any {
	return map[string]any{
		"subject": map[string]any{"commonName": top.Subject.CommonName}, "uri": "",
		"certChain": map[string]any{"certificates": chain}, "validFor": always(),
	}
}

func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

func certificatesOf(text []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a PEM block %q; want CERTIFICATE", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("no certificate as PEM in it")
	}
	return out, nil
}
