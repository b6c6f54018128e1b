package vsa

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"assay.dev/assay/attest/dsse"
)

// Backend is where Conforma keeps summaries.
type Backend string

// The back ends. File is read only, Local written only: so it is there too.
const (
	Rekor Backend = "rekor"
	Local Backend = "local"
	File  Backend = "file"
)

// DefaultRekor is the log that is asked where none is named.
const DefaultRekor = "https://rekor.sigstore.dev"

// Place is one value of --vsa-upload or --vsa-retrieval: BACKEND[@WHERE][?NAME=VALUE&…].
type Place struct {
	Backend Backend
	// Where is the log's address or the folder.
	Where   string
	Timeout time.Duration
	Retries int
	// Ignored are names of parameters that mean nothing.
	Ignored []string
}

// ParsePlace reads a place. It fails for a back end that is not among those that are
// accepted, and for a parameter with a bad value.
func ParsePlace(s string, accepted ...Backend) (Place, error) {
	fail := func(err error) (Place, error) { return Place{}, fmt.Errorf("%q: %w", s, err) }
	if s == "" {
		return Place{}, errors.New("storage flag cannot be empty")
	}
	head, query, _ := strings.Cut(s, "?")
	backend, where, _ := strings.Cut(head, "@")
	p := Place{Backend: Backend(strings.ToLower(backend)), Where: where, Timeout: 30 * time.Second, Retries: 3}
	if backend == "" {
		return fail(errors.New("backend name cannot be empty"))
	}
	if !slices.Contains(accepted, p.Backend) {
		var words []string
		for _, b := range accepted {
			words = append(words, string(b))
		}
		return fail(fmt.Errorf("unsupported backend '%s'. Supported backends: %s", backend, strings.Join(words, ", ")))
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return fail(fmt.Errorf("invalid storage configuration format: %w", err))
	}
	for name := range values {
		v := values.Get(name)
		switch {
		case p.Backend == Rekor && (name == "server" || name == "url"), p.Backend != Rekor && (name == "path" || name == "dir" || name == "directory"):
			p.Where = v
		case p.Backend == Rekor && name == "timeout":
			if p.Timeout, err = time.ParseDuration(v); err != nil || p.Timeout <= 0 {
				return fail(fmt.Errorf("invalid timeout format '%s'", v))
			}
		case p.Backend == Rekor && name == "retries":
			if p.Retries, err = strconv.Atoi(v); err != nil || p.Retries < 0 || p.Retries > 20 {
				return fail(fmt.Errorf("invalid retries format '%s'", v))
			}
		default:
			p.Ignored = append(p.Ignored, name)
		}
	}
	slices.Sort(p.Ignored)
	switch p.Backend {
	case Rekor:
		if p.Where == "" {
			p.Where = DefaultRekor
		}
		u, err := url.Parse(p.Where)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			return fail(errors.New("the log's address is no URL, such as rekor@https://rekor.example.com"))
		}
	case Local:
		if p.Where == "" {
			p.Where = "./vsa-upload"
		}
	case File:
		if p.Where == "" {
			p.Where = "."
		}
	}
	return p, nil
}

// String is the place as messages name it.
func (p Place) String() string {
	switch p.Backend {
	case Rekor:
		return "Rekor (" + p.Where + ")"
	case Local:
		return "Local (" + p.Where + ")"
	}
	return "File (" + p.Where + ")"
}

// Put keeps an envelope there. It fails for a File.
func (p Place) Put(ctx context.Context, env *dsse.Envelope, key dsse.PublicKey, rt http.RoundTripper, now time.Time) error {
	switch p.Backend {
	case Local:
		raw, err := env.MarshalJSON()
		if err != nil {
			return err
		}
		sum := sha256.Sum256(raw)
		_, err = Write(p.Where, fmt.Sprintf("vsa-%s-%x.json", now.Format("2006-01-02T15-04-05.000000000"), sum[:8]), raw)
		return err
	case Rekor:
		_, err := p.rekor(rt).upload(ctx, env, key)
		return err
	}
	return fmt.Errorf("%s is only read", p)
}

// ErrNotThere says that a place has no summary.
var ErrNotThere = errors.New("not found")

// Get returns the envelopes that the place has for an identifier: in Rekor an image's
// digest (or a reference with one), of a folder the file of that name. Nothing is
// verified. It is ErrNotThere where there is none.
func (p Place) Get(ctx context.Context, identifier string, rt http.RoundTripper) ([]*dsse.Envelope, error) {
	switch p.Backend {
	case Rekor:
		digest, err := digestOf(identifier)
		if err != nil {
			return nil, err
		}
		return p.rekor(rt).find(ctx, digest)
	case File:
		path := identifier
		if !filepath.IsAbs(path) {
			path = filepath.Join(p.Where, path)
		}
		env, err := Envelope(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("VSA file %w: %s", ErrNotThere, path)
		}
		if err != nil {
			return nil, err
		}
		return []*dsse.Envelope{env}, nil
	}
	return nil, fmt.Errorf("%s is only written", p)
}

// digestOf is the digest of an identifier: sha256:… or …@sha256:….
func digestOf(identifier string) (string, error) {
	d := identifier[strings.LastIndex(identifier, "@")+1:]
	if !sha256Form.MatchString(d) {
		return "", fmt.Errorf("identifier '%s' does not contain a valid image digest", identifier)
	}
	return d, nil
}
