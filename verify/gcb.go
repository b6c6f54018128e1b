package verify

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/store"
)

// FormatGCB is what Google Cloud Build says of an image.
const FormatGCB store.Format = "gcb-file"

// gcbBuilder is Google Cloud Build's builder.id, without its version.
const gcbBuilder = "https://cloudbuild.googleapis.com/GoogleHostedWorker"

// gcbKeyID is how Google names the keys that Cloud Build signs with.
var gcbKeyID = regexp.MustCompile(`^projects/verified-builder/locations/([a-z0-9-]+)/keyRings/attestor/cryptoKeys/(builtByGCB|provenanceSigner|google-hosted-worker)/cryptoKeyVersions/([0-9]+)$`)

// gcbKey is the name of the key that a key id means, as Google publishes them, and
// whether it signs the envelope as DSSE asks; the older ones sign the bare payload.
func gcbKey(keyID string) (name string, pae bool, err error) {
	m := gcbKeyID.FindStringSubmatch(keyID)
	if m == nil {
		return "", false, fmt.Errorf("key id %.200q is none of Google Cloud Build's", keyID)
	}
	switch {
	case m[2] == "builtByGCB":
		return m[1], false, nil
	case m[1] == "global":
		return "global-pae-" + m[2] + "_" + m[3], true, nil
	}
	return "", false, fmt.Errorf("key id %.200q is none of Google Cloud Build's", keyID)
}

// GCB verifies what `gcloud artifacts docker images describe --show-provenance
// --format json` prints. Its envelopes are no DSSE: the older keys sign the payload
// without its type, and a readable copy stands beside it. Keys are Google's public
// keys, each named as Google publishes it (us-west2, global,
// global-pae-provenanceSigner_1).
//
// Counted is provenance about the artifact whose readable copy says what was signed.
// Errors are those of Image.
func GCB(a *Artifact, data []byte, opts Options) (*Evidence, error) {
	if a == nil || a.primary == "" {
		return nil, errors.New("no artifact is given; make one with FileArtifact or DigestArtifact")
	}
	opts, names, err := gcbNames(opts)
	if err != nil {
		return nil, err
	}
	c, err := opts.checker()
	if err != nil {
		return nil, err
	}
	c.artifact = a
	g := gcb{c, names}
	pieces, err := g.all(data)
	if err != nil {
		c.rejected = append(c.rejected, Rejected{Format: string(FormatGCB), Digest: digestOf(data), Reason: err.Error(), Kind: kindOf(err)})
	}
	c.group()
	c.grade()
	c.outcomes(opts.AnyOutcome)
	opts.WithoutSignature = true // Cloud Build makes none
	if missing := c.missing(opts); len(missing) > 0 {
		none := &NoEvidenceError{Ref: a.name, Missing: missing, Found: max(1, pieces), Rejected: c.rejected}
		for _, k := range c.ring {
			none.Keys = append(none.Keys, k.Name)
		}
		return nil, none
	}
	return &Evidence{ref: a.name, digest: a.Digest(), statements: c.statements, rejected: c.rejected}, nil
}

// gcb is a checker that knows keys by Google's names.
type gcb struct {
	*checker
	names map[string]string // of a key → its fingerprint
}

// gcbNames are the keys' names. Google publishes one key under several of them.
func gcbNames(opts Options) (Options, map[string]string, error) {
	names := map[string]string{}
	seen := map[string]bool{}
	var keys []Key
	for i, k := range opts.Keys {
		public, err := dsse.NewPublicKey(k.Public)
		if err != nil {
			return opts, nil, fmt.Errorf("key %d (%q): %w", i, k.Name, err)
		}
		name := strings.TrimSuffix(k.Name, ".key")
		if other, ok := names[name]; ok && other != public.Fingerprint() {
			return opts, nil, fmt.Errorf("two keys named %q", name)
		}
		names[name] = public.Fingerprint()
		if !seen[public.Fingerprint()] {
			seen[public.Fingerprint()] = true
			keys = append(keys, k)
		}
	}
	opts.Keys = keys
	return opts, names, nil
}

type gcbProvenance struct {
	Kind        string `json:"kind"`
	ResourceURI string `json:"resourceUri"`
	Build       struct {
		Statement01 json.RawMessage `json:"intotoStatement"`
		Statement1  json.RawMessage `json:"inTotoSlsaProvenanceV1"`
	} `json:"build"`
	Envelope json.RawMessage `json:"envelope"`
}

func (c gcb) all(data []byte) (int, error) {
	if err := strictjson.Check(data, maxFile); err != nil {
		return 0, as(KindMalformed, err)
	}
	var doc struct {
		Image struct {
			Digest         string `json:"digest"`
			FullyQualified string `json:"fully_qualified_digest"`
		} `json:"image_summary"`
		Summary struct {
			Provenance []json.RawMessage `json:"provenance"`
		} `json:"provenance_summary"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return 0, as(KindMalformed, fmt.Errorf("reading Google Cloud Build's provenance: %w", err))
	}
	if doc.Image.Digest != c.artifact.Digest() || !strings.HasSuffix(doc.Image.FullyQualified, "@"+doc.Image.Digest) {
		return 0, kindf(KindOtherArtifact, "it is about %s (%s), not this artifact", doc.Image.Digest, doc.Image.FullyQualified)
	}
	if n := len(doc.Summary.Provenance); n == 0 || n > maxLines {
		return 0, kindf(KindMalformed, "it holds %d provenance documents; want one to %d", n, maxLines)
	}
	for _, raw := range doc.Summary.Provenance {
		if err := c.one(raw); err != nil {
			c.rejected = append(c.rejected, Rejected{Format: string(FormatGCB), Digest: digestOf(raw), Reason: err.Error(), Kind: kindOf(err)})
		}
	}
	return len(doc.Summary.Provenance), nil
}

func (c gcb) one(raw []byte) error {
	var p gcbProvenance
	if err := json.Unmarshal(raw, &p); err != nil {
		return as(KindMalformed, err)
	}
	if p.Kind != "BUILD" {
		return kindf(KindMalformed, "it is of kind %.40q; want BUILD", p.Kind)
	}
	env, err := gcbEnvelope(p.Envelope)
	if err != nil {
		return err
	}
	v, err := c.signed(env)
	if err != nil {
		return err
	}
	if !strings.HasSuffix(p.ResourceURI, "@"+c.artifact.Digest()) {
		return kindf(KindOtherArtifact, "its resource is %.300q, not this artifact", p.ResourceURI)
	}
	if err := p.sameText(env.Payload); err != nil {
		return err
	}
	return c.statement(store.Item{Format: FormatGCB}, &env.Envelope, []voucher{v})
}

// gcbEnv may hold signatures that cannot be read beside good ones.
type gcbEnv struct {
	dsse.Envelope
	unread []string
}

func gcbEnvelope(raw []byte) (*gcbEnv, error) {
	var doc struct {
		PayloadType string `json:"payloadType"`
		Payload     string `json:"payload"`
		Signatures  []struct {
			KeyID string `json:"keyid"`
			Sig   string `json:"sig"`
		} `json:"signatures"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, as(KindMalformed, fmt.Errorf("reading the envelope: %w", err))
	}
	e := &gcbEnv{Envelope: dsse.Envelope{PayloadType: doc.PayloadType}}
	if doc.PayloadType != api.PayloadTypeInToto {
		return nil, kindf(KindMalformed, "payload type %q is not known; want %s", doc.PayloadType, api.PayloadTypeInToto)
	}
	if n := len(doc.Signatures); n == 0 || n > dsse.MaxSignatures {
		return nil, kindf(KindMalformed, "the envelope has %d signatures; want one to %d", n, dsse.MaxSignatures)
	}
	var err error
	if e.Payload, err = dsse.Base64(doc.Payload); err != nil || len(e.Payload) == 0 {
		return nil, kindf(KindMalformed, "reading the payload: it is empty or no base64")
	}
	for i, s := range doc.Signatures {
		sig, err := dsse.Base64(s.Sig)
		if err != nil || len(sig) == 0 {
			e.unread = append(e.unread, fmt.Sprintf("signature %d is empty or no base64", i))
			continue
		}
		e.Signatures = append(e.Signatures, dsse.Signature{KeyID: s.KeyID, Sig: sig})
	}
	return e, nil
}

// signed finds a good signature. Each key id means one key.
func (c gcb) signed(env *gcbEnv) (voucher, error) {
	reasons := env.unread
	for i, s := range env.Signatures {
		name, pae, err := gcbKey(s.KeyID)
		if err != nil {
			reasons = append(reasons, fmt.Sprintf("signature %d: %v", i, err))
			continue
		}
		message := env.Payload
		if pae {
			message = env.PAE()
		}
		for _, k := range c.ring {
			if c.names[name] == k.public.Fingerprint() && k.public.Verify(message, s.Sig) == nil {
				return voucher{key: k, sig: s.Sig, identity: identity(k, s.KeyID)}, nil
			}
		}
		reasons = append(reasons, fmt.Sprintf("signature %d was not made by the trusted key %q, or for other bytes", i, name))
	}
	return voucher{}, kindf(KindInvalidSignature, "no signature of Google Cloud Build's verifies: %s", strings.Join(reasons, "; "))
}

// sameText compares the signed statement with the readable one: people read that.
func (p gcbProvenance) sameText(payload []byte) error {
	text := p.Build.Statement01
	if text == nil {
		text = p.Build.Statement1
	}
	if text == nil || p.Build.Statement01 != nil && p.Build.Statement1 != nil {
		return kindf(KindMalformed, "want one readable statement beside the signed one")
	}
	s, err := intoto.Parse(payload)
	if err != nil {
		return as(KindMalformed, err)
	}
	m, err := strictjson.Object(text)
	if err != nil {
		return as(KindMalformed, err)
	}
	// The copy calls the predicate by the name of its type.
	readable := m["predicate"]
	if old := m["slsaProvenance"]; old != nil {
		if readable != nil {
			return kindf(KindMalformed, "the readable statement has two predicates")
		}
		readable = old
	}
	signed, err := strictjson.Object(payload)
	if err != nil {
		return as(KindMalformed, err)
	}
	for name, pair := range map[string][2][]byte{
		"predicate": {s.Predicate, readable}, "subject": {signed["subject"], m["subject"]},
		"predicateType": {signed["predicateType"], m["predicateType"]}, "_type": {signed["_type"], m["_type"]},
	} {
		same, err := equalJSON(pair[0], pair[1])
		if err != nil {
			return as(KindMalformed, fmt.Errorf("comparing the readable statement's %s: %w", name, err))
		}
		if !same {
			return kindf(KindMismatchText, "the readable statement's %s differs from the signed one's", name)
		}
	}
	return nil
}

// equalJSON compares values, without regard to white space and order of members.
func equalJSON(a, b []byte) (bool, error) {
	canonical := func(raw []byte) ([]byte, error) {
		if len(raw) == 0 {
			return nil, nil
		}
		d := json.NewDecoder(bytes.NewReader(raw))
		d.UseNumber()
		var v any
		if err := d.Decode(&v); err != nil {
			return nil, err
		}
		return json.Marshal(v)
	}
	x, err := canonical(a)
	if err != nil {
		return false, err
	}
	y, err := canonical(b)
	return bytes.Equal(x, y), err
}

// gcbRef is the tag or branch that Google Cloud Build's trigger was for.
func gcbRef(arguments []byte) string {
	m := members(arguments, "substitutions")
	if tag, err := strictjson.String(m["TAG_NAME"]); err == nil && tag != "" {
		return "refs/tags/" + tag
	}
	if branch, err := strictjson.String(m["BRANCH_NAME"]); err == nil && branch != "" {
		return "refs/heads/" + branch
	}
	return ""
}
