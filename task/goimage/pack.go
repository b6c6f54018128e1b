package goimage

import (
	"archive/tar"
	"compress/gzip"
	"debug/buildinfo"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"assay.dev/assay/api"
	"assay.dev/assay/sbom"
	"assay.dev/assay/task/layout"
)

// user that the program runs as: nobody in particular, and not root.
const user = "65532:65532"

// passwd and group make the user known to programs that ask.
const (
	passwd = "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin\n"
	group  = "root:x:0:\nnonroot:x:65532:\n"
)

// pack writes the image and its bill of materials as a layout.
func pack(o Options, p ocispec.Platform, binary string, info *buildinfo.BuildInfo) (*Result, error) {
	name, err := programName(info.Path)
	if err != nil {
		return nil, err
	}
	w, err := layout.Create(o.Out)
	if err != nil {
		return nil, err
	}
	diff := digest.SHA256.Digester()
	layer, err := w.Stream(ocispec.MediaTypeImageLayerGzip, func(to io.Writer) error {
		z, err := gzip.NewWriterLevel(to, gzip.BestSpeed)
		if err != nil {
			return err
		}
		if err := writeLayer(io.MultiWriter(z, diff.Hash()), o.Epoch, name, binary); err != nil {
			return err
		}
		return z.Close()
	})
	if err != nil {
		return nil, err
	}
	config, err := w.JSON(ocispec.MediaTypeImageConfig, imageConfig(o, p, name, diff.Digest()))
	if err != nil {
		return nil, err
	}
	image, err := w.JSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config,
		Layers:    []ocispec.Descriptor{layer},
	})
	if err != nil {
		return nil, err
	}
	image.Platform = &p
	w.Add(image)

	res := &Result{Name: name, Image: image, Modules: len(linked(info))}
	bill, err := bill(name, image, p, info, o)
	if err != nil {
		return nil, err
	}
	if res.SBOMBlob, err = w.Blob(api.MediaTypeSPDX, bill); err != nil {
		return nil, err
	}
	if _, err := w.Blob(ocispec.MediaTypeEmptyJSON, ocispec.DescriptorEmptyJSON.Data); err != nil {
		return nil, err
	}
	manifest := layout.Referrer(api.MediaTypeSPDX, res.SBOMBlob, image, map[string]string{
		ocispec.AnnotationCreated: o.Epoch.Format(time.RFC3339),
	})
	if res.SBOM, err = w.JSON(ocispec.MediaTypeImageManifest, manifest); err != nil {
		return nil, err
	}
	res.SBOM.ArtifactType = api.MediaTypeSPDX
	res.SBOM.Annotations = map[string]string{ocispec.AnnotationRefName: layout.SBOMTag(image.Digest)}
	w.Add(res.SBOM)
	return res, w.Close()
}

// imageConfig holds nothing of the run: what differs between two runs of the
// same commit would make two digests of it.
func imageConfig(o Options, p ocispec.Platform, name string, diff digest.Digest) ocispec.Image {
	labels := map[string]string{"org.opencontainers.image.title": name}
	for k, v := range o.Labels {
		labels[k] = v
	}
	if o.Revision != "" {
		labels[ocispec.AnnotationRevision] = o.Revision
	}
	if o.URL != "" {
		labels[ocispec.AnnotationSource] = o.URL
	}
	created := o.Epoch
	return ocispec.Image{
		Created:  &created,
		Platform: p,
		Config: ocispec.ImageConfig{
			User:       user,
			Entrypoint: []string{"/usr/bin/" + name},
			WorkingDir: "/",
			Env:        []string{"PATH=/usr/bin"},
			Labels:     labels,
		},
		RootFS:  ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diff}},
		History: []ocispec.History{{Created: &created, CreatedBy: "assay-task build-go-image"}},
	}
}

// writeLayer writes the one layer: the program, its user, and a folder for
// temporary files. Owner, modes, times and order are fixed.
func writeLayer(to io.Writer, epoch time.Time, name, binary string) error {
	t := tar.NewWriter(to)
	dir := func(path string, mode int64) error {
		return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: path, Mode: mode, ModTime: epoch, Format: tar.FormatUSTAR})
	}
	file := func(path string, mode, size int64, r io.Reader) error {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: mode, Size: size, ModTime: epoch, Format: tar.FormatUSTAR}); err != nil {
			return err
		}
		_, err := io.Copy(t, r)
		return err
	}
	text := func(path, s string) error { return file(path, 0o644, int64(len(s)), strings.NewReader(s)) }
	program := func() error {
		f, err := os.Open(binary)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		return file("usr/bin/"+name, 0o755, info.Size(), f)
	}
	for _, step := range []func() error{
		func() error { return dir("etc/", 0o755) },
		func() error { return text("etc/group", group) },
		func() error { return text("etc/passwd", passwd) },
		func() error { return dir("tmp/", 0o1777) },
		func() error { return dir("usr/", 0o755) },
		func() error { return dir("usr/bin/", 0o755) },
		program,
	} {
		if err := step(); err != nil {
			return fmt.Errorf("writing layer: %w", err)
		}
	}
	if err := t.Close(); err != nil {
		return fmt.Errorf("writing layer: %w", err)
	}
	return nil
}

// linkedModule is a module in a program: the replacement where go.mod has one.
type linkedModule struct{ Path, Version, Sum string }

// linked lists the modules in a program, the main one first.
func linked(info *buildinfo.BuildInfo) []linkedModule {
	out := []linkedModule{{info.Main.Path, info.Main.Version, info.Main.Sum}}
	for _, m := range info.Deps {
		switch {
		case m.Replace == nil:
		case m.Replace.Version == "": // a folder of the source: its name is no module's
			m = &debug.Module{Path: m.Path}
		default:
			m = m.Replace
		}
		out = append(out, linkedModule{m.Path, m.Version, m.Sum})
	}
	return out
}

// bill is the SPDX document of an image: the image contains the program's main
// module, the modules linked into it, and the standard library.
func bill(name string, image ocispec.Descriptor, p ocispec.Platform, info *buildinfo.BuildInfo, o Options) ([]byte, error) {
	doc := &sbom.Document{Name: name, Created: o.Epoch, Tool: "assay-task"}
	root := sbom.Package{
		ID: "image", Name: name, Version: image.Digest.String(), Purpose: "CONTAINER",
		PURL:      sbom.OCIPURL(name, image.Digest.String(), p.Architecture),
		Checksums: []sbom.Checksum{{Algorithm: "SHA256", Value: image.Digest.Encoded()}},
	}
	doc.Packages = append(doc.Packages, root)
	doc.Relations = append(doc.Relations, sbom.Relation{From: sbom.DocumentID, Type: sbom.Describes, To: root.ID})
	var main string
	for i, m := range linked(info) {
		version := m.Version
		if version == "(devel)" || version == "" {
			version = o.Revision // built from the source at hand
		}
		pkg, err := sbom.GoModule(m.Path, version, m.Sum)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			pkg.Purpose = "APPLICATION"
			main = pkg.Key()
		} else {
			doc.Relations = append(doc.Relations, sbom.Relation{From: main, Type: sbom.DependsOn, To: pkg.Key()})
		}
		doc.Packages = append(doc.Packages, pkg)
		doc.Relations = append(doc.Relations, sbom.Relation{From: root.ID, Type: sbom.Contains, To: pkg.Key()})
	}
	std := sbom.GoStdlib(info.GoVersion)
	doc.Packages = append(doc.Packages, std)
	doc.Relations = append(doc.Relations,
		sbom.Relation{From: root.ID, Type: sbom.Contains, To: std.Key()},
		sbom.Relation{From: main, Type: sbom.DependsOn, To: std.Key()})
	return sbom.WriteSPDX(doc)
}
