// Package tufroot keeps the trusted roots of Sigstore's public instance and of GitHub's
// current, by TUF, for the commands that may use the network. Package verify itself fetches nothing: it takes
// a root as bytes, and a verifier without a network uses the one that is shipped.
//
// TUF's metadata says which trusted root is the current one; it is signed by
// the key holders of Sigstore, or GitHub, whose keys follow from the root.json that is
// compiled in.
// So a mirror, or who sits on the way to it, can keep a change from us until the
// metadata expires, and cannot make one.
package tufroot

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/sigstore/sigstore-go/pkg/tuf"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// GitHubMirror is GitHub's repository, and githubRoot the root.json with which it began.
const GitHubMirror = "https://tuf-repo.github.com"

//go:embed github-root.json
var githubRoot []byte

// GitHub are the options for the root of GitHub's own instance, kept in a folder.
func GitHub(dir string) Options {
	return Options{Dir: dir, Mirror: GitHubMirror, Root: slices.Clone(githubRoot)}
}

// target is the name of the trusted root in both repositories.
const target = "trusted_root.json"

// ErrLater says that a try failed not long ago, and that it is not made again yet.
var ErrLater = errors.New("the last try failed a short time ago")

// Options say where and how often. Dir is needed.
type Options struct {
	// Dir keeps metadata and root between calls; made where it is missing.
	Dir string
	// Mirror is the repository; empty: Sigstore's own. Root is the root.json to
	// begin with; nil: the one compiled in, which is Sigstore's.
	Mirror string
	Root   []byte
	// Transport for the requests; nil: http.DefaultTransport.
	Transport http.RoundTripper
	// Timeout for everything together; 0: five seconds.
	Timeout time.Duration
	// Pause after a try that failed; 0: a quarter of an hour.
	Pause time.Duration
}

// Get returns the current trusted root. For a day after it was fetched, what is kept
// is current. It fails without a network and without anything kept that is still
// valid, and with ErrLater where it failed within Pause, so that a machine without a
// network does not wait for it with each command.
func Get(ctx context.Context, o Options) ([]byte, error) {
	data, err := get(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("fetching the trusted root by TUF: %w", err)
	}
	return data, nil
}

func get(ctx context.Context, o Options) ([]byte, error) {
	if o.Dir == "" {
		return nil, errors.New("no folder to keep it in")
	}
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Pause == 0 {
		o.Pause = 15 * time.Minute
	}
	failed := filepath.Join(o.Dir, "failed")
	if info, err := os.Stat(failed); err == nil && time.Since(info.ModTime()) < o.Pause {
		return nil, fmt.Errorf("%w; remove %s to try again now", ErrLater, failed)
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	opts := tuf.DefaultOptions().WithContext(ctx).WithCachePath(o.Dir).WithCacheValidity(1).WithFetcher(fetcher{ctx, o.Transport})
	if o.Mirror != "" {
		opts = opts.WithRepositoryBaseURL(o.Mirror)
	}
	if o.Root != nil {
		opts = opts.WithRoot(o.Root)
	}
	client, err := tuf.New(opts)
	var data []byte
	if err == nil {
		data, err = client.GetTarget(target)
	}
	if err != nil {
		if werr := os.WriteFile(failed, nil, 0o644); werr != nil {
			err = errors.Join(err, werr)
		}
		return nil, err
	}
	if err := os.Remove(failed); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return data, nil
}

// fetcher asks with a context, which the library's own does not.
type fetcher struct {
	ctx       context.Context
	transport http.RoundTripper
}

// DownloadFile implements go-tuf's Fetcher.
func (f fetcher) DownloadFile(url string, most int64, _ time.Duration) ([]byte, error) {
	req, err := http.NewRequestWithContext(f.ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "assay")
	resp, err := (&http.Client{Transport: f.transport}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, &metadata.ErrDownloadHTTP{StatusCode: resp.StatusCode, URL: url}
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err == nil && int64(len(data)) > most {
		err = &metadata.ErrDownloadLengthMismatch{Msg: fmt.Sprintf("%s is larger than %d bytes", url, most)}
	}
	return data, err
}
