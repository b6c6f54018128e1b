package fetch

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"assay.dev/assay/policy/source"
)

// errInsecure is in the error of what would go over plain http.
var errInsecure = errors.New("plain http, which anybody on the way can change, is not used")

// guarded lets only https through, and only so many bytes of a response.
type guarded struct {
	base  http.RoundTripper
	limit int64
}

func (g *guarded) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, fmt.Errorf("going to %s: %w", req.URL.Redacted(), errInsecure)
	}
	resp, err := g.base.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{&bound{r: resp.Body, left: g.limit, what: "the answer of " + req.URL.Host}, resp.Body}
	return resp, nil
}

func homeDir() (string, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("finding the home folder: %w", err)
	}
	return home, nil
}

// netrc looks a host up in $NETRC or ~/.netrc.
func netrc(host string) (login, password string, ok bool, err error) {
	file := os.Getenv("NETRC")
	if file == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", "", false, nil // nobody's home has nobody's passwords
		}
		file = filepath.Join(home, ".netrc")
	}
	raw, err := source.ReadFile(file, 1<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return "", "", false, nil
	}
	if err != nil {
		return "", "", false, fmt.Errorf("reading credentials: %w", err)
	}
	login, password, ok = parseNetrc(string(raw), host)
	return login, password, ok, nil
}

// parseNetrc finds the first entry for host, or the default one if that comes before.
func parseNetrc(text, host string) (login, password string, ok bool) {
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 1<<20+1)
	var words []string
	macro := false
	for lines.Scan() {
		line := strings.Fields(lines.Text())
		if len(line) == 0 {
			macro = false // a macro ends with an empty line
			continue
		}
		if macro || strings.HasPrefix(line[0], "#") {
			continue
		}
		for i, w := range line {
			if w == "macdef" && (i == 0 || !key(line[i-1])) {
				macro, line = true, line[:i]
				break
			}
		}
		words = append(words, line...)
	}
	mine := false
	for i := 0; i < len(words); i++ {
		next := func() string {
			if i++; i < len(words) {
				return words[i]
			}
			return ""
		}
		switch words[i] {
		case "machine", "default":
			if mine {
				return login, password, true
			}
			mine = words[i] == "default" || strings.EqualFold(next(), host)
		case "login":
			if v := next(); mine {
				login = v
			}
		case "password":
			if v := next(); mine {
				password = v
			}
		case "account":
			next()
		}
	}
	return login, password, mine
}

// key says whether a word of a netrc is followed by its value.
func key(word string) bool {
	return word == "machine" || word == "login" || word == "password" || word == "account"
}
