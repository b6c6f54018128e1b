package grafeas_test

import (
	"crypto/ed25519"
	"strings"
	"testing"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/store"
)

// signer has a fixed key, so that golden files stay the same.
type signer struct {
	private ed25519.PrivateKey
	key     dsse.PublicKey
}

func fixedSigner(t testing.TB) signer {
	t.Helper()
	private := ed25519.NewKeyFromSeed([]byte(strings.Repeat("assay!!!", 4)))
	key, err := dsse.NewPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	return signer{private, key}
}

func (s signer) statement(t testing.TB, run store.Run, payload []byte) store.Record {
	t.Helper()
	st, err := intoto.Parse(payload)
	if err != nil {
		t.Fatal(err)
	}
	r := store.Record{Run: run, Key: strings.ToLower(run.Kind) + "-" + run.UID, Format: "in-toto", Payload: payload, Statement: st}
	r.Signatures = []store.Signature{{KeyID: s.key.KeyID(), Key: s.key, Sig: ed25519.Sign(s.private, dsse.PAE(store.PayloadType, payload))}}
	return r
}

func (s signer) image(t testing.TB, run store.Run, image string) store.Record {
	t.Helper()
	repo, digest, _ := strings.Cut(image, "@")
	payload, err := simplesigning.New(repo, digest)
	if err != nil {
		t.Fatal(err)
	}
	return store.Record{Run: run, Key: digest[7:19], Format: "simplesigning", Payload: payload, Image: image,
		Signatures: []store.Signature{{KeyID: s.key.KeyID(), Key: s.key, Sig: ed25519.Sign(s.private, payload)}}}
}
