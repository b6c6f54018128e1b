package attack_test

import (
	"bufio"
	"net/http"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/internal/testrig"
	"assay.dev/assay/store"
	"assay.dev/assay/store/storetest"
)

// TestLogSeparation: who has one of the three processes, observer, log and witness,
// does not have the others, and nobody else has any. So a stolen signing key is not
// enough to log, nor a broken-in log to sign, nor both to show a forked tree.
func TestLogSeparation(t *testing.T) {
	r := testrig.New(t)
	if _, errout, code := r.Run("log", "init"); code != 0 {
		t.Fatalf("making a log: %s", errout)
	}
	h := &home.Home{Dir: r.Home, Root: true}
	serve := r.Command(t.Context(), "log", "serve")
	out, err := serve.StdoutPipe()
	must(t, err)
	must(t, serve.Start())
	lines := bufio.NewReader(out)
	for range 2 {
		if _, err := lines.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		must(t, serve.Process.Signal(syscall.SIGINT))
		must(t, serve.Wait())
	}()

	users := map[string]uint32{
		"observer": home.UIDObserver, "log": home.UIDLog, "witness": home.UIDWitness, "executor": h.ExecutorUser("x"),
		"planner": home.UIDPlanner, "registry": home.UIDRegistry, "images": home.UIDImages, "step": home.UIDSteps,
	}
	try := func(uid uint32, args ...string) bool {
		c := exec.Command("/bin/busybox", args...)
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		return c.Run() == nil
	}
	for who, uid := range users {
		for file, owner := range map[string]string{h.LogKey(): "log", h.WitnessKey(): "witness"} {
			if got := try(uid, "cat", file); got != (who == owner) {
				t.Errorf("%s reads the %s's key: %t", who, owner, got)
			}
		}
		for dir, owner := range map[string]string{h.LogTiles(): "log", h.WitnessState(): "witness", h.Path("public"): "observer", h.Path("run", "log"): "log"} {
			if got := try(uid, "touch", filepath.Join(dir, "probe")); got != (who == owner) {
				t.Errorf("%s writes into %s: %t", who, dir, got)
			}
		}
		for _, f := range []string{"config.json", "log.json", "public/log.pub", "public/witness.pub"} {
			if try(uid, "sh", "-c", ">> "+h.Path(f)) {
				t.Errorf("%s writes %s", who, f)
			}
		}
	}
	if list, err := filepath.Glob(h.Path("log", "key*")); err != nil || len(list) != 1 {
		t.Errorf("the log's keys: %v, %v", list, err)
	}

	// Everybody may read the log; who may add to it is decided by user.
	fetch, err := tlog.NewFetch("unix://"+h.LogSocket(), nil)
	must(t, err)
	if _, err := fetch(t.Context(), "checkpoint", tlog.MaxCheckpoint); err != nil {
		t.Errorf("reading the log: %v", err)
	}
	key := storetest.NewKey(t)
	leaves, err := tlog.EvidenceLeaves(storetest.Provenance(t, key, store.Subject{Repo: "x", Digest: digest("x"), MediaType: "m", Size: 1}, "x"))
	must(t, err)
	for who, uid := range users {
		status := post(t, uid, h.LogSocket(), string(leaves[0].Bytes()))
		if want := map[bool]int{true: http.StatusOK, false: http.StatusUnauthorized}[who == "observer" || who == "log"]; status != want {
			t.Errorf("%s adds an entry: %d, want %d", who, status, want)
		}
	}
}

// post adds an entry as another user: the thread that connects is that user's.
func post(t *testing.T, uid uint32, socket, body string) int {
	t.Helper()
	answer := make(chan string, 1)
	go func() {
		answer <- asUser(uid, socket, "POST /add HTTP/1.0\r\nHost: log\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"+body)
	}()
	status := strings.Fields(<-answer)
	if len(status) < 2 {
		t.Fatalf("no answer: %q", status)
	}
	n, err := strconv.Atoi(status[1])
	must(t, err)
	return n
}

// asUser sends text to a Unix socket from a thread with another user's id, which
// ends with it, and returns the first line of the answer.
func asUser(uid uint32, socket, text string) string {
	runtime.LockOSThread() // and never unlocked: the thread is not fit for anything else
	if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); e != 0 {
		return e.Error()
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err.Error()
	}
	defer syscall.Close(fd)
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket}); err != nil {
		return err.Error()
	}
	if _, err := syscall.Write(fd, []byte(text)); err != nil {
		return err.Error()
	}
	b := make([]byte, 4096)
	n, err := syscall.Read(fd, b)
	if err != nil {
		return err.Error()
	}
	line, _, _ := strings.Cut(string(b[:n]), "\r\n")
	return line
}
