package archivista

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/store"
)

// maxEnvelope is the size in bytes of the largest envelope that is read: the
// largest statement in base64, and room for signatures.
const maxEnvelope = intoto.Max/3*4 + 4<<20

// envelope is a DSSE envelope with the members that witness adds to signatures.
type envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"`
	Signatures  []signature `json:"signatures"`
}

type signature struct {
	KeyID         string   `json:"keyid"`
	Sig           []byte   `json:"sig"`
	Certificate   []byte   `json:"certificate,omitempty"`   // PEM
	Intermediates [][]byte `json:"intermediates,omitempty"` // PEM, one each
}

// encode is what is uploaded for a record. Without certificates these are the
// bytes of store.Record's SignatureBytes.
func encode(r store.Record) ([]byte, error) {
	if len(r.Signatures) == 0 {
		return nil, errors.New("it has no signature")
	}
	bare := true
	e := envelope{PayloadType: store.PayloadType, Payload: r.Payload}
	for _, s := range r.Signatures {
		one := signature{KeyID: s.KeyID, Sig: s.Sig, Certificate: s.Cert}
		for rest := s.Chain; ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			one.Intermediates = append(one.Intermediates, pem.EncodeToMemory(block))
		}
		bare = bare && len(one.Certificate) == 0 && len(one.Intermediates) == 0
		e.Signatures = append(e.Signatures, one)
	}
	if bare {
		return r.SignatureBytes()
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// decode reads an envelope that a server gave. It fails on what is larger than
// maxEnvelope, on duplicate members and on base64 that is none; members it does
// not know are left alone.
func decode(data []byte) (envelope, error) {
	if err := strictjson.Check(data, maxEnvelope); err != nil {
		return envelope{}, fmt.Errorf("parsing envelope: %w", err)
	}
	// Servers and tools differ in the alphabet of their base64, as DSSE allows.
	var raw struct {
		PayloadType string `json:"payloadType"`
		Payload     string `json:"payload"`
		Signatures  []struct {
			KeyID         string   `json:"keyid"`
			Sig           string   `json:"sig"`
			Certificate   []byte   `json:"certificate"`
			Intermediates [][]byte `json:"intermediates"`
		} `json:"signatures"`
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		return envelope{}, fmt.Errorf("parsing envelope: %w", err)
	}
	if raw.PayloadType == "" || raw.Payload == "" {
		return envelope{}, errors.New("parsing envelope: no payload or payloadType")
	}
	e := envelope{PayloadType: raw.PayloadType}
	var err error
	if e.Payload, err = fromBase64(raw.Payload); err != nil {
		return envelope{}, fmt.Errorf("parsing envelope: payload: %w", err)
	}
	for i, s := range raw.Signatures {
		one := signature{KeyID: s.KeyID, Certificate: s.Certificate, Intermediates: s.Intermediates}
		if one.Sig, err = fromBase64(s.Sig); err != nil {
			return envelope{}, fmt.Errorf("parsing envelope: signature %d: %w", i, err)
		}
		e.Signatures = append(e.Signatures, one)
	}
	return e, nil
}

// kept is the envelope as a record that was found; the certificate is that of
// its first signature.
func (e envelope) kept() (store.Kept, error) {
	k := store.Kept{Payload: e.Payload}
	plain := &dsse.Envelope{PayloadType: e.PayloadType, Payload: e.Payload}
	for i, s := range e.Signatures {
		plain.Signatures = append(plain.Signatures, dsse.Signature{KeyID: s.KeyID, Sig: s.Sig})
		if i == 0 {
			k.Cert = s.Certificate
			for _, c := range s.Intermediates {
				k.Chain = append(k.Chain, c...)
			}
		}
	}
	var err error
	k.Signature, err = json.Marshal(plain)
	return k, err
}

func fromBase64(s string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return base64.URLEncoding.DecodeString(s)
	}
	return b, nil
}
