package measure

import (
	"fmt"
	"strings"
)

// insideLink refuses a symbolic link that could lead out of the tree it is in.
//
// The link at path sits in a real folder, so ".." at the start of its target
// climbs real folders and can be counted. After the first name the target may
// pass through other links, whose parent is not known from the text alone, so
// ".." is not accepted there: with x → "." in sub, "sub/x/../.." looks like
// the root and is its parent.
func insideLink(path, target string) error {
	outside := func(why string) error {
		return fmt.Errorf("refusing symbolic link %q to %q: %s; make it relative to files of the same folder, or allow links to the outside", path, target, why)
	}
	if strings.HasPrefix(target, "/") {
		return outside("it is absolute")
	}
	depth, descended := strings.Count(path, "/"), false
	for name := range strings.SplitSeq(target, "/") {
		switch name {
		case "", ".":
		case "..":
			if descended {
				return outside("it has .. after a name, which may lead out of the folder")
			}
			if depth--; depth < 0 {
				return outside("it leads out of the folder")
			}
		default:
			descended = true
		}
	}
	return nil
}
