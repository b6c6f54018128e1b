package ec_test

// The TUF repository in these tests is made here with go-tuf's own metadata package
// and served over HTTP on loopback.

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"assay.dev/assay/internal/testrig/sigstore"
)

// tufFiles are a repository that vouches for a trusted root.
func tufFiles(t *testing.T, trusted []byte) map[string][]byte {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	signer, err := signature.LoadSigner(private, 0)
	must(t, err)
	key, err := metadata.KeyFromPublicKey(private.Public())
	must(t, err)
	end := time.Now().Add(time.Hour).UTC()
	root, targets, snapshot, timestamp := metadata.Root(end), metadata.Targets(end), metadata.Snapshot(end), metadata.Timestamp(end)
	for _, role := range []string{metadata.ROOT, metadata.TARGETS, metadata.SNAPSHOT, metadata.TIMESTAMP} {
		must(t, root.Signed.AddKey(key, role))
	}
	file, err := metadata.TargetFile().FromBytes("trusted_root.json", trusted, "sha256")
	must(t, err)
	targets.Signed.Targets["trusted_root.json"] = file
	files := map[string][]byte{}
	for name, m := range map[string]interface {
		Sign(signature.Signer) (*metadata.Signature, error)
		ToBytes(bool) ([]byte, error)
	}{"1.root.json": root, "1.targets.json": targets, "1.snapshot.json": snapshot, "timestamp.json": timestamp} {
		_, err := m.Sign(signer)
		must(t, err)
		files["/"+name], err = m.ToBytes(false)
		must(t, err)
	}
	sum := sha256.Sum256(trusted)
	files["/targets/"+hex.EncodeToString(sum[:])+".trusted_root.json"] = trusted
	return files
}

func tufRepository(t *testing.T, trusted []byte) (url string, root []byte) {
	t.Helper()
	files := tufFiles(t, trusted)
	return serveFiles(t, files), files["/1.root.json"]
}

// TestInitialize: what is set up is what later runs verify against, in the place and
// layout that cosign has.
func TestInitialize(t *testing.T) {
	d := sigstore.New(t)
	for _, v := range []string{"SIGSTORE_ROOT_FILE", "SIGSTORE_CT_LOG_PUBLIC_KEY_FILE", "SIGSTORE_REKOR_PUBLIC_KEY", "SIGSTORE_TSA_CERTIFICATE_FILE", "TUF_MIRROR", "TUF_ROOT_JSON"} {
		t.Setenv(v, "")
	}
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CACHE_HOME", filepath.Join(home, "cache"))
	files := tufFiles(t, d.Root())
	root := files["/1.root.json"]
	url := serveFiles(t, files)
	rootURL := serveFiles(t, map[string][]byte{"/root.json": root})
	rootFile := write(t, home, "root.json", string(root))
	folder := t.TempDir()
	for name, b := range files {
		write(t, folder, strings.TrimPrefix(name, "/"), string(b))
	}
	short, long := sha256.Sum256(root), sha512.Sum512(root)
	_, strangers := tufRepository(t, d.Root())
	strange := write(t, home, "strange.json", string(strangers))
	s := newShelf(t)
	s.attestBundle(d, how{by: s.issued(d)})
	signed := func(t *testing.T) (int, string) {
		t.Helper()
		code, report, stderr := s.validate(byIdentity...)
		return code, fmt.Sprint(report, stderr)
	}
	for name, tt := range map[string]struct {
		args []string
		want string // the error; empty: it works
	}{
		"root in a file":     {[]string{"--mirror", url, "--root", rootFile}, ""},
		"mirror in a folder": {[]string{"--mirror", "file://" + folder, "--root", rootFile}, ""},
		"root of an address": {[]string{"--mirror", url, "--root", rootURL + "/root.json"}, ""},
		"checksum":           {[]string{"--mirror", url, "--root", rootURL + "/root.json", "--root-checksum", hex.EncodeToString(short[:])}, ""},
		"long checksum":      {[]string{"--mirror", url, "--root", rootFile, "--root-checksum", "sha512:" + hex.EncodeToString(long[:])}, ""},
		"wrong checksum":     {[]string{"--mirror", url, "--root", rootFile, "--root-checksum", strings.Repeat("0", 64)}, "and not 0000"},
		"unknown checksum":   {[]string{"--mirror", url, "--root", rootFile, "--root-checksum", "md5:00"}, `algorithm "md5" is not known`},
		"checksum of none":   {[]string{"--mirror", url, "--root-checksum", "00"}, "there is no --root"},
		"another's root":     {[]string{"--mirror", url, "--root", strange}, "is " + url + " the mirror of this root.json"},
		"no root":            {[]string{"--mirror", url}, "is " + url + " the mirror of this root.json"},
		"no such root":       {[]string{"--mirror", url, "--root", "none.json"}, "reading --root none.json"},
		"root that is away":  {[]string{"--mirror", url, "--root", rootURL + "/none"}, "404"},
		"no mirror":          {[]string{"--mirror", "http://127.0.0.1:1", "--root", rootFile}, "refused"},
		"staging and mirror": {[]string{"--staging", "--mirror", url}, "leave out --mirror"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			t.Setenv("TUF_ROOT", dir)
			code, out, stderr := run(t, home, append([]string{"sigstore", "initialize"}, tt.args...))
			if tt.want != "" {
				if code != 1 || !strings.Contains(stderr, tt.want) {
					t.Errorf("exit %d, %s %s; want %q", code, out, stderr, tt.want)
				}
				if left, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(left) > 0 {
					t.Errorf("left behind: %v, %v", left, err)
				}
				return
			}
			if code != 0 {
				t.Fatalf("exit %d: %s %s", code, out, stderr)
			}
			mirror := tt.args[1]
			if b, err := os.ReadFile(filepath.Join(dir, "remote.json")); err != nil || string(b) != `{"mirror":"`+mirror+`"}` {
				t.Errorf("remote.json: %s, %v", b, err)
			}
			for _, f := range []string{"root.json", "timestamp.json", "snapshot.json", "targets.json", "targets/trusted_root.json"} {
				if all, err := filepath.Glob(filepath.Join(dir, "*", f)); err != nil || len(all) != 1 {
					t.Errorf("%s: %v, %v", f, all, err)
				}
			}
			if code, text := signed(t); code != 0 {
				t.Errorf("exit %d: %s", code, text)
			}
		})
	}
	t.Run("default folder, twice, and a mirror that changed", func(t *testing.T) {
		t.Setenv("TUF_ROOT", "")
		args := []string{"sigstore", "initialize", "--mirror", url, "--root", rootFile}
		for range 2 {
			if code, out, stderr := run(t, home, args); code != 0 {
				t.Fatalf("exit %d: %s %s", code, out, stderr)
			}
		}
		if code, text := signed(t); code != 0 {
			t.Errorf("exit %d: %s", code, text)
		}
		dir := filepath.Join(home, ".sigstore", "root")
		// A try that fails leaves what works.
		if code, _, _ := run(t, home, []string{"sigstore", "initialize", "--mirror", url, "--root", strange}); code != 1 {
			t.Errorf("exit %d", code)
		}
		if code, text := signed(t); code != 0 {
			t.Errorf("after a failed try: exit %d: %s", code, text)
		}
		// Whoever set up a mirror does not want another's trust instead.
		must(t, os.WriteFile(filepath.Join(dir, "remote.json"), []byte(`{"mirror":"http://127.0.0.1:1"}`), 0o600))
		if code, text := signed(t); code != 1 || !strings.Contains(text, "http://127.0.0.1:1") {
			t.Errorf("exit %d: %s", code, text)
		}
		must(t, os.WriteFile(filepath.Join(dir, "remote.json"), []byte(`x`), 0o600))
		if code, text := signed(t); code != 1 || !strings.Contains(text, "remote.json names none") {
			t.Errorf("exit %d: %s", code, text)
		}
	})
}
