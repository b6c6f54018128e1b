package image

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// owners turns the ids in a layer into ids on disk.
type owners struct {
	shift int
	// single: files stay with this process's own user.
	single bool
	// uids and gids that this process's user namespace has.
	uids, gids []idRange
}

type idRange struct{ first, count int64 }

func newOwners(shift int) (owners, error) {
	o := owners{shift: shift}
	ok, err := capable(unix.CAP_CHOWN)
	if err != nil {
		return o, err
	}
	if !ok {
		if shift != 0 {
			return o, fmt.Errorf("this process may not give files to ids from %d on: it needs CAP_CHOWN; without it use an id shift of 0", shift)
		}
		o.single = true
		return o, nil
	}
	if o.uids, err = idMap("/proc/self/uid_map"); err != nil {
		return o, err
	}
	o.gids, err = idMap("/proc/self/gid_map")
	return o, err
}

// host is an owner on disk; squashed says that it became this process's own
// because there is no such id here. It fails for an id that a sandbox has not.
func (o *owners) host(uid, gid int) (u, g int, squashed bool, err error) {
	if uid < 0 || uid >= ids || gid < 0 || gid >= ids {
		return 0, 0, false, bad("owner %d:%d is outside of the %d ids that a sandbox has", uid, gid, ids)
	}
	if o.single {
		return -1, -1, uid != 0 || gid != 0, nil
	}
	u, g = uid+o.shift, gid+o.shift
	if !inRange(o.uids, u) {
		u, squashed = -1, true
	}
	if !inRange(o.gids, g) {
		g, squashed = -1, true
	}
	if squashed && o.shift != 0 {
		return 0, 0, false, fmt.Errorf("this process's user namespace has no id %d:%d, which an id shift of %d needs", uid+o.shift, gid+o.shift, o.shift)
	}
	return u, g, squashed, nil
}

// key says how owners were treated, for the record of a layer.
func (o *owners) key() string {
	if o.single {
		return "own"
	}
	return fmt.Sprintf("shift %d of %v %v", o.shift, o.uids, o.gids)
}

func inRange(rs []idRange, id int) bool {
	for _, r := range rs {
		if int64(id) >= r.first && int64(id) < r.first+r.count {
			return true
		}
	}
	return false
}

// idMap reads which ids a user namespace has, see user_namespaces(7).
func idMap(file string) ([]idRange, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var out []idRange
	for line := range bytes.Lines(b) {
		var r idRange
		var outside int64
		if _, err := fmt.Sscan(string(line), &r.first, &outside, &r.count); err != nil {
			return nil, fmt.Errorf("reading %s: %w", file, err)
		}
		out = append(out, r)
	}
	return out, nil
}

// capable asks whether this process has a capability in effect.
func capable(c int) (bool, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false, fmt.Errorf("reading capabilities: %w", err)
	}
	return data[c/32].Effective&(1<<(c%32)) != 0, nil
}
