package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"assay.dev/assay/ledger"
	"assay.dev/assay/observe"
)

// smallImage makes an image of one file in a hermetic task, so that a run has
// something to attest.
const smallImage = `apiVersion: tekton.dev/v1
kind: TaskRun
metadata:
  generateName: bench-
  annotations:
    assay.dev/network: none
    assay.dev/outputs: image IMAGE=/workspace/image
spec:
  taskSpec:
    results:
    - name: IMAGE_URL
    - name: IMAGE_DIGEST
    steps:
    - name: build
      image: assay.dev/image/task
      script: |
        #!/bin/sh
        set -e
        mkdir -p /workspace/image/blobs/sha256 /tmp/root
        cd /workspace/image
        store() { d=$(sha256sum "$1" | cut -d' ' -f1); n=$(wc -c <"$1"); mv "$1" "blobs/sha256/$d"; }
        echo '{"imageLayoutVersion":"1.0.0"}' >oci-layout
        echo hello >/tmp/root/hello
        tar -C /tmp/root -cf layer hello
        store layer; layer=$d; layern=$n
        printf '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$layer" >config
        store config; config=$d; confign=$n
        type=application/vnd.oci.image
        printf '{"schemaVersion":2,"mediaType":"%s.manifest.v1+json","config":{"mediaType":"%s.config.v1+json","digest":"sha256:%s","size":%d},"layers":[{"mediaType":"%s.layer.v1.tar","digest":"sha256:%s","size":%d}]}' \
          $type $type "$config" "$confign" $type "$layer" "$layern" >manifest
        store manifest
        printf '{"schemaVersion":2,"manifests":[{"mediaType":"%s.manifest.v1+json","digest":"sha256:%s","size":%d}]}' $type "$d" "$n" >index.json
`

// attestedRun is a run that was attested.
type attestedRun struct {
	image   string        // repository@digest
	stating time.Duration // from the last fact to the entry that says signed and stored
}

// attest runs smallImage once. The times are the observer's own, out of its
// ledger.
func (b *bench) attest(ctx context.Context) (*attestedRun, sample, error) {
	file, err := b.write("image.yaml", smallImage)
	if err != nil {
		return nil, sample{}, err
	}
	out, s, err := b.command(ctx, b.assay, "run", "--quiet", "-f", file, "--output", "json")
	if err != nil {
		return nil, s, err
	}
	var res struct {
		Run      string
		Unsigned string
		Stated   *struct{ Subjects []string }
	}
	if err := json.Unmarshal(out, &res); err != nil {
		return nil, s, fmt.Errorf("reading a run: %w", err)
	}
	if res.Stated == nil || len(res.Stated.Subjects) != 1 {
		return nil, s, fmt.Errorf("run %s is not attested: %s", res.Run, res.Unsigned)
	}
	rec, err := ledger.Read(filepath.Join(b.home, "ledger"), res.Run)
	if err != nil {
		return nil, s, err
	}
	r := &attestedRun{image: res.Stated.Subjects[0]}
	var closed, signed time.Time
	for _, e := range rec.Entries {
		switch e.Type {
		case observe.RunClosed:
			closed = e.Time
		case "signed":
			signed = e.Time
		}
	}
	if closed.IsZero() || signed.IsZero() {
		return nil, s, fmt.Errorf("run %s has no end or no signature in the ledger", res.Run)
	}
	r.stating = signed.Sub(closed)
	return r, s, nil
}

// attested measures from a finished run to its stored attestations.
func attested(ctx context.Context, b *bench) error {
	var stating []float64
	m, err := b.alternate(ctx, func(ctx context.Context, round int) (sample, error) {
		r, s, err := b.attest(ctx)
		if err != nil {
			return s, err
		}
		if round > 0 {
			stating = append(stating, r.stating.Seconds())
		}
		b.run = r
		return s, nil
	})
	if err != nil {
		return err
	}
	b.compare("finished run to signed and stored provenance, signature, observation", seconds, median(stating), "the whole attested run", m[0].wall, "")
	return nil
}

// verifying measures commands that judge an image, each a process of its own,
// beside cosign if ASSAY_COSIGN names it.
func verifying(ctx context.Context, b *bench) error {
	if b.run == nil {
		r, _, err := b.attest(ctx)
		if err != nil {
			return err
		}
		b.run = r
	}
	address, stop, err := b.serve(ctx)
	if err != nil {
		return err
	}
	defer stop()
	key := filepath.Join(b.home, "public", "executed.pub")
	policy := filepath.Join(b.root, "examples", "policy", "release")
	_, rest, _ := strings.Cut(b.run.image, "/")
	remote := address + "/" + rest
	cosign := os.Getenv("ASSAY_COSIGN")
	if cosign == "" {
		b.note("set ASSAY_COSIGN to a cosign binary to measure assay verify beside it")
	}
	b.note("a process's peak cannot read below this program's own, %s", bytesUnit.format(ownPeak()))
	call := func(accept []int, program string, args ...string) side {
		return func(ctx context.Context, _ int) (sample, error) {
			_, s, err := b.commandIn(ctx, []string{"ASSAY_HOME=" + b.home}, accept, program, args...)
			return s, err
		}
	}
	sides := []side{
		call(nil, b.assay, "verify", remote, "--key", key),
		call(nil, b.assay, "verify", b.run.image, "--key", key),
		// 3: the policy wants more tasks than a bench has; judging costs the same.
		call([]int{3}, b.assay, "gate", remote, "--key", key, "--policy", policy),
	}
	if cosign != "" {
		sides = append(sides, call(nil, cosign, "verify-attestation", "--key", key, "--type", "slsaprovenance",
			"--insecure-ignore-tlog=true", "--allow-insecure-registry", "--allow-http-registry", remote))
	}
	m, err := b.alternate(ctx, sides...)
	if err != nil {
		return err
	}
	for i, name := range []string{"assay verify over http", "assay verify from the folder", "assay gate over http"} {
		for _, v := range []struct {
			what  string
			unit  unit
			value func(sample) float64
		}{
			{"wall", seconds, func(s sample) float64 { return s.wall }},
			{"CPU", seconds, func(s sample) float64 { return s.cpu }},
			{"peak memory", bytesUnit, func(s sample) float64 { return s.peak }},
		} {
			target := ""
			if i == 0 && v.what != "CPU" {
				target = "< 1"
			}
			if cosign == "" {
				b.record(name+", "+v.what, v.unit, v.value(m[i]), "")
				continue
			}
			b.compare(name+", "+v.what, v.unit, v.value(m[i]), "cosign verify-attestation", v.value(m[3]), target)
		}
	}
	return nil
}

var serving = regexp.MustCompile(` on http://(\S+)`)

// serve has the home's registry answer over http, and returns where.
func (b *bench) serve(ctx context.Context) (address string, stop func(), err error) {
	c := exec.CommandContext(ctx, b.assay, "registry", "serve", "--listen", "127.0.0.1:0")
	c.Env = append(os.Environ(), "ASSAY_HOME="+b.home)
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	errout, err := c.StderrPipe()
	if err != nil {
		return "", nil, err
	}
	if err := c.Start(); err != nil {
		return "", nil, err
	}
	stop = func() {
		c.Process.Signal(os.Interrupt) //nolint:errcheck // it may be gone
		c.Wait()                       //nolint:errcheck // interrupted
	}
	r := bufio.NewReader(errout)
	line, err := r.ReadString('\n')
	if err != nil {
		stop()
		return "", nil, fmt.Errorf("starting assay registry serve: %w", err)
	}
	go io.Copy(io.Discard, r) //nolint:errcheck // so that it never waits for us
	m := serving.FindStringSubmatch(line)
	if m == nil {
		stop()
		return "", nil, fmt.Errorf("assay registry serve does not say where: %s", line)
	}
	return m[1], stop, nil
}

var benchmarkLine = regexp.MustCompile(`^BenchmarkStatement/(\S+?)(?:-\d+)?\s+\d+\s+(.*)$`)

// statements measures provenance.Statement for a run of 20 tasks in a process
// of its own, by the package's benchmark.
func statements(ctx context.Context, b *bench) error {
	c := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkStatement$", "-benchtime", "200x",
		"-count", fmt.Sprint(b.rounds), "./provenance")
	c.Dir = b.root
	out, err := c.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return fmt.Errorf("%w: %s%s", err, out, exit.Stderr)
		}
		return err
	}
	took, allocs := map[string][]float64{}, map[string][]float64{}
	var names []string
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		m := benchmarkLine.FindStringSubmatch(s.Text())
		if m == nil {
			continue
		}
		if took[m[1]] == nil {
			names = append(names, m[1])
		}
		fields := strings.Fields(m[2])
		for i := 0; i+1 < len(fields); i += 2 {
			var v float64
			if _, err := fmt.Sscan(fields[i], &v); err != nil {
				return fmt.Errorf("reading %q: %w", s.Text(), err)
			}
			switch fields[i+1] {
			case "ns/op":
				took[m[1]] = append(took[m[1]], v/1e9)
			case "allocs/op":
				allocs[m[1]] = append(allocs[m[1]], v)
			}
		}
	}
	if len(names) == 0 {
		return fmt.Errorf("go test printed no benchmark: %s", out)
	}
	for _, n := range names {
		what := "stating a run of 20 tasks as " + strings.Replace(n, "slsa-", "slsa/", 1)
		if n == "load" {
			what = "reading the objects of a run of 20 tasks"
		}
		b.record(what, seconds, median(took[n]), "")
		b.record(what+", allocations", count, median(allocs[n]), "")
	}
	return nil
}
