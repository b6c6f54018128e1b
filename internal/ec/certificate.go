package ec

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sigstore/sigstore/pkg/cryptoutils"

	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/store"
)

// Annotations in which cosign keeps what belongs to a layer of .sig and .att.
const (
	annotationSignature   = "dev.cosignproject.cosign/signature"
	annotationCertificate = "dev.sigstore.cosign/certificate"
	annotationChain       = "dev.sigstore.cosign/chain"
)

// maxChain is how many certificates of a chain are looked at.
const maxChain = 10

// chainOf are the certificate that comes with a piece of evidence and those above it
// that come too, as far as each signed the one before. None is no error.
func chainOf(it store.Item) ([]*x509.Certificate, error) {
	var ders [][]byte
	if it.Format == store.FormatBundle {
		b, err := bundle.Parse(it.Content)
		if err != nil || !b.Certificate {
			return nil, err
		}
		if ders, err = bundleChain(it.Content); err != nil {
			return nil, err
		}
	} else {
		for _, a := range []string{annotationCertificate, annotationChain} {
			for block, rest := pem.Decode([]byte(it.Annotations[a])); block != nil && len(ders) < maxChain; block, rest = pem.Decode(rest) {
				ders = append(ders, block.Bytes)
			}
			if len(ders) == 0 {
				return nil, nil
			}
		}
	}
	var out []*x509.Certificate
	for i, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("reading certificate %d: %w", i, err)
		}
		if i > 0 && out[i-1].CheckSignatureFrom(c) != nil {
			break
		}
		out = append(out, c)
	}
	return out, nil
}

// bundleChain are the certificates in a bundle, which bundle.Parse has read.
func bundleChain(data []byte) ([][]byte, error) {
	type certificate struct {
		RawBytes []byte `json:"rawBytes"`
	}
	var doc struct {
		VerificationMaterial struct {
			Certificate          *certificate `json:"certificate"`
			X509CertificateChain struct {
				Certificates []certificate `json:"certificates"`
			} `json:"x509CertificateChain"`
		} `json:"verificationMaterial"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	if c := doc.VerificationMaterial.Certificate; c != nil {
		return [][]byte{c.RawBytes}, nil
	}
	list := doc.VerificationMaterial.X509CertificateChain.Certificates
	if len(list) == 0 {
		return nil, errors.New("no certificate in it")
	}
	var out [][]byte
	for _, c := range list[:min(len(list), maxChain)] {
		out = append(out, c.RawBytes)
	}
	return out, nil
}

// certify adds to a signature the certificate that it was verified with.
func (s *signature) certify(chain []*x509.Certificate) {
	if len(chain) == 0 {
		return
	}
	s.KeyID = hex.EncodeToString(chain[0].SubjectKeyId)
	s.Certificate = string(pemOf(chain[0]))
	s.Metadata = metadata(chain[0])
	s.Chain = nil
	for _, c := range chain[1:] {
		s.Chain = append(s.Chain, string(pemOf(c)))
	}
}

func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// fulcio names Fulcio's extensions below 1.3.6.1.4.1.57264.1, by their last number.
// Those up to 6 hold bare text, the later ones a DER string.
var fulcio = map[int]string{
	1: "Fulcio Issuer", 2: "Fulcio GitHub Workflow Trigger", 3: "Fulcio GitHub Workflow SHA",
	4: "Fulcio GitHub Workflow Name", 5: "Fulcio GitHub Workflow Repository", 6: "Fulcio GitHub Workflow Ref",
	8: "Fulcio Issuer (V2)", 9: "Fulcio Build Signer URI", 10: "Fulcio Build Signer Digest",
	11: "Fulcio Runner Environment", 12: "Fulcio Source Repository URI", 13: "Fulcio Source Repository Digest",
	14: "Fulcio Source Repository Ref", 15: "Fulcio Source Repository Identifier",
	16: "Fulcio Source Repository Owner URI", 17: "Fulcio Source Repository Owner Identifier",
	18: "Fulcio Build Config URI", 19: "Fulcio Build Config Digest", 20: "Fulcio Build Trigger",
	21: "Fulcio Run Invocation URI",
}

var fulcioPrefix = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1}

// metadata is what a certificate says, under Conforma's names. What says nothing is
// left out.
func metadata(c *x509.Certificate) map[string]string {
	out := map[string]string{}
	add := func(name, value string) {
		if value != "" && out[name] == "" {
			out[name] = value
		}
	}
	add("Subject", c.Subject.String())
	add("Subject Alternative Name", alternativeNames(c))
	add("Issuer", c.Issuer.String())
	add("Serial Number", c.SerialNumber.Text(16))
	add("Not Before", c.NotBefore.UTC().Format(time.RFC3339))
	add("Not After", c.NotAfter.UTC().Format(time.RFC3339))
	for _, e := range c.Extensions {
		if len(e.Id) != len(fulcioPrefix)+1 || !e.Id[:len(fulcioPrefix)].Equal(fulcioPrefix) {
			continue
		}
		number := e.Id[len(fulcioPrefix)]
		name, ok := fulcio[number]
		if !ok {
			continue
		}
		text := string(e.Value)
		if number >= 8 {
			// Package verify has refused certificates in which it is anything else.
			if _, err := asn1.Unmarshal(e.Value, &text); err != nil {
				continue
			}
		}
		add(name, text)
	}
	return out
}

func alternativeNames(c *x509.Certificate) string {
	var out []string
	add := func(kind string, names []string) {
		if len(names) > 0 {
			out = append(out, kind+":"+strings.Join(names, ", "))
		}
	}
	var addresses, uris []string
	for _, ip := range c.IPAddresses {
		addresses = append(addresses, ip.String())
	}
	for _, u := range c.URIs {
		uris = append(uris, u.String())
	}
	add("DNS Names", c.DNSNames)
	add("Email Addresses", c.EmailAddresses)
	add("IP addresses", addresses)
	add("URIs", uris)
	if other, err := cryptoutils.UnmarshalOtherNameSAN(c.Extensions); err == nil {
		out = append(out, "OtherName:"+other)
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}
