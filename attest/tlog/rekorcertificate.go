package tlog

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	rekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
)

// CheckRekorCertificate is CheckRekor for a signature whose signer a certificate (DER)
// names. It fails too unless the log checked the signature with that certificate: an
// entry of its bare key, or of another certificate of the same key, is another's.
func CheckRekorCertificate(e *rekor.TransparencyLogEntry, s Signed, certificate []byte, t Trust) (Inclusion, error) {
	in, err := CheckRekor(e, s, t)
	if err != nil {
		return Inclusion{}, err
	}
	body, err := parseRekorBody(e.GetCanonicalizedBody())
	if err == nil {
		err = body.certified(s, certificate)
	}
	if err != nil {
		return Inclusion{}, fmt.Errorf("verifying Rekor entry: %w", err)
	}
	return in, nil
}

// certified returns nil if the log checked this very signature, which the body covers,
// with this very certificate.
func (b *rekorBody) certified(s Signed, certificate []byte) error {
	by := b.signatures
	if b.whole != nil {
		by = []rekorSignature{{s.Sig, b.whole.verifier}}
	}
	if !slices.ContainsFunc(by, func(in rekorSignature) bool {
		return len(in.certificate) > 0 && bytes.Equal(in.sig, s.Sig) && bytes.Equal(in.certificate, certificate)
	}) {
		return errors.New("the log entry names another certificate, or none")
	}
	return nil
}
