// Command probe tries, inside a sandbox, what must not work there, and prints
// one line per attempt: its name and ok or the error. The sandbox's test suite
// builds and runs it; it has no other use.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: probe sockets | calls | fds | memory MIB | send ADDR TEXT")
		os.Exit(2)
	}
	switch os.Args[1] {
	case "sockets":
		sockets()
	case "calls":
		calls()
	case "fds":
		fds()
	case "memory":
		n, _ := strconv.Atoi(os.Args[2])
		b := make([]byte, n<<20)
		for i := range b {
			b[i] = byte(i)
		}
		fmt.Println("touched", len(b)>>20)
		runtime.KeepAlive(b)
	case "send":
		send(os.Args[2], os.Args[3])
	default:
		os.Exit(2)
	}
}

func report(name string, err error) {
	if err == nil {
		fmt.Println(name, "ok")
		return
	}
	if e, isErrno := err.(unix.Errno); isErrno {
		fmt.Println(name, unix.ErrnoName(e))
		return
	}
	fmt.Println(name, err)
}

// sockets tries every family with every type and prints those that work, with
// raw and datagram ones of protocol ICMP and every netlink protocol.
func sockets() {
	for family := range 64 {
		for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_RAW, unix.SOCK_SEQPACKET, unix.SOCK_RDM} {
			protocols := []int{0, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6}
			if family == unix.AF_NETLINK {
				protocols = nil
				for p := range 23 {
					protocols = append(protocols, p)
				}
			}
			for _, p := range protocols {
				fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, p)
				if err == nil {
					fmt.Println(family, typ, p)
					_ = unix.Close(fd)
				}
			}
		}
	}
}

// calls tries system calls that a filter has to refuse before the kernel looks
// at their arguments, which are nonsense on purpose: an error other than EPERM or
// ENOSYS shows that the kernel did look.
func calls() {
	raw := func(name string, nr uintptr, args ...uintptr) {
		var a [6]uintptr
		copy(a[:], args)
		_, _, e := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
		if e == 0 {
			report(name, nil)
			return
		}
		report(name, e)
	}
	slash, _ := unix.BytePtrFromString("/")
	p := uintptr(unsafe.Pointer(slash))
	const bad = 1 << 20 // flags or addresses that no kernel accepts
	raw("mount", unix.SYS_MOUNT, p, p, p, unix.MS_BIND, 0)
	raw("umount2", unix.SYS_UMOUNT2, p, unix.MNT_DETACH)
	raw("pivot_root", unix.SYS_PIVOT_ROOT, p, p)
	raw("chroot", unix.SYS_CHROOT, p)
	raw("open_tree", unix.SYS_OPEN_TREE, ^uintptr(99), p, 0)
	raw("move_mount", unix.SYS_MOVE_MOUNT, ^uintptr(99), p, ^uintptr(99), p, 0)
	raw("fsopen", unix.SYS_FSOPEN, p, 0)
	raw("fsmount", unix.SYS_FSMOUNT, 0, 0, 0)
	raw("fspick", unix.SYS_FSPICK, ^uintptr(99), p, 0)
	raw("mount_setattr", unix.SYS_MOUNT_SETATTR, ^uintptr(99), p, 0, 0, 0)
	raw("setns", unix.SYS_SETNS, 0, 0)
	for name, flag := range map[string]uintptr{"user": unix.CLONE_NEWUSER, "mount": unix.CLONE_NEWNS, "net": unix.CLONE_NEWNET, "pid": unix.CLONE_NEWPID,
		"ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS, "cgroup": unix.CLONE_NEWCGROUP, "time": unix.CLONE_NEWTIME} {
		raw("unshare-"+name, unix.SYS_UNSHARE, flag)
		if name != "time" {
			raw("clone-"+name, unix.SYS_CLONE, flag|uintptr(unix.CLONE_VM)|bad)
		}
	}
	raw("clone3", unix.SYS_CLONE3, bad, bad)
	raw("ptrace-attach", unix.SYS_PTRACE, unix.PTRACE_ATTACH, 1)
	raw("ptrace-me", unix.SYS_PTRACE, unix.PTRACE_TRACEME)
	raw("process_vm_readv", unix.SYS_PROCESS_VM_READV, 1)
	raw("process_vm_writev", unix.SYS_PROCESS_VM_WRITEV, 1)
	raw("pidfd_getfd", unix.SYS_PIDFD_GETFD, bad)
	raw("kcmp", unix.SYS_KCMP, 1, 1)
	raw("keyctl", unix.SYS_KEYCTL, 0)
	raw("add_key", unix.SYS_ADD_KEY, p, p, p, 1)
	raw("request_key", unix.SYS_REQUEST_KEY, p, p, p)
	raw("bpf", unix.SYS_BPF, bad)
	raw("perf_event_open", unix.SYS_PERF_EVENT_OPEN, bad)
	raw("userfaultfd", unix.SYS_USERFAULTFD, bad)
	raw("io_uring_setup", unix.SYS_IO_URING_SETUP, 1, bad)
	raw("io_uring_enter", unix.SYS_IO_URING_ENTER, bad)
	raw("io_uring_register", unix.SYS_IO_URING_REGISTER, bad)
	raw("init_module", unix.SYS_INIT_MODULE, bad)
	raw("finit_module", unix.SYS_FINIT_MODULE, bad)
	raw("delete_module", unix.SYS_DELETE_MODULE, p)
	raw("kexec_load", unix.SYS_KEXEC_LOAD, bad)
	raw("reboot", unix.SYS_REBOOT, bad)
	raw("open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, bad)
	raw("name_to_handle_at", unix.SYS_NAME_TO_HANDLE_AT, bad)
	raw("swapon", unix.SYS_SWAPON, p)
	raw("acct", unix.SYS_ACCT, p)
	raw("quotactl", unix.SYS_QUOTACTL, bad)
	raw("syslog", unix.SYS_SYSLOG, 3)
	raw("sethostname", unix.SYS_SETHOSTNAME, p, 1)
	raw("setdomainname", unix.SYS_SETDOMAINNAME, p, 1)
	raw("settimeofday", unix.SYS_SETTIMEOFDAY, 0, 0)
	raw("clock_settime", unix.SYS_CLOCK_SETTIME, 0, 0)
	raw("adjtimex", unix.SYS_ADJTIMEX, bad)
	raw("personality-odd", unix.SYS_PERSONALITY, 0x0400000)
	raw("fanotify_init", unix.SYS_FANOTIFY_INIT, 0)
	raw("vhangup", unix.SYS_VHANGUP)
}

// fds lists the descriptors this process was started with.
func fds() {
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		report("open", err)
		return
	}
	names, _ := d.Readdirnames(-1)
	for _, n := range names {
		to, err := os.Readlink("/proc/self/fd/" + n)
		if fd, _ := strconv.Atoi(n); err != nil || fd == int(d.Fd()) || strings.HasPrefix(to, "anon_inode:[event") {
			continue // our own: the listing, and the Go runtime's poller
		}
		kind, _, _ := strings.Cut(to, ":")
		fmt.Println(n, kind)
	}
}

// send connects, sends a line, closes its side and prints what comes back.
func send(addr, text string) {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		report("dial", err)
		os.Exit(1)
	}
	_, _ = io.WriteString(c, text)
	_ = c.(*net.TCPConn).CloseWrite()
	_, err = io.Copy(os.Stdout, c)
	if err != nil {
		report("read", err)
		os.Exit(1)
	}
}
