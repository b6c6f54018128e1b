package spec

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// ErrNoSources is the error for a policy that would check nothing.
var ErrNoSources = errors.New(`it has no sources, so nothing would be checked; add for example "sources: [{policy: [.], data: [.]}]"`)

var digestPattern = regexp.MustCompile(`^sha256:[a-fA-F0-9]{64}$`)

// Check says whether the configuration means something: it has sources, each names
// rules, dates are dates, no item has two scopes, each signer is one. A
// configuration that extends others may leave the sources to them.
func (s *Spec) Check() error {
	extends := s.Assay != nil && len(s.Assay.Extends) > 0
	if len(s.Sources) == 0 && !extends {
		return ErrNoSources
	}
	for i := range s.Sources {
		src := &s.Sources[i]
		// A source of an overlay may have its rules from the one that it changes.
		if len(src.Policy) == 0 && !(extends && src.Name != "") {
			return fmt.Errorf("sources[%d] names no policy; add for example \"policy: [.]\"", i)
		}
		if v := src.VolatileConfig; v != nil {
			if err := checkItems(v.Include); err != nil {
				return fmt.Errorf("sources[%d].volatileConfig.include%w", i, err)
			}
			if err := checkItems(v.Exclude); err != nil {
				return fmt.Errorf("sources[%d].volatileConfig.exclude%w", i, err)
			}
		}
	}
	if s.Identity != nil && *s.Identity != (Identity{}) {
		if err := s.Identity.Check(); err != nil {
			return fmt.Errorf("identity: %w", err)
		}
	}
	if s.Assay != nil {
		if err := s.Assay.check(); err != nil {
			return fmt.Errorf("assay.%w", err)
		}
	}
	return nil
}

func checkItems(items []VolatileItem) error {
	for j := range items {
		if err := items[j].Check(); err != nil {
			return fmt.Errorf("[%d]: %w", j, err)
		}
	}
	return nil
}

// Check says whether the item has a value, dates that are dates, and one scope at
// most. Conforma skips an item with a bad date; an exclusion that silently never
// ends or never begins is worse than an error.
func (v *VolatileItem) Check() error {
	if v.Value == "" {
		return errors.New("value is empty")
	}
	if _, _, err := v.Times(); err != nil {
		return err
	}
	scopes := 0
	for _, d := range []string{v.ImageDigest, v.ImageRef} {
		if d == "" {
			continue
		}
		scopes++
		if !digestPattern.MatchString(d) {
			return fmt.Errorf("image digest %q is not of the form sha256:<64 hex digits>", d)
		}
	}
	if v.ImageURL != "" {
		scopes++
		if strings.Contains(v.ImageURL, "@") {
			return fmt.Errorf("imageUrl %q has a digest; use imageDigest for one image", v.ImageURL)
		}
	}
	if len(v.ComponentNames) > 0 {
		scopes++
	}
	if scopes > 1 {
		return errors.New("more than one of imageDigest, imageRef, imageUrl and componentNames is set; make one item of each")
	}
	return nil
}

// Times are the item's bounds, both inclusive; zero means unbounded. It fails on
// what ParseTime does.
func (v *VolatileItem) Times() (on, until time.Time, err error) {
	if v.EffectiveOn != "" {
		if on, err = ParseTime(v.EffectiveOn); err != nil {
			return on, until, fmt.Errorf("effectiveOn: %w", err)
		}
	}
	if v.EffectiveUntil != "" {
		if until, err = ParseTime(v.EffectiveUntil); err != nil {
			return on, until, fmt.Errorf("effectiveUntil: %w", err)
		}
	}
	return on, until, nil
}

// ParseTime reads an RFC 3339 time or a plain date, which means its first instant
// in UTC. It fails on everything else.
func ParseTime(s string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	if t, err := time.Parse(time.DateOnly, s); err == nil {
		return t, nil
	}
	return time.Time{}, fmt.Errorf("%q is neither an RFC 3339 time (2026-06-01T00:00:00Z) nor a date (2026-06-01)", s)
}

// Check says whether the identity names a subject and an issuer, each once, and
// whether its expressions are such.
func (id *Identity) Check() error {
	if (id.Subject == "") == (id.SubjectRegExp == "") {
		return errors.New("one of subject and subjectRegExp is required")
	}
	if (id.Issuer == "") == (id.IssuerRegExp == "") {
		return errors.New("one of issuer and issuerRegExp is required")
	}
	for _, e := range []string{id.SubjectRegExp, id.IssuerRegExp} {
		if _, err := regexp.Compile(e); err != nil {
			return err
		}
	}
	return nil
}

func (a *Additions) check() error {
	for i, e := range a.Extends {
		if strings.TrimSpace(e) == "" {
			return fmt.Errorf("extends[%d] is empty", i)
		}
	}
	if s := a.Signers; s != nil {
		for what, list := range map[string][]Signer{"image": s.Image, "provenance": s.Provenance, "sbom": s.SBOM} {
			if err := checkSigners(list); err != nil {
				return fmt.Errorf("signers.%s%w", what, err)
			}
		}
		if len(s.Image) == 0 {
			return errors.New("signers.image is empty; say who signs images, whom provenance and sbom fall back to")
		}
	}
	for i, h := range a.Registries {
		if h == "" || strings.ContainsAny(h, "/@ ") {
			return fmt.Errorf("registries[%d]: %q is no host or host:port", i, h)
		}
	}
	for address, d := range a.Checksums {
		if !digestPattern.MatchString(d) {
			return fmt.Errorf("checksums: that of %s is not of the form sha256:<64 hex digits>", address)
		}
	}
	if err := checkSigners(a.SourceSigners); err != nil {
		return fmt.Errorf("sourceSigners%w", err)
	}
	return nil
}

func checkSigners(list []Signer) error {
	for i, s := range list {
		switch {
		case (s.PublicKey == "") == (s.Identity == nil):
			return fmt.Errorf("[%d]: one of publicKey and identity is required", i)
		case s.Identity != nil:
			if err := s.Identity.Check(); err != nil {
				return fmt.Errorf("[%d].identity: %w", i, err)
			}
		}
	}
	return nil
}
