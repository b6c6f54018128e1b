package tlog_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	xtlog "golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/store"
)

var update = flag.Bool("update", false, "write testdata anew")

// vector is one of the test vectors in testdata/leaves.json, for other
// implementations: from these inputs come these bytes and this hash.
type vector struct {
	Name        string   `json:"name"`
	PayloadType string   `json:"payloadType"`
	Payload     string   `json:"payload"`
	Keys        []string `json:"keys"`       // PEM
	Signatures  [][]byte `json:"signatures"` // in the order of the keys
	Leaf        string   `json:"leaf"`
	Hash        string   `json:"hash"` // RFC 6962 leaf hash, base64
}

// TestLeafVectors: the leaf is the one that is written down.
func TestLeafVectors(t *testing.T) {
	path := filepath.Join("testdata", "leaves.json")
	if *update {
		writeVectors(t, path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	if err := json.Unmarshal(data, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors) < 4 {
		t.Fatalf("%d vectors", len(vectors))
	}
	for _, v := range vectors {
		var signed []tlog.Signed
		for i, text := range v.Keys {
			k, err := dsse.ParsePublicKey([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			signed = append(signed, tlog.Signed{PayloadType: v.PayloadType, Payload: []byte(v.Payload), Sig: v.Signatures[i], Key: k})
		}
		l, err := tlog.NewLeaf(signed...)
		if err != nil {
			t.Fatalf("%s: %v", v.Name, err)
		}
		if string(l.Bytes()) != v.Leaf {
			t.Errorf("%s: leaf\n%s\nwant\n%s", v.Name, l.Bytes(), v.Leaf)
		}
		if h := xtlog.RecordHash(l.Bytes()).String(); h != v.Hash {
			t.Errorf("%s: hash %s; want %s", v.Name, h, v.Hash)
		}
		back, err := tlog.ParseLeaf(l.Bytes())
		if err != nil {
			t.Fatalf("%s: %v", v.Name, err)
		}
		for _, s := range signed {
			if err := back.Covers(s); err != nil {
				t.Errorf("%s: %v", v.Name, err)
			}
		}
	}
}

// key signs with Ed25519, whose signatures are always the same.
type key struct {
	private ed25519.PrivateKey
	public  dsse.PublicKey
}

func newKey(t testing.TB, seed byte) key {
	t.Helper()
	k := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	p, err := dsse.NewPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return key{k, p}
}

func (k key) sign(payloadType, payload string) tlog.Signed {
	s := tlog.Signed{PayloadType: payloadType, Payload: []byte(payload), Key: k.public}
	s.Sig = ed25519.Sign(k.private, s.Message())
	return s
}

func writeVectors(t *testing.T, path string) {
	t.Helper()
	statement := `{"_type":"https://in-toto.io/Statement/v1","subject":[],"predicateType":"x","predicate":{}}`
	one, two := newKey(t, 1), newKey(t, 2)
	var out []vector
	for _, v := range []struct {
		name, payloadType, payload string
		keys                       []key
	}{
		{"a statement", store.PayloadType, statement, []key{one}},
		{"two signatures, in the order of the lines", store.PayloadType, statement, []key{two, one}},
		{"an image's signature", simplesigning.MediaType, `{"critical":{}}`, []key{one}},
		{"nothing signed", "text/plain", "", []key{two}},
	} {
		w := vector{Name: v.name, PayloadType: v.payloadType, Payload: v.payload}
		var signed []tlog.Signed
		for _, k := range v.keys {
			s := k.sign(v.payloadType, v.payload)
			signed = append(signed, s)
			w.Keys, w.Signatures = append(w.Keys, string(k.public.PEM())), append(w.Signatures, s.Sig)
		}
		l, err := tlog.NewLeaf(signed...)
		if err != nil {
			t.Fatal(err)
		}
		w.Leaf, w.Hash = string(l.Bytes()), xtlog.RecordHash(l.Bytes()).String()
		out = append(out, w)
	}
	b, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLeafRefuses(t *testing.T) {
	one, two := newKey(t, 1), newKey(t, 2)
	s := one.sign("text/plain", "x")
	bad := s
	bad.Sig = append([]byte(nil), s.Sig...)
	bad.Sig[0] ^= 1
	for name, signed := range map[string][]tlog.Signed{
		"nothing":               nil,
		"a signature not its":   {bad},
		"two payloads":          {s, two.sign("text/plain", "y")},
		"two types":             {s, two.sign("text/html", "x")},
		"a type with space":     {one.sign("text plain", "x")},
		"no type":               {one.sign("", "x")},
		"a type with a newline": {one.sign("text\nplain", "x")},
		"no key":                {{PayloadType: "text/plain", Payload: []byte("x"), Sig: s.Sig}},
	} {
		if l, err := tlog.NewLeaf(signed...); err == nil || l != nil {
			t.Errorf("%s: %v, %v", name, l, err)
		}
	}
	l, err := tlog.NewLeaf(s, two.sign("text/plain", "x"), s)
	if err != nil || len(l.Signatures) != 2 {
		t.Fatalf("one signature twice: %v, %v", l, err)
	}
	good := string(l.Bytes())
	lines := strings.SplitAfter(good, "\n")
	for name, text := range map[string]string{
		"empty":                "",
		"no newline":           strings.TrimSuffix(good, "\n"),
		"one newline more":     good + "\n",
		"another header":       strings.Replace(good, "@v1", "@v2", 1),
		"no signature":         lines[0] + lines[1],
		"out of order":         lines[0] + lines[1] + lines[3] + lines[2],
		"twice":                good + lines[3],
		"upper case":           strings.Replace(good, "sha256:", "SHA256:", 1),
		"double space":         strings.Replace(good, "payload ", "payload  ", 1),
		"carriage return":      strings.ReplaceAll(good, "\n", "\r\n"),
		"too large":            good + strings.Repeat("x", tlog.MaxLeaf),
		"unpadded base64":      strings.ReplaceAll(good, "==", ""),
		"too many signatures":  lines[0] + lines[1] + strings.Repeat(lines[2], 40),
		"a digest cut short":   strings.Replace(good, "sha256:"+fmt.Sprintf("%x", l.Digest), "sha256:00", 1),
		"letters in a digest":  strings.Replace(good, fmt.Sprintf("%x", l.Digest), strings.Repeat("g", 64), 1),
		"capitals in a digest": strings.Replace(good, fmt.Sprintf("%x", l.Digest), strings.ToUpper(fmt.Sprintf("%x", l.Digest)), 1),
	} {
		if _, err := tlog.ParseLeaf([]byte(text)); err == nil {
			t.Errorf("%s: read", name)
		}
	}
}

func TestKeys(t *testing.T) {
	skey, log, witness, err := tlog.GenerateKey("example.com/log")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := tlog.ParseLogKey(log.String() + "\n"); err != nil || again.Origin() != "example.com/log" || again.Name != "example.com/log" {
		t.Errorf("log key there and back: %+v, %v", again, err)
	}
	if again, err := tlog.ParseWitnessKey(witness.String()); err != nil || again.String() != witness.String() {
		t.Errorf("witness key there and back: %+v, %v", again, err)
	}
	if log.String() == witness.String() {
		t.Error("log and witness have one key hash")
	}
	c, err := tlog.NewCosigner(skey, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Public().String() != witness.String() {
		t.Errorf("cosigner %s; want %s", c.Public(), witness)
	}
	for _, text := range []string{"", "x", "a+b+c", "a b+00000000+" + strings.SplitN(log.String(), "+", 3)[2], strings.Replace(log.String(), "example.com", "example.net", 1), skey} {
		if _, err := tlog.ParseLogKey(text); err == nil {
			t.Errorf("log key %q was read", text)
		}
		if _, err := tlog.ParseWitnessKey(text); err == nil {
			t.Errorf("witness key %q was read", text)
		}
	}
	if _, err := tlog.ParseLogKey(witness.String()); err == nil {
		t.Error("a witness' key was taken for a log's")
	}
	for _, name := range []string{"", "with space", "with+plus"} {
		if _, _, _, err := tlog.GenerateKey(name); err == nil {
			t.Errorf("a key named %q was made", name)
		}
	}
	for _, text := range []string{"", "PRIVATE+KEY+x", log.String()} {
		if _, err := tlog.NewCosigner(text, nil); err == nil {
			t.Errorf("private key %q was read", text)
		}
	}
}

// TestProofLaw: in a log of any size each entry is proved, and no other is.
func TestProofLaw(t *testing.T) {
	skey, logKey, _, err := tlog.GenerateKey("example.com/log")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	trust := tlog.Trust{Logs: []tlog.LogKey{logKey}}
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 40).Draw(t, "size")
		var stored []xtlog.Hash
		reader := xtlog.HashReaderFunc(func(at []int64) (out []xtlog.Hash, _ error) {
			for _, i := range at {
				out = append(out, stored[i])
			}
			return out, nil
		})
		leaf := func(i int64) []byte { return fmt.Appendf(nil, "leaf %d", i) }
		for i := range size {
			h, err := xtlog.StoredHashes(i, leaf(i), reader)
			if err != nil {
				t.Fatal(err)
			}
			stored = append(stored, h...)
		}
		root, err := xtlog.TreeHash(size, reader)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := note.Sign(&note.Note{Text: fmt.Sprintf("example.com/log\n%d\n%v\n", size, root)}, signer)
		if err != nil {
			t.Fatal(err)
		}
		i := rapid.Int64Range(0, size-1).Draw(t, "index")
		hashes, err := xtlog.ProveRecord(size, i, reader)
		if err != nil {
			t.Fatal(err)
		}
		p := tlog.Proof{Index: i, Hashes: hashes, Checkpoint: signed}
		in, err := tlog.VerifyProof(p.Bytes(), leaf(i), trust)
		if err != nil || in.Index != i || in.Size != size {
			t.Fatalf("%+v, %v", in, err)
		}
		other := rapid.Int64Range(0, 2*size).Draw(t, "other")
		if other != i {
			if _, err := tlog.VerifyProof(p.Bytes(), leaf(other), trust); err == nil {
				t.Fatalf("entry %d passed for entry %d", i, other)
			}
			p.Index = other
			if _, err := tlog.VerifyProof(p.Bytes(), leaf(i), trust); err == nil {
				t.Fatalf("entry %d was proved at %d", i, other)
			}
		}
	})
}

func TestTrustedRoot(t *testing.T) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p, err := dsse.NewPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	body := strings.ReplaceAll(strings.TrimSpace(strings.TrimSuffix(strings.TrimPrefix(string(p.PEM()), "-----BEGIN PUBLIC KEY-----"), "-----END PUBLIC KEY-----\n")), "\n", "")
	good := `{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1","tlogs":[{"baseUrl":"https://rekor.example","hashAlgorithm":"SHA2_256","publicKey":{"rawBytes":"` + body + `","keyDetails":"PKIX_ECDSA_P256_SHA_256","validFor":{"start":"2021-01-12T11:53:27Z"}},"logId":{"keyId":"AAAA"}}]}`
	keys, err := tlog.ParseTrustedRoot([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if len(keys) != 1 || keys[0].Name != "https://rekor.example" || keys[0].From.Year() != 2021 || !keys[0].Until.IsZero() {
		t.Errorf("%+v", keys)
	}
	for name, doc := range map[string]string{
		"no logs":    strings.Replace(good, `"tlogs"`, `"ctlogs"`, 1),
		"other type": strings.Replace(good, "trustedroot", "bundle", 1),
		"no key":     strings.Replace(good, body, "AAAA", 1),
		"duplicate":  strings.Replace(good, `"tlogs"`, `"tlogs":[],"tlogs"`, 1),
		"no JSON":    "x",
	} {
		if _, err := tlog.ParseTrustedRoot([]byte(doc)); err == nil {
			t.Errorf("%s: read", name)
		}
	}
}

func TestProofsAnnotation(t *testing.T) {
	entries := []store.LogEntry{{Proof: []byte("one")}, {URL: "rekor"}, {Proof: []byte("two")}}
	text := tlog.FormatProofs(entries)
	got, err := tlog.ParseProofs(text)
	if err != nil || len(got) != 2 || string(got[0]) != "one" || string(got[1]) != "two" {
		t.Errorf("%q, %v", got, err)
	}
	if tlog.FormatProofs(entries[1:2]) != "" {
		t.Error("a proof where none is")
	}
}

func FuzzParseLeaf(f *testing.F) {
	l, err := tlog.NewLeaf(newKey(f, 1).sign("text/plain", "x"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(l.Bytes())
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := tlog.ParseLeaf(text)
		if err == nil && !bytes.Equal(l.Bytes(), text) {
			t.Errorf("a second spelling: %q", text)
		}
	})
}

func FuzzCheckProof(f *testing.F) {
	s := newKey(f, 1).sign("text/plain", "x")
	l, err := tlog.NewLeaf(s)
	if err != nil {
		f.Fatal(err)
	}
	skey, key, _, err := tlog.GenerateKey("example.com/log")
	if err != nil {
		f.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		f.Fatal(err)
	}
	signed, err := note.Sign(&note.Note{Text: fmt.Sprintf("example.com/log\n1\n%v\n", xtlog.RecordHash([]byte("another")))}, signer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(tlog.Proof{Extra: l.Bytes(), Checkpoint: signed}.Bytes())
	f.Add(tlog.Proof{Extra: l.Bytes(), Index: 3, Hashes: []xtlog.Hash{sha256.Sum256(nil)}, Checkpoint: signed}.Bytes())
	trust := tlog.Trust{Logs: []tlog.LogKey{key}}
	f.Fuzz(func(t *testing.T, proof []byte) {
		if p, err := tlog.ParseProof(proof); err == nil && !bytes.Equal(p.Bytes(), proof) {
			t.Errorf("a second spelling: %q", proof)
		}
		if _, err := tlog.CheckProof(proof, s, trust); err == nil {
			t.Errorf("proved what is not in the log: %q", proof)
		}
	})
}
