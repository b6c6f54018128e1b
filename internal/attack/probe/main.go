// Command probe is what the attack suite's steps run where a shell cannot try:
// sockets of every kind, and pushes with credentials of its choice. It prints a
// line for each attempt: its name, and ok or the error.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 2 {
		os.Exit(2)
	}
	switch a := os.Args[2:]; os.Args[1] {
	case "dial":
		dial(a)
	case "push":
		token := ""
		if len(a) > 3 {
			token = a[3]
		}
		push(a[0], a[1], a[2], token)
	case "mint":
		mint(a[0], a[1], a[2], a[3])
	case "families":
		families()
	case "serve":
		serve(a[0])
	case "unix":
		unixAsk(a[0], a[1])
	case "escaped":
		escaped(a[0], a[1], a[2])
	case "cache":
		cache(a[0])
	case "fill":
		fill(a[0])
	default:
		os.Exit(2)
	}
}

func say(name string, err error) {
	if err != nil {
		fmt.Println(name, "failed:", err)
		return
	}
	fmt.Println(name, "ok")
}

// dial tries addresses of the form network:address.
func dial(addrs []string) {
	for _, a := range addrs {
		network, addr, _ := strings.Cut(a, ":")
		c, err := net.DialTimeout(network, addr, 3*time.Second)
		if err == nil && strings.HasPrefix(network, "udp") {
			// A datagram socket connects to anything: see whether it carries.
			_ = c.SetDeadline(time.Now().Add(2 * time.Second))
			// A query for the root's name servers.
			if _, err = c.Write([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1}); err == nil {
				_, err = c.Read(make([]byte, 512))
			}
		}
		if err == nil {
			c.Close()
		}
		say("dial "+a, err)
	}
}

// push puts an image without layers into repo/name by tag, with a token or
// without, and prints the status of each request.
func push(registry, repo, content, token string) {
	client := &http.Client{Timeout: 20 * time.Second}
	send := func(what, method, url, mediaType string, body []byte) bool {
		req, err := http.NewRequest(method, url, bytes.NewReader(body))
		if err != nil {
			say(what, err)
			return false
		}
		req.Header.Set("Content-Type", mediaType)
		if token != "" {
			req.SetBasicAuth("task", token)
		}
		res, err := client.Do(req)
		if err != nil {
			say(what, err)
			return false
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(res.Body, 4<<10))
		fmt.Println(what, res.StatusCode, strings.TrimSpace(string(b)))
		return res.StatusCode < 300
	}
	base := "http://" + registry + "/v2/" + repo
	config := []byte(content)
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":%d},"layers":[]}`, digest(config), len(config))
	send("blob", http.MethodPost, base+"/blobs/uploads/?digest="+digest(config), "application/octet-stream", config)
	if send("manifest", http.MethodPut, base+"/manifests/"+digest(manifest), "application/vnd.oci.image.manifest.v1+json", manifest) {
		fmt.Println("pushed", digest(manifest))
	}
}

// mint asks the registry's control API for a token and prints it.
func mint(registry, run, task, kind string) {
	res, err := http.Post("http://"+registry+"/assay/v1/tokens", "application/json", strings.NewReader(fmt.Sprintf(`{"run":%q,"task":%q,"attempt":0,"kind":%q}`, run, task, kind)))
	if err != nil {
		say("mint", err)
		return
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(res.Body, 4<<10))
	fmt.Println("mint", res.StatusCode, strings.TrimSpace(string(b)))
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// families uses a socket of every family that has ever led out of a network
// namespace or into the kernel.
func families() {
	try := func(name string, family, typ, proto int, to unix.Sockaddr) {
		fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
		if err != nil {
			say(name, err)
			return
		}
		defer unix.Close(fd)
		err = unix.Connect(fd, to)
		if err == unix.EINPROGRESS {
			pfd := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			if n, perr := unix.Poll(pfd, 2000); n == 0 || perr != nil {
				say(name, unix.ETIMEDOUT)
				return
			}
			errno, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
			err = nil
			if errno != 0 {
				err = unix.Errno(errno)
			}
		}
		say(name, err)
	}
	in4 := func(port int, ip ...byte) unix.Sockaddr { return &unix.SockaddrInet4{Port: port, Addr: [4]byte(ip)} }
	try("inet-registry", unix.AF_INET, unix.SOCK_STREAM, 0, in4(5055, 127, 0, 0, 1))
	try("inet-outside", unix.AF_INET, unix.SOCK_STREAM, 0, in4(443, 1, 1, 1, 1))
	try("inet-metadata", unix.AF_INET, unix.SOCK_STREAM, 0, in4(80, 169, 254, 169, 254))
	try("inet-datagram", unix.AF_INET, unix.SOCK_DGRAM, 0, in4(53, 1, 1, 1, 1))
	try("inet-raw", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP, in4(0, 1, 1, 1, 1))
	try("inet-ping", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP, in4(0, 1, 1, 1, 1))
	try("inet-mptcp", unix.AF_INET, unix.SOCK_STREAM, 262, in4(443, 1, 1, 1, 1))
	try("inet-sctp", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP, in4(443, 1, 1, 1, 1))
	out6 := [16]byte{0x26, 0x06, 0x47, 0, 0x47, 0, 14: 0x11, 15: 0x11}
	try("inet6-outside", unix.AF_INET6, unix.SOCK_STREAM, 0, &unix.SockaddrInet6{Port: 443, Addr: out6})
	try("inet6-registry", unix.AF_INET6, unix.SOCK_STREAM, 0, &unix.SockaddrInet6{Port: 5055, Addr: [16]byte{15: 1}})
	for _, name := range []string{"/tmp/.X11-unix/X0", "/com/ubuntu/upstart", "assay", "/containerd-shim/default"} {
		try("unix-abstract:"+name, unix.AF_UNIX, unix.SOCK_STREAM, 0, &unix.SockaddrUnix{Name: "@" + name})
	}
	try("vsock-host", unix.AF_VSOCK, unix.SOCK_STREAM, 0, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: 1})
	try("packet", unix.AF_PACKET, unix.SOCK_RAW, 0, &unix.SockaddrLinklayer{Ifindex: 1})
	try("alg", unix.AF_ALG, unix.SOCK_SEQPACKET, 0, &unix.SockaddrALG{Type: "hash", Name: "sha256"})
	try("netlink-audit", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	try("netlink-netfilter", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	try("netlink-uevent", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_KOBJECT_UEVENT, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1})
	for name, f := range map[string]int{"tipc": unix.AF_TIPC, "bluetooth": unix.AF_BLUETOOTH, "can": unix.AF_CAN, "kcm": unix.AF_KCM, "xdp": unix.AF_XDP, "rds": unix.AF_RDS, "qipcrtr": unix.AF_QIPCRTR, "key": unix.AF_KEY, "pppox": unix.AF_PPPOX, "rxrpc": unix.AF_RXRPC, "nfc": unix.AF_NFC, "smc": unix.AF_SMC} {
		for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_RAW, unix.SOCK_SEQPACKET} {
			fd, err := unix.Socket(f, typ|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				unix.Close(fd)
			}
			say(fmt.Sprintf("%s-%d", name, typ), err)
		}
	}
}

// serve listens on a Unix socket in a folder and answers one line.
func serve(path string) {
	l, err := net.Listen("unix", path)
	if err != nil {
		say("listen", err)
		os.Exit(1)
	}
	c, err := l.Accept()
	if err != nil {
		say("accept", err)
		os.Exit(1)
	}
	fmt.Fprintln(c, "from inside")
	b, _ := io.ReadAll(c)
	fmt.Printf("received %q\n", b)
}

// unixAsk connects to a Unix socket, sends a line and prints what comes.
func unixAsk(path, text string) {
	c, err := net.DialTimeout("unix", path, 3*time.Second)
	if err != nil {
		say("unix "+path, err)
		return
	}
	fmt.Fprintln(c, text)
	_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
	b := make([]byte, 4096)
	n, _ := c.Read(b)
	fmt.Printf("unix %s ok %q\n", path, b[:n])
}

// escaped is what a step would run that broke out of its sandbox into the
// executor: with the executor's user and all capabilities of its user namespace.
func escaped(home, observer, id string) {
	pid, _ := strconv.Atoi(observer)
	read := func(p string) {
		_, err := os.ReadFile(p)
		say("read "+p, err)
	}
	read(home + "/observer/executed.key")
	read("/etc/shadow")
	read("/proc/" + observer + "/environ")
	read("/proc/" + observer + "/mem")
	read("/proc/" + observer + "/maps")
	read("/proc/" + observer + "/root" + home + "/observer/executed.key")
	for _, d := range []string{"observer", "releaser"} {
		_, err := os.ReadDir(home + "/" + d)
		say("list "+d, err)
		say("chmod "+d, os.Chmod(home+"/"+d, 0o777))
		say("chown "+d, os.Chown(home+"/"+d, 0, 0))
		say("rename "+d, os.Rename(home+"/"+d, home+"/"+d+"-2"))
	}
	// Mounting over what others use is seen in one's own mount namespace only,
	// and gives no rights to what lies below.
	_ = unix.Mount(home+"/observer", "/mnt", "", unix.MS_BIND, "")
	read("/mnt/executed.key")
	write := func(p string) {
		f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
		if err == nil {
			f.Close()
		}
		say("write "+p, err)
	}
	create := func(p string) {
		err := os.WriteFile(p, []byte("x"), 0o644)
		say("make "+p, err)
		if err == nil {
			os.Remove(p)
		}
	}
	ledger, _ := filepath.Glob(home + "/ledger/*/" + id + "*")
	if len(ledger) == 0 {
		ledger, _ = filepath.Glob(home + "/ledger/" + id + "*")
	}
	fmt.Println("ledger files", len(ledger))
	for _, p := range ledger {
		write(p)
		say("remove "+p, os.Remove(p))
		say("truncate "+p, os.Truncate(p, 0))
	}
	for _, p := range []string{"ledger/x", "public/executed.pub.tmp", "registry/uploads.jsonl.new", "runs/x", "x", "run/x", "run/observer/x", "run/registry/x"} {
		create(home + "/" + p)
	}
	for _, p := range []string{"public/executed.pub", "registry/uploads.jsonl", "catalog.json", "run/lock"} {
		write(home + "/" + p)
	}
	say("remove socket", os.Remove(home+"/run/observer/sock"))
	say("rename socket", os.Rename(home+"/run/observer/sock", home+"/run/observer/old"))
	say("ptrace", unix.PtraceAttach(pid))
	say("ptrace seize", func() error {
		_, _, e := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, 0, 0, 0)
		if e != 0 {
			return e
		}
		return nil
	}())
	say("kill", unix.Kill(pid, unix.SIGTERM))
	say("pidfd", func() error {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return err
		}
		_, err = unix.PidfdGetfd(fd, 3, 0)
		return err
	}())
	buf := [1]byte{}
	_, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &buf[0], Len: 1}}, []unix.RemoteIovec{{Base: 0x400000, Len: 1}}, 0)
	say("process_vm_readv", err)
	say("setns", func() error {
		f, err := os.Open("/proc/" + observer + "/ns/mnt")
		if err != nil {
			return err
		}
		return unix.Setns(int(f.Fd()), 0)
	}())
	say("setuid root", unix.Setreuid(1, 1))
	for _, req := range []string{`{"admit":{"run":"forged","executorUid":0}}`, `{"abandon":{"run":"` + id + `","reason":"x"}}`, `{"state":{"run":"` + id + `","object":{},"spec":{}}}`,
		`{"facts":{"run":"` + id + `","nonce":""}}`} {
		unixAsk(home+"/run/observer/sock", req)
	}
}

// cache tries, from within the executor's own namespaces, to alter what other
// runs will use, and to get at what its parent locked away.
func cache(home string) {
	dir := home + "/cache"
	files, _ := filepath.Glob(dir + "/layers/*/fs/bin/busybox")
	more, _ := filepath.Glob(dir + "/blobs/*")
	files = append(files, more...)
	fmt.Println("cache files", len(files))
	attempt := func(when string) {
		// As each user there is in this namespace that may own them.
		for _, uid := range []int{0, 65536} {
			if err := unix.Setresuid(uid, uid, 0); err != nil {
				say("setresuid", nil) // a probe that cannot try must not pass
			}
			for _, f := range files {
				h, err := os.OpenFile(f, os.O_WRONLY, 0)
				if err == nil {
					h.Close()
				}
				say(fmt.Sprint(when, " write as ", uid, " ", f), err)
				say(fmt.Sprint(when, " chmod as ", uid), os.Chmod(f, 0o777))
				say(fmt.Sprint(when, " remove as ", uid), os.Remove(f))
				say(fmt.Sprint(when, " chown as ", uid), os.Lchown(f, 0, 0))
			}
			say(fmt.Sprint(when, " make as ", uid), os.WriteFile(dir+"/layers/x", nil, 0o644))
			_ = unix.Setresuid(0, 0, 0)
		}
	}
	attempt("at first")
	say("remount", unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT, ""))
	say("remount loosely", unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV, ""))
	say("umount", unix.Unmount(dir, 0))
	say("umount lazily", unix.Unmount(dir, unix.MNT_DETACH))
	// A bind of what lies above, not along with what is mounted in it, would show
	// what the mount hides.
	say("bind around", unix.Mount(home, "/mnt", "", unix.MS_BIND, ""))
	attempt("afterwards")
	// Its own /proc may go; the machine's below it gives no rights.
	_ = unix.Unmount("/proc", unix.MNT_DETACH)
	list, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range list {
		pid, _ := strconv.Atoi(filepath.Base(p))
		if b, err := os.ReadFile(p + "/cmdline"); err != nil || !strings.Contains(string(b), "observer") || pid == os.Getpid() {
			continue
		}
		for _, f := range []string{"environ", "mem", "maps", "root/etc/hostname", "root" + home + "/observer/executed.key", "cwd/."} {
			_, err := os.ReadFile(p + "/" + f)
			say("below proc "+f, err)
		}
	}
	for _, f := range []string{home + "/observer/executed.key", "/etc/shadow"} {
		_, err := os.ReadFile(f)
		say("read "+f, err)
	}
}

// fill writes zeros until it fails.
func fill(path string) {
	f, err := os.Create(path)
	if err != nil {
		say("fill", err)
		return
	}
	b, total := make([]byte, 1<<20), 0
	for total < 4<<30 {
		n, err := f.Write(b)
		total += n
		if err != nil {
			fmt.Println("filled", total>>20, "MiB:", err)
			return
		}
	}
	fmt.Println("filled", total>>20, "MiB without an end")
}
