package attached

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/store/oci"
)

// MaxSBOM is the size in bytes of the largest bill of materials that is attached.
const MaxSBOM = 64 << 20

// Media types of bills of materials, as cosign spells them.
const (
	MediaTypeSPDX         = api.MediaTypeSPDX
	MediaTypeSPDXText     = "text/spdx"
	MediaTypeCycloneDX    = "application/vnd.cyclonedx+json"
	MediaTypeCycloneDXXML = "application/vnd.cyclonedx+xml"
	MediaTypeSyft         = "application/vnd.syft+json"
)

// IsSBOM says whether a media type or artifact type is a bill of materials'.
func IsSBOM(mediaType string) bool {
	switch mediaType {
	case MediaTypeSPDX, MediaTypeSPDXText, MediaTypeCycloneDX, MediaTypeCycloneDXXML, MediaTypeSyft,
		"application/spdx+json", "application/vnd.dev.cosign.artifact.sbom.v1+json":
		return true
	}
	return false
}

// ErrUnnamed says that a bill of materials does not name the digest of what it
// describes, so nothing but the caller's word joins it with an image.
var ErrUnnamed = errors.New("the SBOM does not name the digest of the image it describes")

// SBOMLayer reads a bill of materials (SPDX or CycloneDX, JSON) and makes sure that
// what it describes is the image. It is an *OtherImageError where it describes
// another digest, and ErrUnnamed, with a layer that can be attached nonetheless,
// where it names none.
//
// Formats that are not JSON are refused: what they describe cannot be told.
func SBOMLayer(data []byte, digest string) (oci.Layer, error) {
	if len(data) > MaxSBOM {
		return oci.Layer{}, fmt.Errorf("reading the SBOM: %d bytes, at most %d are read", len(data), MaxSBOM)
	}
	if err := strictjson.Check(data, MaxSBOM); err != nil {
		return oci.Layer{}, fmt.Errorf("reading the SBOM: %w; want SPDX or CycloneDX as JSON", err)
	}
	var kind struct {
		SPDXVersion string          `json:"spdxVersion"`
		BOMFormat   string          `json:"bomFormat"`
		Graph       json.RawMessage `json:"@graph"`
		Schema      struct {
			URL string `json:"url"`
		} `json:"schema"`
	}
	if err := json.Unmarshal(data, &kind); err != nil {
		return oci.Layer{}, fmt.Errorf("reading the SBOM: %w", err)
	}
	l := oci.Layer{Content: data}
	var (
		named []string
		err   error
	)
	switch {
	case kind.SPDXVersion != "":
		l.MediaType = MediaTypeSPDX
		named, err = spdxRoot(data)
	case kind.BOMFormat == "CycloneDX":
		l.MediaType = MediaTypeCycloneDX
		named, err = cycloneDXRoot(data)
	case kind.Graph != nil:
		return oci.Layer{}, errors.New("reading the SBOM: SPDX 3 is not read; write it as SPDX 2.3 or CycloneDX")
	case strings.Contains(kind.Schema.URL, "anchore/syft"):
		return oci.Layer{}, errors.New("reading the SBOM: it is syft's own format; convert it with `syft convert` to SPDX or CycloneDX")
	default:
		return oci.Layer{}, errors.New("reading the SBOM: it is neither SPDX nor CycloneDX")
	}
	switch {
	case err != nil:
		return oci.Layer{}, fmt.Errorf("reading the SBOM: %w", err)
	case len(named) == 0:
		return l, ErrUnnamed
	case !slices.Contains(named, digest):
		return oci.Layer{}, &OtherImageError{What: "SBOM", Names: named[:min(maxNamed, len(named))], Digest: digest}
	}
	return l, nil
}

// SBOMReferrer is a bill of materials as a referrer.
func SBOMReferrer(l oci.Layer) oci.Referrer {
	return oci.Referrer{ArtifactType: l.MediaType, MediaType: l.MediaType, Content: l.Content}
}

// sha256In finds digests in names, versions and package URLs, where % may be
// escaped.
var sha256In = regexp.MustCompile(`sha256(?::|%3A|%3a)([0-9a-f]{64})`)

type names struct{ found []string }

func (n *names) text(values ...string) {
	for _, v := range values {
		for _, m := range sha256In.FindAllStringSubmatch(v, -1) {
			n.digest(m[1])
		}
	}
}

func (n *names) digest(hex string) {
	if d := "sha256:" + hex; !slices.Contains(n.found, d) && sha256In.MatchString(d) {
		n.found = append(n.found, d)
	}
}

// spdxRoot lists the digests that the described packages of an SPDX 2 document give
// themselves. A package that is an image has its manifest's digest as its version,
// in its package URL, or as a checksum.
func spdxRoot(data []byte) ([]string, error) {
	var d struct {
		Describes     []string `json:"documentDescribes"`
		Relationships []struct {
			Element string `json:"spdxElementId"`
			Type    string `json:"relationshipType"`
			Related string `json:"relatedSpdxElement"`
		} `json:"relationships"`
		Packages []struct {
			ID        string `json:"SPDXID"`
			Name      string `json:"name"`
			Version   string `json:"versionInfo"`
			Checksums []struct {
				Algorithm string `json:"algorithm"`
				Value     string `json:"checksumValue"`
			} `json:"checksums"`
			Refs []struct {
				Type    string `json:"referenceType"`
				Locator string `json:"referenceLocator"`
			} `json:"externalRefs"`
		} `json:"packages"`
	}
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, err
	}
	root := map[string]bool{}
	for _, id := range d.Describes {
		root[id] = true
	}
	for _, r := range d.Relationships {
		if r.Type == "DESCRIBES" && r.Element == "SPDXRef-DOCUMENT" {
			root[r.Related] = true
		}
		if r.Type == "DESCRIBED_BY" && r.Related == "SPDXRef-DOCUMENT" {
			root[r.Element] = true
		}
	}
	var n names
	for _, p := range d.Packages {
		if !root[p.ID] {
			continue
		}
		n.text(p.Name, p.Version)
		for _, c := range p.Checksums {
			if c.Algorithm == "SHA256" {
				n.digest(c.Value)
			}
		}
		for _, r := range p.Refs {
			if r.Type == "purl" {
				n.text(r.Locator)
			}
		}
	}
	return n.found, nil
}

// cycloneDXRoot lists the digests that a CycloneDX document's subject gives itself.
func cycloneDXRoot(data []byte) ([]string, error) {
	var d struct {
		Metadata struct {
			Component struct {
				Name    string `json:"name"`
				Version string `json:"version"`
				PURL    string `json:"purl"`
				Hashes  []struct {
					Algorithm string `json:"alg"`
					Content   string `json:"content"`
				} `json:"hashes"`
				Properties []struct {
					Name  string `json:"name"`
					Value string `json:"value"`
				} `json:"properties"`
			} `json:"component"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, err
	}
	c := d.Metadata.Component
	var n names
	n.text(c.Name, c.Version, c.PURL)
	for _, h := range c.Hashes {
		if h.Algorithm == "SHA-256" {
			n.digest(h.Content)
		}
	}
	for _, p := range c.Properties {
		// Trivy writes the manifest's digest here, beside layers' under other names.
		if p.Name == "aquasecurity:trivy:RepoDigest" {
			n.text(p.Value)
		}
	}
	return n.found, nil
}
