package sbom

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spdx/tools-golang/spdx/v2/common"
	"github.com/spdx/tools-golang/spdx/v2/v2_3"
)

// namespace is what our documents' namespaces begin with; the rest is derived
// from the content.
const namespace = "https://assay.dev/spdx/"

// WriteSPDX renders d as SPDX 2.3 JSON with a final newline. The same document
// gives the same bytes. It fails when d contradicts itself: an ID used twice, a
// relation that leads nowhere, a package without a name.
func WriteSPDX(d *Document) ([]byte, error) {
	n, err := d.normal()
	if err != nil {
		return nil, fmt.Errorf("writing SPDX: %w", err)
	}
	info := &v2_3.CreationInfo{Created: n.Created.UTC().Format(time.RFC3339)}
	info.Creators = []common.Creator{{CreatorType: "Organization", Creator: "Assay"}}
	if n.Tool != "" {
		info.Creators = append(info.Creators, common.Creator{CreatorType: "Tool", Creator: n.Tool})
	}
	doc := &v2_3.Document{
		SPDXVersion:    v2_3.Version,
		DataLicense:    v2_3.DataLicense,
		SPDXIdentifier: DocumentID,
		DocumentName:   n.Name,
		CreationInfo:   info,
	}
	for _, p := range n.Packages {
		doc.Packages = append(doc.Packages, spdxPackage(p))
	}
	for _, r := range n.Relations {
		doc.Relationships = append(doc.Relationships, &v2_3.Relationship{
			RefA:         common.MakeDocElementID("", r.From),
			RefB:         common.MakeDocElementID("", r.To),
			Relationship: r.Type,
		})
	}
	// The namespace has to be unique to the content, and must not differ
	// between two writings of it.
	bare, err := encode(doc)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(bare)
	doc.DocumentNamespace = namespace + url.PathEscape(clean(n.Name)) + "-" + hex.EncodeToString(sum[:])
	return encode(doc)
}

func encode(doc *v2_3.Document) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(doc); err != nil {
		return nil, fmt.Errorf("writing SPDX: %w", err)
	}
	return b.Bytes(), nil
}

func spdxPackage(p Package) *v2_3.Package {
	out := &v2_3.Package{
		PackageName:             p.Name,
		PackageSPDXIdentifier:   common.ElementID(p.ID),
		PackageVersion:          p.Version,
		PackageDownloadLocation: "NOASSERTION",
		PackageLicenseConcluded: "NOASSERTION",
		PackageLicenseDeclared:  "NOASSERTION",
		PackageCopyrightText:    "NOASSERTION",
		PackageSupplier:         &common.Supplier{Supplier: "NOASSERTION"},
		PrimaryPackagePurpose:   p.Purpose,
		PackageComment:          p.Comment,
	}
	for _, c := range p.Checksums {
		out.PackageChecksums = append(out.PackageChecksums, common.Checksum{
			Algorithm: common.ChecksumAlgorithm(c.Algorithm), Value: c.Value,
		})
	}
	slices.SortFunc(out.PackageChecksums, func(a, b common.Checksum) int {
		return strings.Compare(string(a.Algorithm)+a.Value, string(b.Algorithm)+b.Value)
	})
	if p.PURL != "" {
		out.PackageExternalReferences = []*v2_3.PackageExternalReference{{
			Category: common.CategoryPackageManager, RefType: "purl", Locator: p.PURL,
		}}
	}
	return out
}

// ReadSPDX reads an SPDX 2.3 (or 2.2) JSON document. It fails on anything that
// is not one, on other versions by name, and above MaxBytes.
func ReadSPDX(data []byte) (_ *Document, err error) {
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("reading SPDX: %d bytes, more than the %d allowed", len(data), MaxBytes)
	}
	// The version decides how the rest is read, so it is looked at first.
	var head struct {
		Version string `json:"spdxVersion"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fmt.Errorf("reading SPDX: %w", err)
	}
	switch head.Version {
	case v2_3.Version, "SPDX-2.2": // 2.3 only adds fields to 2.2
	case "":
		return nil, errors.New("reading SPDX: no spdxVersion: this is not an SPDX 2 document in JSON")
	default:
		return nil, fmt.Errorf("reading SPDX: version %q is not supported: want SPDX-2.3 or SPDX-2.2", head.Version)
	}
	// The library indexes into what it parses; a stranger's document must not
	// be able to end the program.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("reading SPDX: malformed document: %v", r)
		}
	}()
	var doc v2_3.Document
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("reading SPDX: %w", err)
	}
	out := &Document{Name: doc.DocumentName}
	if doc.CreationInfo != nil {
		if out.Created, err = time.Parse(time.RFC3339, doc.CreationInfo.Created); err != nil {
			return nil, fmt.Errorf("reading SPDX: creation time: %w", err)
		}
		for _, c := range doc.CreationInfo.Creators {
			if c.CreatorType == "Tool" {
				out.Tool = c.Creator
			}
		}
	}
	for _, p := range doc.Packages {
		if p == nil {
			return nil, errors.New("reading SPDX: a package is null")
		}
		out.Packages = append(out.Packages, fromSPDX(p))
	}
	for _, r := range doc.Relationships {
		if r == nil {
			return nil, errors.New("reading SPDX: a relationship is null")
		}
		out.Relations = append(out.Relations, Relation{
			From: string(r.RefA.ElementRefID), Type: r.Relationship, To: string(r.RefB.ElementRefID),
		})
	}
	return out, nil
}

func fromSPDX(p *v2_3.Package) Package {
	out := Package{
		ID:      string(p.PackageSPDXIdentifier),
		Name:    p.PackageName,
		Version: p.PackageVersion,
		Purpose: p.PrimaryPackagePurpose,
		Comment: p.PackageComment,
	}
	for _, c := range p.PackageChecksums {
		out.Checksums = append(out.Checksums, Checksum{Algorithm: string(c.Algorithm), Value: c.Value})
	}
	for _, r := range p.PackageExternalReferences {
		if r != nil && r.RefType == "purl" && out.PURL == "" {
			out.PURL = r.Locator
		}
	}
	return out
}
