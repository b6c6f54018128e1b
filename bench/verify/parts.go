package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"assay.dev/assay/api"
	"assay.dev/assay/attest"
	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/internal/pullcache"
	"assay.dev/assay/internal/testrig"
	"assay.dev/assay/verify"
)

func workers() int { return runtime.GOMAXPROCS(0) }

// signatures is how many each image has.
const signatures = 2

func (b *bench) options() verify.Options {
	return verify.Options{Keys: []verify.Key{{Name: "key", Public: b.set.key.Public()}}}
}

// cpu is how many seconds this process has worked: others on the machine take from the
// clock's, not from these.
func cpu() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// raw is how many ECDSA P-256 signatures the machine verifies in a second of a core.
func raw(n int) (float64, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return 0, err
	}
	sum := sha256.Sum256([]byte("message"))
	sig, err := ecdsa.SignASN1(rand.Reader, k, sum[:])
	if err != nil {
		return 0, err
	}
	began := cpu()
	err = parallel(n, func(int) error {
		if !ecdsa.VerifyASN1(&k.PublicKey, sum[:], sig) {
			return errors.New("a good signature does not verify")
		}
		return nil
	})
	return float64(n) / (cpu() - began), err
}

// local verifies what is in memory: distinct images, and one image as often.
func (b *bench) local() error {
	return b.profiled(func() error {
		for name, at := range map[string]func(int) int{"distinct": func(i int) int { return i }, "identical": func(int) int { return 0 }} {
			// The sides take turns, so that a machine that slows down slows both.
			var base []float64
			rate, err := b.median(func() (float64, error) {
				r, err := raw(signatures * b.images)
				if base = append(base, r); err != nil {
					return 0, err
				}
				began := cpu()
				err = parallel(b.images, func(i int) error {
					i = at(i)
					_, err := verify.Items(b.set.refs[i], b.set.manifests[i], b.set.items[i], b.options())
					return err
				})
				return float64(signatures*b.images) / (cpu() - began), err
			})
			if err != nil {
				return err
			}
			b.compare(fmt.Sprintf("%d %s images in memory", b.images, name), rate, "signatures/CPU-s", "ecdsa.VerifyASN1", middle(base))
		}
		return nil
	})
}

// registry verifies through one cache, each image twice, and counts fetches.
func (b *bench) registry() error {
	cache := pullcache.New(http.DefaultTransport, pullcache.Options{})
	o := b.options()
	o.Transport = cache
	for _, round := range []string{"first", "second"} {
		b.handler.begin()
		began := time.Now()
		err := parallel(b.images, func(i int) error {
			_, err := verify.Image(b.ctx, b.set.refs[i], o)
			return err
		})
		if err != nil {
			return err
		}
		took := time.Since(began).Seconds()
		asked, blobs, most := b.handler.end()
		b.record(round+" pass over the registry, images", float64(b.images)/took, "images/s")
		b.record(round+" pass, requests for each image", float64(asked)/float64(b.images), "")
		b.record(round+" pass, digests fetched for each image", float64(blobs)/float64(b.images), "")
		b.record(round+" pass, the most fetches of one digest", float64(most), "")
	}
	return nil
}

// sample is what a process took.
type sample struct{ wall, peak float64 }

func (b *bench) process(program string, args ...string) (sample, error) {
	c := exec.CommandContext(b.ctx, program, args...)
	c.Env = append(os.Environ(), "HOME="+b.dir, "ASSAY_HOME="+filepath.Join(b.dir, "home"), "TUF_ROOT="+filepath.Join(b.dir, "tuf"))
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	began := time.Now()
	if err := c.Run(); err != nil {
		text := out.String()
		return sample{}, fmt.Errorf("%s %.200s: %w\n%.2000s", filepath.Base(program), strings.Join(args, " "), err, text)
	}
	s := sample{wall: time.Since(began).Seconds()}
	if u, ok := c.ProcessState.SysUsage().(*syscall.Rusage); ok {
		s.peak = float64(u.Maxrss) / 1024
	}
	return s, nil
}

// duel lets two command lines take turns.
func (b *bench) duel(name string, ours, theirs []string) error {
	sides := [][]string{append([]string{filepath.Join(b.bin, "assay")}, ours...)}
	if cosign := os.Getenv("ASSAY_COSIGN"); cosign != "" {
		sides = append(sides, append([]string{cosign}, theirs...))
	}
	wall, peak := make([][]float64, 2), make([][]float64, 2)
	for round := range b.rounds + 1 {
		for n, s := range sides {
			got, err := b.process(s[0], s[1:]...)
			if err != nil {
				return err
			}
			if round > 0 { // the first fills caches
				wall[n], peak[n] = append(wall[n], got.wall*1000), append(peak[n], got.peak)
			}
		}
	}
	for _, m := range []struct {
		what, unit string
		v          [][]float64
	}{{"wall", "ms", wall}, {"peak memory", "MiB", peak}} {
		if len(sides) == 1 {
			b.record(name+", "+m.what, middle(m.v[0]), m.unit)
			continue
		}
		b.compare(name+", "+m.what, middle(m.v[0]), m.unit, "cosign", middle(m.v[1]))
	}
	return nil
}

// cold verifies one bundle in a file by a process: by a key, and by a certificate of
// the public instance.
func (b *bench) cold() error {
	key, err := attest.GenerateKey(attest.ECDSAP256)
	if err != nil {
		return err
	}
	artifact := []byte("artifact")
	sum := sha256.Sum256(artifact)
	digest := fmt.Sprintf("%x", sum)
	env, err := attest.Envelope(b.ctx, key, api.PayloadTypeInToto, fmt.Appendf(nil, statement, "a", digest, 0, 0, 0))
	if err != nil {
		return err
	}
	public, err := dsse.NewPublicKey(key.Public())
	if err != nil {
		return err
	}
	raw, err := bundle.Encode(env, public, bundle.Material{})
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{"k.pub": key.PublicPEM(), "k.json": raw, "a": artifact} {
		if err := os.WriteFile(filepath.Join(b.dir, name), data, 0o644); err != nil {
			return err
		}
	}
	file := func(n string) string { return filepath.Join(b.dir, n) }
	if err := b.duel("one bundle by a key",
		[]string{"verify", "--offline", "--key", file("k.pub"), "--bundle", file("k.json"), file("a")},
		[]string{"verify-blob-attestation", "--key", file("k.pub"), "--bundle", file("k.json"), "--insecure-ignore-tlog", "--type", "slsaprovenance1", file("a")},
	); err != nil {
		return err
	}
	real := filepath.Join(testrig.Root(), "..", "shared", "conformance", "sigstore", "real-bundles", "cli__cli", "pkg", "cmd", "attestation", "test", "data", "reusable-workflow-attestation.sigstore.json")
	if _, err := os.Stat(real); err != nil {
		fmt.Fprintln(os.Stderr, "bench/verify: no certificate is measured:", err)
		return nil
	}
	const (
		subject = "49a3aa6075e0f49f82843e74b5baa614ad2a588e6675612bf108a0a008c5ac25"
		issuer  = "https://token.actions.githubusercontent.com"
		san     = "https://github.com/github/artifact-attestations-workflows/.github/workflows/attest.yml@09b495c3f12c7881b3cc17209a327792065c1a1d"
	)
	root := filepath.Join(testrig.Root(), "verify", "roots", "public-good.json")
	return b.duel("one bundle by a certificate",
		[]string{"verify", "--offline", "--certificate-identity", san, "--certificate-oidc-issuer", issuer, "--trusted-root", root, "--bundle", real, "--artifact-digest", "sha256:" + subject},
		[]string{"verify-blob-attestation", "--certificate-identity", san, "--certificate-oidc-issuer", issuer, "--trusted-root", root, "--bundle", real, "--type", "slsaprovenance1", "--digest", subject, "--digestAlg", "sha256"},
	)
}

const policy = `package main

import rego.v1

# METADATA
# title: Nothing is wrong
# custom:
#   short_name: fine
deny contains result if {
	false
	result := {"code": "main.fine", "msg": "it is wrong"}
}
`

// gate judges all images in one process.
func (b *bench) gate() error {
	dir := filepath.Join(b.dir, "policy")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	pub := filepath.Join(b.dir, "images.pub")
	for name, data := range map[string][]byte{filepath.Join(dir, "main.rego"): []byte(policy), pub: b.set.key.PublicPEM()} {
		if err := os.WriteFile(name, data, 0o644); err != nil {
			return err
		}
	}
	for _, n := range []int{1, b.images} {
		args := append([]string{"gate", "--key", pub, "--policy", dir}, b.set.refs[:n]...)
		var peak []float64
		b.handler.begin()
		wall, err := b.median(func() (float64, error) {
			s, err := b.process(filepath.Join(b.bin, "assay"), args...)
			peak = append(peak, s.peak)
			return s.wall, err
		})
		if err != nil {
			return err
		}
		_, _, most := b.handler.end()
		b.record(fmt.Sprintf("gate of %d images by one process", n), wall*1000, "ms")
		b.record(fmt.Sprintf("gate of %d images, peak memory", n), middle(peak), "MiB")
		b.record(fmt.Sprintf("gate of %d images, the most fetches of one digest by a process", n), float64(most)/float64(b.rounds), "")
	}
	return nil
}
