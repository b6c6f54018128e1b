package source

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// KindOf says what it takes to read an address, by its form alone and in the order
// that Conforma asks: a prefix that names the kind (oci::, oci://, git::, git://, git@,
// file::, file://), https to a host that is no known git host, a path (./, ../, /, ~/),
// a known git host or a name in .git, a known registry or this machine's. What is left
// is a path. It fails on plain http, on kinds that nobody here reads (s3::, hg::) and
// on nothing at all.
func KindOf(address string) (Kind, error) {
	k, _, err := kindOf(address)
	return k, err
}

// kindOf also says whether the form left a doubt: a bare name may be a path, if
// there is something at it.
func kindOf(address string) (kind Kind, bare bool, err error) {
	lower := strings.ToLower(address)
	switch {
	case strings.TrimSpace(address) == "":
		return "", false, errors.New("a source is empty")
	case strings.HasPrefix(lower, "http:") || insecure.MatchString(lower):
		return "", false, fmt.Errorf("source %q: attempting to download from insecure source: it is plain http, which anybody on the way can change; use https", address)
	case hasPrefix(address, "oci://", "oci::"):
		return OCI, false, nil
	case strings.HasPrefix(lower, "https://"):
		if gitHost(address) {
			return Git, false, nil
		}
		return HTTPS, false, nil
	case hasPrefix(address, "file://", "file::", "/", "./", "../", "~/") || address == "." || address == "..":
		return File, false, nil
	case hasPrefix(address, "git@", "git://", "git::"):
		return Git, false, nil
	}
	if before, _, ok := strings.Cut(address, "::"); ok {
		return "", false, fmt.Errorf("source %q: the kind %q is not known; there are git::, oci::, https:// and files", address, before)
	}
	if scheme, _, ok := strings.Cut(address, "://"); ok {
		return "", false, fmt.Errorf("source %q: the scheme %q is not known; there are git::, oci::, https:// and files", address, scheme)
	}
	for _, host := range gitHosts {
		if strings.Contains(address, host) {
			return Git, true, nil
		}
	}
	if path, _, _ := strings.Cut(address, "?"); strings.HasSuffix(path, ".git") {
		return Git, true, nil
	}
	if registryHost(address) {
		return OCI, true, nil
	}
	return File, true, nil
}

// insecure is a kind with plain http behind it.
var insecure = regexp.MustCompile(`^[a-z0-9]*::http:`)

// gitHosts are hosts whose addresses are repositories, whatever is before them.
var gitHosts = []string{"github.com", "gitlab.com", "bitbucket.org"}

// gitHost says whether an https address leads to one of gitHosts.
func gitHost(address string) bool {
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	host := strings.ToLower(u.Hostname())
	for _, h := range gitHosts {
		if host == h || strings.HasSuffix(host, "."+h) {
			return true
		}
	}
	return false
}

// registries are hosts whose addresses are artifacts, whatever is before them.
var registries = regexp.MustCompile(`^(?:(?:.*\.)?azurecr\.io|(?:.*\.)?gcr\.io|registry\.gitlab\.com|(?:.*\.)?pkg\.dev|` +
	`[0-9]{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com|quay\.io|::1|127\.0\.0\.1|localhost)$`)

func registryHost(address string) bool {
	u, err := url.Parse("oci://" + address)
	return err == nil && registries.MatchString(strings.ToLower(u.Hostname()))
}

func hasPrefix(s string, prefixes ...string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

// Path is where an address of kind File leads, relative ones from base. It fails on one
// that names nothing.
func Path(base, address string) (string, error) {
	p := strings.TrimPrefix(strings.TrimPrefix(address, "file::"), "file://")
	if p == "" {
		return "", fmt.Errorf("source %q: it names no file and no folder", address)
	}
	if strings.ContainsRune(p, 0) {
		return "", fmt.Errorf("source %q: there is a NUL in it", address)
	}
	if rest, ok := strings.CutPrefix(p, "~/"); ok {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("source %q: %w", address, err)
		}
		return filepath.Join(home, rest), nil
	}
	if !filepath.IsAbs(p) {
		p = filepath.Join(base, p)
	}
	return p, nil
}
