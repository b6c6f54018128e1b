package gateserver

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
)

// Access says who may ask. The zero value lets nobody but probes.
type Access struct {
	// Tokens is a file with a name and a token on each line; see ParseTokens.
	Tokens string
	// ClientNames are the names (common name or DNS name) that a client certificate may
	// have; empty: any that is by the client CA.
	ClientNames []string
	// Open lets everybody ask everything. It is for loopback.
	Open bool
	// OpenAdmission lets everybody ask for admission: most API servers do not say who
	// they are.
	OpenAdmission bool

	tokens *watched[[]Token]
}

// Token is a caller's secret, as its digest.
type Token struct {
	Name   string
	digest [sha256.Size]byte
}

// minToken is how long a token is at least. Those that are shorter were made up by a
// person, and can be guessed.
const minToken = 20

// ParseTokens reads lines of a name and a token, with blanks between. Empty lines and
// those that begin with # do not count. It fails on a token that is shorter than 20
// characters or has anything in it that a header cannot carry, on two lines with one
// name or one token, and where there is none.
func ParseTokens(raw []byte) ([]Token, error) {
	var out []Token
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Fields(line)
		// The line is a secret: it stands in no message.
		if len(f) != 2 {
			return nil, fmt.Errorf("line %d: want a name and a token", n)
		}
		if len(f[1]) < minToken {
			return nil, fmt.Errorf("line %d: the token of %s has less than %d characters; make one with `openssl rand -hex 32`", n, f[0], minToken)
		}
		if strings.ContainsFunc(f[1], func(r rune) bool { return r <= ' ' || r > '~' }) {
			return nil, fmt.Errorf("line %d: the token of %s has characters that a header does not carry", n, f[0])
		}
		t := Token{f[0], sha256.Sum256([]byte(f[1]))}
		for _, o := range out {
			if o.Name == t.Name || o.digest == t.digest {
				return nil, fmt.Errorf("line %d: %s has the name or the token of %s", n, t.Name, o.Name)
			}
		}
		out = append(out, t)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, errors.New("there is no token in it")
	}
	return out, nil
}

// open reads what access is by.
func (s *Server) open() (err error) {
	a := &s.o.Access
	if a.Tokens != "" {
		a.tokens, err = watch(s.log, s.m.files.Inc, func(b [][]byte) ([]Token, error) { return ParseTokens(b[0]) }, a.Tokens)
	}
	return err
}

// caller is who asks; "" is nobody that is known.
func (a *Access) caller(r *http.Request) string {
	if a.tokens != nil {
		scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if strings.EqualFold(scheme, "Bearer") && given != "" {
			d := sha256.Sum256([]byte(strings.TrimSpace(given)))
			name := ""
			// All are compared, of equal length, whichever it is.
			for _, t := range a.tokens.get() {
				if subtle.ConstantTimeCompare(d[:], t.digest[:]) == 1 {
					name = t.Name
				}
			}
			if name != "" {
				return name
			}
		}
	}
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		c := r.TLS.VerifiedChains[0][0]
		names := append([]string{c.Subject.CommonName}, c.DNSNames...)
		for _, n := range names {
			if n != "" && (len(a.ClientNames) == 0 || slices.Contains(a.ClientNames, n)) {
				return n
			}
		}
	}
	return ""
}

// allowed lets callers through that may ask.
func (s *Server) allowed(admission bool, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := &s.o.Access
		if a.Open || admission && a.OpenAdmission || a.caller(r) != "" {
			next.ServeHTTP(w, r)
			return
		}
		s.m.denied.Inc()
		s.log.Warn("a caller did not say who it is", "path", r.URL.Path, "remote", r.RemoteAddr)
		w.Header().Set("WWW-Authenticate", `Bearer realm="assay gate"`)
		refuse(w, http.StatusUnauthorized, "this needs a token (Authorization: Bearer …) or a client certificate that the server knows")
	})
}

// Loopback says whether an address can be reached from this machine alone.
func Loopback(addr net.Addr) bool {
	t, ok := addr.(*net.TCPAddr)
	return ok && t.IP.IsLoopback()
}
