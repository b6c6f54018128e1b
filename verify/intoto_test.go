package verify_test

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/tlog"
	deployment "assay.dev/assay/internal/testrig/sigstore"
	"assay.dev/assay/store"
	"assay.dev/assay/store/storetest"
	"assay.dev/assay/verify"
)

// TestOldLogEntry: an attestation by a key in an .att tag, with the kind of log entry
// that cosign kept beside it for years, where evidence must be in a log.
func TestOldLogEntry(t *testing.T) {
	r := newRig(t)
	key := storetest.NewKey(t)
	d := deployment.New(t)
	log, err := tlog.ParseRekorKey("rekor", d.RekorPEM())
	if err != nil {
		t.Fatal(err)
	}
	opts := verify.Options{Keys: []verify.Key{bare("k", key)}, WithoutSignature: true, Log: verify.LogTrust{Trust: tlog.Trust{Rekor: []tlog.RekorKey{log}}, Require: true}}
	item := func(say string) (store.Item, []byte) {
		env := storetest.Provenance(t, key, r.subject, say).Envelope
		raw, err := json.Marshal(env)
		if err != nil {
			t.Fatal(err)
		}
		return store.Item{Format: store.FormatTag, Digest: storetest.Digest(raw), MediaType: api.MediaTypeDSSE, Content: raw, Annotations: map[string]string{}}, env.Payload
	}
	public := storetest.Public(t, key).PEM()
	one, payload := item("one")
	one.Annotations[tlog.AnnotationBundle] = d.LogIntoto(one.Content, payload, public, time.Now()).Annotation()
	e, err := verify.Items(r.subject.Ref(), r.manifest(), []store.Item{one}, opts)
	if err != nil || len(e.Statements()) != 1 || len(e.Statements()[0].Log) != 1 {
		t.Fatalf("%v", err)
	}
	again, _ := item("one") // the same words, signed unseen
	again.Annotations = one.Annotations
	other, words := item("two")
	other.Annotations = one.Annotations
	stranger := one
	stranger.Annotations = map[string]string{tlog.AnnotationBundle: d.LogIntoto(one.Content, payload, storetest.Public(t, storetest.NewKey(t)).PEM(), time.Now()).Annotation()}
	mixed := one
	mixed.Annotations = map[string]string{tlog.AnnotationBundle: d.LogIntoto(one.Content, words, public, time.Now()).Annotation()}
	for name, it := range map[string]store.Item{"signed again": again, "another payload": other, "another key": stranger, "payload and envelope of two": mixed} {
		var none *verify.NoEvidenceError
		if slices.Equal(it.Content, one.Content) && name == "signed again" {
			t.Fatal("the key signs the same bytes twice alike")
		}
		e, err := verify.Items(r.subject.Ref(), r.manifest(), []store.Item{it}, opts)
		if e != nil || !errors.As(err, &none) || !slices.Contains(none.Kinds(), verify.KindNotLogged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
