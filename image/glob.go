package image

import (
	"fmt"
	"path"
	"strings"
)

// globs is a list of patterns for paths relative to a folder, with slashes.
// Each part of a pattern matches one name as path.Match has it; "**" matches
// any number of names, none included. A pattern that matches a folder matches
// everything below it.
type globs [][]string

func parseGlobs(patterns []string) (globs, error) {
	var out globs
	for _, p := range patterns {
		parts := strings.Split(strings.Trim(p, "/"), "/")
		for _, part := range parts {
			if part == "" || part == "." || part == ".." {
				return nil, fmt.Errorf("reading pattern %q: want names joined by single slashes", p)
			}
			if _, err := path.Match(part, ""); err != nil {
				return nil, fmt.Errorf("reading pattern %q: %w", p, err)
			}
		}
		out = append(out, parts)
	}
	return out, nil
}

// covers says that a path, or a folder above it, matches.
func (g globs) covers(rel string) bool {
	names := strings.Split(rel, "/")
	for _, p := range g {
		for n := 1; n <= len(names); n++ {
			if matchParts(p, names[:n]) {
				return true
			}
		}
	}
	return false
}

// leadsTo says that something below the folder rel could match.
func (g globs) leadsTo(rel string) bool {
	names := strings.Split(rel, "/")
	for _, p := range g {
		if prefixParts(p, names) {
			return true
		}
	}
	return false
}

func matchParts(pattern, names []string) bool {
	for len(pattern) > 0 {
		if pattern[0] == "**" {
			for n := range len(names) + 1 {
				if matchParts(pattern[1:], names[n:]) {
					return true
				}
			}
			return false
		}
		if len(names) == 0 {
			return false
		}
		if ok, _ := path.Match(pattern[0], names[0]); !ok {
			return false
		}
		pattern, names = pattern[1:], names[1:]
	}
	return len(names) == 0
}

// prefixParts says that names could be the beginning of what pattern matches.
func prefixParts(pattern, names []string) bool {
	for i, name := range names {
		if i >= len(pattern) {
			return false
		}
		if pattern[i] == "**" {
			return true
		}
		if ok, _ := path.Match(pattern[i], name); !ok {
			return false
		}
	}
	return len(pattern) > len(names)
}
