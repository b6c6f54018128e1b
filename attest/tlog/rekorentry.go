package tlog

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	common "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/strictjson"
)

// MaxRekorEntry is the size in bytes of the largest body of a Rekor entry that is
// read, and of the largest cosign annotation.
const MaxRekorEntry = 1 << 20

// rekorBody is what one entry of Rekor says was signed.
type rekorBody struct {
	kind, version string
	// payload says that digest is of the payload; else it is of the message signed.
	payload    bool
	algorithm  string // sha256, sha384, sha512
	digest     []byte
	signatures []rekorSignature
	// whole is set for entries that hold no signature and the digest of an envelope.
	whole *envelopeBody
}

type rekorSignature struct {
	sig []byte
	verifier
}

// verifier is what the log checked a signature with.
type verifier struct {
	key         dsse.PublicKey
	certificate []byte // DER; nil for a bare key
}

// parseRekorBody reads the canonical body of an entry. Kinds that say nothing of a
// signature that evidence could carry are refused by name.
func parseRekorBody(body []byte) (*rekorBody, error) {
	if err := strictjson.Check(body, MaxRekorEntry); err != nil {
		return nil, err
	}
	m, err := strictjson.Object(body)
	if err != nil {
		return nil, err
	}
	b := &rekorBody{}
	if b.kind, err = strictjson.String(m["kind"]); err != nil {
		return nil, fmt.Errorf("reading kind: %w", err)
	}
	if b.version, err = strictjson.String(m["apiVersion"]); err != nil {
		return nil, fmt.Errorf("reading apiVersion: %w", err)
	}
	read := map[string]func(*rekorBody, []byte) error{
		"dsse 0.0.1": readDSSE, "intoto 0.0.1": readIntoto1, "intoto 0.0.2": readIntoto2,
		"hashedrekord 0.0.1": readHashed1, "hashedrekord 0.0.2": readHashed2,
	}[b.kind+" "+b.version]
	if read == nil {
		return nil, fmt.Errorf("entries of kind %.40q, version %.20q are not read; read are dsse 0.0.1, intoto 0.0.1 and 0.0.2, hashedrekord 0.0.1 and 0.0.2", b.kind, b.version)
	}
	if err := read(b, m["spec"]); err != nil {
		return nil, fmt.Errorf("reading an entry of kind %s: %w", b.kind, err)
	}
	if b.whole == nil && len(b.signatures) == 0 || len(b.signatures) > dsse.MaxSignatures {
		return nil, fmt.Errorf("%d signatures in an entry of kind %s", len(b.signatures), b.kind)
	}
	return b, nil
}

func readDSSE(b *rekorBody, spec []byte) error {
	var s struct {
		PayloadHash struct{ Algorithm, Value string }
		Signatures  []struct {
			Signature string
			Verifier  []byte
		}
	}
	if err := json.Unmarshal(spec, &s); err != nil {
		return err
	}
	b.payload = true
	if err := b.hash(s.PayloadHash.Algorithm, s.PayloadHash.Value); err != nil {
		return err
	}
	for _, in := range s.Signatures {
		if err := b.add64(in.Signature, in.Verifier); err != nil {
			return err
		}
	}
	return nil
}

func readHashed1(b *rekorBody, spec []byte) error {
	var s struct {
		Data struct {
			Hash struct{ Algorithm, Value string }
		}
		Signature struct {
			Content   []byte
			PublicKey struct{ Content []byte }
		}
	}
	if err := json.Unmarshal(spec, &s); err != nil {
		return err
	}
	if err := b.hash(s.Data.Hash.Algorithm, s.Data.Hash.Value); err != nil {
		return err
	}
	return b.add(s.Signature.Content, s.Signature.PublicKey.Content)
}

func readHashed2(b *rekorBody, spec []byte) error {
	var s struct {
		HashedRekordV002 struct {
			Data struct {
				Algorithm string
				Digest    []byte
			}
			Signature struct {
				Content  []byte
				Verifier struct {
					PublicKey       struct{ RawBytes []byte }
					X509Certificate struct{ RawBytes []byte }
				}
			}
		}
	}
	if err := json.Unmarshal(spec, &s); err != nil {
		return err
	}
	in := s.HashedRekordV002
	algorithm, ok := strings.CutPrefix(in.Data.Algorithm, "SHA2_")
	if !ok {
		return fmt.Errorf("digest algorithm %.20q is not known", in.Data.Algorithm)
	}
	if err := b.hash("sha"+algorithm, hex.EncodeToString(in.Data.Digest)); err != nil {
		return err
	}
	block := &pem.Block{Type: "PUBLIC KEY", Bytes: in.Signature.Verifier.PublicKey.RawBytes}
	if c := in.Signature.Verifier.X509Certificate.RawBytes; len(c) > 0 {
		if len(block.Bytes) > 0 {
			return errors.New("both key and certificate")
		}
		block = &pem.Block{Type: "CERTIFICATE", Bytes: c}
	}
	return b.add(in.Signature.Content, pem.EncodeToMemory(block))
}

func (b *rekorBody) hash(algorithm, value string) (err error) {
	b.algorithm = strings.ToLower(algorithm)
	b.digest, err = rekorDigest(b.algorithm, value)
	return err
}

// rekorDigest reads a digest of one of the algorithms that entries use.
func rekorDigest(algorithm, value string) ([]byte, error) {
	digest, err := hex.DecodeString(value)
	if err != nil {
		return nil, errors.New("the digest is not hex")
	}
	if want := map[string]int{"sha256": 32, "sha384": 48, "sha512": 64}[algorithm]; want == 0 || want != len(digest) {
		return nil, fmt.Errorf("%d bytes are no digest of algorithm %.20q", len(digest), algorithm)
	}
	return digest, nil
}

// sumOf is the digest of data by an algorithm that rekorDigest knows.
func sumOf(algorithm string, data []byte) []byte {
	switch algorithm {
	case "sha384":
		d := sha512.Sum384(data)
		return d[:]
	case "sha512":
		d := sha512.Sum512(data)
		return d[:]
	}
	d := sha256.Sum256(data)
	return d[:]
}

func (b *rekorBody) add64(sig string, text []byte) error {
	raw, err := dsse.Base64(sig)
	if err != nil {
		return fmt.Errorf("reading signature: %w", err)
	}
	return b.add(raw, text)
}

func (b *rekorBody) add(sig, text []byte) error {
	by, err := readVerifier(text)
	if err != nil {
		return err
	}
	if len(sig) == 0 || len(sig) > maxSignature {
		return fmt.Errorf("a signature of %d bytes", len(sig))
	}
	b.signatures = append(b.signatures, rekorSignature{sig, by})
	return nil
}

// readVerifier reads a key in PEM, bare or in a certificate.
func readVerifier(text []byte) (v verifier, err error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return v, errors.New("reading the signer's key: no PEM")
	}
	if block.Type != "CERTIFICATE" {
		v.key, err = dsse.ParsePublicKey(pem.EncodeToMemory(block))
		return v, err
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return v, fmt.Errorf("reading the signer's certificate: %w", err)
	}
	v.certificate = c.Raw
	v.key, err = dsse.NewPublicKey(c.PublicKey)
	return v, err
}

// covers returns nil if the body is about this very signature.
func (b *rekorBody) covers(s Signed) error {
	if b.digest != nil { // the oldest entries of an envelope have the envelope's alone
		what, data := "message", s.Message()
		if b.payload {
			what, data = "payload", s.Payload
		}
		if sum := sumOf(b.algorithm, data); !bytes.Equal(sum, b.digest) {
			return fmt.Errorf("the log entry is about %s %s:%x, not %s:%x", what, b.algorithm, b.digest, b.algorithm, sum)
		}
	}
	if b.whole != nil {
		return b.whole.covers(s)
	}
	key := false
	for _, in := range b.signatures {
		if in.key.Fingerprint() != s.Key.Fingerprint() {
			continue
		}
		key = true
		if bytes.Equal(in.sig, s.Sig) {
			return nil
		}
	}
	if key {
		return errors.New("the log entry holds another signature by this key: this one was made without the log")
	}
	return errors.New("the log entry holds no signature by this key")
}

// CheckRekor verifies an entry of a Rekor log, v1 or v2, as a Sigstore bundle
// carries it: that it is about this signature, and that one of the trust's Rekor
// logs proves that it holds it (proof of inclusion under a signed checkpoint), or at
// least promises so (signed entry timestamp). What is there must verify, all of it.
// It is pure.
func CheckRekor(e *rekor.TransparencyLogEntry, s Signed, t Trust) (Inclusion, error) {
	in, err := checkRekor(e, s, t)
	if err != nil {
		return Inclusion{}, fmt.Errorf("verifying Rekor entry: %w", err)
	}
	return in, nil
}

func checkRekor(e *rekor.TransparencyLogEntry, s Signed, t Trust) (Inclusion, error) {
	if err := t.Check(); err != nil {
		return Inclusion{}, err
	}
	if len(t.Rekor) == 0 {
		return Inclusion{}, errors.New("no key of a Rekor log is trusted")
	}
	body, err := parseRekorBody(e.GetCanonicalizedBody())
	if err != nil {
		return Inclusion{}, err
	}
	if k := e.GetKindVersion(); k != nil && (k.GetKind() != body.kind || k.GetVersion() != body.version) {
		return Inclusion{}, fmt.Errorf("the entry is of kind %s %s and says it is %.40q %.20q", body.kind, body.version, k.GetKind(), k.GetVersion())
	}
	if err := body.covers(s); err != nil {
		return Inclusion{}, err
	}
	if e.GetLogIndex() < 0 {
		return Inclusion{}, errors.New("a negative index")
	}
	set := e.GetInclusionPromise().GetSignedEntryTimestamp()
	proof := e.GetInclusionProof()
	if len(set) == 0 && proof == nil {
		return Inclusion{}, errors.New("neither proof nor promise of inclusion")
	}
	in := Inclusion{Kind: KindRekor, Index: e.GetLogIndex(), Promise: proof == nil, Witnesses: []string{}}
	by := -1
	if proof != nil {
		tree, k, err := t.rekorCheckpoint(proof.GetCheckpoint().GetEnvelope())
		if err != nil {
			return Inclusion{}, err
		}
		by, in.Size = k, tree.Size
		if err := checkRekorInclusion(e.GetCanonicalizedBody(), proof, tree); err != nil {
			return Inclusion{}, err
		}
		in.Witnesses, in.Time = t.cosigned([]byte(proof.GetCheckpoint().GetEnvelope()))
		in.Witnesses = append([]string{}, in.Witnesses...)
	}
	if len(set) > 0 {
		message := promiseMessage(e)
		signer := slices.IndexFunc(t.Rekor, func(k RekorKey) bool { return k.public.Verify(message, set) == nil })
		if signer < 0 || by >= 0 && signer != by {
			return Inclusion{}, fmt.Errorf("the signed entry timestamp is by none of the trusted Rekor keys %q", t.rekorNames())
		}
		by, in.Time = signer, time.Unix(e.GetIntegratedTime(), 0).UTC()
		if err := t.Rekor[by].validAt(in.Time); err != nil {
			return Inclusion{}, err
		}
	}
	in.Log = t.Rekor[by].Name
	if t.Rekor[by].Witnessed {
		if err := t.quorum(in.Witnesses); err != nil {
			return Inclusion{}, err
		}
	}
	return in, nil
}

func checkRekorInclusion(body []byte, proof *rekor.InclusionProof, tree Tree) error {
	if len(proof.GetHashes()) > maxHashes {
		return fmt.Errorf("%d hashes; no tree is that high", len(proof.GetHashes()))
	}
	if r := proof.GetRootHash(); len(r) > 0 && !bytes.Equal(r, tree.Root[:]) {
		return errors.New("the proof's root is not the checkpoint's")
	}
	if proof.GetTreeSize() != tree.Size || proof.GetLogIndex() < 0 || proof.GetLogIndex() >= tree.Size {
		return fmt.Errorf("the proof is of entry %d in a tree of %d, the checkpoint of a tree of %d", proof.GetLogIndex(), proof.GetTreeSize(), tree.Size)
	}
	var hashes []tlog.Hash
	for _, h := range proof.GetHashes() {
		if len(h) != tlog.HashSize {
			return errors.New("a hash in the proof has not 32 bytes")
		}
		hashes = append(hashes, tlog.Hash(h))
	}
	if err := tlog.CheckRecord(hashes, tree.Size, tree.Root, proof.GetLogIndex(), tlog.RecordHash(body)); err != nil {
		return fmt.Errorf("entry %d of the log is not this one, or the tree is another: %w", proof.GetLogIndex(), err)
	}
	return nil
}

func (t Trust) rekorNames() []string {
	var out []string
	for _, k := range t.Rekor {
		out = append(out, k.Name)
	}
	return out
}

// rekorCheckpoint verifies a checkpoint of a Rekor log and says whose it is.
func (t Trust) rekorCheckpoint(signed string) (Tree, int, error) {
	if len(signed) > MaxCheckpoint {
		return Tree{}, 0, fmt.Errorf("a checkpoint of %d bytes; at most %d are read", len(signed), MaxCheckpoint)
	}
	for i, k := range t.Rekor {
		n, err := note.Open([]byte(signed), rekorVerifiers{k.public})
		if err != nil {
			continue
		}
		tree, err := ParseTree([]byte(n.Text))
		if err != nil {
			return Tree{}, 0, err
		}
		// v1 puts the shard behind the name, v2 has the name alone.
		if name := n.Sigs[0].Name; tree.Origin != name && !strings.HasPrefix(tree.Origin, name+" - ") {
			return Tree{}, 0, fmt.Errorf("the checkpoint of log %.80q is signed by %.80q", tree.Origin, name)
		}
		return tree, i, nil
	}
	return Tree{}, 0, fmt.Errorf("the checkpoint is signed by none of the trusted Rekor keys %q", t.rekorNames())
}

// rekorVerifiers finds a Rekor log's signature on a note by its key, whatever name
// it gives itself: trust is in the key.
type rekorVerifiers struct{ public dsse.PublicKey }

func (v rekorVerifiers) Verifier(name string, hash uint32) (note.Verifier, error) {
	for _, id := range rekorKeyIDs(name, v.public) {
		if keyHash(id) == hash {
			return rekorVerifier{name, hash, v.public}, nil
		}
	}
	return nil, &note.UnknownVerifierError{Name: name, KeyHash: hash}
}

type rekorVerifier struct {
	name   string
	hash   uint32
	public dsse.PublicKey
}

func (v rekorVerifier) Name() string                 { return v.name }
func (v rekorVerifier) KeyHash() uint32              { return v.hash }
func (v rekorVerifier) Verify(text, sig []byte) bool { return v.public.Verify(text, sig) == nil }

// rekorKeyIDs are the ids, in full, that Rekor v1 and v2 give a key.
func rekorKeyIDs(name string, public dsse.PublicKey) [][]byte {
	block, _ := pem.Decode(public.PEM())
	if block == nil {
		return nil
	}
	plain := sha256.Sum256(block.Bytes)
	ids := [][]byte{plain[:]}
	var named [sha256.Size]byte
	switch k := public.Crypto().(type) {
	case ed25519.PublicKey:
		named = sha256.Sum256(append([]byte(name+"\n\x01"), k...))
	case *rsa.PublicKey:
		named = sha256.Sum256(append([]byte(name+"\n\xffPKIX-RSA-PKCS#1v1.5"), block.Bytes...))
	case *ecdsa.PublicKey:
		return ids
	}
	return append(ids, named[:])
}

// promiseMessage is what a signed entry timestamp signs: four members as canonical
// JSON.
func promiseMessage(e *rekor.TransparencyLogEntry) []byte {
	return fmt.Appendf(nil, `{"body":"%s","integratedTime":%d,"logID":"%x","logIndex":%d}`,
		base64.StdEncoding.EncodeToString(e.GetCanonicalizedBody()), e.GetIntegratedTime(), e.GetLogId().GetKeyId(), e.GetLogIndex())
}

// ParseCosignBundle reads the value of AnnotationBundle, cosign's form of a Rekor
// v1 entry with its signed entry timestamp, and verifies nothing.
func ParseCosignBundle(annotation string) (*rekor.TransparencyLogEntry, error) {
	e, err := parseCosignBundle(annotation)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", AnnotationBundle, err)
	}
	return e, nil
}

func parseCosignBundle(annotation string) (*rekor.TransparencyLogEntry, error) {
	if err := strictjson.Check([]byte(annotation), MaxRekorEntry); err != nil {
		return nil, err
	}
	var b struct {
		SignedEntryTimestamp []byte
		Payload              struct {
			Body           []byte `json:"body"`
			IntegratedTime int64  `json:"integratedTime"`
			LogIndex       int64  `json:"logIndex"`
			LogID          string `json:"logID"`
		}
	}
	if err := json.Unmarshal([]byte(annotation), &b); err != nil {
		return nil, err
	}
	id, err := hex.DecodeString(b.Payload.LogID)
	if err != nil {
		return nil, errors.New("logID is not hex")
	}
	return &rekor.TransparencyLogEntry{
		LogIndex: b.Payload.LogIndex, LogId: &common.LogId{KeyId: id}, IntegratedTime: b.Payload.IntegratedTime,
		InclusionPromise:  &rekor.InclusionPromise{SignedEntryTimestamp: b.SignedEntryTimestamp},
		CanonicalizedBody: b.Payload.Body,
	}, nil
}
