package builtin

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/open-policy-agent/opa/v1/ast"
	"sigs.k8s.io/yaml"
)

// unpacked reads a blob, unpacking it if it is compressed.
func (c *call) unpacked(r name.Digest) ([]byte, error) {
	l, err := c.puller.Layer(c.ctx, r)
	if err != nil {
		return nil, err
	}
	rc, err := l.Uncompressed()
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	b, err := io.ReadAll(io.LimitReader(rc, c.opts.MaxBlob+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > c.opts.MaxBlob {
		return nil, fmt.Errorf("the blob is larger than %d MiB as unpacked", c.opts.MaxBlob>>20)
	}
	return b, nil
}

// content reads a blob that is what its digest says as it is given to the rule:
// a compressed one is not.
func (c *call) content(args []*ast.Term) ([]byte, error) {
	r, err := c.byDigest(args[0])
	if err != nil {
		return nil, err
	}
	b, err := c.unpacked(r)
	if err != nil {
		return nil, err
	}
	h := sha256.Sum256(b)
	if got := "sha256:" + hex.EncodeToString(h[:]); got != r.DigestStr() {
		return nil, errors.New("the blob is compressed, so its text has another digest; blob_files reads it")
	}
	return b, nil
}

func blob(c *call, args []*ast.Term) (*ast.Term, error) {
	b, err := c.content(args)
	if err != nil {
		return nil, err
	}
	return ast.StringTerm(string(b)), nil
}

func parsedBlob(c *call, args []*ast.Term) (*ast.Term, error) {
	b, err := c.content(args)
	if err != nil {
		return nil, err
	}
	return jsonTerm(b)
}

// jsonTerm parses one JSON document and nothing after it.
func jsonTerm(b []byte) (*ast.Term, error) {
	if !json.Valid(b) {
		return nil, errors.New("the content is not JSON")
	}
	v, err := ast.ValueFromReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return ast.NewTerm(v), nil
}

func blobFiles(c *call, args []*ast.Term) (*ast.Term, error) {
	r, err := c.byDigest(args[0])
	if err != nil {
		return nil, err
	}
	paths, err := texts(args[1], "the paths")
	if err != nil {
		return nil, err
	}
	b, err := c.unpacked(r)
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return ast.ObjectTerm(), nil
	}
	return c.extract(bytes.NewReader(b), func(h *tar.Header) bool { return slices.Contains(paths, h.Name) })
}

func imageFiles(c *call, args []*ast.Term) (*ast.Term, error) {
	r, err := c.byDigest(args[0])
	if err != nil {
		return nil, err
	}
	dirs, err := texts(args[1], "the paths")
	if err != nil {
		return nil, err
	}
	d, err := c.puller.Get(c.ctx, r)
	if err != nil {
		return nil, err
	}
	img, err := d.Image()
	if err != nil {
		return nil, err
	}
	if len(dirs) == 0 {
		return ast.ObjectTerm(), nil
	}
	return c.imageFiles(img, dirs)
}

// imageFiles reads structured files that are directly in the folders of the
// image as it would be unpacked.
func (c *call) imageFiles(img v1.Image, dirs []string) (*ast.Term, error) {
	rc := mutate.Extract(img)
	defer rc.Close()
	// What is skipped has to be read too.
	return c.extract(io.LimitReader(rc, maxImage), func(h *tar.Header) bool { return In(h.Name, dirs) })
}

// maxImage is how much of an image, unpacked, is looked through for files.
const maxImage = 16 << 30

// In says whether a file is one that image_files gives for the folders: directly
// in one of them, with the extension of a structured file.
func In(file string, dirs []string) bool {
	if !slices.ContainsFunc(dirs, func(d string) bool { return strings.EqualFold(path.Dir(file), path.Clean(d)) }) {
		return false
	}
	switch strings.ToLower(path.Ext(file)) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// extract reads the files that want names out of an archive. One that is neither
// YAML nor JSON is left out.
func (c *call) extract(r io.Reader, want func(*tar.Header) bool) (*ast.Term, error) {
	found := ast.NewObject()
	left := c.opts.MaxBlob
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return ast.NewTerm(found), nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the archive: %w", err)
		}
		if err := c.ctx.Err(); err != nil {
			return nil, err
		}
		if !want(h) {
			continue
		}
		if h.Size > left {
			return nil, fmt.Errorf("reading the archive: its files are larger than %d MiB", c.opts.MaxBlob>>20)
		}
		left -= h.Size
		b, err := io.ReadAll(archive)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", h.Name, err)
		}
		if b, err = yaml.YAMLToJSON(b); err != nil {
			continue
		}
		t, err := jsonTerm(b)
		if err != nil {
			continue
		}
		found.Insert(ast.StringTerm(h.Name), t)
	}
}

// Files reads structured files that are directly in folders of an image, as
// image_files does, and returns them as a JSON object by path. It is bounded like
// a call of a rule.
func (s *Set) Files(ctx context.Context, img v1.Image, dirs []string) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	t, err := (&call{Set: s, name: ImageFiles, rec: s.shared, ctx: ctx}).imageFiles(img, dirs)
	if err != nil {
		return nil, err
	}
	v, err := ast.JSON(t.Value)
	if err != nil {
		return nil, err
	}
	return json.Marshal(v)
}
