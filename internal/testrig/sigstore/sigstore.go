// Package sigstore is a Sigstore deployment in a test: a certificate authority with
// a certificate log, a transparency log that speaks as much of Rekor v1's protocol as
// verifiers do, and a timestamp authority. The test holds all of their keys, so it
// can make what no honest deployment would.
//
// What it makes is in the forms of the real ones; the protocols are those of RFC
// 6962 (certificate log), Rekor v1 and RFC 3161, and each entry of the transparency
// log is under a checkpoint of its own. That is a Deployment.
//
// Servers are Fulcio and Rekor themselves, for what cosign signs with them.
package sigstore

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/digitorus/timestamp"
)

// Deployment is one. Make it with New.
type Deployment struct {
	t testing.TB

	caKey, ctKey, logKey, tsaKey *ecdsa.PrivateKey
	ca, tsaRoot, tsa             *x509.Certificate
	// Began is when its keys did; certificates may be from any time since.
	Began time.Time

	mu      sync.Mutex
	entries map[string][]Entry // guarded by mu, by what a search asks for
	next    int64              // guarded by mu
}

// New makes a deployment that is a day old.
func New(t testing.TB) *Deployment {
	t.Helper()
	d := &Deployment{t: t, Began: time.Now().Add(-24 * time.Hour).UTC().Truncate(time.Second), entries: map[string][]Entry{}, next: 7}
	d.caKey, d.ctKey, d.logKey, d.tsaKey = newKey(t), newKey(t), newKey(t), newKey(t)
	d.ca = d.authority("test authority", d.caKey, x509.ExtKeyUsageCodeSigning)
	rootKey := newKey(t)
	d.tsaRoot = d.authority("test timestamp root", rootKey, x509.ExtKeyUsageTimeStamping)
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}})
	must(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test timestamps"}, NotBefore: d.Began, NotAfter: d.Began.Add(1000 * time.Hour),
		KeyUsage:        x509.KeyUsageDigitalSignature,
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: true, Value: usage}},
	}
	d.tsa = d.issue(tmpl, d.tsaRoot, d.tsaKey.Public(), rootKey)
	return d
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return k
}

func (d *Deployment) authority(name string, key *ecdsa.PrivateKey, usage x509.ExtKeyUsage) *x509.Certificate {
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: d.Began.Add(-time.Hour), NotAfter: d.Began.Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}
	return d.issue(tmpl, tmpl, key.Public(), key)
}

func (d *Deployment) issue(tmpl, parent *x509.Certificate, key crypto.PublicKey, by crypto.Signer) *x509.Certificate {
	d.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key, by)
	must(d.t, err)
	c, err := x509.ParseCertificate(der)
	must(d.t, err)
	return c
}

// Signer has a certificate and its key.
type Signer struct {
	Certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// Identity is whom a certificate names, and when it was issued: the zero time is a
// minute after Began. NoSCT leaves out the certificate log's promise. Of is whose key
// the certificate is for; nil: a new one.
type Identity struct {
	SAN, Issuer string
	At          time.Time
	Lives       time.Duration // 0: ten minutes
	Extensions  map[int]string
	NoSCT       bool
	Of          *Signer
}

// Issue makes a certificate as Fulcio does.
func (d *Deployment) Issue(id Identity) *Signer {
	d.t.Helper()
	if id.At.IsZero() {
		id.At = d.Began.Add(time.Minute)
	}
	if id.Lives == 0 {
		id.Lives = 10 * time.Minute
	}
	key := newKey(d.t)
	if id.Of != nil {
		key = id.Of.key
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: id.At, NotAfter: id.At.Add(id.Lives),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		SubjectKeyId:    []byte("0123456789abcdefghij"),
		ExtraExtensions: []pkix.Extension{{Id: fulcioID(1), Value: []byte(id.Issuer)}, Extension(8, id.Issuer)},
	}
	for n := 9; n < 30; n++ {
		if v, ok := id.Extensions[n]; ok {
			tmpl.ExtraExtensions = append(tmpl.ExtraExtensions, Extension(n, v))
		}
	}
	if u, err := url.Parse(id.SAN); err == nil && strings.Contains(id.SAN, "://") {
		tmpl.URIs = []*url.URL{u}
	} else {
		tmpl.EmailAddresses = []string{id.SAN}
	}
	cert := d.issue(tmpl, d.ca, key.Public(), d.caKey)
	if !id.NoSCT {
		tmpl.ExtraExtensions = append(tmpl.ExtraExtensions, d.sct(cert, id.At))
		cert = d.issue(tmpl, d.ca, key.Public(), d.caKey)
	}
	return &Signer{cert, key}
}

func fulcioID(n int) asn1.ObjectIdentifier {
	return asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, n}
}

// Extension is one of Fulcio's, 8 and later.
func Extension(n int, value string) pkix.Extension {
	der, _ := asn1.MarshalWithParams(value, "utf8") // a string always can be
	return pkix.Extension{Id: fulcioID(n), Value: der}
}

// sct is the certificate log's promise to hold a certificate (RFC 6962, 3.2).
func (d *Deployment) sct(pre *x509.Certificate, at time.Time) pkix.Extension {
	log := sha256.Sum256(spki(d.t, d.ctKey.Public()))
	millis := binary.BigEndian.AppendUint64(nil, uint64(at.UnixMilli()))
	sig := Sign(d.t, d.ctKey, signedEntry(pre.RawTBSCertificate, sha256.Sum256(d.ca.RawSubjectPublicKeyInfo), uint64(at.UnixMilli())))
	one := append([]byte{0}, log[:]...)
	one = append(append(one, millis...), 0, 0, 4, 3)
	one = append(binary.BigEndian.AppendUint16(one, uint16(len(sig))), sig...)
	list := append(binary.BigEndian.AppendUint16(nil, uint16(len(one))), one...)
	list = append(binary.BigEndian.AppendUint16(nil, uint16(len(list))), list...)
	der, err := asn1.Marshal(list)
	must(d.t, err)
	return pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}, Value: der}
}

// signedEntry is what a certificate log signs of a certificate that is to be.
func signedEntry(tbs []byte, issuer [32]byte, millis uint64) []byte {
	out := append(binary.BigEndian.AppendUint64([]byte{0, 0}, millis), 0, 1)
	out = append(out, issuer[:]...)
	out = append(out, byte(len(tbs)>>16), byte(len(tbs)>>8), byte(len(tbs)))
	return append(append(out, tbs...), 0, 0)
}

// Sign signs a message's SHA-256.
func Sign(t testing.TB, key *ecdsa.PrivateKey, message []byte) []byte {
	t.Helper()
	sum := sha256.Sum256(message)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	must(t, err)
	return sig
}

// Sign signs a message.
func (s *Signer) Sign(t testing.TB, message []byte) []byte { return Sign(t, s.key, message) }

// PEM is the certificate's.
func (s *Signer) PEM() []byte { return certPEM(s.Certificate) }

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func spki(t testing.TB, key crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	must(t, err)
	return der
}

func keyPEM(t testing.TB, key crypto.PublicKey) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki(t, key)})
}

// The deployment's trust, part by part, as the environment of cosign names them.
func (d *Deployment) RootsPEM() []byte { return certPEM(d.ca) }
func (d *Deployment) CTLogPEM() []byte { return keyPEM(d.t, d.ctKey.Public()) }
func (d *Deployment) RekorPEM() []byte { return keyPEM(d.t, d.logKey.Public()) }
func (d *Deployment) TSAPEM() []byte   { return append(certPEM(d.tsa), certPEM(d.tsaRoot)...) }

// Root is the trusted root of some parts: any of ca, ctlog, rekor and tsa; none: all.
func (d *Deployment) Root(parts ...string) []byte {
	d.t.Helper()
	valid := map[string]any{"start": d.Began.Add(-time.Hour)}
	log := func(url string, key crypto.PublicKey) []any {
		der := spki(d.t, key)
		id := sha256.Sum256(der)
		return []any{map[string]any{
			"baseUrl": url, "hashAlgorithm": "SHA2_256", "logId": map[string]any{"keyId": id[:]},
			"publicKey": map[string]any{"rawBytes": der, "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": valid},
		}}
	}
	authority := func(url string, chain ...*x509.Certificate) []any {
		var certs []any
		for _, c := range chain {
			certs = append(certs, map[string]any{"rawBytes": c.Raw})
		}
		return []any{map[string]any{
			"subject": map[string]any{"commonName": chain[0].Subject.CommonName}, "uri": url,
			"certChain": map[string]any{"certificates": certs}, "validFor": valid,
		}}
	}
	all := map[string][2]any{
		"ca":    {"certificateAuthorities", authority("https://ca.example.com", d.ca)},
		"ctlog": {"ctlogs", log("https://ct.example.com", d.ctKey.Public())},
		"rekor": {"tlogs", log("https://log.example.com", d.logKey.Public())},
		"tsa":   {"timestampAuthorities", authority("https://tsa.example.com", d.tsa, d.tsaRoot)},
	}
	if len(parts) == 0 {
		parts = []string{"ca", "ctlog", "rekor", "tsa"}
	}
	root := map[string]any{"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1"}
	for _, p := range parts {
		root[all[p][0].(string)] = all[p][1]
	}
	raw, err := json.Marshal(root)
	must(d.t, err)
	return raw
}

// Entry is one of the transparency log.
type Entry struct {
	Body  []byte
	At    time.Time
	Index int64
	d     *Deployment
}

// LogMessage logs a signature over a message; signer is PEM, of a key or a certificate.
// It can be searched for.
func (d *Deployment) LogMessage(message, sig, signer []byte, at time.Time) Entry {
	d.t.Helper()
	sum := sha256.Sum256(message)
	return d.log("message:"+hex.EncodeToString(sum[:])+base64.StdEncoding.EncodeToString(sig), at, map[string]any{
		"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": map[string]any{
			"data":      map[string]any{"hash": map[string]any{"algorithm": "sha256", "value": hex.EncodeToString(sum[:])}},
			"signature": map[string]any{"content": sig, "publicKey": map[string]any{"content": signer}},
		},
	})
}

// LogEnvelope logs a DSSE envelope of one signature, given whole and taken apart.
func (d *Deployment) LogEnvelope(envelope, payload, sig, signer []byte, at time.Time) Entry {
	d.t.Helper()
	env, sum := sha256.Sum256(envelope), sha256.Sum256(payload)
	return d.log("envelope:"+hex.EncodeToString(env[:]), at, map[string]any{
		"apiVersion": "0.0.1", "kind": "dsse", "spec": map[string]any{
			"envelopeHash": map[string]any{"algorithm": "sha256", "value": hex.EncodeToString(env[:])},
			"payloadHash":  map[string]any{"algorithm": "sha256", "value": hex.EncodeToString(sum[:])},
			"signatures":   []any{map[string]any{"signature": base64.StdEncoding.EncodeToString(sig), "verifier": signer}},
		},
	})
}

// LogIntoto logs an envelope as cosign did before it knew kind dsse.
func (d *Deployment) LogIntoto(envelope, payload, signer []byte, at time.Time) Entry {
	d.t.Helper()
	env, sum := sha256.Sum256(envelope), sha256.Sum256(payload)
	return d.log("intoto:"+hex.EncodeToString(env[:]), at, map[string]any{
		"apiVersion": "0.0.1", "kind": "intoto", "spec": map[string]any{
			"content": map[string]any{
				"hash":        map[string]any{"algorithm": "sha256", "value": hex.EncodeToString(env[:])},
				"payloadHash": map[string]any{"algorithm": "sha256", "value": hex.EncodeToString(sum[:])},
			},
			"publicKey": signer,
		},
	})
}

func (d *Deployment) log(key string, at time.Time, body any) Entry {
	raw, err := json.Marshal(body)
	must(d.t, err)
	d.mu.Lock()
	defer d.mu.Unlock()
	e := Entry{raw, at, d.next, d}
	d.next++
	d.entries[key] = append(d.entries[key], e)
	return e
}

func (d *Deployment) logID() [32]byte { return sha256.Sum256(spki(d.t, d.logKey.Public())) }

func (e Entry) promise() []byte {
	return Sign(e.d.t, e.d.logKey, fmt.Appendf(nil, `{"body":"%s","integratedTime":%d,"logID":"%x","logIndex":%d}`,
		base64.StdEncoding.EncodeToString(e.Body), e.At.Unix(), e.d.logID(), e.Index))
}

// proof is of a tree of this entry alone.
func (e Entry) proof() (leaf [32]byte, checkpoint string) {
	leaf = sha256.Sum256(append([]byte{0}, e.Body...))
	text := fmt.Sprintf("log.example.com - 1234567890\n1\n%s\n", base64.StdEncoding.EncodeToString(leaf[:]))
	id := e.d.logID()
	sig := append(id[:4:4], Sign(e.d.t, e.d.logKey, []byte(text))...)
	return leaf, text + "\n— log.example.com " + base64.StdEncoding.EncodeToString(sig) + "\n"
}

// Annotation is cosign's of the entry.
func (e Entry) Annotation() string {
	return fmt.Sprintf(`{"SignedEntryTimestamp":%q,"Payload":{"body":%q,"integratedTime":%d,"logIndex":%d,"logID":"%x"}}`,
		base64.StdEncoding.EncodeToString(e.promise()), base64.StdEncoding.EncodeToString(e.Body), e.At.Unix(), e.Index, e.d.logID())
}

// Bundled is the entry as bundles have it.
func (e Entry) Bundled() map[string]any {
	leaf, checkpoint := e.proof()
	id := e.d.logID()
	var head struct{ Kind, APIVersion string }
	must(e.d.t, json.Unmarshal(e.Body, &head))
	return map[string]any{
		"logIndex": fmt.Sprint(e.Index), "logId": map[string]any{"keyId": id[:]}, "kindVersion": map[string]any{"kind": head.Kind, "version": head.APIVersion},
		"integratedTime": fmt.Sprint(e.At.Unix()), "canonicalizedBody": e.Body,
		"inclusionPromise": map[string]any{"signedEntryTimestamp": e.promise()},
		"inclusionProof": map[string]any{
			"logIndex": "0", "rootHash": leaf[:], "treeSize": "1", "hashes": []any{}, "checkpoint": map[string]any{"envelope": checkpoint},
		},
	}
}

// Timestamp is the timestamp authority's word that a signature existed.
func (d *Deployment) Timestamp(sig []byte, at time.Time) []byte {
	d.t.Helper()
	sum := sha256.Sum256(sig)
	ts := timestamp.Timestamp{
		HashAlgorithm: crypto.SHA256, HashedMessage: sum[:], Time: at, Policy: asn1.ObjectIdentifier{1, 2, 3, 4, 5},
		Nonce: big.NewInt(1), SerialNumber: big.NewInt(3), AddTSACertificate: true, Certificates: []*x509.Certificate{d.tsaRoot},
		ExtraExtensions: []pkix.Extension{},
	}
	resp, err := ts.CreateResponseWithOpts(d.tsa, d.tsaKey, crypto.SHA256)
	must(d.t, err)
	return resp
}
