package verify_test

// The deployment in these tests is internal/testrig/sigstore, whose keys the tests
// hold; its log's entries are made by Rekor's own packages, which check what they are
// given as the log does, and verify the signature in it.

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sigstore/rekor/pkg/types"
	intotov001 "github.com/sigstore/rekor/pkg/types/intoto/v0.0.1"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/attest/tlog"
	deployment "assay.dev/assay/internal/testrig/sigstore"
	"assay.dev/assay/store"
	"assay.dev/assay/store/storetest"
	"assay.dev/assay/verify"
)

const (
	oldSAN    = "https://github.com/octo/app/.github/workflows/build.yml@refs/heads/main"
	oldCert   = "dev.sigstore.cosign/certificate"
	oldStamp  = "dev.sigstore.cosign/rfc3161timestamp"
	oldEntry  = tlog.AnnotationBundle
	oldIssuer = verify.GitHubIssuer
)

// oldRig makes layers of .att as cosign did before 2.2.
type oldRig struct {
	*rig
	d *deployment.Deployment
}

// rekorBody is what Rekor makes of an envelope as entry of kind intoto 0.0.1.
func rekorBody(t testing.TB, envelope, signer []byte) []byte {
	t.Helper()
	entry := intotov001.NewEntry()
	p, err := entry.CreateFromArtifactProperties(t.Context(), types.ArtifactProperties{ArtifactBytes: envelope, PublicKeyBytes: [][]byte{signer}, PKIFormat: "x509"})
	if err == nil {
		err = entry.Unmarshal(p)
	}
	if err != nil {
		t.Fatal(err)
	}
	return must1[[]byte](t)(entry.Canonicalize(t.Context()))
}

// envelope is one with a signature by each signer.
func (r *oldRig) envelope(say string, by ...*deployment.Signer) ([]byte, []byte) {
	r.t.Helper()
	payload := storetest.Provenance(r.t, storetest.NewKey(r.t), r.subject, say).Envelope.Payload
	var sigs []any
	for _, s := range by {
		sigs = append(sigs, map[string]string{"keyid": "", "sig": base64.StdEncoding.EncodeToString(s.Sign(r.t, dsse.PAE(api.PayloadTypeInToto, payload)))})
	}
	raw := must1[[]byte](r.t)(json.Marshal(map[string]any{"payloadType": api.PayloadTypeInToto, "payload": payload, "signatures": sigs}))
	return raw, payload
}

// layer is a layer of .att.
func layerOf(content []byte, annotations map[string]string) store.Item {
	return store.Item{Format: store.FormatTag, Digest: storetest.Digest(content), MediaType: api.MediaTypeDSSE, Content: content, Annotations: annotations}
}

// entry is the log's of an envelope, at a time.
func (r *oldRig) entry(d *deployment.Deployment, envelope, signer []byte, at time.Time) deployment.Entry {
	e := d.LogIntoto(nil, nil, nil, at)
	e.Body = rekorBody(r.t, envelope, signer)
	return e
}

// attestation is an honest layer.
func (r *oldRig) attestation(s *deployment.Signer) store.Item {
	envelope, _ := r.envelope("one", s)
	return layerOf(envelope, map[string]string{
		oldCert: string(s.PEM()), "dev.sigstore.cosign/chain": string(r.d.RootsPEM()),
		oldEntry: r.entry(r.d, envelope, s.PEM(), s.Certificate.NotBefore.Add(time.Minute)).Annotation(),
	})
}

func (r *oldRig) instance(need verify.Thresholds, parts ...string) *verify.Instance {
	return must1[*verify.Instance](r.t)(verify.NewInstance("test", r.d.Root(parts...), need))
}

func (r *oldRig) options(need verify.Thresholds, parts ...string) verify.Options {
	return verify.Options{
		Instances:  []*verify.Instance{r.instance(need, parts...)},
		Identities: []verify.CertificateIdentity{{SAN: oldSAN, Issuer: oldIssuer}}, At: time.Now(), WithoutSignature: true,
	}
}

func (r *oldRig) verify(o verify.Options, it store.Item) (*verify.Evidence, error) {
	return verify.Items(r.subject.Ref(), r.manifest(), []store.Item{it}, o)
}

// TestOldKeyless: an attestation that a certificate signed, with the log entry of its
// time, is verified as those with newer entries are.
func TestOldKeyless(t *testing.T) {
	r := &oldRig{newRig(t), deployment.New(t)}
	plain := verify.Thresholds{SCTs: 1, LogEntries: 1, Timestamps: 1}
	by := r.d.Issue(deployment.Identity{SAN: oldSAN, Issuer: oldIssuer})
	good := r.attestation(by)
	with := func(it store.Item, name, value string) store.Item {
		it.Annotations = maps.Clone(it.Annotations)
		if it.Annotations == nil {
			it.Annotations = map[string]string{}
		}
		it.Annotations[name] = value
		return it
	}
	logged := by.Certificate.NotBefore.Add(time.Minute)
	stamp := func(it store.Item, at time.Time) store.Item {
		env := must1[*dsse.Envelope](t)(dsse.Parse(it.Content))
		return with(it, oldStamp, fmt.Sprintf(`{"SignedRFC3161Timestamp":%q}`, base64.StdEncoding.EncodeToString(r.d.Timestamp(env.Signatures[0].Sig, at))))
	}
	stamped := stamp(good, logged.Add(time.Minute))

	// The words of Rekor are those of the rig's own entries.
	env := must1[*dsse.Envelope](t)(dsse.Parse(good.Content))
	var ours, theirs any
	if err := errors.Join(json.Unmarshal(r.d.LogIntoto(good.Content, env.Payload, by.PEM(), logged).Body, &ours), json.Unmarshal(rekorBody(t, good.Content, by.PEM()), &theirs)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(theirs, ours); diff != "" {
		t.Errorf("the deployment's entries are not Rekor's: %s", diff)
	}

	for name, tc := range map[string]struct {
		it    store.Item
		need  verify.Thresholds
		parts []string
		times int
	}{
		"itself":                  {good, plain, nil, 1},
		"without certificate log": {good, verify.Thresholds{LogEntries: 1, Timestamps: 1}, []string{"ca", "rekor"}, 1},
		"with a timestamp":        {stamped, verify.Thresholds{SCTs: 1, LogEntries: 1, SignedTimestamps: 1}, nil, 2},
		"two times":               {stamped, verify.Thresholds{SCTs: 1, LogEntries: 1, Timestamps: 2}, nil, 2},
		"no entry asked for":      {stamped, verify.Thresholds{SCTs: 1, Timestamps: 1}, nil, 2},
	} {
		e, err := r.verify(r.options(tc.need, tc.parts...), tc.it)
		if err != nil || len(e.Statements()) != 1 {
			t.Errorf("%s: %v", name, err)
			continue
		}
		s := e.Statements()[0]
		if s.Certificate == nil || s.Certificate.SAN != oldSAN || s.Certificate.Issuer != oldIssuer || s.Certificate.Instance != "test" || s.TrustedAs == "" {
			t.Errorf("%s: signed by %+v", name, s.Identity)
		}
		if len(s.Times) != tc.times || !s.Times[0].Time.Equal(logged) || s.Times[0].Source != "https://log.example.com" {
			t.Errorf("%s: at %+v", name, s.Times)
		}
		if len(s.Log) != 1 || !s.Log[0].Promise || s.Log[0].Log != "https://log.example.com" {
			t.Errorf("%s: logged %+v", name, s.Log)
		}
	}

	present := r.d.Issue(deployment.Identity{SAN: oldSAN, Issuer: oldIssuer, At: time.Now().Add(-2 * time.Minute).UTC().Truncate(time.Second)})
	now := verify.Thresholds{SCTs: 1, LogEntries: 1, Current: true}
	if e, err := r.verify(r.options(now), r.attestation(present)); err != nil || len(e.Statements()) != 1 {
		t.Errorf("while the certificate is valid: %v", err)
	}

	other := deployment.New(t)
	again := r.d.Issue(deployment.Identity{SAN: oldSAN, Issuer: oldIssuer})
	unseen, _ := r.envelope("one", by) // the same words, signed unseen
	words, payload := r.envelope("two", by)
	both, _ := r.envelope("one", by, again)
	mixed := r.d.LogIntoto(good.Content, payload, by.PEM(), logged)
	bareKey := must1[dsse.PublicKey](t)(dsse.NewPublicKey(by.Certificate.PublicKey)).PEM()
	renewed := r.d.Issue(deployment.Identity{SAN: oldSAN, Issuer: oldIssuer, Of: by})
	at := func(at time.Time) store.Item {
		return with(good, oldEntry, r.entry(r.d, good.Content, by.PEM(), at).Annotation())
	}
	issue := func(id deployment.Identity) store.Item { return r.attestation(r.d.Issue(id)) }
	edit := func(was, is string) store.Item {
		if !strings.Contains(good.Annotations[oldEntry], was) {
			t.Fatalf("no %q in %s", was, good.Annotations[oldEntry])
		}
		return with(good, oldEntry, strings.Replace(good.Annotations[oldEntry], was, is, 1))
	}
	var forged struct{ SignedEntryTimestamp []byte }
	if err := json.Unmarshal([]byte(good.Annotations[oldEntry]), &forged); err != nil {
		t.Fatal(err)
	}
	was := base64.StdEncoding.EncodeToString(forged.SignedEntryTimestamp)
	forged.SignedEntryTimestamp[len(forged.SignedEntryTimestamp)-1] ^= 1
	foreign := other.Issue(deployment.Identity{SAN: oldSAN, Issuer: oldIssuer})
	past := r.options(plain)
	past.At = logged.Add(-time.Second)
	two := r.options(plain)
	two.Instances[0] = must1[*verify.Instance](t)(verify.NewInstance("two", bothLogs(t, r.d, other), verify.Thresholds{SCTs: 1, LogEntries: 2, Timestamps: 1}))
	for name, tc := range map[string]struct {
		it   store.Item
		o    verify.Options
		want string
	}{
		"two logs are needed":                 {good, two, "it carries 1, needed are 2"},
		"the log's time where no log counts":  {good, r.options(verify.Thresholds{SCTs: 1, Timestamps: 1}), "0 signed timestamps"},
		"a bad entry where no log counts":     {with(stamped, oldEntry, mixed.Annotation()), r.options(verify.Thresholds{SCTs: 1, Timestamps: 1}), "the log entry is about payload"},
		"another payload":                     {layerOf(words, good.Annotations), r.options(plain), "the log entry is about"},
		"payload and envelope of two":         {with(good, oldEntry, mixed.Annotation()), r.options(plain), "the log entry is about payload"},
		"signed again unseen":                 {layerOf(unseen, good.Annotations), r.options(plain), "another signature by this key"},
		"two signatures":                      {layerOf(both, good.Annotations), r.options(plain), "2 signatures"},
		"another's certificate beside it":     {with(good, oldCert, string(again.PEM())), r.options(plain), "did not sign this"},
		"another's certificate in the entry":  {with(good, oldEntry, r.d.LogIntoto(good.Content, env.Payload, again.PEM(), logged).Annotation()), r.options(plain), "no signature by this key"},
		"a newer certificate of the same key": {with(good, oldCert, string(renewed.PEM())), r.options(plain), "another certificate"},
		"the key alone in the entry":          {with(good, oldEntry, r.entry(r.d, good.Content, bareKey, logged).Annotation()), r.options(plain), "another certificate, or none"},
		"expired by the log's time":           {at(by.Certificate.NotAfter.Add(time.Second)), r.options(plain), "was not valid"},
		"before it was issued":                {at(by.Certificate.NotBefore.Add(-time.Second)), r.options(plain), "was not valid"},
		"a time at the epoch":                 {at(time.Unix(0, 0)), r.options(plain), "was not its key"},
		"before the log's key was its own":    {at(r.d.Began.Add(-2 * time.Hour)), r.options(plain), "was not its key"},
		"after the instant of verification":   {good, past, "after the instant of verification"},
		"no longer valid at present":          {good, r.options(now), "not valid at the instant"},
		"no promise of a certificate log":     {issue(deployment.Identity{SAN: oldSAN, Issuer: oldIssuer, NoSCT: true}), r.options(plain), "certificate log's promise"},
		"another log's entry":                 {with(good, oldEntry, r.entry(other, good.Content, by.PEM(), logged).Annotation()), r.options(plain), "none of the trusted Rekor keys"},
		"a forged promise":                    {edit(was, base64.StdEncoding.EncodeToString(forged.SignedEntryTimestamp)), r.options(plain), "none of the trusted Rekor keys"},
		"no promise":                          {edit(was, ""), r.options(plain), "neither proof nor promise"},
		"another time":                        {edit(fmt.Sprint(logged.Unix()), fmt.Sprint(logged.Unix()+1)), r.options(plain), "none of the trusted Rekor keys"},
		"another index":                       {edit(`"logIndex":`, `"logIndex":1`), r.options(plain), "none of the trusted Rekor keys"},
		"another name":                        {issue(deployment.Identity{SAN: oldSAN + "x", Issuer: oldIssuer}), r.options(plain), "none of those that are trusted"},
		"another issuer":                      {issue(deployment.Identity{SAN: oldSAN, Issuer: "https://accounts.example.com"}), r.options(plain), "none of those that are trusted"},
		"another authority":                   {r.attestation(foreign), r.options(plain), "an authority of none"},
		"no timestamp":                        {good, r.options(verify.Thresholds{SCTs: 1, LogEntries: 1, SignedTimestamps: 1}), "0 signed timestamps"},
		"a timestamp too few":                 {good, r.options(verify.Thresholds{SCTs: 1, LogEntries: 1, Timestamps: 2}), "2 times in all"},
		"a timestamp too late":                {stamp(good, by.Certificate.NotAfter.Add(time.Minute)), r.options(plain), "was not valid"},
		"another's timestamp":                 {with(good, oldStamp, stamp(layerOf(unseen, nil), logged).Annotations[oldStamp]), r.options(verify.Thresholds{SCTs: 1, LogEntries: 1, SignedTimestamps: 1}), "0 signed timestamps"},
		"no log in the root":                  {stamped, r.options(verify.Thresholds{SignedTimestamps: 1}, "ca", "tsa"), "no key of a Rekor log"},
		"no entry":                            {with(good, oldEntry, ""), r.options(plain), "it carries 0"},
	} {
		t.Run(name, func(t *testing.T) {
			var none *verify.NoEvidenceError
			e, err := r.verify(tc.o, tc.it)
			if e != nil || !errors.As(err, &none) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v; want an error with %q", err, tc.want)
			}
		})
	}
}

// TestShippedLog: the public log's key, which nearly all such entries are by, is one
// that can sign times.
func TestShippedLog(t *testing.T) {
	keys := must1[[]tlog.RekorKey](t)(must1[*verify.Instance](t)(verify.PublicGood()).RekorKeys())
	if err := (tlog.Trust{Rekor: keys}).Check(); err != nil {
		t.Error(err)
	}
	if !slices.ContainsFunc(keys, func(k tlog.RekorKey) bool { return k.Name == tlog.DefaultRekor && !k.From.IsZero() }) {
		t.Errorf("%+v", keys)
	}
}

// TestLayersOfBoundedKeys: a key's .att and .sig layers count for keys bounded in time,
// and where keys must be in a log, by the entry beside them.
func TestLayersOfBoundedKeys(t *testing.T) {
	r := &oldRig{newRig(t), deployment.New(t)}
	// A certificate's key, of which the certificate is not looked at.
	by := r.d.Issue(deployment.Identity{SAN: oldSAN, Issuer: oldIssuer})
	key := must1[dsse.PublicKey](t)(dsse.NewPublicKey(by.Certificate.PublicKey)).PEM()
	logged := r.d.Began.Add(time.Hour)
	envelope, payload := r.envelope("one", by)
	att := func(e deployment.Entry) store.Item {
		return layerOf(envelope, map[string]string{oldEntry: e.Annotation()})
	}
	simple := must1[[]byte](t)(simplesigning.New(r.subject.Ref(), strings.TrimPrefix(r.subject.Ref()[strings.LastIndex(r.subject.Ref(), "@"):], "@")))
	sig := by.Sign(t, simple)
	dotSig := store.Item{Format: store.FormatTag, Digest: storetest.Digest(simple), MediaType: simplesigning.MediaType, Content: simple, Annotations: map[string]string{
		"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig), oldEntry: r.d.LogMessage(simple, sig, key, logged).Annotation(),
	}}
	parsed := must1[*dsse.Envelope](t)(dsse.Parse(envelope))
	newer := r.d.LogEnvelope(envelope, payload, parsed.Signatures[0].Sig, key, logged)
	options := func(k verify.Key, need verify.Thresholds) verify.Options {
		return verify.Options{Keys: []verify.Key{k}, KeysLogged: true, Instances: []*verify.Instance{r.instance(need)}, At: time.Now(), WithoutSignature: true, WithoutProvenance: true}
	}
	plain := verify.Thresholds{SCTs: 1, LogEntries: 1, Timestamps: 1}
	k := verify.Key{Name: "k", Public: by.Certificate.PublicKey}
	bounded := k
	bounded.From, bounded.Until = logged.Add(-time.Minute), logged.Add(time.Minute)
	early, late := k, k
	early.Until, late.From = logged.Add(-time.Second), logged.Add(time.Second)
	other := deployment.New(t)
	past := options(k, plain)
	past.At = logged.Add(-time.Second)
	bare := dotSig
	bare.Annotations = maps.Clone(dotSig.Annotations)
	delete(bare.Annotations, oldEntry)
	for name, tc := range map[string]struct {
		it   store.Item
		o    verify.Options
		want string // empty: it counts
	}{
		"intoto":                            {att(r.entry(r.d, envelope, key, logged)), options(k, plain), ""},
		"dsse":                              {att(newer), options(bounded, plain), ""},
		"a signature":                       {dotSig, options(bounded, plain), ""},
		"the key's time was over":           {dotSig, options(early, plain), "the key was not valid"},
		"the key's time had not begun":      {att(newer), options(late, plain), "the key was not valid"},
		"no entry":                          {bare, options(k, plain), "neither a bundle nor"},
		"another log's":                     {att(r.entry(other, envelope, key, logged)), options(k, plain), "none of the trusted Rekor keys"},
		"after the instant of verification": {dotSig, past, "after the instant"},
		"more times than there are":         {dotSig, options(k, verify.Thresholds{LogEntries: 1, Timestamps: 2}), "2 times are needed"},
		"no log":                            {dotSig, options(k, verify.Thresholds{Timestamps: 1}), "none of the trusted instances has a log"},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := r.verify(tc.o, tc.it)
			if tc.want == "" {
				if err != nil || len(e.Statements())+len(e.Signatures()) != 1 {
					t.Fatalf("%v", err)
				}
				id := slices.Concat(identities(e.Statements()), signers(e.Signatures()))[0]
				if len(id.Times) != 1 || !id.Times[0].Time.Equal(logged) {
					t.Errorf("at %+v", id.Times)
				}
				return
			}
			if reasons := fmt.Sprint(rejections(e), err); !strings.Contains(reasons, tc.want) || e != nil && len(e.Statements())+len(e.Signatures()) > 0 {
				t.Errorf("%s; want a reason with %q", reasons, tc.want)
			}
		})
	}
}

// bothLogs is a deployment's trusted root with another's log beside its own.
func bothLogs(t testing.TB, d, other *deployment.Deployment) []byte {
	t.Helper()
	var a, b map[string]any
	if err := errors.Join(json.Unmarshal(d.Root(), &a), json.Unmarshal(other.Root(), &b)); err != nil {
		t.Fatal(err)
	}
	a["tlogs"] = append(a["tlogs"].([]any), b["tlogs"].([]any)...)
	return must1[[]byte](t)(json.Marshal(a))
}

func identities(s []verify.Statement) (out []verify.Identity) {
	for _, x := range s {
		out = append(out, x.Identity)
	}
	return out
}

func signers(s []verify.Signature) (out []verify.Identity) {
	for _, x := range s {
		out = append(out, x.Identity)
	}
	return out
}

func rejections(e *verify.Evidence) []verify.Rejected {
	if e == nil {
		return nil
	}
	return e.Rejected()
}
