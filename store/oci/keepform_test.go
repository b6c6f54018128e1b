package oci_test

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	common "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"

	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
)

// The form that cosign reads, annotation by annotation.
func TestKeeperForm(t *testing.T) {
	reg := olareg(t)
	s := serve(t, reg)
	image := s.image(t, "team/app", "x")
	_, digest, _ := strings.Cut(image, "@")
	signer := storetest.NewCertSigner(t)
	run := storetest.NewRun("PipelineRun")
	st := storetest.StatementRecord(t, run, "x", []intoto.Subject{storetest.ImageSubject(image)}, signer)
	im := storetest.ImageRecord(t, run, image, signer)
	for _, r := range []*store.Record{&st, &im} {
		r.Log = []store.LogEntry{{Rekor: rekorEntry("timestamp")}, {Rekor: rekorEntry("")}, {Proof: []byte("proof")}, {Proof: []byte("other")}}
	}
	k := s.keeper(t, oci.KeeperOptions{Settle: time.Millisecond})
	defer k.Close()
	s.mustKeep(t, k, st, im)
	const (
		rekor = `{"SignedEntryTimestamp":"dGltZXN0YW1w","Payload":{"body":"Ym9keQ==","integratedTime":1735787045,"logIndex":7,"logID":"6964"}}`
		entry = `{"logIndex":"7","logId":{"keyId":"aWQ="},"integratedTime":"1735787045","canonicalizedBody":"Ym9keQ=="}`
	)
	envelope, err := st.SignatureBytes()
	if err != nil {
		t.Fatal(err)
	}
	base := "/v2/team/app/manifests/" + strings.Replace(digest, ":", "-", 1)
	for suffix, want := range map[string]map[string]any{
		".att": {
			"mediaType": "application/vnd.dsse.envelope.v1+json", "digest": storetest.Digest(envelope), "size": float64(len(envelope)),
			"annotations": map[string]any{
				"dev.cosignproject.cosign/signature": "", "predicateType": "https://slsa.dev/provenance/v0.2",
				"dev.sigstore.cosign/certificate": string(signer.Cert), "dev.sigstore.cosign/chain": string(signer.Chain),
				"dev.sigstore.cosign/bundle": rekor, "assay.dev/log-entry": entry, "assay.dev/log-proof": "cHJvb2Y=,b3RoZXI=",
				"assay.dev/record": st.Key,
			},
		},
		".sig": {
			"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": storetest.Digest(im.Payload), "size": float64(len(im.Payload)),
			"annotations": map[string]any{
				"dev.cosignproject.cosign/signature": base64Of(im.Signatures[0].Sig),
				"dev.sigstore.cosign/certificate":    string(signer.Cert), "dev.sigstore.cosign/chain": string(signer.Chain),
				"dev.sigstore.cosign/bundle": rekor, "assay.dev/log-entry": entry, "assay.dev/log-proof": "cHJvb2Y=,b3RoZXI=",
			},
		},
	} {
		if d := cmp.Diff([]map[string]any{want}, tagLayers(t, reg, base+suffix)); d != "" {
			t.Errorf("%s: %s", suffix, d)
		}
	}
}

// Of several signers' entries each goes to its own signature.
func TestKeeperLogOfSeveral(t *testing.T) {
	reg := olareg(t)
	s := serve(t, reg)
	image := s.image(t, "team/app", "x")
	_, digest, _ := strings.Cut(image, "@")
	r := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), image, storetest.NewRecordSigner(t), storetest.NewRecordSigner(t))
	for i, sig := range r.Signatures {
		e := rekorEntry(fmt.Sprint("timestamp ", i))
		e.CanonicalizedBody = []byte(`{"signature":{"content":"` + base64Of(sig.Sig) + `"}}`)
		r.Log = append(r.Log, store.LogEntry{Rekor: e})
	}
	k := s.keeper(t, oci.KeeperOptions{Settle: time.Millisecond})
	defer k.Close()
	s.mustKeep(t, k, r)
	layers := tagLayers(t, reg, "/v2/team/app/manifests/"+strings.Replace(digest, ":", "-", 1)+".sig")
	if len(layers) != 2 {
		t.Fatalf("%d layers; want one for each signature", len(layers))
	}
	for i, l := range layers {
		bundle, _ := l["annotations"].(map[string]any)["dev.sigstore.cosign/bundle"].(string)
		if !strings.Contains(bundle, base64Of([]byte(fmt.Sprint("timestamp ", i)))) {
			t.Errorf("layer %d has %q", i, bundle)
		}
	}
}

func rekorEntry(timestamp string) *rekor.TransparencyLogEntry {
	e := &rekor.TransparencyLogEntry{
		LogIndex: 7, LogId: &common.LogId{KeyId: []byte("id")}, IntegratedTime: 1735787045, CanonicalizedBody: []byte("body"),
	}
	if timestamp != "" {
		e.InclusionPromise = &rekor.InclusionPromise{SignedEntryTimestamp: []byte(timestamp)}
	}
	return e
}

func base64Of(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
