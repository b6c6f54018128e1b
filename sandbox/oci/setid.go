package oci

import (
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"assay.dev/assay/sandbox"
)

// A folder of this machine that steps may write is where a step could leave a
// program with the set-user-id bit: what it makes there belongs to the folder's
// owner, and another user of this machine could execute it. Inside sandboxes the
// bit means nothing, so only spaces with such a folder get the stricter profile,
// in which no call can set it.

// setID are the mode bits, creating the flags of open by which its mode counts.
const (
	setID    = unix.S_ISUID | unix.S_ISGID
	creating = unix.O_CREAT | unix.O_TMPFILE&^unix.O_DIRECTORY
)

// modes are the calls that take a file's mode, and the index of that argument.
var modes = []struct {
	name string
	mode uint
}{{"chmod", 1}, {"creat", 1}, {"fchmod", 1}, {"fchmodat", 2}, {"mknod", 1}, {"mknodat", 2}}

// opens are those whose mode counts only with some flags: indexes of both.
var opens = []struct {
	name        string
	flags, mode uint
}{{"open", 1, 2}, {"openat", 2, 3}}

// pointers take the mode in memory, where a filter cannot see it. Programs fall
// back to the calls above when these are not there.
var pointers = []string{"openat2", "fchmodat2"}

// withoutSetID is a profile in which no call can make a file set-user-id or
// set-group-id.
func withoutSetID(p *specs.LinuxSeccomp) (*specs.LinuxSeccomp, string, error) {
	strict := *p
	strict.Syscalls = nil
	conditional := slices.Clone(pointers)
	for _, c := range modes {
		conditional = append(conditional, c.name)
	}
	for _, c := range opens {
		conditional = append(conditional, c.name)
	}
	for _, rule := range p.Syscalls {
		rule.Names = slices.DeleteFunc(slices.Clone(rule.Names), func(name string) bool {
			return slices.Contains(conditional, name)
		})
		if len(rule.Names) > 0 {
			strict.Syscalls = append(strict.Syscalls, rule)
		}
	}
	none := func(arg uint, mask uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: arg, Value: mask, ValueTwo: 0, Op: specs.OpMaskedEqual}
	}
	allow := func(name string, arg specs.LinuxSeccompArg) {
		strict.Syscalls = append(strict.Syscalls, specs.LinuxSyscall{Names: []string{name}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg}})
	}
	for _, c := range modes {
		allow(c.name, none(c.mode, setID))
	}
	for _, c := range opens {
		allow(c.name, none(c.flags, creating))
		allow(c.name, none(c.mode, setID))
	}
	missing := uint(unix.ENOSYS)
	strict.Syscalls = append(strict.Syscalls, specs.LinuxSyscall{Names: pointers, Action: specs.ActErrno, ErrnoRet: &missing})
	digest, err := profileDigest(&strict)
	if err != nil {
		return nil, "", fmt.Errorf("making seccomp profile: %w", err)
	}
	return &strict, digest, nil
}

// writesHost says whether steps of a space may write a folder of this machine.
func writesHost(s sandbox.SpaceSpec) bool {
	return slices.ContainsFunc(s.Volumes, func(v sandbox.Volume) bool { return v.Host != "" && !v.ReadOnly })
}

// seccomp is the profile in force in the space, and its digest.
func (s *space) seccomp() (*specs.LinuxSeccomp, string) {
	if writesHost(s.spec) {
		return s.d.strict, s.d.strictDigest
	}
	return s.d.seccomp, s.d.digest
}
