package measure_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"assay.dev/assay/observe/measure"
)

// BenchmarkPackUnpack moves the Go distribution's sources from a task to the
// next: go test -run - -bench PackUnpack ./observe/measure
func BenchmarkPackUnpack(b *testing.B) {
	src := filepath.Join(runtime.GOROOT(), "src")
	o := measure.PackOptions{OutsideLinks: true}
	var blob bytes.Buffer
	packed, err := measure.Pack(context.Background(), src, &blob, o)
	if err != nil {
		b.Skipf("packing the Go distribution: %v", err)
	}
	b.Run("pack", func(b *testing.B) {
		b.SetBytes(packed.Bytes)
		for b.Loop() {
			var w bytes.Buffer
			if _, err := measure.Pack(context.Background(), src, &w, o); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(packed.Size)/float64(packed.Bytes), "compressed/plain")
	})
	b.Run("unpack", func(b *testing.B) {
		b.SetBytes(packed.Bytes)
		for b.Loop() {
			b.StopTimer()
			dir, err := os.MkdirTemp("", "assay-bench-")
			if err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			_, err = measure.Unpack(context.Background(), bytes.NewReader(blob.Bytes()), packed.BlobDigest, dir, measure.UnpackOptions{OutsideLinks: true})
			b.StopTimer()
			os.RemoveAll(dir)
			if err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
}
