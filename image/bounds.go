package image

import "fmt"

// Bounds limit what a stranger can make us read or write. A zero field is its
// default; a negative one is an error.
type Bounds struct {
	ManifestBytes int64 // a manifest or an index; default 4 MiB, as registries hold it
	ConfigBytes   int64 // an image's configuration; default 8 MiB
	BlobBytes     int64 // one compressed layer or other blob; default 16 GiB
	LayerBytes    int64 // one layer's archive, uncompressed; default 64 GiB
	Entries       int64 // one layer's entries; default 2,000,000
	Layers        int   // of one image; default 256, as overlayfs takes no more than 500
	Manifests     int   // listed by one index; default 1024
}

// withDefaults fills in defaults and refuses negative fields.
func (b Bounds) withDefaults() (Bounds, error) {
	if b.ManifestBytes < 0 || b.ConfigBytes < 0 || b.BlobBytes < 0 || b.LayerBytes < 0 || b.Entries < 0 || b.Layers < 0 || b.Manifests < 0 {
		return b, fmt.Errorf("checking bounds: a bound is negative (%+v); 0 means its default", b)
	}
	set := func(p *int64, v int64) {
		if *p == 0 {
			*p = v
		}
	}
	set(&b.ManifestBytes, 4<<20)
	set(&b.ConfigBytes, 8<<20)
	set(&b.BlobBytes, 16<<30)
	set(&b.LayerBytes, 64<<30)
	set(&b.Entries, 2_000_000)
	if b.Layers == 0 {
		b.Layers = 256
	}
	if b.Manifests == 0 {
		b.Manifests = 1024
	}
	return b, nil
}
