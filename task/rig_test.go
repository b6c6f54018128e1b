package task_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
)

// zipModule writes the zip of example.com/dep v1.0.0.
func zipModule(t *testing.T, path string, files map[string]string) {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f, err := w.Create("example.com/dep@v1.0.0/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(f, files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

type archive struct {
	names   []string
	content map[string][]byte
}

// untar reads a layer and checks what has to be the same for every entry.
func untar(t *testing.T, layer []byte, diff digest.Digest) archive {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(layer))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	if digest.FromBytes(raw) != diff {
		t.Errorf("the layer is %s unpacked, the configuration says %s", digest.FromBytes(raw), diff)
	}
	out := archive{content: map[string][]byte{}}
	r := tar.NewReader(bytes.NewReader(raw))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.Unix() != 1704164645 || h.Uid != 0 || h.Gid != 0 || h.Uname != "" {
			t.Errorf("%s has time %v and owner %d:%d %s", h.Name, h.ModTime, h.Uid, h.Gid, h.Uname)
		}
		out.names = append(out.names, h.Name)
		if out.content[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}
