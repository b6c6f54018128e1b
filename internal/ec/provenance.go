package ec

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// Predicate types whose form is checked.
const (
	slsaV02 = "https://slsa.dev/provenance/v0.2"
	slsaV1  = "https://slsa.dev/provenance/v1"

	statementV01 = "https://in-toto.io/Statement/v0.1"
	statementV1  = "https://in-toto.io/Statement/v1"
)

// parsed is what a report says of an attestation.
type parsed struct {
	predicateType string
	buildType     string
}

// parseAttestation reads a statement, and checks the form of provenance. With an
// error about the form comes what could be read.
func parseAttestation(statement []byte) (*parsed, error) {
	var doc map[string]any
	if err := json.Unmarshal(statement, &doc); err != nil {
		return nil, fmt.Errorf("unable to parse untyped provenance: malformed attestation data: %w", err)
	}
	p := &parsed{}
	p.predicateType, _ = doc["predicateType"].(string)
	switch p.predicateType {
	case slsaV02:
		if err := checkV02(doc); err != nil {
			return p, fmt.Errorf("unable to parse as SLSA v0.2: malformed attestation data: %w", err)
		}
		p.buildType, _ = member(doc, "predicate", "buildType").(string)
	case slsaV1:
		if err := checkV1(doc); err != nil {
			return p, fmt.Errorf("unable to parse as SLSA v1: malformed attestation data: %w", err)
		}
		p.buildType, _ = member(doc, "predicate", "buildDefinition", "buildType").(string)
	}
	return p, nil
}

func member(v any, path ...string) any {
	for _, k := range path {
		m, _ := v.(map[string]any)
		v = m[k]
	}
	return v
}

// finished is when the build ended that a statement tells of; zero if it does
// not say.
func finished(statement []byte) time.Time {
	var doc any
	if json.Unmarshal(statement, &doc) != nil {
		return time.Time{}
	}
	s, _ := member(doc, "predicate", "metadata", "buildFinishedOn").(string)
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}

// form checks members of an object, and gathers what is wrong.
type form struct {
	at   string
	errs *[]error
}

func (f form) fail(format string, args ...any) {
	*f.errs = append(*f.errs, fmt.Errorf("%s: %s", f.at, fmt.Sprintf(format, args...)))
}

func (f form) below(key string) form { return form{f.at + "/" + key, f.errs} }

// field is a member's value and whether it is there.
func (f form) field(o map[string]any, key string, required bool) (any, form, bool) {
	v, ok := o[key]
	if !ok && required {
		f.fail("has no %s", key)
	}
	return v, f.below(key), ok
}

func (f form) object(o map[string]any, key string, required bool) (map[string]any, form) {
	v, at, ok := f.field(o, key, required)
	if !ok {
		return nil, at
	}
	m, ok := v.(map[string]any)
	if !ok {
		at.fail("is not an object")
		return nil, at
	}
	return m, at
}

func (f form) list(o map[string]any, key string, required bool, each func(form, map[string]any)) int {
	v, at, ok := f.field(o, key, required)
	if !ok {
		return 0
	}
	l, ok := v.([]any)
	if !ok {
		at.fail("is not an array")
		return 0
	}
	for i, x := range l {
		elem := at.below(fmt.Sprint(i))
		m, ok := x.(map[string]any)
		if !ok {
			elem.fail("is not an object")
			continue
		}
		each(elem, m)
	}
	return len(l)
}

// text checks a string member; check may be nil.
func (f form) text(o map[string]any, key string, required bool, check func(string) error) {
	v, at, ok := f.field(o, key, required)
	if !ok {
		return
	}
	s, ok := v.(string)
	if !ok {
		at.fail("is not a string")
		return
	}
	if check != nil {
		if err := check(s); err != nil {
			at.fail("%v", err)
		}
	}
}

func (f form) flag(o map[string]any, key string) {
	if v, at, ok := f.field(o, key, false); ok {
		if _, ok := v.(bool); !ok {
			at.fail("is not true or false")
		}
	}
}

func filled(s string) error {
	if s == "" {
		return errors.New("is empty")
	}
	return nil
}

func uri(s string) error {
	u, err := url.Parse(s)
	if err != nil || !u.IsAbs() {
		return fmt.Errorf("%q is not a URI", s)
	}
	return nil
}

func moment(s string) error {
	if _, err := time.Parse(time.RFC3339, s); err != nil {
		return err
	}
	if !strings.HasSuffix(s, "Z") {
		return fmt.Errorf("%q is not in UTC", s)
	}
	return nil
}

var lowHex = regexp.MustCompile(`^[a-f0-9]+$`)

// algorithms are the names that a digest may have in SLSA provenance.
var algorithms = map[string]bool{
	"sha256": true, "sha224": true, "sha384": true, "sha512": true, "sha512_224": true, "sha512_256": true,
	"sha3_224": true, "sha3_256": true, "sha3_384": true, "sha3_512": true, "shake128": true, "shake256": true,
	"blake2b": true, "blake2s": true, "ripemd160": true, "sm3": true, "gost": true, "sha1": true, "md5": true,
}

func (f form) digests(o map[string]any, required, v1 bool) {
	m, at := f.object(o, "digest", required)
	for name, v := range m {
		if !algorithms[name] && !(v1 && name == "gitCommit") {
			at.fail("algorithm %q is not known", name)
		}
		if s, ok := v.(string); !ok || !lowHex.MatchString(s) {
			at.fail("%s is not lower-case hex", name)
		}
	}
}

func (f form) subject(doc map[string]any, v1 bool) {
	n := f.list(doc, "subject", true, func(f form, s map[string]any) {
		f.text(s, "name", true, filled)
		f.digests(s, true, v1)
	})
	if v, ok := doc["subject"].([]any); ok && n == 0 && len(v) == 0 {
		f.below("subject").fail("is empty")
	}
}

func (f form) err() error { return errors.Join(*f.errs...) }

func newForm() form { return form{"", new([]error)} }

func checkV02(doc map[string]any) error {
	f := newForm()
	f.text(doc, "_type", true, func(s string) error {
		if s != statementV01 {
			return fmt.Errorf("%q is not %s", s, statementV01)
		}
		return nil
	})
	f.subject(doc, false)
	p, at := f.object(doc, "predicate", true)
	if p == nil {
		return f.err()
	}
	if b, in := at.object(p, "builder", true); b != nil {
		in.text(b, "id", true, uri)
	}
	at.text(p, "buildType", true, nil)
	if inv, in := at.object(p, "invocation", false); inv != nil {
		if c, in := in.object(inv, "configSource", false); c != nil {
			in.text(c, "uri", false, nil)
			in.digests(c, false, false)
			in.text(c, "entryPoint", false, filled)
		}
		in.object(inv, "parameters", false)
		in.object(inv, "environment", false)
	}
	if m, in := at.object(p, "metadata", false); m != nil {
		in.text(m, "buildInvocationId", false, filled)
		in.text(m, "buildStartedOn", false, moment)
		in.text(m, "buildFinishedOn", false, moment)
		if c, in := in.object(m, "completeness", false); c != nil {
			for _, k := range []string{"parameters", "environment", "materials"} {
				in.flag(c, k)
			}
		}
		in.flag(m, "reproducible")
	}
	at.object(p, "buildConfig", false)
	at.list(p, "materials", false, func(f form, m map[string]any) {
		f.text(m, "uri", false, nil)
		f.digests(m, false, false)
	})
	return f.err()
}

func checkV1(doc map[string]any) error {
	f := newForm()
	f.text(doc, "_type", true, func(s string) error {
		// Tekton Chains writes the old type with the new predicate.
		if s != statementV1 && s != statementV01 {
			return fmt.Errorf("%q is not %s", s, statementV1)
		}
		return nil
	})
	f.subject(doc, true)
	p, at := f.object(doc, "predicate", true)
	if p == nil {
		return f.err()
	}
	resources := func(f form, o map[string]any, key string) {
		f.list(o, key, false, func(f form, r map[string]any) {
			for _, k := range []string{"uri", "name", "downloadLocation", "mediaType", "content"} {
				f.text(r, k, false, nil)
			}
			f.digests(r, false, true)
			f.object(r, "annotations", false)
		})
	}
	if d, in := at.object(p, "buildDefinition", true); d != nil {
		in.text(d, "buildType", true, filled)
		in.object(d, "externalParameters", true)
		in.object(d, "internalParameters", false)
		resources(in, d, "resolvedDependencies")
	}
	if r, in := at.object(p, "runDetails", true); r != nil {
		if b, in := in.object(r, "builder", true); b != nil {
			in.text(b, "id", true, uri)
			resources(in, b, "builderDependencies")
			in.object(b, "version", false)
		}
		if m, in := in.object(r, "metadata", false); m != nil {
			in.text(m, "invocationId", false, filled)
			in.text(m, "startedOn", false, moment)
			in.text(m, "finishedOn", false, moment)
		}
		resources(in, r, "byproducts")
	}
	return f.err()
}
