package tlog

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strconv"

	common "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"assay.dev/assay/store"
)

// signedDigest is the digest that a signature is really over. P-384 is in use with
// two hashes.
func signedDigest(s Signed) (algorithm string, digest []byte) {
	message := s.Message()
	d := sha256.Sum256(message)
	if k, ok := s.Key.Crypto().(*ecdsa.PublicKey); ok && k.Curve == elliptic.P384() && !ecdsa.VerifyASN1(k, d[:], s.Sig) {
		d := sha512.Sum384(message)
		return "sha384", d[:]
	}
	return "sha256", d[:]
}

// keyDetails names key and hash in Sigstore's words.
func keyDetails(s Signed, algorithm string) (common.PublicKeyDetails, error) {
	switch k := s.Key.Crypto().(type) {
	case *ecdsa.PublicKey:
		switch {
		case k.Curve == elliptic.P256():
			return common.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256, nil
		case algorithm == "sha384":
			return common.PublicKeyDetails_PKIX_ECDSA_P384_SHA_384, nil
		}
		return 0, errors.New("Rekor v2 takes signatures by P-384 keys over SHA-384 only, and this one is over SHA-256: sign with a P-256 key, or use a log of `assay log serve`")
	case *rsa.PublicKey:
		switch k.N.BitLen() {
		case 2048:
			return common.PublicKeyDetails_PKIX_RSA_PKCS1V15_2048_SHA256, nil
		case 3072:
			return common.PublicKeyDetails_PKIX_RSA_PKCS1V15_3072_SHA256, nil
		case 4096:
			return common.PublicKeyDetails_PKIX_RSA_PKCS1V15_4096_SHA256, nil
		}
		return 0, fmt.Errorf("Rekor v2 takes RSA keys of 2048, 3072 and 4096 bits, not %d", k.N.BitLen())
	case ed25519.PublicKey:
		return 0, errEd25519
	}
	return 0, errors.New("a key of unknown kind")
}

// addHashed2 adds a signature to Rekor v2.
func (r *Rekor) addHashed2(ctx context.Context, key RekorKey, s Signed, cert []byte) (*rekor.TransparencyLogEntry, error) {
	algorithm, digest := signedDigest(s)
	details, err := keyDetails(s, algorithm)
	if err != nil {
		return nil, store.As(store.Permanent, fmt.Errorf("logging: %w", err))
	}
	type raw struct {
		RawBytes []byte `json:"rawBytes"`
	}
	verifier := map[string]any{"keyDetails": details.String()}
	if block, _ := pem.Decode(cert); block != nil {
		verifier["x509Certificate"] = raw{block.Bytes}
	} else {
		block, _ := pem.Decode(s.Key.PEM())
		verifier["publicKey"] = raw{block.Bytes}
	}
	body, err := json.Marshal(map[string]any{"hashedRekordRequestV002": map[string]any{
		"digest":    digest,
		"signature": map[string]any{"content": s.Sig, "verifier": verifier},
	}})
	if err != nil {
		return nil, store.As(store.Permanent, fmt.Errorf("logging: %w", err))
	}
	header := http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json"}}
	a, err := r.endpoint.do(ctx, http.MethodPost, "api/v2/log/entries", header, string(body), maxAnswer)
	if err != nil {
		return nil, err
	}
	if a.status == http.StatusConflict {
		index, err := strconv.ParseInt(a.header.Get("X-Log-Index"), 10, 64)
		if err != nil {
			return nil, store.As(store.Permanent, fmt.Errorf("logging: log %s has the entry already and does not say where", r.endpoint.name))
		}
		return r.existing2(ctx, key, index)
	}
	if a.status != http.StatusOK && a.status != http.StatusCreated {
		return nil, r.endpoint.fault(a, "logging")
	}
	e := new(rekor.TransparencyLogEntry)
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(a.body, e); err != nil {
		return nil, store.As(store.Permanent, fmt.Errorf("logging: reading the answer of log %s: %w", r.endpoint.name, err))
	}
	return e, nil
}

// existing2 makes of the log's tiles what it answered when the entry was added.
func (r *Rekor) existing2(ctx context.Context, key RekorKey, index int64) (*rekor.TransparencyLogEntry, error) {
	fail := func(err error) (*rekor.TransparencyLogEntry, error) {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, store.As(store.Transient, fmt.Errorf("logging: reading the entry that is in log %s already: %w; where are its tiles served?", r.endpoint.name, err))
		}
		return nil, fmt.Errorf("logging: reading the entry that is in log %s already: %w", r.endpoint.name, err)
	}
	signed, err := r.tiles.Fetch(ctx, "checkpoint", MaxCheckpoint)
	if err != nil {
		return fail(err)
	}
	tree, _, err := Trust{Rekor: []RekorKey{key}}.rekorCheckpoint(string(signed))
	if err != nil {
		return fail(err)
	}
	body, err := r.tiles.Entry(ctx, tree, index)
	if err != nil {
		return fail(err)
	}
	hashes, err := r.tiles.Inclusion(ctx, tree, index)
	if err != nil {
		return fail(err)
	}
	b, err := parseRekorBody(body)
	if err != nil {
		return fail(err)
	}
	ids := rekorKeyIDs(tree.Origin, key.public)
	e := &rekor.TransparencyLogEntry{
		LogIndex: index, LogId: &common.LogId{KeyId: ids[len(ids)-1]},
		KindVersion:       &rekor.KindVersion{Kind: b.kind, Version: b.version},
		CanonicalizedBody: body,
		InclusionProof: &rekor.InclusionProof{
			LogIndex: index, TreeSize: tree.Size, RootHash: tree.Root[:],
			Checkpoint: &rekor.Checkpoint{Envelope: string(signed)},
		},
	}
	for _, h := range hashes {
		e.InclusionProof.Hashes = append(e.InclusionProof.Hashes, h[:])
	}
	return e, nil
}
