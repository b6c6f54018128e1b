package ec

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sigstore/sigstore-go/pkg/tuf"
	"github.com/spf13/cobra"

	"assay.dev/assay/policy/source"
	"assay.dev/assay/verify"
	"assay.dev/assay/verify/tufroot"
)

// remoteFile is where cosign notes the mirror that was set up.
const remoteFile = "remote.json"

type remoteJSON struct {
	Mirror string `json:"mirror"`
}

func sigstoreCommand(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "sigstore", Short: "Set up what signatures are verified against", Args: cobra.ArbitraryArgs, RunE: onlyCommands}
	c.AddCommand(initializeCommand(g))
	return c
}

func initializeCommand(g *globals) *cobra.Command {
	s := &setup{getenv: os.Getenv, transport: fileTransport()}
	c := &cobra.Command{
		Use:   "initialize",
		Short: "Fetch a trusted root by TUF, for later runs",
		Long: `Fetches the trusted root of a Sigstore deployment by TUF and keeps it with the
metadata in ~/.sigstore/root, or in the folder that TUF_ROOT names, as cosign does.
Later runs take it from there, and keep it current from the same mirror.

Without flags that is Sigstore's public deployment, whose root.json is compiled in.
Another mirror needs its root.json (--root), a file or an address; from an address it
is only as good as the connection unless --root-checksum says what it has to be.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := g.within(cmd.Context())
			defer cancel()
			s.warn = g.warn
			return s.run(ctx)
		},
	}
	f := c.Flags()
	f.StringVar(&s.mirror, "mirror", tuf.DefaultMirror, "TUF repository: http(s)://… or file:///FOLDER")
	f.StringVar(&s.root, "root", "", "root.json to begin with: a file, or an address (default: the one compiled in, which is Sigstore's)")
	f.StringVar(&s.checksum, "root-checksum", "", "digest that root.json must have: SHA-256 in hex, or sha512:HEX")
	f.BoolVar(&s.staging, "staging", false, "use Sigstore's deployment for tests")
	return c
}

// setup is what `sigstore initialize` is told.
type setup struct {
	mirror, root, checksum string
	staging                bool

	getenv    func(string) string
	transport http.RoundTripper
	warn      func(format string, args ...any)
}

// run fetches into a new folder, and puts that in the place of what was there once
// the trusted root in it can be used: a try that fails leaves everything as it was.
func (s *setup) run(ctx context.Context) error {
	if s.staging {
		if s.root != "" || s.mirror != tuf.DefaultMirror {
			return errors.New("--staging says which mirror and root are meant; leave out --mirror and --root")
		}
		s.mirror = tuf.StagingMirror
	}
	root, err := s.rootJSON(ctx)
	if err != nil {
		return err
	}
	dir, err := tufDir(s.getenv)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("setting up %s: %w", dir, err)
	}
	next, err := os.MkdirTemp(filepath.Dir(dir), ".sigstore-*")
	if err != nil {
		return fmt.Errorf("setting up %s: %w", dir, err)
	}
	defer os.RemoveAll(next)
	note, err := json.Marshal(remoteJSON{s.mirror})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(next, remoteFile), note, 0o600); err != nil {
		return fmt.Errorf("setting up %s: %w", dir, err)
	}
	data, err := tufroot.Get(ctx, tufroot.Options{Dir: next, Mirror: s.mirror, Root: root, Transport: s.transport, Timeout: 2 * time.Minute})
	if err != nil {
		return fmt.Errorf("%w; is %s the mirror of this root.json, and does it have a trusted_root.json?", err, s.mirror)
	}
	if _, err := verify.DefaultThresholds(data); err != nil {
		return fmt.Errorf("using what %s has: %w", s.mirror, err)
	}
	return swap(next, dir)
}

// swap puts a folder in the place of another one's content. The other one itself
// stays, which may be a mount.
func swap(next, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("setting up %s: %w", dir, err)
	}
	old, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("setting up %s: %w", dir, err)
	}
	for _, e := range old {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("clearing %s: %w", dir, err)
		}
	}
	if err := os.CopyFS(dir, os.DirFS(next)); err != nil {
		return fmt.Errorf("setting up %s: %w", dir, err)
	}
	return nil
}

// rootJSON is the root to begin with; nil for the one that is compiled in.
func (s *setup) rootJSON(ctx context.Context) ([]byte, error) {
	switch {
	case s.staging:
		return tuf.StagingRoot(), nil
	case s.root == "" && s.checksum != "":
		return nil, errors.New("--root-checksum: there is no --root that it would be of")
	case s.root == "" && s.mirror == tuf.StagingMirror:
		return tuf.StagingRoot(), nil
	case s.root == "":
		return nil, nil
	}
	var raw []byte
	var err error
	if strings.HasPrefix(s.root, "http://") || strings.HasPrefix(s.root, "https://") {
		if s.checksum == "" {
			s.warn("--root %s: whoever answers there decides what is trusted; --root-checksum says what it has to be", s.root)
		}
		raw, err = s.download(ctx)
	} else {
		raw, err = source.ReadFile(s.root, maxPEM)
	}
	if err != nil {
		return nil, fmt.Errorf("reading --root %s: %w", s.root, err)
	}
	return raw, s.check(raw)
}

func (s *setup) download(ctx context.Context) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.root, nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: s.transport}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(resp.Status)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxPEM+1))
	if err == nil && len(raw) > maxPEM {
		err = fmt.Errorf("larger than %d bytes", maxPEM)
	}
	return raw, err
}

func (s *setup) check(raw []byte) error {
	if s.checksum == "" {
		return nil
	}
	algorithm, want, ok := strings.Cut(s.checksum, ":")
	if !ok {
		algorithm, want = "sha256", s.checksum
	}
	var got string
	switch algorithm {
	case "sha256":
		sum := sha256.Sum256(raw)
		got = hex.EncodeToString(sum[:])
	case "sha512":
		sum := sha512.Sum512(raw)
		got = hex.EncodeToString(sum[:])
	default:
		return fmt.Errorf("--root-checksum: algorithm %q is not known; want sha256 or sha512", algorithm)
	}
	if !strings.EqualFold(got, want) {
		return fmt.Errorf("--root %s has the %s digest %s and not %s", s.root, algorithm, got, want)
	}
	return nil
}

// fileTransport reaches http(s) and file addresses.
func fileTransport() http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.RegisterProtocol("file", http.NewFileTransport(http.Dir("/")))
	return t
}
