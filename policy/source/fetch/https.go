package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strings"

	"assay.dev/assay/policy/source"
)

const maxRedirects = 5

// sha256Form is the fragment of a pinned https address.
var sha256Form = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// https fetches one file. An address that ends with #sha256:… is that file or an error.
func (f *Fetcher) https(ctx context.Context, address string) (*source.Tree, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, errors.New("reading the address: it is no URL")
	}
	want := u.Fragment
	if want != "" && !sha256Form.MatchString(want) {
		return nil, fmt.Errorf("reading the address: behind the # stands %q; only sha256:… of the file may", want)
	}
	u.Fragment, u.RawFragment = "", ""
	name := path.Base(u.Path)
	if u.Path == "" || strings.HasSuffix(u.Path, "/") || checkName(name) != nil {
		return nil, errors.New("reading the address: specify a path to a file to download")
	}
	user := u.User
	u.User = nil
	if want != "" {
		if t, err := f.cache.get("https "+u.String()+" "+want, u.String()+"#"+want); err == nil {
			return t, nil
		}
	}
	b, err := f.download(ctx, u, user)
	if err != nil {
		return nil, err
	}
	got := sum(b)
	if want != "" && got != want {
		return nil, fmt.Errorf("the file has the digest %s, and the address says %s", got, want)
	}
	key := "https " + u.String() + " " + got
	if t, err := f.cache.get(key, u.String()+"#"+got); err == nil {
		return t, nil
	}
	return f.cache.put(ctx, key, u.String()+"#"+got, func(_ context.Context, p *place) error {
		return p.file(name, strings.NewReader(string(b)))
	})
}

func (f *Fetcher) download(ctx context.Context, u *url.URL, user *url.Userinfo) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("asking for the file: %w", err)
	}
	req.Header.Set("User-Agent", "assay")
	if user != nil {
		password, _ := user.Password()
		req.SetBasicAuth(user.Username(), password)
	} else if login, password, ok, err := netrc(u.Hostname()); err != nil {
		return nil, err
	} else if ok {
		req.SetBasicAuth(login, password)
	}
	client := &http.Client{
		Transport: &guarded{base: f.opts.Transport, limit: f.opts.Limits.File},
		CheckRedirect: func(_ *http.Request, via []*http.Request) error {
			if len(via) > maxRedirects {
				return fmt.Errorf("it redirects more than %d times", maxRedirects)
			}
			return nil
		},
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("downloading: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("downloading: the server answers %s", resp.Status)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("downloading: %w", err)
	}
	return b, nil
}
