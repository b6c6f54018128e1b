package gate

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/store"
	"assay.dev/assay/store/storetest"
)

// layer is one layer of a tag as cosign 1 and 2 write it.
type layer struct {
	mediaType   string
	content     []byte
	annotations map[string]string
}

func send(t testing.TB, r *rig, method, url, contentType string, body []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	res, err := (&http.Client{Transport: r.rt.base}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if said, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusCreated {
		t.Fatalf("%s %s: %s %s", method, url, res.Status, said)
	}
}

// manifest pushes a manifest with layers under a tag or a digest.
func pushManifest(t testing.TB, r *rig, s store.Subject, tag string, layers ...layer) {
	t.Helper()
	base := "http://" + registryName + "/v2/" + strings.TrimPrefix(s.Repo, registryName+"/")
	config := []byte("{}")
	send(t, r, http.MethodPost, base+"/blobs/uploads/?digest="+storetest.Digest(config), "application/octet-stream", config)
	type desc struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int               `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	m := struct {
		SchemaVersion int    `json:"schemaVersion"`
		MediaType     string `json:"mediaType"`
		Config        desc   `json:"config"`
		Layers        []desc `json:"layers"`
	}{2, imageType, desc{"application/vnd.oci.image.config.v1+json", storetest.Digest(config), len(config), nil}, []desc{}}
	for _, l := range layers {
		send(t, r, http.MethodPost, base+"/blobs/uploads/?digest="+storetest.Digest(l.content), "application/octet-stream", l.content)
		m.Layers = append(m.Layers, desc{l.mediaType, storetest.Digest(l.content), len(l.content), l.annotations})
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	send(t, r, http.MethodPut, base+"/manifests/"+tag, imageType, raw)
}

func tagOf(s store.Subject, suffix string) string {
	return strings.Replace(s.Digest, ":", "-", 1) + suffix
}

// tagged hangs evidence on an image as tags only.
func tagged(t testing.TB, r *rig, s store.Subject, list ...store.Evidence) {
	t.Helper()
	var sig, att []layer
	for _, e := range list {
		if e.Simple != nil {
			sig = append(sig, layer{simplesigning.MediaType, e.Simple.Payload, map[string]string{"dev.cosignproject.cosign/signature": base64Of(e.Simple.Sig)}})
			continue
		}
		b, err := json.Marshal(e.Envelope)
		if err != nil {
			t.Fatal(err)
		}
		att = append(att, layer{api.MediaTypeDSSE, b, map[string]string{}})
	}
	if sig != nil {
		pushManifest(t, r, s, tagOf(s, ".sig"), sig...)
	}
	if att != nil {
		pushManifest(t, r, s, tagOf(s, ".att"), att...)
	}
}

func base64Of(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
