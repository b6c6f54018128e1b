// The registry is go-containerregistry's, over HTTP on loopback.
package ec_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// TestManyImages: memory does not grow with the number of images, also where an
// output wants all that rules saw.
func TestManyImages(t *testing.T) {
	if os.Getenv("ASSAY_SLOW") == "" {
		t.Skip("judges 600 images: set ASSAY_SLOW=1; make test-all does")
	}
	// One image under as many names as there are asked for.
	origin := serve(t, "127.0.0.1:0")
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: origin})
	names := regexp.MustCompile(`^/v2/n\d+/`)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.Path = names.ReplaceAllString(r.URL.Path, "/v2/")
		proxy.ServeHTTP(w, r)
	}))
	defer s.Close()
	refs, err := os.ReadFile(filepath.Join(material(t), "image-set", "refs.json"))
	if err != nil {
		t.Fatal(err)
	}
	var images map[string]string
	if err := json.Unmarshal(refs, &images); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	rules := "package main\n"
	for i := range 200 {
		rules += fmt.Sprintf("# METADATA\n# title: Rule %[1]d\n# description: Some words about rule %[1]d.\n# custom:\n#   short_name: r%[1]d\ndeny contains result if {\n\tinput.none == %[1]d\n\tresult := {\"code\": \"main.r%[1]d\", \"msg\": \"no\"}\n}\n", i)
	}
	write(t, dir, "rules/main.rego", rules)
	peak := func(n int) (uint64, int64) {
		var components []map[string]string
		for i := range n {
			components = append(components, map[string]string{"name": fmt.Sprint("c", i), "containerImage": fmt.Sprintf("%s/n%d/%s", s.Listener.Addr(), i, images["good"])})
		}
		snapshot, err := json.Marshal(map[string]any{"components": components})
		if err != nil {
			t.Fatal(err)
		}
		write(t, dir, "snapshot.json", string(snapshot))
		var most atomic.Uint64
		end, ended := make(chan bool), make(chan bool)
		go func() {
			defer close(ended)
			for {
				select {
				case <-end:
					return
				case <-time.After(20 * time.Millisecond):
				}
				var m runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&m)
				most.Store(max(most.Load(), m.HeapAlloc))
			}
		}()
		code, _, stderr := run(t, dir, []string{"validate", "image", "--images", "snapshot.json", "-k", filepath.Join(material(t), "image-set", "cosign.pub"), "--ignore-rekor",
			"-p", `{"sources":[{"policy":["rules"]}]}`, "--show-successes", "--info", "--output", "json=report.json", "--output", "policy-input=inputs.json", "--timeout", "0"})
		close(end)
		<-ended
		if code != 0 {
			t.Fatalf("%d images: exit %d\n%.2000s", n, code, stderr)
		}
		var written int64
		for _, name := range []string{"report.json", "inputs.json"} {
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			written += info.Size()
		}
		t.Logf("%d images: at most %d MiB of memory, outputs of %d MiB", n, most.Load()>>20, written>>20)
		return most.Load(), written
	}
	few, _ := peak(100)
	many, written := peak(500)
	// Rules see the whole snapshot with each image, and what registries answered is
	// remembered, both within bounds. All results together would be several times more.
	if grown := int64(many) - int64(few); grown > 64<<20 {
		t.Errorf("500 images take %d MiB of memory, 100 take %d; the outputs have %d", many>>20, few>>20, written>>20)
	}
}
