package provenance_test

import (
	"encoding/json"
	"runtime"
	"syscall"
	"testing"
	"time"

	"assay.dev/assay/provenance"
	"assay.dev/assay/provenance/provenancetest"
)

// BenchmarkStatement states the provenance of one PipelineRun of 20 TaskRuns (59
// steps, 6 images) with deep inspection. small has TaskRuns of 6 kB, real of
// 24 kB.
func BenchmarkStatement(b *testing.B) {
	for _, size := range []struct {
		name   string
		script int
	}{{"small", provenancetest.SmallScript}, {"real", provenancetest.RealScript}} {
		pr, trs := provenancetest.PipelineRun("team-a", "build-1", size.script)
		in, err := provenance.OfPipelineRun(pr, trs)
		if err != nil {
			b.Fatal(err)
		}
		for _, format := range formats[1:] {
			for _, buildType := range []provenance.BuildType{provenance.BuildTypeSLSA, provenance.BuildTypeTekton} {
				name := size.name + "/" + string(format)[len("slsa/"):]
				if buildType == provenance.BuildTypeTekton {
					if format == provenance.SLSAv1 {
						continue // has no such thing
					}
					name += "-tekton"
				}
				cfg, err := provenance.ParseConfig(map[string]string{
					"artifacts.pipelinerun.enable-deep-inspection": "true", "builddefinition.buildtype": string(buildType),
				})
				if err != nil {
					b.Fatal(err)
				}
				b.Run(name, func(b *testing.B) {
					b.ReportAllocs()
					n := 0
					before := cpu(b)
					for b.Loop() {
						payload, err := provenance.Statement(in, cfg, format, provenance.Options{})
						if err != nil {
							b.Fatal(err)
						}
						n = len(payload)
					}
					b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
					b.ReportMetric(float64(n), "payload-B")
				})
			}
		}
	}
}

// TestCost keeps what the benchmark shows from creeping back. The numbers are
// Tekton Chains' for a run of this shape; a tenth of its allocations and a
// fifth of its bytes are the most we allow (a tenth, were it not for the race
// detector, which makes pools forget).
func TestCost(t *testing.T) {
	pr, trs := provenancetest.PipelineRun("team-a", "build-1", provenancetest.SmallScript)
	in, err := provenance.OfPipelineRun(pr, trs)
	if err != nil {
		t.Fatal(err)
	}
	cfg := config(t, "artifacts.pipelinerun.enable-deep-inspection", "true")
	for _, upstream := range []struct {
		format        provenance.Format
		allocs, bytes uint64
	}{
		{provenance.SLSAv1, 28969, 2_400_000}, {provenance.SLSAv2alpha3, 19847, 1_100_000}, {provenance.SLSAv2alpha4, 22273, 1_300_000},
	} {
		const runs = 20
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range runs {
			if _, err := provenance.Statement(in, cfg, upstream.format, provenance.Options{}); err != nil {
				t.Fatal(err)
			}
		}
		runtime.ReadMemStats(&after)
		allocs, bytes := (after.Mallocs-before.Mallocs)/runs, (after.TotalAlloc-before.TotalAlloc)/runs
		if allocs > upstream.allocs/10 || bytes > upstream.bytes/5 {
			t.Errorf("%s: %d allocations and %d bytes; upstream needs %d and %d", upstream.format, allocs, bytes, upstream.allocs, upstream.bytes)
		}
	}
}

// cpu is the processor time this process has used, garbage collection and all:
// unlike time by the clock it means something on a machine that others use.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkDecode reads the same run's objects as a file or an API server gives
// them, with every check of Load.
func BenchmarkDecode(b *testing.B) {
	pr, trs := provenancetest.PipelineRun("team-a", "build-1", provenancetest.RealScript)
	run, err := json.Marshal(pr)
	if err != nil {
		b.Fatal(err)
	}
	var children [][]byte
	size := len(run)
	for _, tr := range trs {
		data, err := json.Marshal(tr)
		if err != nil {
			b.Fatal(err)
		}
		children = append(children, data)
		size += len(data)
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	before := cpu(b)
	for b.Loop() {
		if _, err := provenance.Load(run, children...); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
}
