package oci

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"runtime"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// seccompJSON is the profile that every step runs under (setid.go makes it
// stricter where a folder of this machine is shared): a list of the
// system calls that programs which build software make; all others fail with
// EPERM. It is data in the form of the OCI runtime specification plus a comment
// per rule.
//
// What it keeps out, by leaving it out: ptrace and its kin, mounting in its old
// and new forms, pivot_root and chroot, setns and every flag that makes a
// namespace, kernel modules, kexec and reboot, bpf, perf events, userfaultfd,
// io_uring, key rings, handles to files (open_by_handle_at), clocks, quotas and
// swap, and all socket families but unix, IPv4 and IPv6 streams and datagrams,
// and netlink's routing part: no packet, raw, vsock, kernel crypto or Bluetooth
// sockets. Tasks with an open network get no more families than hermetic ones.
//
// Only the machine's own system call convention is served: a 32-bit program on
// a 64-bit machine is killed, since its multiplexed socketcall hides the family.
//
//go:embed seccomp.json
var seccompJSON []byte

// architectures are libseccomp's names for the ports that Go builds for.
var architectures = map[string]specs.Arch{
	"amd64":   specs.ArchX86_64,
	"arm64":   specs.ArchAARCH64,
	"ppc64le": specs.ArchPPC64LE,
	"riscv64": specs.ArchRISCV64,
	"loong64": specs.ArchLOONGARCH64,
}

// profile returns the seccomp profile for this machine and its digest. s390x,
// where clone takes its arguments in another order, is among the refused.
func profile() (*specs.LinuxSeccomp, string, error) {
	arch, ok := architectures[runtime.GOARCH]
	if !ok {
		return nil, "", fmt.Errorf("making seccomp profile: no profile for %s", runtime.GOARCH)
	}
	var p specs.LinuxSeccomp
	if err := json.Unmarshal(seccompJSON, &p); err != nil {
		return nil, "", fmt.Errorf("making seccomp profile: %w", err)
	}
	p.Architectures = []specs.Arch{arch}
	digest, err := profileDigest(&p)
	if err != nil {
		return nil, "", fmt.Errorf("making seccomp profile: %w", err)
	}
	return &p, digest, nil
}

func profileDigest(p *specs.LinuxSeccomp) (string, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}
