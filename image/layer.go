package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"assay.dev/assay/observe/tree"
)

// Layer is an unpacked layer.
type Layer struct {
	DiffID string `json:"diffId"`
	// Dir is ready to be a lower layer of an overlay.
	Dir string `json:"dir"`
	// Tree is the assay-tree/v1 digest of Dir, as it was unpacked.
	Tree string `json:"tree"`
	// Opaque lists the folders, relative to Dir, that hide what layers below
	// have there. The digest does not cover attributes, so they are checked by
	// name.
	Opaque []string `json:"opaque,omitempty"`
	// Files and Bytes size it.
	Files int64 `json:"files"`
	Bytes int64 `json:"bytes"`
}

// opaqueAttr marks an opaque folder for overlayfs mounted with userxattr.
const opaqueAttr = "user.overlay.opaque"

// ErrLayerChanged is wrapped by VerifyLayer's error about a layer that is not
// what was unpacked.
var ErrLayerChanged = errors.New("layer is not what was unpacked")

// VerifyLayer measures an unpacked layer again and fails with ErrLayerChanged
// unless it is what was unpacked. Whoever runs an image calls it before the
// first use of a layer in each run; Recheck repairs what it finds.
func VerifyLayer(ctx context.Context, l Layer) error {
	sum, err := measure(ctx, l.Dir)
	if err != nil {
		return fmt.Errorf("verifying layer %s in %s: %w", l.DiffID, l.Dir, err)
	}
	if l.Tree == "" || sum.Digest != l.Tree {
		return fmt.Errorf("verifying layer %s in %s: its tree is %s, unpacked was %s: %w", l.DiffID, l.Dir, sum.Digest, l.Tree, ErrLayerChanged)
	}
	root, err := tree.OpenDir(l.Dir)
	if err != nil {
		return fmt.Errorf("verifying layer %s in %s: %w", l.DiffID, l.Dir, err)
	}
	defer root.Close()
	for _, p := range l.Opaque {
		if !isOpaque(root, p) {
			return fmt.Errorf("verifying layer %s in %s: folder %q has lost its mark as opaque: %w", l.DiffID, l.Dir, p, ErrLayerChanged)
		}
	}
	return nil
}

func isOpaque(root *os.File, rel string) bool {
	f := root
	if rel != "." {
		var err error
		if f, err = tree.OpenBeneath(root, rel, unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
			return false
		}
		defer f.Close()
	}
	var buf [8]byte
	n, err := unix.Fgetxattr(int(f.Fd()), opaqueAttr, buf[:])
	return err == nil && string(buf[:n]) == "y"
}

// measure is the layer's tree digest. Layers hold whiteouts, which are devices.
func measure(ctx context.Context, dir string) (tree.Sum, error) {
	return tree.Digest(ctx, dir, tree.Options{Special: true})
}

// record is layer.json.
type record struct {
	DiffID string   `json:"diffId"`
	Tree   string   `json:"tree"`
	Owners string   `json:"owners"`
	Setuid bool     `json:"setuid"`
	Opaque []string `json:"opaque,omitempty"`
	Files  int64    `json:"files"`
	Bytes  int64    `json:"bytes"`
}

var errNoLayer = errors.New("not unpacked yet")

// readLayer reads the record of an unpacked layer. It does not measure.
func (s *Store) readLayer(diffID string) (Layer, error) {
	dir := s.path("layers", diffID)
	b, err := os.ReadFile(filepath.Join(dir, "layer.json"))
	if errors.Is(err, os.ErrNotExist) {
		return Layer{}, errNoLayer
	}
	if err != nil {
		return Layer{}, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return Layer{}, fmt.Errorf("reading its record: %w", err)
	}
	if r.DiffID != diffID || r.Tree == "" {
		return Layer{}, errors.New("its record is another's")
	}
	if r.Owners != s.owners.key() || r.Setuid != s.opts.KeepSetuid {
		return Layer{}, fmt.Errorf("it was unpacked with owners %q, wanted is %q", r.Owners, s.owners.key())
	}
	return Layer{DiffID: diffID, Dir: filepath.Join(dir, "fs"), Tree: r.Tree, Opaque: r.Opaque, Files: r.Files, Bytes: r.Bytes}, nil
}

// makeLayer unpacks a layer into a temporary folder and renames it into place.
// The caller holds the layer's lock.
func (s *Store) makeLayer(ctx context.Context, repo name.Repository, d v1.Descriptor, diffID string) (Layer, error) {
	blob, err := s.openBlob(ctx, repo, d.Digest.String(), d.Size)
	if err != nil {
		return Layer{}, err
	}
	defer blob.Close()
	tmp, done, err := s.temp()
	if err != nil {
		return Layer{}, err
	}
	defer done()
	fs := filepath.Join(tmp, "layer", "fs")
	if err := os.MkdirAll(fs, 0o755); err != nil {
		return Layer{}, asLocal(err)
	}
	log := &onceLog{log: func(line string) { s.opts.Log("layer " + d.Digest.String() + ": " + line) }}
	u := &unpacker{dir: fs, owners: s.owners, bounds: s.opts.Bounds, keepSetuid: s.opts.KeepSetuid, log: log}
	if err := u.blob(ctx, blob, d.Digest.String(), d.Size, diffID); err != nil {
		return Layer{}, err
	}
	sum, err := measure(ctx, fs)
	if err != nil {
		return Layer{}, asLocal(err)
	}
	slices.Sort(u.opaque)
	u.opaque = slices.Compact(u.opaque)
	r := record{DiffID: diffID, Tree: sum.Digest, Owners: s.owners.key(), Setuid: s.opts.KeepSetuid, Opaque: u.opaque, Files: sum.Files, Bytes: sum.Bytes}
	b, err := json.Marshal(r)
	if err != nil {
		return Layer{}, asLocal(err)
	}
	if err := os.WriteFile(filepath.Join(tmp, "layer", "layer.json"), b, 0o644); err != nil {
		return Layer{}, asLocal(err)
	}
	final := s.path("layers", diffID)
	// A damaged or differently owned one may still be mounted somewhere; it
	// leaves its name at once and is removed with the temporary folder.
	if err := os.Rename(final, filepath.Join(tmp, "old")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return Layer{}, asLocal(err)
	}
	if err := os.Rename(filepath.Join(tmp, "layer"), final); err != nil {
		return Layer{}, asLocal(err)
	}
	return Layer{DiffID: diffID, Dir: filepath.Join(final, "fs"), Tree: r.Tree, Opaque: r.Opaque, Files: r.Files, Bytes: r.Bytes}, nil
}
