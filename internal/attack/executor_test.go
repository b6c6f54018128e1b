package attack_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"assay.dev/assay/internal/channel"
	"assay.dev/assay/ledger"
	"assay.dev/assay/observe"
)

// TestEscapedExecutor: somebody with all that a run's executor has.
func TestEscapedExecutor(t *testing.T) {
	r := newRig(t)
	bg := r.start(t, task{steps: []string{`echo running; sleep 600`}})
	observer := r.process(t, "observer")
	executor := r.process(t, "executor")
	root := &channel.Client{Socket: filepath.Join(r.Home, "run/observer/sock")} // we are the launcher's user
	ctx := t.Context()

	t.Run("reads the key, traces the observer, writes others' files", func(t *testing.T) {
		bin := r.Write("escaped", "")
		b, err := os.ReadFile(r.attackBinary(t))
		must(t, err)
		must(t, os.WriteFile(bin, b, 0o755))
		must(t, os.Chmod(bin, 0o755))
		// The same user namespace that confine makes, without its pid namespace:
		// so that the observer can be named.
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: executor.uid, Size: 1}, {ContainerID: 65536, HostID: firstUser + 65536, Size: 65536}}
		c := exec.Command(bin, "escaped", r.Home, fmt.Sprint(observer.pid), bg.id)
		c.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC,
			UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true, Credential: &syscall.Credential{},
		}
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for line := range strings.Lines(string(out)) {
			line = strings.TrimSpace(line)
			refused := strings.Contains(line, `{\"error\":`)
			if strings.HasSuffix(line, " ok") || strings.HasPrefix(line, "unix ") && !refused {
				t.Errorf("%s", line)
			}
		}
		if !strings.Contains(string(out), "ledger files 1") || !strings.Contains(string(out), "unix ") {
			t.Errorf("the probe did not try what it should:\n%s", out)
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", observer.pid)); err != nil {
			t.Error("the observer is gone")
		}
	})

	t.Run("alters the cache from within", func(t *testing.T) {
		if _, err := exec.LookPath("nsenter"); err != nil {
			t.Skip("needs nsenter (util-linux) to enter the executor's namespaces; CI has it")
		}
		bin := filepath.Join(filepath.Dir(r.Home), "files/escaped")
		sums := func() string {
			out, err := exec.Command("sh", "-c", "find "+r.Home+"/cache -type f | sort | xargs sha256sum | sha256sum; find "+r.Home+"/cache -printf '%m %U %p\n' | sort | sha256sum").Output()
			must(t, err)
			return string(out)
		}
		before := sums()
		out, err := exec.Command("nsenter", "-t", fmt.Sprint(executor.pid), "-U", "-m", "-i", "-p", "-S", "0", "-G", "0", bin, "cache", r.Home).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for line := range strings.Lines(string(out)) {
			if strings.HasSuffix(strings.TrimSpace(line), " ok") {
				t.Errorf("%s", line)
			}
		}
		if !strings.Contains(string(out), "write as 65536") || strings.Contains(string(out), "cache files 0\n") {
			t.Errorf("the probe did not try what it should:\n%s", out)
		}
		if sums() != before {
			t.Error("the cache was altered")
		}
	})

	t.Run("the executor itself has nothing to give", func(t *testing.T) {
		for _, p := range []process{observer, executor} {
			env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.pid))
			must(t, err)
			for _, word := range []string{"TOKEN", "PASSWORD", "SECRET", "AWS_", "SSH_"} {
				if strings.Contains(string(env), word) {
					t.Errorf("%v has %s in its environment", p, word)
				}
			}
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", executor.pid))
		must(t, err)
		if !strings.Contains(string(status), fmt.Sprintf("Uid:\t%d\t%d\t%d\t%d\n", executor.uid, executor.uid, executor.uid, executor.uid)) || executor.uid < firstUser+1000 {
			t.Errorf("the executor's users: %s", status)
		}
		if observer.uid != firstUser+1 {
			t.Errorf("the observer's user is %d", observer.uid)
		}
	})

	n := 0
	const user = firstUser + 61_001 // an executor's, of no run under way
	admit := func(t *testing.T, uid int) (string, *channel.Admitted) {
		t.Helper()
		n++
		id := fmt.Sprintf("attack-%d-%d", os.Getpid(), n)
		a, err := root.Admit(ctx, channel.Admit{Run: id, ExecutorUID: uint32(uid)})
		must(t, err)
		return id, a
	}
	send := func(uid int, f channel.Facts) (s *channel.Sender, err error) {
		as(uid, func() { s, err = root.Send(ctx, f) })
		return s, err
	}
	opening := func(id string, a *channel.Admitted) observe.RunOpenedBody {
		return observe.RunOpenedBody{Run: id, Nonce: digest("assay nonce " + a.Nonce), SpecDigest: ones, Executor: observe.Host{KeySeparation: a.KeySeparation}}
	}
	ended := func(t *testing.T, id, want string) {
		t.Helper()
		var rec *ledger.Record
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			var err error
			rec, err = ledger.Read(filepath.Join(r.Home, "ledger"), id)
			must(t, err)
			if rec.Ending != nil {
				break
			}
		}
		if rec.Ending == nil || rec.Ending.Outcome != want {
			t.Errorf("run %s ended as %+v, want %s", id, rec.Ending, want)
		}
	}

	t.Run("only the launcher admits, abandons and states", func(t *testing.T) {
		for _, uid := range []int{user, executor.uid, firstUser + 2, firstUser + 3, firstUser + 65536, 65534} {
			as(uid, func() {
				if _, err := root.Admit(ctx, channel.Admit{Run: "forged", ExecutorUID: uint32(uid)}); !refused(err, "only the launcher") {
					t.Errorf("admit as %d: %v", uid, err)
				}
				if err := root.Abandon(ctx, bg.id, "x"); !refused(err, "only the launcher") {
					t.Errorf("abandon as %d: %v", uid, err)
				}
				if _, err := root.State(ctx, channel.State{Run: bg.id, Object: []byte("{}"), Spec: []byte("{}")}); !refused(err, "only the launcher") {
					t.Errorf("state as %d: %v", uid, err)
				}
			})
		}
		// The launcher itself cannot have an executor that could read the key, nor
		// a run stated that is not over or was never opened.
		for _, uid := range []uint32{0, firstUser + 1} {
			if _, err := root.Admit(ctx, channel.Admit{Run: "own-key", ExecutorUID: uid}); !refused(err, "could read the key") {
				t.Errorf("admit for %d: %v", uid, err)
			}
		}
		if _, err := root.State(ctx, channel.State{Run: bg.id, Object: []byte("{}"), Spec: []byte("{}")}); !refused(err, "has not ended") {
			t.Errorf("state of an open run: %v", err)
		}
		if _, err := root.State(ctx, channel.State{Run: "never-opened", Object: []byte("{}"), Spec: []byte("{}")}); !refused(err, "no such run") {
			t.Errorf("state of no run: %v", err)
		}
		if _, err := root.Admit(ctx, channel.Admit{Run: bg.id, ExecutorUID: user}); !refused(err, "") {
			t.Errorf("admit twice: %v", err)
		}
		for _, id := range []string{"", "../x", "a/b", ".", strings.Repeat("a", 300), "a\nb"} {
			if _, err := root.Admit(ctx, channel.Admit{Run: id, ExecutorUID: user}); !refused(err, "") {
				t.Errorf("admit %q: %v", id, err)
			}
		}
	})

	t.Run("facts of a run it did not open", func(t *testing.T) {
		id, a := admit(t, user)
		for name, try := range map[string]func() (*channel.Sender, error){
			"another user":  func() (*channel.Sender, error) { return send(user+1, channel.Facts{Run: id, Nonce: a.Nonce}) },
			"a step's user": func() (*channel.Sender, error) { return send(firstUser+65536, channel.Facts{Run: id, Nonce: a.Nonce}) },
			"root":          func() (*channel.Sender, error) { return root.Send(ctx, channel.Facts{Run: id, Nonce: a.Nonce}) },
			"no nonce":      func() (*channel.Sender, error) { return send(user, channel.Facts{Run: id}) },
			"wrong nonce": func() (*channel.Sender, error) {
				return send(user, channel.Facts{Run: id, Nonce: strings.Repeat("0", 64)})
			},
			"the nonce's digest": func() (*channel.Sender, error) {
				return send(user, channel.Facts{Run: id, Nonce: digest("assay nonce " + a.Nonce)})
			},
			"another run": func() (*channel.Sender, error) { return send(user, channel.Facts{Run: bg.id, Nonce: a.Nonce}) },
			"no run":      func() (*channel.Sender, error) { return send(user, channel.Facts{Run: "never-opened", Nonce: a.Nonce}) },
		} {
			if s, err := try(); !refused(err, "") {
				t.Errorf("%s: %v", name, err)
				if s != nil {
					s.Close()
				}
			}
		}
		// None of it harmed the run: its own executor connects, once.
		s, err := send(user, channel.Facts{Run: id, Nonce: a.Nonce})
		must(t, err)
		must(t, s.Fact(observe.RunOpened, opening(id, a)))
		if _, err := send(user, channel.Facts{Run: id, Nonce: a.Nonce}); !refused(err, "connected already") {
			t.Errorf("second connection: %v", err)
		}
		head := s.Head()
		must(t, s.Fact(observe.RunClosed, observe.RunClosedBody{Outcome: "succeeded", Closed: time.Now()}))
		if s.Head() == head {
			t.Error("the head did not move")
		}
		ended(t, id, ledger.Succeeded)
		if _, err := send(user, channel.Facts{Run: id, Nonce: a.Nonce}); !refused(err, "") {
			t.Errorf("connecting to an ended run: %v", err)
		}
		if err := s.Fact(observe.RunClosed, observe.RunClosedBody{Outcome: "failed"}); err == nil {
			t.Error("a fact after the end was taken")
		}
		ended(t, id, ledger.Succeeded)
	})

	t.Run("breaks the grammar of facts", func(t *testing.T) {
		at := observe.Attempt{Task: "t"}
		started := observe.TaskStartedBody{Attempt: at}
		type step struct {
			typ  observe.FactType
			body any
		}
		for name, steps := range map[string][]step{
			"not opened first":        {{observe.TaskStarted, started}},
			"closed before opened":    {{observe.RunClosed, observe.RunClosedBody{Outcome: "succeeded"}}},
			"opened twice":            {{observe.RunOpened, nil}, {observe.RunOpened, nil}},
			"started twice":           {{observe.RunOpened, nil}, {observe.TaskStarted, started}, {observe.TaskStarted, started}},
			"started after its end":   {{observe.RunOpened, nil}, {observe.TaskStarted, started}, {observe.TaskFinished, observe.TaskFinishedBody{Attempt: at}}, {observe.TaskStarted, started}},
			"finished twice":          {{observe.RunOpened, nil}, {observe.TaskStarted, started}, {observe.TaskFinished, observe.TaskFinishedBody{Attempt: at}}, {observe.TaskFinished, observe.TaskFinishedBody{Attempt: at}}},
			"finished, never started": {{observe.RunOpened, nil}, {observe.TaskFinished, observe.TaskFinishedBody{Attempt: at}}},
			"step of no task":         {{observe.RunOpened, nil}, {observe.StepFinished, observe.StepFinishedBody{Attempt: at}}},
			"step after the end":      {{observe.RunOpened, nil}, {observe.TaskStarted, started}, {observe.TaskFinished, observe.TaskFinishedBody{Attempt: at}}, {observe.StepFinished, observe.StepFinishedBody{Attempt: at}}},
			"closed while it runs":    {{observe.RunOpened, nil}, {observe.TaskStarted, started}, {observe.RunClosed, observe.RunClosedBody{Outcome: "succeeded"}}},
			"closed as lost":          {{observe.RunOpened, nil}, {observe.RunClosed, observe.RunClosedBody{Outcome: "lost"}}},
			"closed as nothing":       {{observe.RunOpened, nil}, {observe.RunClosed, observe.RunClosedBody{}}},
			"the observer's own ends": {{observe.RunOpened, nil}, {"ended", ledger.Ending{Outcome: "succeeded"}}},
			"signs itself":            {{observe.RunOpened, nil}, {"signed", ledger.Signing{Subjects: []string{"x"}}}},
			"admits itself":           {{"admitted", ledger.Admission{Run: "x"}}},
			"unknown type":            {{observe.RunOpened, nil}, {"task.wonder", started}},
			"unknown field":           {{observe.RunOpened, nil}, {observe.TaskStarted, map[string]any{"task": "t", "attempt": 0, "wonder": 1}}},
			"no object":               {{observe.RunOpened, nil}, {observe.TaskStarted, "text"}},
			"other run in opening":    {{observe.RunOpened, observe.RunOpenedBody{Run: bg.id}}},
			"other separation":        {{observe.RunOpened, "separation"}},
			"fact of 5 MB":            {{observe.RunOpened, nil}, {observe.TaskStarted, observe.TaskStartedBody{Attempt: at, TaskName: strings.Repeat("x", 5<<20)}}},
			"source of no task":       {{observe.RunOpened, nil}, {observe.SourceSeen, observe.SourceRefBody{Attempt: at, Found: true}}},
		} {
			id, a := admit(t, user)
			s, err := send(user, channel.Facts{Run: id, Nonce: a.Nonce})
			must(t, err)
			for i, st := range steps {
				body := st.body
				if st.typ == observe.RunOpened {
					o := opening(id, a)
					switch body := st.body.(type) {
					case observe.RunOpenedBody:
						o.Run = body.Run
					case string:
						o.Executor.KeySeparation = "vault"
					}
					body = o
				}
				err := s.Fact(st.typ, body)
				if last := i == len(steps)-1; last && !refused(err, "") {
					t.Errorf("%s: %s was taken (%v)", name, st.typ, err)
				} else if !last && err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			if err := s.Fact(observe.RunClosed, observe.RunClosedBody{Outcome: "succeeded"}); err == nil {
				t.Errorf("%s: the stream went on", name)
			}
			ended(t, id, ledger.Lost)
			s.Close()
		}
	})

	t.Run("goes away, and comes back", func(t *testing.T) {
		id, a := admit(t, user)
		s, err := send(user, channel.Facts{Run: id, Nonce: a.Nonce})
		must(t, err)
		must(t, s.Fact(observe.RunOpened, opening(id, a)))
		must(t, s.Close())
		ended(t, id, ledger.Lost)
		if _, err := send(user, channel.Facts{Run: id, Nonce: a.Nonce}); !refused(err, "") {
			t.Errorf("coming back: %v", err)
		}
		// Said nothing at all.
		id, _ = admit(t, user)
		must(t, root.Abandon(ctx, id, "given up"))
		ended(t, id, ledger.Lost)
	})

	t.Run("alters a fact already sent", func(t *testing.T) {
		id, a := admit(t, user)
		s, err := send(user, channel.Facts{Run: id, Nonce: a.Nonce})
		must(t, err)
		defer s.Close()
		must(t, s.Fact(observe.RunOpened, opening(id, a)))
		files, _ := filepath.Glob(filepath.Join(r.Home, "ledger", id+"*"))
		if len(files) == 0 {
			files, _ = filepath.Glob(filepath.Join(r.Home, "ledger/*", id+"*"))
		}
		if len(files) != 1 {
			t.Fatalf("ledger files %v", files)
		}
		as(user, func() {
			if _, err := os.ReadFile(files[0]); err != nil {
				t.Errorf("everybody may read the ledger: %v", err)
			}
			for _, flag := range []int{os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND} {
				if f, err := os.OpenFile(files[0], flag, 0); err == nil {
					f.Close()
					t.Error("the ledger can be written")
				}
			}
			if os.Remove(files[0]) == nil || os.Rename(files[0], files[0]+".x") == nil {
				t.Error("the ledger can be removed")
			}
		})
		// Whoever can write it all the same, does not go unnoticed.
		b, err := os.ReadFile(files[0])
		must(t, err)
		if _, err := ledger.Decode(id, bytes.NewReader(bytes.Replace(b, []byte(ones), []byte(strings.ReplaceAll(ones, "1", "2")), 1))); err == nil {
			t.Error("an altered ledger was read")
		}
		must(t, s.Fact(observe.RunClosed, observe.RunClosedBody{Outcome: "failed"}))
		ended(t, id, ledger.Failed)
		if _, err := root.State(ctx, channel.State{Run: id, Object: []byte("{}"), Spec: []byte("{}")}); !refused(err, "only a run that succeeded") {
			t.Errorf("state of a failed run: %v", err)
		}
	})

	t.Run("floods the observer", func(t *testing.T) {
		id, a := admit(t, user)
		s, err := send(user, channel.Facts{Run: id, Nonce: a.Nonce})
		must(t, err)
		must(t, s.Fact(observe.RunOpened, opening(id, a)))
		var ferr error
		for i := 0; i < ledger.MaxEntries+10 && ferr == nil; i++ {
			at := observe.Attempt{Task: "t", Attempt: i}
			ferr = s.Fact(observe.TaskStarted, observe.TaskStartedBody{Attempt: at})
		}
		if !refused(ferr, "") {
			t.Errorf("facts without end: %v", ferr)
		}
		ended(t, id, ledger.Lost)
		as(user, func() {
			for range 3 {
				fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
				must(t, err)
				must(t, unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(r.Home, "run/observer/sock")}))
				chunk := bytes.Repeat([]byte("x"), 1<<20)
				for range channel.MaxLine>>20 + 8 {
					if _, err := unix.SendmsgN(fd, chunk, nil, nil, unix.MSG_NOSIGNAL); err != nil {
						break
					}
				}
				unix.Close(fd)
			}
		})
		for _, junk := range []string{"\n", "null\n", "[]\n", "{\"facts\":{},\"admit\":{}}\n", strings.Repeat("[", 100_000) + "\n", "{\"admit\":null}\n"} {
			as(user, func() { raw(t, filepath.Join(r.Home, "run/observer/sock"), junk) })
		}
		if _, open, err := root.Executor(ctx, bg.id); err != nil || !open {
			t.Errorf("the observer does not answer any more: open %v, %v", open, err)
		}
	})

	t.Run("mints at the registry", func(t *testing.T) {
		// As the executor of another run, as a step, as the planner.
		for _, uid := range []int{user, firstUser + 65536, firstUser + 3, 65534} {
			as(uid, func() {
				out := raw(t, filepath.Join(r.Home, "run/registry/sock"), "POST /assay/v1/tokens HTTP/1.0\r\nHost: x\r\nContent-Length: "+fmt.Sprint(len(mintBody(bg.id)))+"\r\n\r\n"+mintBody(bg.id))
				if strings.Contains(out, "assay_") || !strings.Contains(out, "403") {
					t.Errorf("as %d: %s", uid, out)
				}
			})
		}
	})

	bg.stop()
	r.clean(t)

	t.Run("signs twice", func(t *testing.T) {
		o := r.run(t, task{network: "registry", results: []string{"IMAGE_URL", "IMAGE_DIGEST"}, steps: []string{push + `D=$(push $(context.taskRun.uid) x); printf 'localhost:5055/staging/$(context.taskRun.uid)' >/tekton/results/IMAGE_URL; printf "$D" >/tekton/results/IMAGE_DIGEST`}})
		if o.Stated == nil {
			t.Fatalf("%s", o.Stderr)
		}
		before := len(r.statements(t, o))
		bg := r.start(t, task{steps: []string{`echo running; sleep 600`}})
		defer bg.stop()
		if _, err := root.State(ctx, channel.State{Run: o.Run, Object: o.TaskRuns[0], Spec: []byte("{}")}); !refused(err, "signed already") {
			t.Errorf("%v", err)
		}
		if got := len(r.statements(t, o)); got != before {
			t.Errorf("%d statements, %d before", got, before)
		}
	})
	r.clean(t)
}

func mintBody(run string) string {
	return fmt.Sprintf(`{"run":%q,"task":"x","attempt":0,"kind":"export"}`, run)
}
