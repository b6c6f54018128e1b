// Package attest makes signatures: it holds private keys and is reached by the
// observer's binary (and the command that makes keys) only. What others need to
// read and check a signature lives below it and links nothing of this package:
// dsse (envelopes, public keys), bundle (Sigstore bundles), simplesigning (image
// signature payloads), intoto (statements), strictjson.
//
//	payload ──▶ Statement ──▶ dsse.Envelope ─┬▶ .att tag
//	                                         └▶ bundle.New ──▶ referrer
//	image   ──▶ Image ──┬▶ simple signing payload + signature ──▶ .sig tag
//	                    └▶ dsse.Envelope ──▶ bundle.New ──▶ referrer
//
// A Signer is anything that signs bytes; keys in files are built in, keys in
// KMS, PKCS#11 and Fulcio's short-lived ones implement the same interface. Every
// signature is verified with the signer's own public key before it is returned,
// so a faulty driver cannot hand out what nobody can check.
package attest

import (
	"context"
	"crypto"
	"errors"
	"fmt"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/simplesigning"
)

// Signer signs with one private key. It is safe for concurrent use.
type Signer interface {
	// Sign returns the signature of message, which is a DSSE PAE or a simple
	// signing payload: for ECDSA ASN.1 DER over the message's SHA-256, for
	// Ed25519 over the message itself. The signer hashes, so that a remote
	// driver may do it. An error means that nothing was signed.
	Sign(ctx context.Context, message []byte) ([]byte, error)
	// Public is the public half.
	Public() crypto.PublicKey
	// KeyID names the key in envelopes; dsse.PublicKey.KeyID for all drivers of ours.
	KeyID() string
}

// Statement signs an in-toto statement as a DSSE envelope. It refuses what is
// no statement that verifiers will read, since a signature cannot be taken
// back.
func Statement(ctx context.Context, s Signer, statement []byte) (*dsse.Envelope, error) {
	if _, err := intoto.Parse(statement); err != nil {
		return nil, fmt.Errorf("signing statement: %w", err)
	}
	env, err := Envelope(ctx, s, api.PayloadTypeInToto, statement)
	if err != nil {
		return nil, fmt.Errorf("signing statement: %w", err)
	}
	return env, nil
}

// Envelope signs any payload as a DSSE envelope with one signature.
func Envelope(ctx context.Context, s Signer, payloadType string, payload []byte) (*dsse.Envelope, error) {
	if payloadType == "" {
		return nil, errors.New("making DSSE envelope: no payload type")
	}
	sig, err := sign(ctx, s, dsse.PAE(payloadType, payload))
	if err != nil {
		return nil, fmt.Errorf("making DSSE envelope: %w", err)
	}
	return &dsse.Envelope{
		PayloadType: payloadType,
		Payload:     payload,
		Signatures:  []dsse.Signature{{KeyID: s.KeyID(), Sig: sig}},
	}, nil
}

// ImageSignature is the signature of one image in the two forms in which
// today's and yesterday's tools look for it.
type ImageSignature struct {
	// Payload and Sig are the simple signing payload and the signature of its
	// bytes, for cosign's .sig tag.
	Payload, Sig []byte
	// Envelope holds cosign 3's statement, for a Sigstore bundle.
	Envelope *dsse.Envelope
}

// Image signs an image: reference is its repository without tag and digest,
// digest its sha256 digest.
func Image(ctx context.Context, s Signer, reference, digest string) (*ImageSignature, error) {
	payload, err := simplesigning.New(reference, digest)
	if err != nil {
		return nil, fmt.Errorf("signing image: %w", err)
	}
	return ImagePayload(ctx, s, payload)
}

// ImagePayload is Image for a simple signing payload that was made elsewhere.
// It fails if the payload is none.
func ImagePayload(ctx context.Context, s Signer, payload []byte) (*ImageSignature, error) {
	p, err := simplesigning.Parse(payload)
	if err != nil {
		return nil, fmt.Errorf("signing image: %w", err)
	}
	sig, err := sign(ctx, s, payload)
	if err != nil {
		return nil, fmt.Errorf("signing image: %w", err)
	}
	statement, err := intoto.ImageSignature(p.Digest)
	if err != nil {
		return nil, fmt.Errorf("signing image: %w", err)
	}
	env, err := Statement(ctx, s, statement)
	if err != nil {
		return nil, fmt.Errorf("signing image: %w", err)
	}
	return &ImageSignature{Payload: payload, Sig: sig, Envelope: env}, nil
}

// sign returns a signature that the signer's public key verifies.
func sign(ctx context.Context, s Signer, message []byte) ([]byte, error) {
	if s == nil {
		return nil, errors.New("no signer")
	}
	key, err := dsse.NewPublicKey(s.Public())
	if err != nil {
		return nil, err
	}
	sig, err := s.Sign(ctx, message)
	if err != nil {
		return nil, err
	}
	if err := key.Verify(message, sig); err != nil {
		return nil, fmt.Errorf("the signer gave a bad signature: %w", err)
	}
	return sig, nil
}
