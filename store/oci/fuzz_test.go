package oci

import "testing"

// The registry is a stranger too.
func FuzzManifests(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{},"layers":[{"mediaType":"application/vnd.dsse.envelope.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0,"annotations":{"a":"b"}}]}`))
	f.Add([]byte(`{"manifests":[{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":1,"artifactType":"x"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		if tag, err := parseTagManifest(data); err == nil {
			n := len(tag.layers)
			if err := tag.add(descriptor{MediaType: mediaTypeDSSE, Digest: digestOf(data), Size: 1}); err != nil {
				t.Fatal(err)
			}
			_, m, err := tag.bytes()
			if err != nil {
				t.Fatal(err)
			}
			again, err := parseTagManifest(m)
			if err != nil || len(again.layers) != n+1 {
				t.Fatalf("writing lost layers: %v", err)
			}
		}
		if x, err := parseIndex(data); err == nil {
			if _, err := x.bytes(); err != nil {
				t.Fatal(err)
			}
		}
		_, _, _ = parseReferrer(data, "sha256:x")
		_, _ = recorded(map[string]string{AnnotationTag: suffixAtt, AnnotationLayer: string(data)}, suffixAtt)
		_ = message(data)
	})
}
