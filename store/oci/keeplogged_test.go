package oci_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/internal/logserver"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
)

// startLog is a log of ours on loopback.
func startLog(t *testing.T) (*tlog.Tile, tlog.Trust) {
	t.Helper()
	secret, key, _, err := tlog.GenerateKey("example.com/log")
	if err != nil {
		t.Fatal(err)
	}
	s, err := logserver.Open(t.Context(), logserver.Options{Dir: filepath.Join(t.TempDir(), "log"), Key: secret})
	if err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("0123456789abcdef0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s.Handler(logserver.Admission{TokenFile: token}))
	t.Cleanup(func() {
		srv.Close()
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	l, err := tlog.NewTile(tlog.TileOptions{URL: srv.URL, LogKey: key.String(), TokenFile: token})
	if err != nil {
		t.Fatal(err)
	}
	return l, tlog.Trust{Logs: []tlog.LogKey{key}}
}

// TestBundlesLogged: an image signed by two keys, each in both forms, into a real
// log of ours and as bundles into a registry. Every signature is in the log, and
// beside every bundle is the proof that is about its own signature.
func TestBundlesLogged(t *testing.T) {
	l, trust := startLog(t)
	s := serve(t, olareg(t))
	image := s.image(t, "team/app", "logged")
	r := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), image, storetest.NewRecordSigner(t), storetest.NewRecordSigner(t))
	entries, err := l.Upload(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 {
		t.Fatalf("%d entries; want one for each of the two payloads", len(entries))
	}
	signed := tlog.SignedOf(r)
	if len(signed) != 4 {
		t.Fatalf("%d signatures; want each key's two", len(signed))
	}
	for i, one := range signed {
		covering := tlog.Covering(entries, one)
		if len(covering) != 1 {
			t.Fatalf("signature %d is covered by %d entries", i, len(covering))
		}
		if _, err := tlog.CheckProof(covering[0].Proof, one, trust); err != nil {
			t.Errorf("signature %d: %v", i, err)
		}
	}
	again, err := l.Upload(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	for i := range again {
		if again[i].URL != entries[i].URL {
			t.Errorf("logged again as %s; it is at %s", again[i].URL, entries[i].URL)
		}
	}

	r.Log = entries
	k := s.keeper(t, oci.KeeperOptions{Encoding: oci.EncodingBundle})
	defer k.Close()
	s.mustKeep(t, k, r)
	ref := "http://" + s.addr + "/v2/team/app/"
	digest := image[len(image)-71:]
	var list struct {
		Manifests []struct {
			Digest      string            `json:"digest"`
			Annotations map[string]string `json:"annotations"`
		} `json:"manifests"`
	}
	getJSON(t, ref+"referrers/"+digest, &list)
	if len(list.Manifests) != 2 {
		t.Fatalf("%d bundles; want one for each key", len(list.Manifests))
	}
	for _, m := range list.Manifests {
		var manifest struct {
			Layers []struct {
				Digest string `json:"digest"`
			} `json:"layers"`
			Annotations map[string]string `json:"annotations"`
		}
		getJSON(t, ref+"manifests/"+m.Digest, &manifest)
		var raw json.RawMessage
		getJSON(t, ref+"blobs/"+manifest.Layers[0].Digest, &raw)
		b, err := bundle.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		proofs, err := tlog.ParseProofs(manifest.Annotations[oci.AnnotationLogProof])
		if err != nil || len(proofs) != 1 {
			t.Fatalf("%d proofs beside a bundle, %v; want the one about it", len(proofs), err)
		}
		checked := false
		for _, by := range r.Signatures {
			one := tlog.Signed{PayloadType: b.Envelope.PayloadType, Payload: b.Envelope.Payload, Sig: b.Envelope.Signatures[0].Sig, Key: by.Key}
			if by.Key.Verify(one.Message(), one.Sig) != nil {
				continue
			}
			if _, err := tlog.CheckProof(proofs[0], one, trust); err != nil {
				t.Errorf("the bundle by %s: %v", by.KeyID, err)
			}
			checked = true
		}
		if !checked {
			t.Error("a bundle by none of the keys")
		}
	}
	// A simple signing signature's proof says nothing about a bundle.
	if got := tlog.Covering(entries[:1], signed[2]); len(got) != 0 || signed[0].PayloadType != simplesigning.MediaType {
		t.Errorf("%d entries about the document cover the statement", len(got))
	}
	bad := r
	bad.Signatures = append([]store.Signature(nil), r.Signatures...)
	bad.Signatures[0].Statement = r.Signatures[1].Statement
	if _, err := l.Upload(t.Context(), bad); store.ClassOf(err) != store.Permanent {
		t.Errorf("another key's signature was logged: %v", err)
	}
}

func getJSON(t *testing.T, url string, into any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", url, res.Status)
	}
	if err := json.NewDecoder(res.Body).Decode(into); err != nil {
		t.Fatalf("%s: %v", url, err)
	}
}
