// Package pkcs11 signs with a key in a token: a smart card, an HSM, or SoftHSM.
// The key is named by a URI as RFC 7512 has it, the PIN is in a file of its own:
//
//	pkcs11:token=release;object=chains?module-path=/usr/lib/softhsm/libsofthsm2.so
//
// The library that the URI names is code that will run in this process, beside
// every other key, and URIs come from a ConfigMap. So libraries are loaded only if
// the one who starts the signer listed them; where the list has one, URIs need not
// name it.
//
// A wrong PIN is tried once. Tokens lock themselves after a few, so it is not
// tried again before its file changes.
//
// ECDSA on P-256 and P-384, Ed25519 and RSA (PKCS #1 v1.5 over SHA-256) are used;
// the token needs the public key too, as an object or a certificate of the same id
// or label. It takes a C compiler to build: without one Open refuses.
//
// Tests run against SoftHSM.
package pkcs11

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"assay.dev/assay/store"
)

// ReadToken reads a file that settings name as a token or PIN. Who implements it
// decides which files may be read.
type ReadToken func(path string) (string, error)

// URI names a key in a token; empty fields match anything.
type URI struct {
	Token, Manufacturer, Serial, Model string
	Object, ID                         string // the key's label and id
	PINSource                          string // a file; empty: settings name it
	ModuleName, ModulePath             string
}

// maxURI is the length of the longest URI that is read.
const maxURI = 4 << 10

// ParseURI reads a pkcs11: URI. Attributes that it does not know, attributes given
// twice, a key without label and id, and PINs in the URI itself are errors.
func ParseURI(s string) (URI, error) {
	u, err := parseURI(s)
	if err != nil {
		return URI{}, fmt.Errorf("reading PKCS #11 URI: %w", err)
	}
	return u, nil
}

// parsePublicURI is ParseURI for one that may name a public key or a certificate.
func parsePublicURI(s string) (URI, error) { return ParseURI(withoutType(s)) }

// withoutType takes the attribute out that says which half of a key is meant.
func withoutType(s string) string {
	path, query, asked := strings.Cut(s, "?")
	scheme, rest, _ := strings.Cut(path, ":")
	kept := slices.DeleteFunc(strings.Split(rest, ";"), func(a string) bool { return a == "type=public" || a == "type=cert" })
	path = scheme + ":" + strings.Join(kept, ";")
	if asked {
		path += "?" + query
	}
	return path
}

func parseURI(s string) (URI, error) {
	if len(s) > maxURI {
		return URI{}, fmt.Errorf("%d bytes, at most %d are read", len(s), maxURI)
	}
	rest, ok := strings.CutPrefix(s, "pkcs11:")
	if !ok {
		return URI{}, errors.New("want pkcs11:token=…;object=…")
	}
	path, query, _ := strings.Cut(rest, "?")
	var u URI
	typ := ""
	if err := attributes(path, ";", map[string]*string{
		"token": &u.Token, "manufacturer": &u.Manufacturer, "serial": &u.Serial, "model": &u.Model,
		"object": &u.Object, "id": &u.ID, "type": &typ,
	}); err != nil {
		return URI{}, err
	}
	value := ""
	if err := attributes(query, "&", map[string]*string{
		"pin-source": &u.PINSource, "module-name": &u.ModuleName, "module-path": &u.ModulePath, "pin-value": &value,
	}); err != nil {
		return URI{}, err
	}
	switch {
	case value != "":
		return URI{}, errors.New("it holds the PIN, which everybody who reads settings would know; put it in a file and name that")
	case typ != "" && typ != "private":
		return URI{}, fmt.Errorf("type %q cannot sign; want private", typ)
	case u.Object == "" && u.ID == "":
		return URI{}, errors.New("it names no key; give object or id")
	}
	if u.PINSource != "" {
		u.PINSource = strings.TrimPrefix(strings.TrimPrefix(u.PINSource, "file://"), "file:")
		if !filepath.IsAbs(u.PINSource) {
			return URI{}, errors.New("pin-source is no file with an absolute path")
		}
	}
	return u, nil
}

// attributes reads name=value pairs.
func attributes(s, separator string, known map[string]*string) error {
	if s == "" {
		return nil
	}
	seen := map[string]bool{}
	for pair := range strings.SplitSeq(s, separator) {
		name, value, ok := strings.Cut(pair, "=")
		to := known[name]
		switch {
		case !ok:
			return fmt.Errorf("%q is no attribute", pair)
		case to == nil:
			return fmt.Errorf("attribute %q is not supported", name)
		case seen[name]:
			return fmt.Errorf("attribute %q is given twice", name)
		}
		seen[name] = true
		v, err := url.PathUnescape(value)
		if err != nil {
			return fmt.Errorf("reading attribute %q: %w", name, err)
		}
		*to = v
	}
	return nil
}

// module is the library for a URI, out of those that may be loaded.
func (u URI) module(allowed []string) (string, error) {
	fits := func(m string) bool {
		base := filepath.Base(m)
		name, _, _ := strings.Cut(base, ".")
		return (u.ModulePath == "" || u.ModulePath == m) &&
			(u.ModuleName == "" || u.ModuleName == name || "lib"+u.ModuleName == name)
	}
	var fit []string
	for _, m := range allowed {
		if fits(m) && !slices.Contains(fit, m) {
			fit = append(fit, m)
		}
	}
	switch {
	case len(fit) == 1:
		if !filepath.IsAbs(fit[0]) {
			return "", store.As(store.Configuration, fmt.Errorf("PKCS #11 library %s: not an absolute path", fit[0]))
		}
		return fit[0], nil
	case len(allowed) == 0:
		return "", store.As(store.Configuration, errors.New("no PKCS #11 library may be loaded; start the signer with --pkcs11-module PATH"))
	case len(fit) == 0:
		return "", store.As(store.Configuration, fmt.Errorf("the URI names another PKCS #11 library than the signer may load (%s); start it with --pkcs11-module", strings.Join(allowed, ", ")))
	}
	return "", store.As(store.Configuration, fmt.Errorf("several PKCS #11 libraries fit (%s); name one with module-path", strings.Join(fit, ", ")))
}

// PINError says that a token refused a PIN.
type PINError struct {
	err     error
	changed func() bool
}

// Error implements error.
func (e *PINError) Error() string { return e.err.Error() }

// Unwrap implements errors.Unwrap.
func (e *PINError) Unwrap() error { return e.err }

// Held says whether the same PIN would be tried again.
func (e *PINError) Held() bool { return !e.changed() }
