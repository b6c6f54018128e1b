package oci_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"assay.dev/assay/sandbox"
	"assay.dev/assay/sandbox/oci"
	"assay.dev/assay/sandbox/sandboxtest"
)

// BenchmarkStep compares a step that does nothing through the driver with the
// runtime alone, called in a loop on a bundle that is equal to a step's: same
// namespaces, filter, mounts and root. `go test -bench Step -run '^$' ./sandbox/oci`
// prints both; their ratio is the driver's own share.
func BenchmarkStep(b *testing.B) {
	runc := sandboxtest.Runtime(b, "runc", "ASSAY_RUNC")
	r := setUp(b)
	layers := sandboxtest.Layers(b, r.dir, sandboxtest.Probe(b), int(r.base))
	d := r.new(b, runc, sandboxtest.Options{})
	defer d.Close()
	space, err := d.Open(b.Context(), sandbox.SpaceSpec{ID: "bench", Network: "none"})
	if err != nil {
		b.Fatal(err)
	}
	defer space.Close()
	step := sandbox.StepSpec{Name: "bench", Layers: layers, Argv: []string{"/bin/true"}}

	b.Run("driver", func(b *testing.B) {
		for b.Loop() {
			if res, err := space.Run(b.Context(), step, io.Discard, io.Discard); err != nil || res.ExitCode != 0 {
				b.Fatal(res, err)
			}
		}
	})
	b.Run("runc", func(b *testing.B) {
		bundle := filepath.Join(r.dir, "bundle")
		if err := os.MkdirAll(filepath.Join(bundle, "state"), 0o711); err != nil {
			b.Fatal(err)
		}
		spec, release, err := oci.BareConfig(space, step)
		if err != nil {
			b.Fatal(err)
		}
		defer func() {
			if err := release(); err != nil {
				b.Error(err)
			}
		}()
		spec.Linux.CgroupsPath = "" // as the driver has it
		writeJSON(b, filepath.Join(bundle, "config.json"), spec)
		i := 0
		for b.Loop() {
			i++
			cmd := exec.Command(runc, "--rootless=true", "--root", filepath.Join(bundle, "state"), "run", "--bundle", bundle, fmt.Sprint("b", i))
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}
	})
	b.Run("space", func(b *testing.B) { // opening and closing, without a step
		for b.Loop() {
			s, err := d.Open(b.Context(), sandbox.SpaceSpec{ID: "empty", Network: "none"})
			if err != nil {
				b.Fatal(err)
			}
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func writeJSON(b *testing.B, path string, spec *specs.Spec) {
	b.Helper()
	j, err := json.Marshal(spec)
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(path, j, 0o600); err != nil {
		b.Fatal(err)
	}
}
