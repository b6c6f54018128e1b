// Package sbom reads and writes bills of materials: which packages are in an
// artifact, how each is called, and how they relate.
//
// Document is the one model, and it holds only what our tasks state and our
// policies ask: names, versions, package URLs, checksums and relations. Each
// format is a file beside it that renders or reads the model; spdx.go is SPDX
// 2.3. What a format has beyond the model is dropped on reading, so a read
// document is good for showing and judging, not for handing on.
//
// Writing is deterministic: packages and relations are sorted, the time is an
// input, and the document's namespace is derived from its content. The same
// document is the same bytes on every machine, which is what lets a rebuild be
// compared with its predecessor down to the bill of materials.
package sbom

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// MaxBytes bounds a document that comes from elsewhere.
const MaxBytes = 64 << 20

// Document is a bill of materials.
type Document struct {
	// Name says what the document describes: an image reference, a source folder.
	Name string
	// Created is the time stated as the document's creation. Builds pass the
	// commit's time, so that it does not differ between two builds.
	Created time.Time
	// Tool is the program that made the document; empty: none is named.
	Tool string
	// Packages are everything the document speaks of, the described ones too.
	Packages []Package
	// Relations join packages by their IDs.
	Relations []Relation
}

// Package is one thing in the bill.
type Package struct {
	// ID is unique in its document: letters, digits, dots and dashes. Empty: one
	// is derived from the package URL, or from name and version without one.
	ID      string
	Name    string
	Version string
	// PURL is the package URL. A Go module is called by its module path,
	// whichever proxy it came from.
	PURL string
	// Purpose is SPDX's primary package purpose: CONTAINER, APPLICATION, LIBRARY.
	Purpose   string
	Checksums []Checksum
	Comment   string
}

// Checksum is a digest of a package. For Go modules the convention of the
// field is followed: SHA256 with the bytes of the module's h1 sum.
type Checksum struct {
	Algorithm string // SHA256, SHA1 …
	Value     string // lower-case hex
}

// Relation is a directed edge between two packages, or from the document
// itself, whose ID is DocumentID.
type Relation struct {
	From, Type, To string
}

// DocumentID is how relations name the document itself.
const DocumentID = "DOCUMENT"

// Relation types that our tasks use.
const (
	Describes = "DESCRIBES"
	Contains  = "CONTAINS"
	DependsOn = "DEPENDS_ON"
	VariantOf = "VARIANT_OF"
)

// Described returns the packages that the document itself is about, in the
// order of their IDs; nothing when it names none.
func (d *Document) Described() []Package {
	var out []Package
	for _, r := range d.Relations {
		if r.From != DocumentID || r.Type != Describes {
			continue
		}
		for _, p := range d.Packages {
			if p.ID == r.To {
				out = append(out, p)
			}
		}
	}
	return out
}

// Key is the ID the package has in a document: the given one, or one derived
// from what it is.
func (p Package) Key() string {
	if p.ID != "" {
		return p.ID
	}
	what := p.PURL
	if what == "" {
		what = p.Name + "@" + p.Version
	}
	sum := sha256.Sum256([]byte(what))
	return "Package-" + clean(p.Name) + "-" + hex.EncodeToString(sum[:6])
}

// clean keeps what SPDX allows in an identifier.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-':
			return r
		}
		return '-'
	}, s)
}

// normal returns a copy in canonical order with every ID filled in. It fails
// when a package has no name, an ID is used twice or badly spelled, or a
// relation leads nowhere.
func (d *Document) normal() (*Document, error) {
	out := *d
	out.Packages = slices.Clone(d.Packages)
	out.Relations = slices.Clone(d.Relations)
	known := map[string]bool{DocumentID: true}
	for i := range out.Packages {
		p := &out.Packages[i]
		if p.Name == "" {
			return nil, errors.New("package without a name")
		}
		p.ID = p.Key()
		if clean(p.ID) != p.ID {
			return nil, fmt.Errorf("package id %q: want letters, digits, dots and dashes", p.ID)
		}
		if known[p.ID] {
			return nil, fmt.Errorf("package id %q is used twice", p.ID)
		}
		known[p.ID] = true
	}
	for _, r := range out.Relations {
		for _, id := range []string{r.From, r.To} {
			if !known[id] {
				return nil, fmt.Errorf("relation %s names %q, which is not in the document", r.Type, id)
			}
		}
	}
	slices.SortFunc(out.Packages, func(a, b Package) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(out.Relations, func(a, b Relation) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.Type, b.Type), cmp.Compare(a.To, b.To))
	})
	out.Relations = slices.Compact(out.Relations)
	return &out, nil
}
