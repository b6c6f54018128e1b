package verify_test

// The instance in these tests is made here: a certificate authority and a Rekor v1
// log of one entry, whose keys the tests hold, so that they can lie.

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
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
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/store"
	"assay.dev/assay/verify"
)

// sigstore is a Sigstore instance of our own.
type sigstore struct {
	t       testing.TB
	caKey   *ecdsa.PrivateKey
	ca      *x509.Certificate
	logKey  *ecdsa.PrivateKey
	started time.Time
}

const logOrigin = "log.example.com - 1234567890"

func must1[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newSigstore(t testing.TB) *sigstore {
	t.Helper()
	s := &sigstore{t: t, started: time.Now().Add(-24 * time.Hour).UTC().Truncate(time.Second)}
	s.caKey = must1[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	s.logKey = must1[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: s.started.Add(-time.Hour), NotAfter: s.started.Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
	der := must1[[]byte](t)(x509.CreateCertificate(rand.Reader, tmpl, tmpl, &s.caKey.PublicKey, s.caKey))
	s.ca = must1[*x509.Certificate](t)(x509.ParseCertificate(der))
	return s
}

func pkix1(t testing.TB, key crypto.PublicKey) []byte {
	return must1[[]byte](t)(x509.MarshalPKIXPublicKey(key))
}

// root is the instance's trusted root.
func (s *sigstore) root() []byte {
	key := pkix1(s.t, &s.logKey.PublicKey)
	id := sha256.Sum256(key)
	return must1[[]byte](s.t)(json.Marshal(map[string]any{
		"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
		"tlogs": []any{map[string]any{
			"baseUrl": "https://log.example.com", "hashAlgorithm": "SHA2_256", "logId": map[string]any{"keyId": id[:]},
			"publicKey": map[string]any{"rawBytes": key, "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": map[string]any{"start": s.started.Add(-time.Hour)}},
		}},
		"certificateAuthorities": []any{map[string]any{
			"subject": map[string]any{"commonName": "test authority"}, "uri": "https://ca.example.com",
			"certChain": map[string]any{"certificates": []any{map[string]any{"rawBytes": s.ca.Raw}}},
			"validFor":  map[string]any{"start": s.started.Add(-time.Hour)},
		}},
	}))
}

func (s *sigstore) instance() *verify.Instance {
	s.t.Helper()
	return must1[*verify.Instance](s.t)(verify.NewInstance("test", s.root(), verify.Thresholds{LogEntries: 1, Timestamps: 1}))
}

// signing is one signature, honest unless something is set.
type signing struct {
	san, issuer string
	subject     []byte    // artifact
	statement   string    // default: provenance about the artifact
	payloadType string    // default: in-toto's
	at          time.Time // when the log says that it was made
	leaf        func(*x509.Certificate)
	extensions  []pkix.Extension     // beside the issuer
	ca          *sigstore            // who issues, if not the instance
	key         crypto.Signer        // default: a new one
	body        func([]byte) []byte  // the log's entry
	entry       func(map[string]any) // the whole entry
	checkpoint  func(string) string  // before it is signed
	edit        func(map[string]any) // the bundle
}

func extension(oid int, value string) pkix.Extension {
	der, _ := asn1.MarshalWithParams(value, "utf8")
	return pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, oid}, Value: der}
}

const (
	testSAN    = "https://github.com/octo/app/.github/workflows/build.yml@refs/heads/main"
	testIssuer = verify.GitHubIssuer
)

func provenanceOf(artifact []byte) string {
	return fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"a","digest":{"sha256":"%x"}}],"predicateType":"https://slsa.dev/provenance/v1","predicate":{"buildDefinition":{"buildType":"https://example.com/b","externalParameters":{}},"runDetails":{"builder":{"id":"https://example.com/builder"}}}}`, sha256.Sum256(artifact))
}

// bundle signs as it is told.
func (s *sigstore) bundle(o signing) []byte {
	t := s.t
	t.Helper()
	if o.san == "" {
		o.san = testSAN
	}
	if o.issuer == "" {
		o.issuer = testIssuer
	}
	if o.at.IsZero() {
		o.at = s.started.Add(time.Minute)
	}
	if o.statement == "" {
		o.statement = provenanceOf(o.subject)
	}
	if o.payloadType == "" {
		o.payloadType = api.PayloadTypeInToto
	}
	if o.ca == nil {
		o.ca = s
	}
	if o.key == nil {
		o.key = must1[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: s.started, NotAfter: s.started.Add(10 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		ExtraExtensions: append([]pkix.Extension{extension(8, o.issuer)}, o.extensions...),
	}
	if u, err := url.Parse(o.san); err == nil && strings.HasPrefix(o.san, "https://") {
		tmpl.URIs = []*url.URL{u}
	} else {
		tmpl.EmailAddresses = []string{o.san}
	}
	if o.leaf != nil {
		o.leaf(tmpl)
	}
	cert := must1[[]byte](t)(x509.CreateCertificate(rand.Reader, tmpl, o.ca.ca, o.key.Public(), o.ca.caKey))
	payload := []byte(o.statement)
	sig := sign(t, o.key, dsse.PAE(o.payloadType, payload))
	hash := sha256.Sum256(payload)
	body := must1[[]byte](t)(json.Marshal(map[string]any{"apiVersion": "0.0.1", "kind": "dsse", "spec": map[string]any{
		"envelopeHash": map[string]any{"algorithm": "sha256", "value": hex.EncodeToString(hash[:])},
		"payloadHash":  map[string]any{"algorithm": "sha256", "value": hex.EncodeToString(hash[:])},
		"signatures": []any{map[string]any{
			"signature": base64.StdEncoding.EncodeToString(sig), "verifier": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		}},
	}}))
	if o.body != nil {
		body = o.body(body)
	}
	entry := s.entry(body, o.at, "dsse", "0.0.1", o.checkpoint)
	if o.entry != nil {
		o.entry(entry)
	}
	b := map[string]any{
		"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
		"verificationMaterial": map[string]any{
			"certificate": map[string]any{"rawBytes": cert}, "tlogEntries": []any{entry},
		},
		"dsseEnvelope": map[string]any{"payloadType": o.payloadType, "payload": payload, "signatures": []any{map[string]any{"sig": sig}}},
	}
	if o.edit != nil {
		o.edit(b)
	}
	return must1[[]byte](t)(json.Marshal(b))
}

func sign(t testing.TB, key crypto.Signer, message []byte) []byte {
	if k, ok := key.(ed25519.PrivateKey); ok {
		return ed25519.Sign(k, message)
	}
	d := sha256.Sum256(message)
	return must1[[]byte](t)(key.Sign(rand.Reader, d[:], crypto.SHA256))
}

// entry is the log's proof of a tree with one leaf, and its promise.
func (s *sigstore) entry(body []byte, at time.Time, kind, version string, edit func(string) string) map[string]any {
	key := pkix1(s.t, &s.logKey.PublicKey)
	id := sha256.Sum256(key)
	promise := fmt.Sprintf(`{"body":"%s","integratedTime":%d,"logID":"%x","logIndex":7}`, base64.StdEncoding.EncodeToString(body), at.Unix(), id)
	leaf := sha256.Sum256(append([]byte{0}, body...))
	text := fmt.Sprintf("%s\n1\n%s\n", logOrigin, base64.StdEncoding.EncodeToString(leaf[:]))
	if edit != nil {
		text = edit(text)
	}
	sum := sha256.Sum256(key)
	hint := binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(sum[:4]))
	note := text + "\n— log.example.com " + base64.StdEncoding.EncodeToString(append(hint, sign(s.t, s.logKey, []byte(text))...)) + "\n"
	return map[string]any{
		"logIndex": "7", "logId": map[string]any{"keyId": id[:]}, "kindVersion": map[string]any{"kind": kind, "version": version},
		"integratedTime": fmt.Sprint(at.Unix()), "canonicalizedBody": body,
		"inclusionPromise": map[string]any{"signedEntryTimestamp": sign(s.t, s.logKey, []byte(promise))},
		"inclusionProof": map[string]any{
			"logIndex": "0", "rootHash": leaf[:], "treeSize": "1", "hashes": []any{}, "checkpoint": map[string]any{"envelope": note},
		},
	}
}

func (s *sigstore) options() verify.Options {
	return verify.Options{
		Instances: []*verify.Instance{s.instance()}, At: time.Now(), WithoutSignature: true,
		Identities: []verify.CertificateIdentity{{SAN: testSAN, Issuer: testIssuer}},
	}
}

func file(t testing.TB, content []byte) *verify.Artifact {
	t.Helper()
	path := filepath.Join(t.TempDir(), "artifact")
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return must1[*verify.Artifact](t)(verify.FileArtifact(path))
}

func pieces(t testing.TB, data []byte) []store.Item {
	t.Helper()
	return must1[[]store.Item](t)(verify.ReadFile(data))
}

// TestCertificate: what is honest verifies, with every fact of the certificate.
func TestCertificate(t *testing.T) {
	s := newSigstore(t)
	artifact := []byte("hello")
	data := s.bundle(signing{subject: artifact, extensions: []pkix.Extension{
		extension(9, "https://github.com/octo/app/.github/workflows/build.yml@refs/heads/main"), extension(10, "aaaa"), extension(11, "github-hosted"),
		extension(12, "https://github.com/octo/app"), extension(13, "bbbb"), extension(14, "refs/heads/main"), extension(16, "https://github.com/octo"),
		extension(18, "https://github.com/octo/app/.github/workflows/ci.yml@refs/heads/main"), extension(19, "cccc"), extension(20, "push"),
		extension(21, "https://github.com/octo/app/actions/runs/1/attempts/1"),
	}})
	e, err := verify.Files(file(t, artifact), pieces(t, data), s.options())
	if err != nil {
		t.Fatal(err)
	}
	st := e.Statements()[0]
	c := st.Certificate
	if c == nil || c.SAN != testSAN || c.Issuer != testIssuer || c.SourceRepositoryURI != "https://github.com/octo/app" || c.SourceRef() != "refs/heads/main" ||
		c.SourceDigest() != "bbbb" || c.BuildSignerURI != testSAN || c.BuildSignerDigest != "aaaa" || c.RunnerEnvironment != "github-hosted" ||
		c.BuildConfigURI == "" || c.BuildConfigDigest != "cccc" || c.Trigger() != "push" || c.RunInvocationURI == "" || c.Instance != "test" || c.SANType != "uri" {
		t.Errorf("certificate %+v", c)
	}
	if len(st.Times) != 1 || st.Times[0].Kind != verify.TimeLog || !st.Times[0].Time.Equal(s.started.Add(time.Minute)) || len(st.Log) != 1 || st.Log[0].Index != 7 {
		t.Errorf("times %+v, log %+v", st.Times, st.Log)
	}
	if st.Outcome != predicate.Unstated || st.Grade != verify.GradeBuilder {
		t.Errorf("outcome %q, grade %q", st.Outcome, st.Grade)
	}
	if _, ok := st.Typed.(*predicate.Provenance1); !ok {
		t.Errorf("predicate %T", st.Typed)
	}
}

// TestAttacks: all refused, with the reason.
func TestAttacks(t *testing.T) {
	s, other := newSigstore(t), newSigstore(t)
	artifact := []byte("hello")
	sum := sha256.Sum256(artifact)
	type m = map[string]any
	material := func(b m) m { return b["verificationMaterial"].(m) }
	entry := func(b m) m { return material(b)["tlogEntries"].([]any)[0].(m) }
	env := func(b m) m { return b["dsseEnvelope"].(m) }
	edited := func(f func(b m)) signing { return signing{subject: artifact, edit: f} }
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := s.bundle(signing{subject: []byte("something else")})
	var foreign m
	if err := json.Unmarshal(elsewhere, &foreign); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		data []byte
		o    signing
		opts func(*verify.Options)
		says string
	}{
		{name: "another artifact", o: signing{subject: []byte("other")}, says: "about another artifact"},
		{name: "subject by another algorithm", o: signing{statement: fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha1":"%x"}}],"predicateType":"https://slsa.dev/provenance/v1","predicate":{}}`, sum[:20])}, says: "about another artifact"},
		{name: "subject that is two things", o: signing{statement: strings.Replace(provenanceOf(artifact), `"digest":{`, `"digest":{"sha512":"`+strings.Repeat("0", 128)+`",`, 1)}, says: "about another artifact"},
		{name: "payload type", o: signing{subject: artifact, payloadType: "text/plain"}, says: "verifying against instance"},
		{name: "duplicate members", o: signing{statement: strings.Replace(provenanceOf(artifact), `"predicate":`, `"predicate":{},"predicate":`, 1)}, says: ""},
		{name: "predicate of another type", o: signing{statement: strings.Replace(provenanceOf(artifact), "slsa.dev/provenance/v1", "slsa.dev/provenance/v0.2", 1)}, says: "builder id"},
		{name: "predicate with another case", o: signing{statement: strings.Replace(provenanceOf(artifact), `"runDetails"`, `"rundetails":{},"runDetails"`, 1)}, says: "case alone"},
		{name: "two contents", o: edited(func(b m) { b["messageSignature"] = m{} }), says: "both dsseEnvelope and messageSignature"},
		{name: "two signatures", o: edited(func(b m) { l := env(b)["signatures"].([]any); env(b)["signatures"] = append(l, l[0]) }), says: "a bundle holds one"},
		{name: "payload changed", o: edited(func(b m) {
			env(b)["payload"] = []byte(strings.Replace(provenanceOf(artifact), "example.com/builder", "example.org/builder", 1))
		}), says: "verifying against instance"},
		{name: "sloppy base64", o: edited(func(b m) {
			env(b)["payload"] = base64.StdEncoding.EncodeToString([]byte(provenanceOf(artifact))) + "\n"
		}), says: "base64"},
		{name: "another spelling of a member", o: edited(func(b m) { b["dsse_envelope"] = b["dsseEnvelope"] }), says: `"dsse_envelope"`},
		{name: "signed after the certificate expired", o: signing{subject: artifact, at: s.started.Add(time.Hour)}, says: "outside certificate validity"},
		{name: "signed before the certificate", o: signing{subject: artifact, at: s.started.Add(-time.Minute)}, says: "outside certificate validity"},
		{name: "wrong authority, of the same name", o: signing{subject: artifact, ca: other}, says: "authority of none of the trusted instances"},
		{name: "not for signing code", o: signing{subject: artifact, leaf: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }}, says: "authority of none"},
		{name: "another identity", o: signing{subject: artifact, san: "https://github.com/octo/app/.github/workflows/build.yml@refs/heads/evil"}, says: "none of those that are trusted"},
		{name: "identity with a prefix", o: signing{subject: artifact, san: "https://evil.example/?" + testSAN}, says: "none of those that are trusted"},
		{name: "look-alike", o: signing{subject: artifact, san: "https://github.com/осto/app/.github/workflows/build.yml@refs/heads/main"}, says: "none of those that are trusted"},
		{name: "another issuer", o: signing{subject: artifact, issuer: "https://token.actions.githubusercontent.com.evil.example"}, says: "issuer"},
		{name: "issuer with a line break", o: signing{subject: artifact, issuer: testIssuer + "\n"}, says: "does not print"},
		{name: "two names", o: signing{subject: artifact, leaf: func(c *x509.Certificate) { c.EmailAddresses = []string{"me@example.com"} }}, says: "2 subject alternative names"},
		{name: "a second name that x509 does not read", o: signing{subject: artifact, leaf: func(c *x509.Certificate) {
			c.URIs = nil
			other := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 8, Bytes: []byte{0x2a, 0x03}}
			der, _ := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(testSAN)}, other})
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: der})
		}}, says: "2 subject alternative names"},
		{name: "two issuers", o: signing{subject: artifact, extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}, Value: []byte("https://evil.example")}}}, says: "two issuers"},
		{name: "extension in another encoding", o: signing{subject: artifact, extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 12}, Value: []byte("https://github.com/octo/app")}}}, says: "57264.1.12"},
		{name: "extension with more behind", o: signing{subject: artifact, extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 12}, Value: append(extension(12, "https://github.com/octo/app").Value, 'x')}}}, says: "bytes follow"},
		{name: "log entry of another artifact", o: edited(func(b m) { material(b)["tlogEntries"] = foreign["verificationMaterial"].(m)["tlogEntries"] }), says: "transparency log"},
		{name: "no log entry", o: edited(func(b m) { delete(material(b), "tlogEntries") }), says: "not enough verified log entries"},
		{name: "wrong tree size", o: edited(func(b m) { entry(b)["inclusionProof"].(m)["treeSize"] = "2" }), says: "verifying against instance"},
		{name: "forged checkpoint", o: signing{subject: artifact, entry: func(e m) {
			c := e["inclusionProof"].(m)["checkpoint"].(m)
			c["envelope"] = strings.Replace(c["envelope"].(string), "\n1\n", "\n9\n", 1)
		}}, says: "verifying against instance"},
		{name: "checkpoint of another root", o: signing{subject: artifact, checkpoint: func(text string) string {
			return regexp.MustCompile(`\n1\n.*\n`).ReplaceAllString(text, "\n1\n"+base64.StdEncoding.EncodeToString(make([]byte, 32))+"\n")
		}}, says: "verifying against instance"},
		{name: "another log's word", o: signing{subject: artifact, entry: func(e m) {
			maps.Copy(e, other.entry(e["canonicalizedBody"].([]byte), s.started.Add(time.Minute), "dsse", "0.0.1", nil))
		}}, says: "not enough verified log entries"},
		{name: "promise for another time", o: signing{subject: artifact, entry: func(e m) { e["integratedTime"] = fmt.Sprint(s.started.Add(2 * time.Minute).Unix()) }}, says: "not enough verified log entries"},
		{name: "the log's clock is ahead", o: signing{subject: artifact, at: time.Now().Add(time.Hour), leaf: func(c *x509.Certificate) { c.NotAfter = time.Now().Add(10 * time.Hour) }}, says: ""},
		{name: "signed after the instant", o: signing{subject: artifact}, opts: func(o *verify.Options) { o.At = s.started }, says: "after the instant of verification"},
		{name: "only a proof and no time", o: signing{subject: artifact, entry: func(e m) { delete(e, "inclusionPromise") }}, says: "verifying against instance"},
		{name: "Ed25519 certificate, ECDSA trust", o: signing{subject: artifact, key: edKey}, opts: func(o *verify.Options) {
			o.Identities[0].SAN = "someone@example.com"
		}, says: "none of those that are trusted"},
		{name: "endless nesting", data: []byte(strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000)), says: ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			data := tc.data
			if data == nil {
				data = s.bundle(tc.o)
			}
			items, err := verify.ReadFile(data)
			if err != nil {
				return // refused before it is looked at
			}
			opts := s.options()
			if tc.opts != nil {
				tc.opts(&opts)
			}
			e, err := verify.Files(file(t, artifact), items, opts)
			if err == nil || e != nil {
				t.Fatalf("it verified: %+v", e.Statements())
			}
			if !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v; want it to say %q", err, tc.says)
			}
		})
	}
	// The same with nothing wrong, so that the refusals mean something.
	if _, err := verify.Files(file(t, artifact), pieces(t, s.bundle(signing{subject: artifact, key: edKey})), s.options()); err != nil {
		t.Errorf("Ed25519: %v", err)
	}
}

// TestOutcome: provenance of a run that failed is true and no provenance.
func TestOutcome(t *testing.T) {
	s := newSigstore(t)
	artifact := []byte("hello")
	statement := func(status, finished string) string {
		return fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v0.1","subject":[{"name":"a","digest":{"sha256":"%x"}}],"predicateType":"https://slsa.dev/provenance/v0.2","predicate":{"builder":{"id":"b"},"buildType":"tekton.dev/v1/PipelineRun","metadata":{"buildStartedOn":"2026-01-01T00:00:00Z"%s},"buildConfig":{"tasks":[{"status":"Succeeded"},{"status":%q}]}}}`,
			sha256.Sum256(artifact), finished, status)
	}
	const end = `,"buildFinishedOn":"2026-01-01T00:01:00Z"`
	for _, tc := range []struct {
		name, statement string
		want            predicate.Outcome
	}{
		{"succeeded", statement("Succeeded", end), predicate.Succeeded},
		{"failed", statement("Failed", end), predicate.Failed},
		{"running", statement("Running", end), predicate.Unfinished},
		{"without an end", statement("Succeeded", ""), predicate.Unfinished},
	} {
		t.Run(tc.name, func(t *testing.T) {
			data := s.bundle(signing{statement: tc.statement})
			opts := s.options()
			counts := tc.want == predicate.Succeeded
			e, err := verify.Files(file(t, artifact), pieces(t, data), opts)
			if (err == nil) != counts {
				t.Fatalf("%v", err)
			}
			if !counts && !strings.Contains(err.Error(), "not taken for a build's") {
				t.Errorf("%v", err)
			}
			opts.WithoutProvenance = true
			if _, err := verify.Files(file(t, artifact), pieces(t, data), opts); (err == nil) != counts {
				t.Errorf("as evidence of nothing in particular: %v", err)
			}
			opts.AnyOutcome, opts.WithoutProvenance = true, false
			if e, err = verify.Files(file(t, artifact), pieces(t, data), opts); err != nil || e.Statements()[0].Outcome != tc.want {
				t.Errorf("asked for: %v", err)
			}
		})
	}
}

// TestCosignLayers: what cosign 2 keeps in tags, signed by a certificate.
func TestCosignLayers(t *testing.T) {
	s := newSigstore(t)
	manifest := []byte(`{"schemaVersion":2}`)
	ref := "example.com/a@" + fmt.Sprintf("sha256:%x", sha256.Sum256(manifest))
	var b map[string]any
	if err := json.Unmarshal(s.bundle(signing{subject: manifest}), &b); err != nil {
		t.Fatal(err)
	}
	material := b["verificationMaterial"].(map[string]any)
	der, _ := base64.StdEncoding.DecodeString(material["certificate"].(map[string]any)["rawBytes"].(string))
	entry := material["tlogEntries"].([]any)[0].(map[string]any)
	id, _ := base64.StdEncoding.DecodeString(entry["logId"].(map[string]any)["keyId"].(string))
	annotation := fmt.Sprintf(`{"SignedEntryTimestamp":%q,"Payload":{"body":%q,"integratedTime":%s,"logIndex":7,"logID":"%x"}}`,
		entry["inclusionPromise"].(map[string]any)["signedEntryTimestamp"], entry["canonicalizedBody"], entry["integratedTime"], id)
	envelope := must1[[]byte](t)(json.Marshal(b["dsseEnvelope"]))
	att := store.Item{Format: store.FormatTag, Digest: "sha256:x", MediaType: api.MediaTypeDSSE, Content: envelope, Annotations: map[string]string{
		"dev.sigstore.cosign/certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		"dev.sigstore.cosign/bundle":      annotation,
	}}
	e, err := verify.Items(ref, manifest, []store.Item{att}, s.options())
	if err != nil {
		t.Fatal(err)
	}
	if st := e.Statements()[0]; st.Certificate == nil || st.Certificate.SAN != testSAN || len(st.Log) != 1 || !st.Log[0].Promise {
		t.Errorf("%+v", st.Identity)
	}
	// Without the log's promise nobody knows when.
	delete(att.Annotations, "dev.sigstore.cosign/bundle")
	if _, err := verify.Items(ref, manifest, []store.Item{att}, s.options()); err == nil {
		t.Error("without a log entry it verified")
	}
}

// TestNothingToTrust: options that could only verify too much are errors.
func TestNothingToTrust(t *testing.T) {
	s := newSigstore(t)
	items := pieces(t, s.bundle(signing{subject: []byte("x")}))
	for name, f := range map[string]func(*verify.Options){
		"no instant":           func(o *verify.Options) { o.At = time.Time{} },
		"no instance":          func(o *verify.Options) { o.Instances = nil },
		"no identity":          func(o *verify.Options) { o.Identities = nil },
		"identity and nothing": func(o *verify.Options) { o.Identities = []verify.CertificateIdentity{{}} },
		"only an issuer":       func(o *verify.Options) { o.Identities = []verify.CertificateIdentity{{Issuer: testIssuer}} },
		"only a name":          func(o *verify.Options) { o.Identities = []verify.CertificateIdentity{{SAN: testSAN}} },
		"unbalanced": func(o *verify.Options) {
			o.Identities = []verify.CertificateIdentity{{SANRegexp: "a)|(.*", Issuer: testIssuer}}
		},
		"no source": func(o *verify.Options) { o.Expect = &verify.Expectation{BuilderID: "x"} },
	} {
		opts := s.options()
		f(&opts)
		var none *verify.NoEvidenceError
		if _, err := verify.Files(file(t, []byte("x")), items, opts); err == nil || errors.As(err, &none) {
			t.Errorf("%s: %v; want an error about the options", name, err)
		}
	}
	for name, need := range map[string]verify.Thresholds{
		"no time": {LogEntries: 1}, "nothing": {}, "unreachable": {LogEntries: 2, Timestamps: 1}, "no such thing": {SCTs: 1, Timestamps: 1}, "negative": {LogEntries: -1, Timestamps: 1},
	} {
		if _, err := verify.NewInstance("x", s.root(), need); err == nil {
			t.Errorf("thresholds %q were accepted", name)
		}
	}
	// An expression is anchored, whatever it says.
	opts := s.options()
	opts.Identities = []verify.CertificateIdentity{{SANRegexp: `https://github\.com/octo/app`, Issuer: testIssuer}}
	if _, err := verify.Files(file(t, []byte("x")), items, opts); err == nil {
		t.Error("a regular expression matched the beginning of a name")
	}
}

// TestFlippedBits: no bit of a good bundle can be flipped so that it says something
// else and verifies.
func TestFlippedBits(t *testing.T) {
	s := newSigstore(t)
	artifact := []byte("hello")
	good := s.bundle(signing{subject: artifact})
	a, opts := file(t, artifact), s.options()
	e, err := verify.Files(a, pieces(t, good), opts)
	if err != nil {
		t.Fatal(err)
	}
	want := e.Statements()[0]
	flip := func(bits ...int) string {
		data := append([]byte(nil), good...)
		for _, bit := range bits {
			data[bit/8] ^= 1 << (bit % 8)
		}
		items, err := verify.ReadFile(data)
		if err != nil {
			return ""
		}
		e, err := verify.Files(a, items, opts)
		if err != nil {
			return ""
		}
		got := e.Statements()[0]
		if got.PayloadDigest != want.PayloadDigest || got.Certificate.Fingerprint != want.Certificate.Fingerprint || got.Certificate.SAN != want.Certificate.SAN {
			return fmt.Sprintf("bits %v: it verifies as another statement: %s", bits, got.Payload)
		}
		return ""
	}
	rapid.Check(t, func(r *rapid.T) {
		if bad := flip(rapid.SliceOfN(rapid.IntRange(0, 8*len(good)-1), 1, 3).Draw(r, "bits")...); bad != "" {
			r.Fatal(bad)
		}
	})
	if os.Getenv("ASSAY_SLOW") == "" {
		t.Log("set ASSAY_SLOW=1 to flip every single bit; make test-all does")
		return
	}
	for bit := range 8 * len(good) {
		if bad := flip(bit); bad != "" {
			t.Error(bad)
		}
	}
}

func FuzzReadFile(f *testing.F) {
	f.Add([]byte(`{"payloadType":"x","payload":"","signatures":[{"sig":"eA=="}]}`))
	f.Add([]byte("{\"mediaType\":\"application/vnd.dev.sigstore.bundle.v0.3+json\"}\n{}\n"))
	f.Add([]byte(`{"attestations":[{"predicateType":"p","bundle":{}}]}`))
	s := newSigstore(f)
	f.Add(s.bundle(signing{subject: []byte("x")}))
	opts := s.options()
	opts.WithoutProvenance = true
	a := file(f, []byte("y")) // nothing that is signed is about this one
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		items, err := verify.ReadFile(data)
		if err != nil {
			return
		}
		if _, err := verify.Files(a, items, opts); err == nil {
			t.Fatalf("verified: %q", data)
		}
	})
}

func FuzzGCB(f *testing.F) {
	f.Add([]byte(`{"image_summary":{"digest":"sha256:` + zeros + `","fully_qualified_digest":"a@sha256:` + zeros + `"},"provenance_summary":{"provenance":[{"kind":"BUILD","envelope":{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"keyid":"projects/verified-builder/locations/global/keyRings/attestor/cryptoKeys/builtByGCB/cryptoKeyVersions/1","sig":"eA=="}]}}]}}`))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	a, err := verify.DigestArtifact("sha256:" + zeros)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		if _, err := verify.GCB(a, data, verify.Options{Keys: []verify.Key{{Name: "global", Public: key.Public()}}}); err == nil {
			t.Fatalf("verified: %q", data)
		}
	})
}

// TestRoots: what is shipped is what roots/README.md says, and current enough to use.
func TestRoots(t *testing.T) {
	readme := string(read(t, filepath.Join("roots", "README.md")))
	for _, name := range []string{"public-good.json", "github.json", "npm-keys.json", "../tufroot/github-root.json"} {
		sum := fmt.Sprintf("%x", sha256.Sum256(read(t, filepath.Join("roots", name))))
		if !regexp.MustCompile(`(?m)^\| ` + regexp.QuoteMeta(name) + ` .* ` + sum + ` \|$`).MatchString(readme) {
			t.Errorf("roots/README.md does not say where %s (%s) is from", name, sum)
		}
	}
	for _, in := range instances(t) {
		if in.Thresholds() != must1[verify.Thresholds](t)(verify.DefaultThresholds(in.JSON())) {
			t.Errorf("%s: thresholds %+v are not those that its root allows", in.Name(), in.Thresholds())
		}
	}
	if keys, err := verify.NPMKeys(); err != nil || len(keys) == 0 {
		t.Errorf("npm's keys: %v", err)
	}
}
