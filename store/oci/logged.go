package oci

import (
	"encoding/json"
	"slices"

	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/attest/tlog"
)

// A log entry is about one signature, and signing twice gives two. So evidence that
// was logged is the same as what is there already only if that was logged too:
// otherwise verifiers who ask for an entry would find none. What is there keeps its
// own signature and entry; where it has no entry,
//
//   - the very same signature gets it, in the tag's layer as it stands and in a
//     referrer of its own, since a referrer cannot be changed;
//   - another signature cannot have it, and the new one is put beside it.
//
// Nothing here is verified against a log: that is for verifiers, and whoever logs
// has done so.

// unlogged says that the piece was not logged.
func (p *piece) unlogged() bool { return len(p.Log) == 0 }

// proven says whether annotations carry an entry about a signature.
func proven(annotations map[string]string, s tlog.Signed) bool {
	if annotations[annotationBundle] != "" || annotations[AnnotationLogEntry] != "" {
		return true
	}
	proofs, err := tlog.ParseProofs(annotations[AnnotationLogProof])
	if err != nil {
		return false
	}
	return slices.ContainsFunc(proofs, func(text []byte) bool {
		p, err := tlog.ParseProof(text)
		if err != nil {
			return false
		}
		leaf, err := tlog.ParseLeaf(p.Extra)
		return err == nil && leaf.Covers(s) == nil
	})
}

// hasEntry says whether annotations carry any log entry at all.
func hasEntry(annotations map[string]string) bool {
	return slices.ContainsFunc(logAnnotations(), func(k string) bool { return annotations[k] != "" })
}

func logAnnotations() []string {
	return []string{AnnotationLogProof, AnnotationLogEntry, annotationBundle}
}

// isIn says whether a bundle holds this payload, signed by this key, and logged if
// the piece was.
func (p *piece) isIn(content []byte, annotations map[string]string) bool {
	b, err := bundle.Parse(content)
	if err != nil || b.Envelope == nil {
		return false
	}
	if b.LogEntries > 0 {
		annotations = map[string]string{AnnotationLogEntry: "in the bundle"}
	}
	return p.sameEnvelope(b.Envelope, annotations)
}

// sameEnvelope says whether an envelope that is annotated so is this piece.
func (p *piece) sameEnvelope(e *dsse.Envelope, annotations map[string]string) bool {
	if e.PayloadType != p.Envelope.PayloadType || digestOf(e.Payload) != p.payload {
		return false
	}
	by, err := e.Verify(1, p.Key)
	return err == nil && (p.unlogged() || slices.ContainsFunc(by, func(a dsse.Accepted) bool {
		return proven(annotations, tlog.Signed{PayloadType: e.PayloadType, Payload: e.Payload, Sig: a.Signature.Sig, Key: p.Key})
	}))
}

// sameSignature says whether a layer of .sig is this payload signed by this key.
func (p *piece) sameSignature(l descriptor) bool {
	if l.MediaType != simplesigning.MediaType || l.Digest != digestOf(p.Simple.Payload) {
		return false
	}
	sig, err := dsse.Base64(l.Annotations[annotationSignature])
	if err != nil || p.Key.Verify(p.Simple.Payload, sig) != nil {
		return false
	}
	return p.unlogged() || proven(l.Annotations, tlog.Signed{
		PayloadType: simplesigning.MediaType, Payload: p.Simple.Payload, Sig: sig, Key: p.Key,
	})
}

// rekor is what the piece's bundle carries: entries of Rekor logs about the
// envelope's signature.
func (p *piece) rekor() (bundle.Material, error) {
	var with bundle.Material
	for _, e := range p.Log {
		if e.Rekor == nil || !slices.ContainsFunc(p.Envelope.Signatures, func(s dsse.Signature) bool { return logs(e.Rekor, encode(s.Sig)) }) {
			continue
		}
		b, err := entryJSON(e.Rekor)
		if err != nil {
			return with, err
		}
		with.LogEntries = append(with.LogEntries, json.RawMessage(b))
	}
	return with, nil
}

// amend adds the log entries of a layer to the same layer in the tag, where it has
// none of that kind. What else is there stays as it is.
func (t *tagManifest) amend(d descriptor) error {
	for i, l := range t.layers {
		if !l.same(d) {
			continue
		}
		add := map[string]string{}
		for _, k := range logAnnotations() {
			if d.Annotations[k] != "" && l.Annotations[k] == "" {
				add[k] = d.Annotations[k]
			}
		}
		if len(add) == 0 {
			continue
		}
		raw, annotations, err := annotated(t.raw[i], add)
		if err != nil {
			return err
		}
		t.raw[i], t.layers[i].Annotations, t.changed = raw, annotations, true
	}
	return nil
}

// annotated is a descriptor with annotations added, its other members as they were.
func annotated(raw json.RawMessage, add map[string]string) (json.RawMessage, map[string]string, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil {
		return nil, nil, err
	}
	annotations := map[string]string{}
	if members["annotations"] != nil {
		if err := json.Unmarshal(members["annotations"], &annotations); err != nil {
			return nil, nil, err
		}
	}
	for k, v := range add {
		annotations[k] = v
	}
	b, err := marshal(annotations)
	if err != nil {
		return nil, nil, err
	}
	members["annotations"] = b
	out, err := marshal(members)
	return out, annotations, err
}
