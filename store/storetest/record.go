package storetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/store"
)

// NewRun names a run that nobody else has.
func NewRun(kind string) store.Run {
	uid := uuid.NewString()
	return store.Run{
		APIVersion: "tekton.dev/v1", Kind: kind, Namespace: "builds", Name: "run-" + uid[:8], UID: uid,
	}
}

// RecordSigner signs records with an ECDSA key, bare or named by a certificate.
type RecordSigner struct {
	Key         dsse.PublicKey
	Cert, Chain []byte // PEM; empty for a bare key
	private     *ecdsa.PrivateKey
	ca          *authority
}

// authority issues certificates, as Fulcio does.
type authority struct {
	private *ecdsa.PrivateKey
	cert    *x509.Certificate
	pem     []byte
}

// NewRecordSigner makes a signer with a bare key.
func NewRecordSigner(t testing.TB) *RecordSigner {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := dsse.NewPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	return &RecordSigner{Key: key, private: private}
}

// NewCertSigner makes a signer whose key a certificate of an authority of its
// own names, as keyless signing does.
func NewCertSigner(t testing.TB) *RecordSigner {
	t.Helper()
	root, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "storetest authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, root.Public(), root)
	if err != nil {
		t.Fatal(err)
	}
	if ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return issue(t, &authority{root, ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})})
}

// Again is the same identity with the next key and certificate, as a retry of
// keyless signing has it.
func (s *RecordSigner) Again(t testing.TB) *RecordSigner {
	t.Helper()
	if s.ca == nil {
		return s
	}
	return issue(t, s.ca)
}

func issue(t testing.TB, ca *authority) *RecordSigner {
	t.Helper()
	s := NewRecordSigner(t)
	s.ca = ca
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{},
		URIs:      []*url.URL{{Scheme: "https", Host: "kubernetes.io", Path: "/namespaces/tekton-chains/serviceaccounts/tekton-chains-controller"}},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(10 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca.cert, s.private.Public(), ca.private)
	if err != nil {
		t.Fatal(err)
	}
	s.Cert, s.Chain = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), ca.pem
	return s
}

func (s *RecordSigner) sign(t testing.TB, message []byte) []byte {
	t.Helper()
	sum := sha256.Sum256(message)
	sig, err := ecdsa.SignASN1(rand.Reader, s.private, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func (s *RecordSigner) signature(sig []byte) store.Signature {
	return store.Signature{KeyID: s.Key.KeyID(), Sig: sig, Key: s.Key, Cert: s.Cert, Chain: s.Chain}
}

// StatementRecord is a SLSA v0.2 statement about subjects, signed. The same run,
// say and subjects give the same payload, whoever signs.
func StatementRecord(t testing.TB, run store.Run, say string, subjects []intoto.Subject, signers ...*RecordSigner) store.Record {
	t.Helper()
	type subject struct {
		Name   string            `json:"name"`
		Digest map[string]string `json:"digest"`
	}
	list := make([]subject, 0, len(subjects))
	for _, s := range subjects {
		list = append(list, subject{s.Name, s.Digest})
	}
	payload, err := json.Marshal(map[string]any{
		"_type": api.StatementV01, "predicateType": api.PredicateSLSAv02, "subject": list,
		"predicate": map[string]any{
			"builder": map[string]any{"id": "https://tekton.dev/chains/v2"}, "buildType": "tekton.dev/v1/" + run.Kind,
			"invocation": map[string]any{"environment": map[string]any{"uid": run.UID, "say": say}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	st, err := intoto.Parse(payload)
	if err != nil {
		t.Fatal(err)
	}
	r := store.Record{Run: run, Key: strings.ToLower(run.Kind) + "-" + run.UID, Format: "in-toto", Payload: payload, Statement: st}
	for _, s := range signers {
		r.Signatures = append(r.Signatures, s.signature(s.sign(t, dsse.PAE(store.PayloadType, payload))))
	}
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
	return r
}

// ImageRecord is the signature of an image, repository@sha256:….
func ImageRecord(t testing.TB, run store.Run, image string, signers ...*RecordSigner) store.Record {
	t.Helper()
	repo, digest, ok := strings.Cut(image, "@")
	if !ok {
		t.Fatalf("image %q has no digest", image)
	}
	payload, err := simplesigning.New(repo, digest)
	if err != nil {
		t.Fatal(err)
	}
	r := store.Record{Run: run, Key: strings.TrimPrefix(digest, "sha256:")[:12], Format: "simplesigning", Payload: payload, Image: image}
	statement, err := intoto.ImageSignature(digest)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range signers {
		sig := s.signature(s.sign(t, payload))
		sig.Statement = s.sign(t, dsse.PAE(store.PayloadType, statement))
		r.Signatures = append(r.Signatures, sig)
	}
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
	return r
}

// ImageSubject is an image as the subject of a statement.
func ImageSubject(image string) intoto.Subject {
	repo, digest, _ := strings.Cut(image, "@sha256:")
	return intoto.Subject{Name: repo, Digest: map[string]string{"sha256": digest}}
}

// madeUpImage is a reference to an image that is nowhere.
func madeUpImage(_ testing.TB, say string) string {
	return "registry.example/team/app@" + Digest([]byte(fmt.Sprint("image ", say)))
}
