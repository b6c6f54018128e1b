package tlog_test

// Entries here are made by Rekor's own packages, which check what they are given as the
// log does, and, in TestRekorTakesEnvelopes, by Rekor itself. What the tests' log
// promises it signs with the test's key.

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	common "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	pki "github.com/sigstore/rekor/pkg/pki/x509"
	"github.com/sigstore/rekor/pkg/types"
	dssev001 "github.com/sigstore/rekor/pkg/types/dsse/v0.0.1"
	hashedv001 "github.com/sigstore/rekor/pkg/types/hashedrekord/v0.0.1"
	intotov001 "github.com/sigstore/rekor/pkg/types/intoto/v0.0.1"
	intotov002 "github.com/sigstore/rekor/pkg/types/intoto/v0.0.2"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/store"
)

// ecKey is a key that Rekor takes signatures of.
type ecKey struct {
	private *ecdsa.PrivateKey
	public  dsse.PublicKey
}

func newECKey(t testing.TB) ecKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p, err := dsse.NewPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return ecKey{k, p}
}

func (k ecKey) sign(t testing.TB, message []byte) []byte {
	t.Helper()
	sum := sha256.Sum256(message)
	sig, err := ecdsa.SignASN1(rand.Reader, k.private, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// attested is an envelope as cosign writes it, and the question about its signature.
func attested(t testing.TB, k ecKey, payload string) tlog.Signed {
	t.Helper()
	s := tlog.Signed{PayloadType: store.PayloadType, Payload: []byte(payload), Key: k.public}
	s.Sig = k.sign(t, s.Message())
	s.Envelope = fmt.Appendf(nil, `{"payloadType":%q,"payload":%q,"signatures":[{"keyid":"","sig":%q}]}`,
		s.PayloadType, base64.StdEncoding.EncodeToString(s.Payload), base64.StdEncoding.EncodeToString(s.Sig))
	return s
}

// proposal is an entry of a kind as a client of Rekor proposes it, for the signature's
// key.
func proposal(t testing.TB, kind string, s tlog.Signed) (types.EntryImpl, any) {
	t.Helper()
	return proposalBy(t, kind, s, s.Key.PEM())
}

// proposalBy is one for a key or certificate in PEM.
func proposalBy(t testing.TB, kind string, s tlog.Signed, by []byte) (types.EntryImpl, any) {
	t.Helper()
	props := types.ArtifactProperties{ArtifactBytes: s.Envelope, PublicKeyBytes: [][]byte{by}, PKIFormat: "x509"}
	var entry types.EntryImpl
	switch kind {
	case "dsse 0.0.1":
		entry = dssev001.NewEntry()
	case "intoto 0.0.1":
		entry = intotov001.NewEntry()
	case "intoto 0.0.2":
		entry = intotov002.NewEntry()
	case "hashedrekord 0.0.1":
		entry = hashedv001.NewEntry()
		sum := sha256.Sum256(s.Message())
		props.ArtifactBytes, props.ArtifactHash, props.SignatureBytes = nil, hex.EncodeToString(sum[:]), s.Sig
	default:
		t.Fatal(kind)
	}
	p, err := entry.CreateFromArtifactProperties(t.Context(), props)
	if err != nil {
		t.Fatal(err)
	}
	if err := entry.Unmarshal(p); err != nil {
		t.Fatal(err)
	}
	return entry, p
}

func body(t testing.TB, kind string, s tlog.Signed) []byte {
	t.Helper()
	entry, _ := proposal(t, kind, s)
	b, err := entry.Canonicalize(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// promised is a log's entry of a body, with a signed entry timestamp.
func promised(t testing.TB, log ecKey, body []byte) *rekor.TransparencyLogEntry {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(log.private.Public())
	if err != nil {
		t.Fatal(err)
	}
	id := sha256.Sum256(der)
	e := &rekor.TransparencyLogEntry{
		LogIndex: 3, LogId: &common.LogId{KeyId: id[:]}, IntegratedTime: time.Now().Unix(), CanonicalizedBody: body,
	}
	e.InclusionPromise = &rekor.InclusionPromise{SignedEntryTimestamp: log.sign(t, fmt.Appendf(nil, `{"body":"%s","integratedTime":%d,"logID":"%x","logIndex":%d}`,
		base64.StdEncoding.EncodeToString(body), e.IntegratedTime, id, e.LogIndex))}
	return e
}

// TestEnvelopeEntries: each kind in which Rekor logs an envelope covers its own
// signature and none that is another's, or was made without the log.
func TestEnvelopeEntries(t *testing.T) {
	log, k, stranger := newECKey(t), newECKey(t), newECKey(t)
	lk, err := tlog.NewRekorKey("log", log.private.Public())
	if err != nil {
		t.Fatal(err)
	}
	trust := tlog.Trust{Rekor: []tlog.RekorKey{lk}}
	const payload = `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"x","digest":{"sha256":"aa"}}],"predicateType":"https://example.com/p","predicate":{}}`
	s := attested(t, k, payload)
	unseen := attested(t, k, payload) // ECDSA's are never twice the same
	whose := attested(t, stranger, payload)
	other := attested(t, k, strings.Replace(payload, "aa", "bb", 1))
	without := func(s tlog.Signed) tlog.Signed { s.Envelope = nil; return s }
	with := func(s tlog.Signed, envelope []byte) tlog.Signed { s.Envelope = envelope; return s }
	spaced := with(s, bytes.ReplaceAll(s.Envelope, []byte(","), []byte(", ")))
	named := with(s, bytes.Replace(s.Envelope, []byte(`"keyid":""`), []byte(`"keyid":"k1"`), 1))
	// Rekor's packages know one form of key ids, so this entry is made of another.
	named.KeyID = "k1"
	rename := func(b []byte) []byte {
		was, is := sha256.Sum256(s.Envelope), sha256.Sum256(named.Envelope)
		return bytes.Replace(b, []byte(hex.EncodeToString(was[:])), []byte(hex.EncodeToString(is[:])), 1)
	}
	oldest := func(b []byte) []byte { // before Rekor kept the payload's digest
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		delete(m["spec"].(map[string]any)["content"].(map[string]any), "payloadHash")
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	type test struct {
		name   string
		logged tlog.Signed
		asked  tlog.Signed
		want   string // in the error; empty: covered
	}
	all := []test{
		{"itself", s, s, ""},
		{"another payload", other, s, "the log entry is about"},
		{"another's", whose, s, "no signature by this key"},
		{"as another's", s, whose, "no signature by this key"},
		{"signed again", s, unseen, "without the log"},
		{"payload changed", s, with(other, s.Envelope), "the log entry is about"},
	}
	whole := []test{
		{"in a bundle since", s, without(s), ""},
		{"written otherwise", spaced, spaced, ""},
		{"written otherwise and in a bundle since", spaced, without(spaced), "written otherwise"},
		{"with a key id", named, named, ""},
		{"with a key id, in a bundle since", named, without(named), ""},
		{"signed again, the logged envelope beside it", s, with(unseen, s.Envelope), "without this signature"},
		{"signed again in a bundle", s, without(unseen), "without the log"},
		{"two signatures", with(s, twice(s, whose)), with(s, twice(s, whose)), ""},
		{"the second of two signatures, by another key", with(s, twice(s, whose)), with(whose, twice(s, whose)), "no signature by this key"},
		{"another type", s, func() tlog.Signed { o := s; o.PayloadType = "text/plain"; return o }(), "another payload"},
	}
	for kind, tests := range map[string][]test{
		"dsse 0.0.1": all, "intoto 0.0.2": all, "hashedrekord 0.0.1": all, "intoto 0.0.1": append(append([]test{}, all...), whole...),
	} {
		for _, tt := range tests {
			t.Run(kind+"/"+tt.name, func(t *testing.T) {
				var bodies [][]byte
				if tt.logged.KeyID != "" {
					bodies = append(bodies, rename(body(t, kind, s)))
				} else {
					bodies = append(bodies, body(t, kind, tt.logged))
				}
				if kind == "intoto 0.0.1" {
					bodies = append(bodies, oldest(bodies[0]))
				}
				for i, b := range bodies {
					in, err := tlog.CheckRekor(promised(t, log, b), tt.asked, trust)
					switch {
					case tt.want == "" && (err != nil || !in.Promise):
						t.Errorf("%v %+v", err, in)
					case tt.want != "" && (err == nil || i == 0 && !strings.Contains(err.Error(), tt.want)):
						t.Errorf("%v; want an error with %q", err, tt.want)
					}
				}
			})
		}
	}
	t.Run("malformed", func(t *testing.T) {
		good := string(body(t, "intoto 0.0.1", s))
		sum := sha256.Sum256(s.Envelope)
		for name, b := range map[string]string{
			"no envelope":           strings.Replace(good, hex.EncodeToString(sum[:]), "", 1),
			"a short digest":        strings.Replace(good, hex.EncodeToString(sum[:]), "abcd", 1),
			"an unknown algorithm":  strings.Replace(good, "sha256", "md5", 1),
			"no key":                strings.Replace(good, "publicKey", "publicKez", 1),
			"two digests":           strings.Replace(good, `"hash":`, `"hash":{},"hash":`, 1),
			"a version not yet met": strings.Replace(good, "0.0.1", "0.0.3", 1),
		} {
			if b == good {
				t.Errorf("%s: nothing was replaced in %s", name, good)
			}
			if _, err := tlog.CheckRekor(promised(t, log, []byte(b)), s, trust); err == nil {
				t.Errorf("%s: no error", name)
			}
		}
	})
	t.Run("certificate", func(t *testing.T) {
		// The log's key of the entry is then the certificate's.
		cert := selfSigned(t, k)
		p, err := pki.NewPublicKey(bytes.NewReader(cert))
		if err != nil {
			t.Fatal(err)
		}
		pem, err := p.CanonicalValue()
		if err != nil {
			t.Fatal(err)
		}
		b := bytes.Replace(body(t, "intoto 0.0.1", s), []byte(base64.StdEncoding.EncodeToString(s.Key.PEM())), []byte(base64.StdEncoding.EncodeToString(pem)), 1)
		if _, err := tlog.CheckRekor(promised(t, log, b), s, trust); err != nil {
			t.Error(err)
		}
		if _, err := tlog.CheckRekor(promised(t, log, b), whose, trust); err == nil {
			t.Error("another's: no error")
		}
	})
}

// TestEntryOfCertificate: an entry is a certificate's if it names that one, in every
// kind, and not if it names another of the same key, or the key alone.
func TestEntryOfCertificate(t *testing.T) {
	log, k := newECKey(t), newECKey(t)
	lk, err := tlog.NewRekorKey("log", log.private.Public())
	if err != nil {
		t.Fatal(err)
	}
	trust := tlog.Trust{Rekor: []tlog.RekorKey{lk}}
	mine, other := selfSigned(t, k), selfSigned(t, k)
	der := func(text []byte) []byte { block, _ := pem.Decode(text); return block.Bytes }
	s := attested(t, k, `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"x","digest":{"sha256":"aa"}}],"predicateType":"https://example.com/p","predicate":{}}`)
	for _, kind := range []string{"dsse 0.0.1", "intoto 0.0.1", "intoto 0.0.2", "hashedrekord 0.0.1"} {
		for name, tt := range map[string]struct {
			by   []byte
			want string
		}{"itself": {mine, ""}, "another of the key": {other, "another certificate"}, "the key": {s.Key.PEM(), "another certificate, or none"}} {
			t.Run(kind+"/"+name, func(t *testing.T) {
				entry, _ := proposalBy(t, kind, s, tt.by)
				b, err := entry.Canonicalize(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				in, err := tlog.CheckRekorCertificate(promised(t, log, b), s, der(mine), trust)
				if tt.want == "" && (err != nil || in.Log != "log") || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
					t.Errorf("%v; want an error with %q", err, tt.want)
				}
				if in, err := tlog.CheckRekorCertificate(promised(t, log, b), s, nil, trust); err == nil {
					t.Errorf("for no certificate: %+v", in)
				}
			})
		}
	}
}

// twice is an envelope with two signatures of one payload.
func twice(a, b tlog.Signed) []byte {
	enc := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, `{"payloadType":%q,"payload":%q,"signatures":[{"keyid":"","sig":%q},{"keyid":"","sig":%q}]}`, a.PayloadType, enc(a.Payload), enc(a.Sig), enc(b.Sig))
}

func selfSigned(t testing.TB, k ecKey) []byte {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, EmailAddresses: []string{"a@example.com"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.private.Public(), k.private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// TestRekorTakesEnvelopes: Rekor itself logs an envelope in each of its kinds.
func TestRekorTakesEnvelopes(t *testing.T) {
	url := startRekor1(t)
	res, err := http.Get(url + "/api/v1/log/publicKey")
	if err != nil {
		t.Fatal(err)
	}
	key, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	lk, err := tlog.ParseRekorKey("rekor", key)
	if err != nil {
		t.Fatal(err)
	}
	trust := tlog.Trust{Rekor: []tlog.RekorKey{lk}}
	search, err := tlog.NewRekor(tlog.RekorOptions{URL: url, PinFile: filepath.Join(t.TempDir(), "rekor.pub")})
	if err != nil {
		t.Fatal(err)
	}
	k := newECKey(t)
	for i, kind := range []string{"intoto 0.0.1", "intoto 0.0.2", "dsse 0.0.1", "hashedrekord 0.0.1"} {
		t.Run(kind, func(t *testing.T) {
			payload := fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"x","digest":{"sha256":"%064d"}}],"predicateType":"https://example.com/p","predicate":{}}`, i)
			s, unseen := attested(t, k, payload), attested(t, k, payload)
			if kind == "hashedrekord 0.0.1" {
				s.PayloadType, s.Sig = simplesigning.MediaType, k.sign(t, s.Payload)
			}
			_, p := proposal(t, kind, s)
			raw, err := json.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			res, err := http.Post(url+"/api/v1/log/entries", "application/json", bytes.NewReader(raw))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			answer, err := io.ReadAll(res.Body)
			if err != nil || res.StatusCode != http.StatusCreated {
				t.Fatalf("%v, %s: %s", err, res.Status, answer)
			}
			var entries map[string]struct {
				Body           []byte `json:"body"`
				IntegratedTime int64  `json:"integratedTime"`
				LogID          string `json:"logID"`
				LogIndex       int64  `json:"logIndex"`
				Verification   struct {
					SignedEntryTimestamp []byte `json:"signedEntryTimestamp"`
				} `json:"verification"`
			}
			if err := json.Unmarshal(answer, &entries); err != nil || len(entries) != 1 {
				t.Fatalf("%v in %s", err, answer)
			}
			for _, e := range entries {
				id, err := hex.DecodeString(e.LogID)
				if err != nil {
					t.Fatal(err)
				}
				entry := &rekor.TransparencyLogEntry{
					LogIndex: e.LogIndex, LogId: &common.LogId{KeyId: id}, IntegratedTime: e.IntegratedTime, CanonicalizedBody: e.Body,
					InclusionPromise: &rekor.InclusionPromise{SignedEntryTimestamp: e.Verification.SignedEntryTimestamp},
				}
				if in, err := tlog.CheckRekor(entry, s, trust); err != nil || in.Time.IsZero() {
					t.Errorf("%v %+v", err, in)
				}
				if kind == "intoto 0.0.2" {
					continue // cosign never wrote these, and they are not searched for
				}
				envelope := s.Envelope
				if kind == "hashedrekord 0.0.1" {
					envelope = nil
				}
				if found, err := search.Lookup(t.Context(), s, envelope, nil); err != nil || len(found) != 1 || found[0].LogIndex != e.LogIndex {
					t.Errorf("searched for: %v, %v", found, err)
				}
				if _, err := search.Lookup(t.Context(), unseen, unseen.Envelope, nil); !errors.Is(err, tlog.ErrNoEntry) {
					t.Errorf("searched for a signature that the log has not seen: %v", err)
				}
				if _, err := tlog.CheckRekor(entry, unseen, trust); err == nil {
					t.Error("a signature that the log has not seen: no error")
				}
			}
		})
	}
}
