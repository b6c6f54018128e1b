package oci

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// The profile lets nothing through that reaches beyond a step, whoever edits it.
func TestProfile(t *testing.T) {
	p, digest, err := profile()
	if err != nil {
		t.Skip(err)
	}
	if len(digest) != len("sha256:")+64 {
		t.Errorf("digest %q", digest)
	}
	if p.DefaultAction != specs.ActErrno || p.DefaultErrnoRet == nil || *p.DefaultErrnoRet != 1 {
		t.Errorf("what is not listed must fail with EPERM: %v", p.DefaultAction)
	}
	never := []string{
		"ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp",
		"mount", "umount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "open_tree_attr", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "setns",
		"init_module", "finit_module", "delete_module", "create_module", "kexec_load", "kexec_file_load", "reboot",
		"keyctl", "add_key", "request_key", "bpf", "perf_event_open", "userfaultfd",
		"open_by_handle_at", "name_to_handle_at", "fanotify_init", "socketcall",
		"swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "syslog", "sethostname", "setdomainname",
		"settimeofday", "clock_settime", "clock_settime64", "adjtimex", "clock_adjtime", "stime",
		"iopl", "ioperm", "modify_ldt", "vm86", "vm86old", "uselib", "nfsservctl", "lookup_dcookie", "vhangup",
		"mbind", "migrate_pages", "move_pages", "set_mempolicy",
	}
	filtered := []string{"socket", "socketpair", "clone", "unshare", "personality"}
	for _, rule := range p.Syscalls {
		for _, name := range rule.Names {
			if rule.Action != specs.ActAllow {
				continue
			}
			if slices.Contains(never, name) {
				t.Errorf("%s is allowed", name)
			}
			if slices.Contains(filtered, name) && len(rule.Args) == 0 {
				t.Errorf("%s is allowed whatever its arguments", name)
			}
		}
		if rule.Action == specs.ActAllow && slices.ContainsFunc(rule.Names, func(n string) bool { return n == "clone3" || n == "io_uring_setup" }) {
			t.Errorf("%v cannot be filtered, so must not be allowed", rule.Names)
		}
	}
	// Every rule says why, in the data.
	var raw struct {
		Syscalls []struct {
			Comment string
			Names   []string
		}
	}
	if err := json.Unmarshal(seccompJSON, &raw); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range raw.Syscalls {
		if r.Comment == "" {
			t.Errorf("rule for %v has no comment", r.Names)
		}
		for _, n := range r.Names {
			if seen[n] && !slices.Contains(filtered, n) {
				t.Errorf("%s is listed twice", n)
			}
			seen[n] = true
		}
	}
}
