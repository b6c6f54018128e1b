package attached

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	rekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"

	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/store/oci"
)

// bundle01 is the version for log entries without a proof of inclusion, and for
// certificates in a chain; later ones want the first and forbid the second.
const bundle01 = "application/vnd.dev.sigstore.bundle+json;version=0.1"

// material is what comes with a signature besides the signature.
type material struct {
	signer     Signer // in a bundle that was read
	leaf       []byte // DER; empty: a bare key
	entries    []*rekor.TransparencyLogEntry
	timestamps [][]byte // RFC 3161 responses
}

// take adds what is about a signature: entries whose body holds it, and timestamps,
// of which only their authority's certificate tells, where they can be no other's.
// It returns how many entries are about something else.
func (m *material) take(all material, sig []byte, timestamps bool) (dropped int) {
	once := base64.StdEncoding.EncodeToString(sig)
	twice := base64.StdEncoding.EncodeToString([]byte(once))
	for _, e := range all.entries {
		if body := e.GetCanonicalizedBody(); !bytes.Contains(body, []byte(once)) && !bytes.Contains(body, []byte(twice)) {
			dropped++
			continue
		}
		m.entries = append(m.entries, e)
	}
	if timestamps {
		m.timestamps = all.timestamps
	}
	return dropped
}

// leafOf is the certificate of a layer, from cosign's annotation or the envelope's
// own signatures; nil where there is none.
func leafOf(annotations map[string]string, env *dsse.Envelope) (*x509.Certificate, error) {
	text := annotations[annotationCertificate]
	for _, s := range env.Signatures {
		if text == "" {
			text = s.Certificate
		}
	}
	if text == "" {
		return nil, nil
	}
	certs, err := ParseCertificates([]byte(text))
	if err != nil {
		return nil, err
	}
	return certs[0], nil
}

// materialOf reads the annotations of a layer.
func materialOf(annotations map[string]string) (m material, notes []string, err error) {
	switch entry, set := annotations[oci.AnnotationLogEntry], annotations[tlog.AnnotationBundle]; {
	case entry != "":
		// In the form of bundles, so with all that there is.
		e, err := entryOf([]byte(entry))
		if err != nil {
			return m, nil, err
		}
		m.entries = append(m.entries, e)
	case set != "":
		e, err := tlog.ParseCosignBundle(set)
		if err != nil {
			return m, nil, err
		}
		if e.KindVersion, err = kindOf(e.GetCanonicalizedBody()); err != nil {
			return m, nil, err
		}
		m.entries = append(m.entries, e)
		notes = append(notes, "the tag has the log's promise and no proof of inclusion, so the bundle is of version 0.1")
	}
	if text := annotations[annotationTimestamp]; text != "" {
		var t struct{ SignedRFC3161Timestamp []byte }
		if err := strictjson.Check([]byte(text), bundle.Max); err != nil {
			return m, nil, fmt.Errorf("reading %s: %w", annotationTimestamp, err)
		}
		if err := json.Unmarshal([]byte(text), &t); err != nil {
			return m, nil, fmt.Errorf("reading %s: %w", annotationTimestamp, err)
		}
		m.timestamps = append(m.timestamps, t.SignedRFC3161Timestamp)
	}
	return m, notes, nil
}

// kindOf reads what kind of entry a log's canonical body is.
func kindOf(body []byte) (*rekor.KindVersion, error) {
	if err := strictjson.Check(body, tlog.MaxRekorEntry); err != nil {
		return nil, fmt.Errorf("reading the log entry's body: %w", err)
	}
	var b struct {
		Kind       string `json:"kind"`
		APIVersion string `json:"apiVersion"`
	}
	if err := json.Unmarshal(body, &b); err != nil {
		return nil, fmt.Errorf("reading the log entry's body: %w", err)
	}
	if b.Kind == "" || b.APIVersion == "" {
		return nil, errors.New("reading the log entry's body: it does not say its kind and version")
	}
	return &rekor.KindVersion{Kind: b.Kind, Version: b.APIVersion}, nil
}

type keyJSON struct {
	Hint string `json:"hint"`
}

type rawJSON struct {
	RawBytes []byte `json:"rawBytes"`
}

type chainJSON struct {
	Certificates []rawJSON `json:"certificates"`
}

type timestampJSON struct {
	SignedTimestamp []byte `json:"signedTimestamp"`
}

type timestampsJSON struct {
	RFC3161 []timestampJSON `json:"rfc3161Timestamps"`
}

type materialJSON struct {
	PublicKey   *keyJSON          `json:"publicKey,omitempty"`
	Chain       *chainJSON        `json:"x509CertificateChain,omitempty"`
	Certificate *rawJSON          `json:"certificate,omitempty"`
	Entries     []json.RawMessage `json:"tlogEntries,omitempty"`
	Timestamps  *timestampsJSON   `json:"timestampVerificationData,omitempty"`
}

// encode writes a bundle of an envelope with one signature.
func (m material) encode(env *dsse.Envelope, key dsse.PublicKey) ([]byte, error) {
	out := struct {
		MediaType string         `json:"mediaType"`
		Material  materialJSON   `json:"verificationMaterial"`
		Envelope  *dsse.Envelope `json:"dsseEnvelope"`
	}{MediaType: bundle.MediaType, Envelope: plain(env)}
	for _, e := range m.entries {
		if e.GetInclusionProof() == nil {
			out.MediaType = bundle01
		}
		raw, err := entryJSON(e)
		if err != nil {
			return nil, err
		}
		out.Material.Entries = append(out.Material.Entries, raw)
	}
	switch {
	case len(m.leaf) == 0:
		out.Material.PublicKey = &keyJSON{key.Hint()}
	case out.MediaType == bundle01:
		out.Material.Chain = &chainJSON{[]rawJSON{{m.leaf}}}
	default:
		out.Material.Certificate = &rawJSON{m.leaf}
	}
	if len(m.timestamps) > 0 {
		out.Material.Timestamps = new(timestampsJSON)
		for _, t := range m.timestamps {
			out.Material.Timestamps.RFC3161 = append(out.Material.Timestamps.RFC3161, timestampJSON{t})
		}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(out); err != nil {
		return nil, fmt.Errorf("making bundle: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// plain drops the certificate that some writers put into an envelope's signatures,
// which bundles have no member for.
func plain(env *dsse.Envelope) *dsse.Envelope {
	out := &dsse.Envelope{PayloadType: env.PayloadType, Payload: env.Payload}
	for _, s := range env.Signatures {
		s.Certificate = ""
		out.Signatures = append(out.Signatures, s)
	}
	return out
}

// readMaterial reads that of a bundle, which bundle.Parse has read.
func readMaterial(data []byte) (m material, err error) {
	var b struct {
		Material materialJSON `json:"verificationMaterial"`
	}
	if err := json.Unmarshal(data, &b); err != nil {
		return m, fmt.Errorf("reading verificationMaterial: %w", err)
	}
	var certs []*x509.Certificate
	ders := [][]byte{}
	if c := b.Material.Certificate; c != nil {
		ders = append(ders, c.RawBytes)
	}
	if c := b.Material.Chain; c != nil {
		for _, d := range c.Certificates {
			ders = append(ders, d.RawBytes)
		}
	}
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return m, fmt.Errorf("reading certificate: %w", err)
		}
		certs = append(certs, c)
	}
	if len(certs) > 0 {
		m.signer = Signer{Leaf: certs[0], Chain: certs[1:]}
	}
	for _, raw := range b.Material.Entries {
		e, err := entryOf(raw)
		if err != nil {
			return m, err
		}
		m.entries = append(m.entries, e)
	}
	if t := b.Material.Timestamps; t != nil {
		for _, s := range t.RFC3161 {
			m.timestamps = append(m.timestamps, s.SignedTimestamp)
		}
	}
	return m, nil
}

// annotate writes the material as annotations of a layer. Cosign has one place for
// an entry and one for a timestamp; what does not fit is noted.
func (m material) annotate(a map[string]string) (notes []string, err error) {
	for i, e := range m.entries {
		if i > 0 {
			notes = append(notes, fmt.Sprintf("a tag has room for one log entry of %d", len(m.entries)))
			break
		}
		promised := len(e.GetInclusionPromise().GetSignedEntryTimestamp()) > 0
		if promised {
			if a[tlog.AnnotationBundle], err = cosignBundle(e); err != nil {
				return nil, err
			}
		}
		if promised && e.GetInclusionProof() == nil {
			continue
		}
		raw, err := entryJSON(e)
		if err != nil {
			return nil, err
		}
		a[oci.AnnotationLogEntry] = string(raw)
		if !promised {
			notes = append(notes, "the log gives no signed entry timestamp (Rekor 2), and cosign's tags have no form for its entries: Assay reads it, cosign does not")
		}
	}
	for i, t := range m.timestamps {
		if i > 0 {
			notes = append(notes, fmt.Sprintf("a tag has room for one timestamp of %d", len(m.timestamps)))
			break
		}
		a[annotationTimestamp] = `{"SignedRFC3161Timestamp":"` + base64.StdEncoding.EncodeToString(t) + `"}`
	}
	return notes, nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func trim(b []byte) []byte { return bytes.TrimSpace(b) }
