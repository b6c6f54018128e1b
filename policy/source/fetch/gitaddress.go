package fetch

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
)

// gitAddress is a git address, taken apart.
type gitAddress struct {
	// url is where the repository is (https or ssh), if folder is empty.
	url *url.URL
	// folder is a repository on this machine.
	folder string
	// ref is a branch, a tag, a full commit id, or empty for what HEAD is.
	ref string
	// subdir is a folder in it, or empty.
	subdir string
	// pinned is the address without kind and query: what a commit is added to.
	pinned string
}

// pathForm is what is taken for a path behind git::.
var pathForm = regexp.MustCompile(`^(?:\./|\.\./|/|~/)`)

// scpForm is user@host:path.
var scpForm = regexp.MustCompile(`^git@([^/:]+):([^:].*)$`)

// parseGit reads an address as go-gather does: the form user@host:path means https,
// everything without a scheme is https, and .git is added where it is missing. New here
// is git::ssh://….
func parseGit(base, address string) (*gitAddress, error) {
	s := strings.TrimPrefix(address, "git::")
	ssh := strings.HasPrefix(s, "ssh://")
	if !ssh {
		if m := scpForm.FindStringSubmatch(s); m != nil {
			s = m[1] + "/" + m[2]
		}
		for _, p := range []string{"git://", "https://"} {
			s = strings.TrimPrefix(s, p)
		}
	}
	a := &gitAddress{}
	plain := strings.TrimPrefix(strings.TrimPrefix(s, "file://"), "file::")
	if plain != s || pathForm.MatchString(s) {
		p, query, _ := strings.Cut(plain, "?")
		q, err := url.ParseQuery(query)
		if err != nil {
			return nil, fmt.Errorf("reading the address: %w", err)
		}
		p, a.subdir = cutSubdir(p)
		if err := a.query(q); err != nil {
			return nil, err
		}
		if a.folder, err = localPath(base, p); err != nil {
			return nil, err
		}
		a.pinned = "file://" + p
		return a, a.check()
	}
	if !ssh {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, errors.New("reading the address: it is no URL") // the cause may hold a password
	}
	if u.Hostname() == "" || u.Path == "" || u.Path == "/" {
		return nil, errors.New("reading the address: want a host and a repository, for example git::https://host/group/repository//folder?ref=main")
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("reading the address: %w", err)
	}
	u.Path, a.subdir = cutSubdir(u.Path)
	if err := a.query(q); err != nil {
		return nil, err
	}
	u.RawPath, u.RawQuery, u.Fragment = "", "", ""
	a.pinned = u.Host + u.Path
	if ssh {
		if u.User != nil {
			u.User = url.User(u.User.Username())
		}
		a.pinned = u.String()
	}
	if !strings.HasSuffix(u.Path, ".git") {
		u.Path += ".git"
	}
	a.url = u
	return a, a.check()
}

// cutSubdir splits at the first // of a path.
func cutSubdir(p string) (repo, subdir string) {
	lead := ""
	if strings.HasPrefix(p, "/") {
		lead, p = "/", strings.TrimLeft(p, "/")
	}
	repo, subdir, _ = strings.Cut(p, "//")
	return lead + repo, subdir
}

// query reads ref and depth. Upstream finds a folder behind those, too.
func (a *gitAddress) query(q url.Values) error {
	for key := range q {
		if key != "ref" && key != "depth" {
			return fmt.Errorf("reading the address: %q is not known; there are ref and depth", key)
		}
	}
	value := func(key string) string {
		v, subdir, ok := strings.Cut(q.Get(key), "//")
		if ok {
			a.subdir = subdir
		}
		return v
	}
	a.ref = value("ref")
	if d := value("depth"); d != "" {
		// One commit is all that is ever fetched, so that any depth is deep enough.
		if n, err := strconv.Atoi(d); err != nil || n < 0 {
			return fmt.Errorf("reading the address: depth %q is no number of commits", d)
		}
	}
	return nil
}

func (a *gitAddress) check() error {
	if a.subdir = strings.Trim(a.subdir, "/"); a.subdir != "" {
		a.subdir = path.Clean(a.subdir)
		if a.subdir == ".." || strings.HasPrefix(a.subdir, "../") {
			return fmt.Errorf("reading the address: the folder %q is not in the repository", a.subdir)
		}
		if a.subdir == "." {
			a.subdir = ""
		}
	}
	if len(a.ref) > 1024 || strings.ContainsAny(a.ref, " ~^:?*[\\\x00\n") || strings.HasPrefix(a.ref, "-") {
		return fmt.Errorf("reading the address: ref %.100q is no branch, tag or commit", a.ref)
	}
	return nil
}

// commit says whether the ref is a full commit id.
func (a *gitAddress) commit() bool { return plumbing.IsHash(a.ref) }

// at is the pinned address of a commit.
func (a *gitAddress) at(commit string) string {
	p := a.pinned
	if a.subdir != "" {
		p += "//" + a.subdir
	}
	return "git::" + p + "?ref=" + commit
}

// key is what a commit's folder is called in the cache.
func (a *gitAddress) key(commit string) string {
	if a.url == nil {
		return "git " + a.folder + " " + commit + " " + a.subdir
	}
	return "git " + a.url.Scheme + "://" + a.url.Host + a.url.Path + " " + commit + " " + a.subdir
}

func localPath(base, p string) (string, error) {
	if p == "" {
		return "", errors.New("reading the address: it names no folder")
	}
	if rest, ok := strings.CutPrefix(p, "~/"); ok {
		home, err := homeDir()
		if err != nil {
			return "", err
		}
		return filepath.Join(home, rest), nil
	}
	if filepath.IsAbs(p) {
		return filepath.Clean(p), nil
	}
	abs, err := filepath.Abs(filepath.Join(base, p))
	if err != nil {
		return "", fmt.Errorf("finding %s: %w", p, err)
	}
	return abs, nil
}
