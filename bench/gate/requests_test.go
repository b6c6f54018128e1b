// The registry in this test is go-containerregistry's own, over http on loopback.
package main

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/internal/cli"
	"assay.dev/assay/internal/ec"
)

// TestRequests: an image costs eight requests at most (its manifest, configuration,
// referrers, two tags with one layer to read, and what the rules ask for), and a
// bundle of tasks one, whatever number of images was built with it.
func TestRequests(t *testing.T) {
	const images, perImage = 3, 8
	var mu sync.Mutex
	var asked []string
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.Method+" "+r.URL.Path)
		mu.Unlock()
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("ASSAY_HOME", filepath.Join(dir, "home"))
	set, err := newImageSet(t.Context(), strings.TrimPrefix(srv.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	if err := set.grow(t.Context(), images); err != nil {
		t.Fatal(err)
	}
	policy, err := writePolicy(dir, "", set.bundles)
	if err != nil {
		t.Fatal(err)
	}
	snapshot, key := filepath.Join(dir, "snapshot.json"), filepath.Join(dir, "key.pub")
	if err := writeSnapshot(snapshot, set.refs); err != nil {
		t.Fatal(err)
	}
	pub, err := dsse.NewPublicKey(set.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, pub.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, run := range map[string]func(out, errs io.Writer) int{
		"gate": func(out, errs io.Writer) int {
			return cli.Main([]string{"gate", "--images", snapshot, "--policy", policy, "--key", key, "--output", "json"}, strings.NewReader(""), out, errs)
		},
		"ec": func(out, errs io.Writer) int {
			return ec.Main([]string{"validate", "image", "--images", snapshot, "--policy", policy, "--public-key", key, "--ignore-rekor", "--output", "json"}, out, errs)
		},
	} {
		t.Run(name, func(t *testing.T) {
			mu.Lock()
			asked = nil
			mu.Unlock()
			var out, errs bytes.Buffer
			if code := run(&out, &errs); code != 0 {
				t.Fatalf("exit %d: %s\n%s", code, &errs, &out)
			}
			apps, tasks := 0, 0
			for _, a := range asked {
				switch {
				case strings.Contains(a, "/v2/apps/"):
					apps++
				case strings.Contains(a, "/v2/tasks/"):
					tasks++
				}
			}
			if apps > images*perImage || tasks > len(set.bundles) {
				t.Errorf("%d requests for %d images, at most %d for each; %d for %d bundles of tasks:\n%s", apps, images, perImage, tasks, len(set.bundles), strings.Join(asked, "\n"))
			}
			t.Logf("%d requests for %d images, %d for %d bundles of tasks, %d in all", apps, images, tasks, len(set.bundles), len(asked))
		})
	}
}
