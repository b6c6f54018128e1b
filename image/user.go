package image

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// userFileBytes bounds /etc/passwd and /etc/group.
const userFileBytes = 4 << 20

// User finds the ids of a user as an image's configuration names it: "",
// "uid", "name", each with ":gid" or ":group" or without. Names are looked up
// in /etc/passwd and /etc/group of the image, whose layer folders are given
// lowest first. As runtimes have it, empty means root, a group not given is
// that of the user's entry, and a number needs no entry.
//
// It fails for a name that the image does not have and for ids beyond what a
// sandbox has; there is no falling back to root.
func User(rootLayers []string, userSpec string) (uid, gid uint32, err error) {
	if userSpec == "" {
		return 0, 0, nil
	}
	user, group, hasGroup := strings.Cut(userSpec, ":")
	if user == "" || hasGroup && group == "" || strings.Contains(group, ":") {
		return 0, 0, fmt.Errorf("finding user %q: want user or user:group, by name or number", userSpec)
	}
	view, err := openView(rootLayers)
	if err != nil {
		return 0, 0, fmt.Errorf("finding user %q: %w", userSpec, err)
	}
	defer view.Close()
	uid, gid, err = passwd(view, user)
	if err == nil && hasGroup {
		gid, err = groupID(view, group)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("finding user %q: %w", userSpec, err)
	}
	return uid, gid, nil
}

// passwd finds a user's id and group: name:password:uid:gid:…
func passwd(view *rootView, user string) (uid, gid uint32, err error) {
	number, isNumber, err := parseID(user)
	if err != nil {
		return 0, 0, err
	}
	err = lookup(view, "/etc/passwd", func(f []string) bool {
		return len(f) >= 4 && (f[0] == user || isNumber && f[2] == user)
	}, func(f []string) (err error) {
		if uid, err = entryID(f[2]); err != nil {
			return err
		}
		gid, err = entryID(f[3])
		return err
	})
	if isNumber && errors.Is(err, os.ErrNotExist) {
		return number, 0, nil
	}
	return uid, gid, err
}

// groupID finds a group's id: name:password:gid:…
func groupID(view *rootView, group string) (gid uint32, err error) {
	number, isNumber, err := parseID(group)
	if err != nil || isNumber {
		return number, err
	}
	err = lookup(view, "/etc/group", func(f []string) bool { return len(f) >= 3 && f[0] == group }, func(f []string) (err error) {
		gid, err = entryID(f[2])
		return err
	})
	return gid, err
}

// lookup finds the first matching line of a colon-separated file. It fails with
// os.ErrNotExist where there is none.
func lookup(view *rootView, file string, match func([]string) bool, found func([]string) error) error {
	b, err := view.readFile(file, userFileBytes)
	if err != nil {
		return fmt.Errorf("reading the image's %s: %w", file, err)
	}
	for line := range bytes.Lines(b) {
		f := strings.Split(strings.TrimRight(string(line), "\r\n"), ":")
		if match(f) {
			return found(f)
		}
	}
	return fmt.Errorf("the image's %s has no such entry: %w", file, os.ErrNotExist)
}

// parseID tells a number from a name.
func parseID(s string) (id uint32, isNumber bool, err error) {
	for _, c := range s {
		if c < '0' || c > '9' {
			return 0, false, nil
		}
	}
	id, err = entryID(s)
	return id, true, err
}

func entryID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n >= ids {
		return 0, fmt.Errorf("id %q is none of the %d that a sandbox has", s, ids)
	}
	return uint32(n), nil
}
