package cloud_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"os"
	"testing"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/store"
)

func slow() bool { return os.Getenv("ASSAY_SLOW") != "" }

// nested puts an array into an array of a statement and signs it anew.
func nested(t *testing.T, r store.Record) store.Record {
	t.Helper()
	payload := bytes.Replace(r.Payload, []byte(`"say":"x"`), []byte(`"say":[["x"]]`), 1)
	if bytes.Equal(payload, r.Payload) {
		t.Fatalf("no place for an array in %s", r.Payload)
	}
	statement, err := intoto.Parse(payload)
	if err != nil {
		t.Fatal(err)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := dsse.NewPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(dsse.PAE(store.PayloadType, payload))
	sig, err := ecdsa.SignASN1(rand.Reader, private, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	r.Payload, r.Statement = payload, statement
	r.Signatures = []store.Signature{{KeyID: key.KeyID(), Sig: sig, Key: key}}
	return r
}
