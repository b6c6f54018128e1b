package measure

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"assay.dev/assay/observe/tree"
)

// Bounds on what a git server may answer.
const (
	advertisementBytes = 64 << 20
	advertisementRefs  = 1_000_000
)

// FindCommit asks the git server at repoURL (http or https, smart protocol)
// whether one of its refs is the commit, and returns the name of such a ref:
// the first branch in the server's order, else the first tag – annotated tags
// by the commit they point at – else HEAD. Other refs do not count: names such
// as refs/pull/1/head are made by whoever opens a pull request, so they say
// nothing about whose commit it is.
//
// found is false if no ref is the commit, which does not mean that the
// repository has no such commit. An error means that the server was not
// reached, does not speak the protocol, or answered more than the bounds allow.
// The connection, with proxies, credentials and timeouts, is the client's.
func FindCommit(ctx context.Context, client *http.Client, repoURL, commit string) (ref string, found bool, err error) {
	if !isObjectID(commit) {
		return "", false, fmt.Errorf("looking for a commit: %q is not 40 or 64 lower-case hexadecimal digits", commit)
	}
	u, err := url.Parse(repoURL)
	if err != nil {
		return "", false, fmt.Errorf("looking for commit %s: %w", commit, err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return "", false, fmt.Errorf("looking for commit %s: %s is not an http or https URL of a repository, the only kind that is asked", commit, u.Redacted())
	}
	ask := u.JoinPath("info", "refs")
	ask.RawQuery = "service=git-upload-pack"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, ask.String(), nil)
	if err != nil {
		return "", false, fmt.Errorf("looking for commit %s: %w", commit, err)
	}
	// Some servers answer with the dumb protocol to what is not git.
	req.Header.Set("User-Agent", "git/2 (assay)")
	resp, err := client.Do(req)
	if err != nil {
		return "", false, fmt.Errorf("looking for commit %s: %w", commit, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", false, fmt.Errorf("looking for commit %s in %s: the server answered %s", commit, u.Redacted(), resp.Status)
	}
	if ct := resp.Header.Get("Content-Type"); ct != "application/x-git-upload-pack-advertisement" {
		return "", false, fmt.Errorf("looking for commit %s in %s: the server answered %q, it does not speak git's smart protocol", commit, u.Redacted(), ct)
	}
	ref, err = findRef(resp.Body, commit)
	if err != nil {
		return "", false, fmt.Errorf("looking for commit %s in %s: %w", commit, u.Redacted(), err)
	}
	return ref, ref != "", nil
}

// findRef reads a ref advertisement (gitprotocol-http, "Smart Clients", and
// gitprotocol-pack, "Reference Discovery") and returns the best ref that is the
// commit, or "".
func findRef(r io.Reader, commit string) (string, error) {
	p := &pktReader{r: bufio.NewReader(io.LimitReader(r, advertisementBytes+1))}
	line, flush, err := p.next()
	if err != nil {
		return "", err
	}
	if flush || line != "# service=git-upload-pack" {
		return "", fmt.Errorf("reading refs: the answer begins with %q", shorten(line))
	}
	if line, flush, err = p.next(); err != nil {
		return "", err
	} else if !flush {
		return "", fmt.Errorf("reading refs: %q where the service's announcement ends", shorten(line))
	}
	var branch, tag, head string
	for n := 0; ; n++ {
		line, flush, err := p.next()
		if err != nil {
			return "", err
		}
		if flush {
			break
		}
		if n > advertisementRefs {
			return "", fmt.Errorf("reading refs: more than %d: %w", advertisementRefs, tree.ErrLimit)
		}
		if n == 0 {
			if line == "version 1" {
				n--
				continue
			}
			// The first ref carries the server's capabilities.
			line, _, _ = strings.Cut(line, "\x00")
		}
		id, name, ok := strings.Cut(line, " ")
		if ok && id == "shallow" && isObjectID(name) {
			continue
		}
		if !ok || !isObjectID(id) || name == "" || strings.ContainsAny(name, "\x00 \n") {
			return "", fmt.Errorf("reading refs: %q is not an object id and a name", shorten(line))
		}
		if id != commit {
			continue
		}
		// The commit of an annotated tag follows it as name^{}.
		name = strings.TrimSuffix(name, "^{}")
		switch {
		case strings.HasPrefix(name, "refs/heads/") && branch == "":
			branch = name
		case strings.HasPrefix(name, "refs/tags/") && tag == "":
			tag = name
		case name == "HEAD":
			head = name
		}
	}
	for _, ref := range []string{branch, tag, head} {
		if ref != "" {
			return ref, nil
		}
	}
	return "", nil
}

// pktReader reads pkt-lines: four hexadecimal digits that count the line with
// themselves, then the line; 0000 is a flush.
type pktReader struct {
	r    *bufio.Reader
	read int64
	buf  [65516]byte
}

func (p *pktReader) next() (line string, flush bool, err error) {
	var head [4]byte
	if err := p.fill(head[:]); err != nil {
		return "", false, err
	}
	n, err := strconv.ParseUint(string(head[:]), 16, 16)
	switch {
	case err != nil:
		return "", false, fmt.Errorf("reading a pkt-line: its length is %q", head[:])
	case n == 0:
		return "", true, nil
	case n < 4 || n > 65520:
		return "", false, fmt.Errorf("reading a pkt-line: its length %d is none of protocol version 0 or 1", n)
	}
	b := p.buf[:n-4]
	if err := p.fill(b); err != nil {
		return "", false, err
	}
	return strings.TrimSuffix(string(b), "\n"), false, nil
}

func (p *pktReader) fill(b []byte) error {
	if p.read += int64(len(b)); p.read > advertisementBytes {
		return fmt.Errorf("reading a pkt-line: the answer has more than %d bytes: %w", advertisementBytes, tree.ErrLimit)
	}
	if _, err := io.ReadFull(p.r, b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("reading a pkt-line: %w", err)
	}
	return nil
}

func isObjectID(s string) bool {
	return (len(s) == 40 || len(s) == 64) && strings.Trim(s, "0123456789abcdef") == ""
}

func shorten(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
