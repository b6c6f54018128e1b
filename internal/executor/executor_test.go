package executor

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/image"
	"assay.dev/assay/observe"
	"assay.dev/assay/observe/tree"
)

// layer makes an unpacked layer as the image store leaves it.
func layer(t *testing.T, content string) image.Layer {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	sum, err := tree.Digest(t.Context(), dir, tree.Options{Special: true})
	if err != nil {
		t.Fatal(err)
	}
	return image.Layer{DiffID: "sha256:1", Dir: dir, Tree: sum.Digest}
}

func TestLayerCheck(t *testing.T) {
	damaged := func(t *testing.T) image.Layer {
		l := layer(t, "good")
		if err := os.WriteFile(filepath.Join(l.Dir, "file"), []byte("evil"), 0o644); err != nil {
			t.Fatal(err)
		}
		return l
	}
	unasked := func() (*image.Image, error) { t.Error("it asked for a repair"); return nil, errors.New("no") }

	t.Run("good", func(t *testing.T) {
		l := layer(t, "good")
		dir, err := new(layerCheck).verify(t.Context(), l, unasked)
		if err != nil || dir != l.Dir {
			t.Errorf("%s %v", dir, err)
		}
	})
	t.Run("mended, once a run", func(t *testing.T) {
		fresh, asked := layer(t, "good"), 0
		c, bad := new(layerCheck), damaged(t)
		for range 2 {
			dir, err := c.verify(t.Context(), bad, func() (*image.Image, error) {
				asked++
				return &image.Image{Layers: []image.Layer{{DiffID: "sha256:0"}, fresh}}, nil
			})
			if err != nil || dir != fresh.Dir {
				t.Errorf("%s %v, want %s", dir, err, fresh.Dir)
			}
		}
		if asked != 1 {
			t.Errorf("it asked %d times", asked)
		}
	})
	t.Run("not mended", func(t *testing.T) {
		_, err := new(layerCheck).verify(t.Context(), damaged(t), func() (*image.Image, error) { return nil, errors.New("registry answered 500") })
		if !errors.Is(err, image.ErrLayerChanged) || !strings.Contains(err.Error(), "registry answered 500") {
			t.Errorf("error %v, want the damage and why it stays", err)
		}
	})
	t.Run("damaged again", func(t *testing.T) {
		_, err := new(layerCheck).verify(t.Context(), damaged(t), func() (*image.Image, error) {
			return &image.Image{Layers: []image.Layer{damaged(t)}}, nil
		})
		if !errors.Is(err, image.ErrLayerChanged) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("gone from the image", func(t *testing.T) {
		if _, err := new(layerCheck).verify(t.Context(), damaged(t), func() (*image.Image, error) { return &image.Image{}, nil }); err == nil {
			t.Error("a damaged layer was used")
		}
	})
	// A task that is cancelled while its layers are verified says nothing about
	// them to the next.
	t.Run("cancelled", func(t *testing.T) {
		c, l := new(layerCheck), layer(t, "good")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.verify(ctx, l, unasked); err == nil {
			t.Skip("it was verified before it saw the end of the context")
		}
		if dir, err := c.verify(t.Context(), l, unasked); err != nil || dir != l.Dir {
			t.Errorf("the next task: %s %v", dir, err)
		}
	})
}

func TestParseForwards(t *testing.T) {
	for in, want := range map[string]int{"localhost:8080": 8080, "80=localhost:8080": 80, "80=10.0.0.1:443": 80,
		"": 0, "localhost": 0, "x=localhost:1": 0, "0=localhost:1": 0, "70000=localhost:1": 0, "80=localhost": 0} {
		got, err := parseForwards([]string{in})
		if (err == nil) != (want > 0) || err == nil && got[0].Port != want {
			t.Errorf("%q: %+v %v", in, got, err)
		}
	}
}

// A run reaches no service of this machine that was not forwarded to it.
func TestForeign(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "::", "169.254.169.254", "fe80::1", "224.0.0.1"} {
		if foreign(netip.MustParseAddr(ip).Unmap()) == nil {
			t.Errorf("%s is reachable", ip)
		}
	}
	if foreign(netip.MustParseAddr("::ffff:127.0.0.1").Unmap()) == nil {
		t.Error("loopback in IPv6's clothes is reachable")
	}
	if err := foreign(netip.MustParseAddr("192.0.2.1")); err != nil {
		t.Error(err)
	}
}

// The export's digest stands, whatever a step wrote under the same name.
func TestSetResult(t *testing.T) {
	a := &attempt{results: []observe.Value{{Name: "IMAGE_DIGEST", Value: "forged"}, {Name: "other", Value: "x"}}}
	a.setResult(observe.Value{Name: "IMAGE_DIGEST", Value: "measured"})
	a.setResult(observe.Value{Name: "IMAGE_URL", Value: "repo"})
	if len(a.results) != 3 || a.results[0].Value != "measured" || a.results[2].Value != "repo" {
		t.Errorf("%+v", a.results)
	}
}

func TestArtifactURI(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for uri, ok := range map[string]bool{
		"oci:localhost:5055/staging/x@" + digest: true, "oci:x@" + digest: true,
		digest: false, "oci:@" + digest: false, "oci:x@sha256:abc": false, "oci:x@" + digest + "0": false,
		"oci:a b@" + digest: false, "oci:x@y@" + digest: false, "http:x@" + digest: false, " oci:x@" + digest: false, "oci:x@" + digest + "\n": false,
	} {
		if artifactURI.MatchString(uri) != ok {
			t.Errorf("%q: %t", uri, !ok)
		}
	}
}
