package oci

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"

	rekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/store"
)

// Annotations of cosign for what comes with a signature.
const (
	annotationCert   = "dev.sigstore.cosign/certificate"
	annotationChain  = "dev.sigstore.cosign/chain"
	annotationBundle = "dev.sigstore.cosign/bundle"
)

// Annotations of ours on layers. Tools that do not know them lose nothing.
const (
	// AnnotationRecord is the key of the record that a layer or bundle holds:
	// taskrun-<uid>, pipelinerun-<uid>.
	AnnotationRecord = "assay.dev/record"
	// AnnotationLogProof are proofs of inclusion in logs of ours, each base64,
	// joined by commas; see tlog.AnnotationProof.
	AnnotationLogProof = "assay.dev/log-proof"
	// AnnotationLogEntry is the entry of a Rekor log that gives no signed
	// timestamp (version 2), as JSON of Sigstore bundles: cosign's own annotation
	// has no form for it.
	AnnotationLogEntry = "assay.dev/log-entry"
)

// layer is one layer on its way into a tag, and how to tell it from others.
type layer struct {
	descriptor
	content []byte
	record  store.Record // with the signatures that this layer holds
	kept
}

// layersOf are a record's layers: one for a statement, one for each signature of
// an image, which is how cosign keeps several.
func layersOf(r store.Record) ([]*layer, error) {
	if r.Statement != nil {
		b, err := r.SignatureBytes()
		if err != nil {
			return nil, err
		}
		d := attestationLayer(b, r.Statement.PredicateType)
		d.Annotations[AnnotationRecord] = r.Key
		for _, s := range r.Signatures {
			if len(s.Cert) > 0 {
				annotateCert(d.Annotations, s)
				break
			}
		}
		if err := annotateLog(d.Annotations, r.Log, ""); err != nil {
			return nil, err
		}
		return []*layer{{descriptor: d, content: b, record: r}}, nil
	}
	var out []*layer
	for _, s := range r.Signatures {
		d := signatureLayer(r.Payload, s.Sig)
		annotateCert(d.Annotations, s)
		only := ""
		if len(r.Signatures) > 1 {
			only = encode(s.Sig)
		}
		if err := annotateLog(d.Annotations, r.Log, only); err != nil {
			return nil, err
		}
		one := r
		one.Signatures = []store.Signature{s}
		out = append(out, &layer{descriptor: d, content: r.Payload, record: one})
	}
	return out, nil
}

func annotateCert(a map[string]string, s store.Signature) {
	if len(s.Cert) > 0 {
		a[annotationCert] = string(s.Cert)
		a[annotationChain] = string(s.Chain)
	}
}

// annotateLog says where signatures are logged. Only, if it is not empty, is the
// one signature that entries must be about.
func annotateLog(a map[string]string, log []store.LogEntry, only string) error {
	for _, e := range log {
		if e.Proof != nil {
			if a[AnnotationLogProof] != "" {
				a[AnnotationLogProof] += ","
			}
			a[AnnotationLogProof] += encode(e.Proof)
		}
		if e.Rekor == nil || !logs(e.Rekor, only) {
			continue
		}
		if len(e.Rekor.GetInclusionPromise().GetSignedEntryTimestamp()) > 0 {
			if a[annotationBundle] == "" {
				b, err := cosignBundle(e.Rekor)
				if err != nil {
					return err
				}
				a[annotationBundle] = b
			}
			continue
		}
		if a[AnnotationLogEntry] == "" {
			b, err := entryJSON(e.Rekor)
			if err != nil {
				return err
			}
			a[AnnotationLogEntry] = string(b)
		}
	}
	return nil
}

// logs says whether an entry's body holds a signature, as it is (hashedrekord,
// dsse) or encoded twice (intoto).
func logs(e *rekor.TransparencyLogEntry, sig string) bool {
	body := e.GetCanonicalizedBody()
	return sig == "" || bytes.Contains(body, []byte(sig)) ||
		bytes.Contains(body, []byte(encode([]byte(sig))))
}

// cosignBundle is an entry of Rekor version 1 in cosign's own form.
func cosignBundle(e *rekor.TransparencyLogEntry) (string, error) {
	type payload struct {
		Body           string `json:"body"`
		IntegratedTime int64  `json:"integratedTime"`
		LogIndex       int64  `json:"logIndex"`
		LogID          string `json:"logID"`
	}
	b, err := json.Marshal(struct {
		SignedEntryTimestamp []byte
		Payload              payload
	}{e.GetInclusionPromise().GetSignedEntryTimestamp(), payload{
		Body:           encode(e.GetCanonicalizedBody()),
		IntegratedTime: e.GetIntegratedTime(),
		LogIndex:       e.GetLogIndex(),
		LogID:          hex.EncodeToString(e.GetLogId().GetKeyId()),
	}})
	return string(b), err
}

// entryJSON is an entry as Sigstore bundles carry it. The protobuf library spaces
// its JSON at random, on purpose; this is always the same.
func entryJSON(e *rekor.TransparencyLogEntry) ([]byte, error) {
	loose, err := protojson.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("writing log entry: %w", err)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, loose); err != nil {
		return nil, fmt.Errorf("writing log entry: %w", err)
	}
	return b.Bytes(), nil
}

// in says whether a tag holds the layer already: the same payload, signed by one
// of its keys, with whatever signature. Compared remembers the layers that were
// fetched and are others.
func (l *layer) in(ctx context.Context, c *client, t *tagManifest, compared map[string]bool) (bool, error) {
	if t.has(l.descriptor) {
		return true, nil
	}
	fetched := 0
	for i := len(t.layers) - 1; i >= 0; i-- {
		o := t.layers[i]
		cert := []byte(o.Annotations[annotationCert])
		if l.record.Image != "" {
			if o.MediaType != simplesigning.MediaType || o.Digest != l.Digest {
				continue
			}
			sig, err := dsse.Base64(o.Annotations[annotationSignature])
			if err == nil && l.record.SignedBy(l.record.Payload, sig, cert) {
				return true, nil
			}
			continue
		}
		if !l.couldBe(o) || compared[o.Digest] || fetched == maxCompare {
			continue
		}
		fetched++
		b, err := c.getBlob(ctx, o.Digest, o.Size)
		if err != nil && !permanent(err) {
			return false, err
		}
		if err == nil {
			if e, err := dsse.Parse(b); err == nil && l.record.SameEnvelope(e, cert) {
				return true, nil
			}
		}
		compared[o.Digest] = true
	}
	return false, nil
}

// couldBe says whether another layer can be this statement, signed at another
// time: of its type, and of about its size, since only signatures differ.
func (l *layer) couldBe(o descriptor) bool {
	if pt := o.Annotations[annotationPredicateType]; o.MediaType != mediaTypeDSSE || pt != "" && pt != l.Annotations[annotationPredicateType] {
		return false
	}
	payload := int64(base64.StdEncoding.EncodedLen(len(l.record.Payload)))
	return o.Size >= payload && o.Size <= payload+dsse.MaxSignatures*4096
}
