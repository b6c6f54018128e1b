package tree_test

import (
	"context"
	"crypto/sha256"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"assay.dev/assay/observe/tree"
)

// BenchmarkDigest compares Digest with SHA-256 over the same bytes in memory,
// on as many cores: what the machine could do if files cost nothing. The
// metric is the share of that speed.
//
//	go test -run - -bench Digest ./observe/tree
func BenchmarkDigest(b *testing.B) {
	for _, c := range []struct {
		name        string
		files, size int
	}{
		{"64x16MiB", 64, 16 << 20},
		{"4096x64KiB", 4096, 64 << 10},
		{"16384x8KiB", 16384, 8 << 10},
	} {
		b.Run(c.name, func(b *testing.B) {
			dir := b.TempDir()
			content := make([]byte, c.size)
			for i := range content {
				content[i] = byte(i * 7)
			}
			for i := range c.files {
				sub := filepath.Join(dir, strconv.Itoa(i%64))
				if err := os.MkdirAll(sub, 0o755); err != nil {
					b.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(sub, strconv.Itoa(i)), content, 0o644); err != nil {
					b.Fatal(err)
				}
			}
			share(b, dir, int64(c.files)*int64(c.size), c.size)
		})
	}
	b.Run("GOROOT-src", func(b *testing.B) {
		dir := filepath.Join(runtime.GOROOT(), "src")
		s, err := tree.Digest(context.Background(), dir, tree.Options{})
		if err != nil {
			b.Skipf("measuring the Go distribution: %v", err)
		}
		share(b, dir, s.Bytes, int(s.Bytes/s.Files))
	})
}

func share(b *testing.B, dir string, total int64, chunk int) {
	b.SetBytes(total)
	var ours, plain time.Duration
	for b.Loop() {
		start := time.Now()
		if _, err := tree.Digest(context.Background(), dir, tree.Options{}); err != nil {
			b.Fatal(err)
		}
		ours += time.Since(start)
		// Side by side, so that both see the same machine.
		b.StopTimer()
		start = time.Now()
		plainSHA256(total, chunk)
		plain += time.Since(start)
		b.StartTimer()
	}
	b.ReportMetric(100*plain.Seconds()/ours.Seconds(), "%ofSHA256")
}

// plainSHA256 hashes total bytes in pieces of the files' size on all cores.
func plainSHA256(total int64, chunk int) {
	var wg sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for range workers {
		wg.Go(func() {
			buf := make([]byte, min(chunk, 256<<10))
			h := sha256.New()
			for done := int64(0); done < total/int64(workers); {
				h.Reset()
				for n := 0; n < chunk; n += len(buf) {
					h.Write(buf)
					done += int64(len(buf))
				}
				h.Sum(nil)
			}
		})
	}
	wg.Wait()
}
