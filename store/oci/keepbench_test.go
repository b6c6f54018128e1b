package oci_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
)

// TestMain lets the benchmark's registry be a process of its own, so that the
// keeper's CPU time can be told from the registry's.
func TestMain(m *testing.M) {
	if os.Getenv("OCI_TEST_REGISTRY") != "" {
		serveAlone()
		return
	}
	os.Exit(m.Run())
}

// serveAlone is a registry on loopback until its parent closes its input.
func serveAlone() {
	h := storetest.NewRegistry(true)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(quiet{w, new(bool)}, r) }))
	fmt.Println(server.URL)
	_, _ = os.Stdin.Read(make([]byte, 1))
}

// quiet drops the second of two headers, which olareg writes.
type quiet struct {
	http.ResponseWriter
	done *bool
}

func (q quiet) WriteHeader(code int) {
	if !*q.done {
		*q.done = true
		q.ResponseWriter.WriteHeader(code)
	}
}

// BenchmarkKeep keeps what one PipelineRun of the size leaves: six images,
// twelve objects, a statement of 80 kB or 400 kB. CPU is this process's, signing and
// making images left out; the registry is another process.
func BenchmarkKeep(b *testing.B) {
	for _, size := range []int{80_000, 400_000} {
		b.Run(fmt.Sprintf("payload=%dkB", size/1000), func(b *testing.B) {
			cmd := exec.CommandContext(b.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), "OCI_TEST_REGISTRY=1")
			in, err := cmd.StdinPipe()
			if err != nil {
				b.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				b.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			defer func() { in.Close(); _ = cmd.Wait() }()
			line := make([]byte, 256)
			n, err := out.Read(line)
			if err != nil {
				b.Fatal(err)
			}
			addr := strings.TrimPrefix(strings.TrimSpace(string(line[:n])), "http://")
			k, err := oci.NewKeeper(oci.KeeperOptions{Settle: time.Millisecond})
			if err != nil {
				b.Fatal(err)
			}
			defer k.Close()
			signer := storetest.NewRecordSigner(b)
			var cpu time.Duration
			runs := 0
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				runs++
				var images []string
				for i := range 6 {
					images = append(images, storetest.PushImage(b, http.DefaultTransport, addr, "team/app", fmt.Sprint("run ", runs, " image ", i)).Ref())
				}
				records := work(b, images, size, signer)
				for _, r := range records {
					r.Signatures[0].Statement = nil // only bundles want it
				}
				b.StartTimer()
				before := used(b)
				for i, o := range k.Keep(b.Context(), records) {
					if o.Err != nil {
						b.Fatalf("record %d: %v", i, o.Err)
					}
				}
				cpu += used(b) - before
			}
			b.ReportMetric(float64(cpu.Microseconds())/1000/float64(runs), "cpu-ms/run")
		})
	}
}

// used is the CPU time of this process.
func used(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
