package launch

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"

	"assay.dev/assay/catalog"
	"assay.dev/assay/internal/channel"
	"assay.dev/assay/internal/confine"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/internal/service"
	"assay.dev/assay/observe"
)

// Job is one run as the user asked for it.
type Job struct {
	Files  []string // files and folders with Tekton objects
	Run    string   // which of several runs, by name
	Params []string // NAME=VALUE
	// Workspaces binds folders of this machine: name → folder, ":ro" behind it
	// for read-only; an empty folder name is an emptyDir.
	Workspaces map[string]string
	// Forwards are host:port on this machine that tasks with network open reach
	// on their own loopback.
	Forwards []string
	Limits   observe.Limits
	// Runtime is an OCI runtime; empty: the runc beside our binaries.
	Runtime  string
	Parallel int
	Format   string // of the provenance
	// Line is told every line of the planner.
	Line func(Line)
}

// Line is what the planner prints, one JSON object a line; see pipeline.Line,
// which this program does not link.
type Line struct {
	Type          string          `json:"type"`
	Time          time.Time       `json:"time"`
	Name          string          `json:"name"`
	KeySeparation string          `json:"keySeparation"`
	TaskRun       string          `json:"taskRun"`
	PipelineTask  string          `json:"pipelineTask"`
	Attempt       int             `json:"attempt"`
	Step          string          `json:"step"`
	Image         string          `json:"image"`
	State         string          `json:"state"`
	Reason        string          `json:"reason"`
	Message       string          `json:"message"`
	ExitCode      int             `json:"exitCode"`
	Data          []byte          `json:"data"`
	Warnings      []string        `json:"warnings"`
	Finished      *Finished       `json:"finished"`
	Specification json.RawMessage `json:"specification"`
	Error         string          `json:"error"`
	Input         bool            `json:"input"`
}

// Finished is the run's objects, as a Tekton controller would have left them.
type Finished struct {
	PipelineRun json.RawMessage   `json:"pipelineRun,omitempty"`
	TaskRuns    []json.RawMessage `json:"taskRuns"`
	Succeeded   bool              `json:"succeeded"`
	Reason      string            `json:"reason"`
	Message     string            `json:"message"`
}

// Result is a finished run and what was said about it.
type Result struct {
	Run string `json:"run"`
	Finished
	// Stated is nil when nothing was signed; Unsigned says why.
	Stated   *channel.Stated `json:"stated,omitempty"`
	Unsigned string          `json:"unsigned,omitempty"`
}

// InputError says that the user's files or flags are wrong.
type InputError struct{ Message string }

func (e *InputError) Error() string { return e.Message }

// Run carries out a job: the run is opened at the observer, executed, stated.
// The error is about carrying it out; a run that failed is a Result.
func (s *Session) Run(ctx context.Context, j Job) (*Result, error) {
	id := uuid.NewString()
	uid := s.Home.ExecutorUser(id)
	hosts, bindings, err := workspaces(j.Workspaces, s.Home.Root)
	if err != nil {
		return nil, err
	}
	plans, err := s.stage(id, j.Files)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(plans.dir)
	admitted, err := s.Observer().Admit(ctx, channel.Admit{Run: id, ExecutorUID: uid})
	if err != nil {
		return nil, err
	}
	ex, err := s.startExecutor(ctx, id, uid, admitted, hosts, j)
	if err != nil {
		return nil, errors.Join(err, s.Observer().Abandon(context.WithoutCancel(ctx), id, err.Error()))
	}
	defer s.discard(id)
	wctx, cancel := s.witnessed(ctx)
	last, perr := s.plan(wctx, id, plans, bindings, j, ex)
	cancel()
	xerr := ex.wait()
	// An executor that never spoke leaves the run open; one that did has ended it.
	if _, open, err := s.Observer().Executor(context.WithoutCancel(ctx), id); err == nil && open {
		reason := "the run was given up"
		if xerr != nil {
			reason = xerr.Error()
		}
		if err := s.Observer().Abandon(context.WithoutCancel(ctx), id, reason); err != nil {
			return nil, err
		}
	}
	switch {
	case last != nil && last.Type == "error" && last.Input:
		return nil, &InputError{plans.unstage(last.Error)}
	case last != nil && last.Type == "error":
		return nil, errors.Join(errors.New(plans.unstage(last.Error)), xerr)
	case xerr != nil:
		return nil, xerr
	case perr != nil:
		return nil, perr
	case last == nil || last.Finished == nil:
		return nil, errors.New("the planner ended without saying how the run ended")
	}
	k := kept{Finished: *last.Finished, Specification: last.Specification, Format: j.Format}
	if err := s.keep(id, k); err != nil {
		return nil, err
	}
	if !k.Succeeded {
		return &Result{Run: id, Finished: k.Finished, Unsigned: "the run did not succeed"}, ctx.Err()
	}
	return s.state(ctx, id, k)
}

// Attest states a run that ended before and was not signed, for example since
// the registry was down: from the objects that were kept, which the observer
// compares with the facts as it would have then.
func (s *Session) Attest(ctx context.Context, id string) (*Result, error) {
	b, err := os.ReadFile(s.Home.Path("runs", filepath.Base(id)+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &InputError{fmt.Sprintf("no objects of a run %s were kept here; `assay runs` lists the runs", id)}
	}
	if err != nil {
		return nil, fmt.Errorf("reading the run's objects: %w", err)
	}
	var k kept
	if err := json.Unmarshal(b, &k); err != nil {
		return nil, fmt.Errorf("reading the run's objects: %w", err)
	}
	return s.state(ctx, id, k)
}

// state has the observer state, sign and store.
func (s *Session) state(ctx context.Context, id string, k kept) (*Result, error) {
	res := &Result{Run: id, Finished: k.Finished}
	st := channel.State{Run: id, Spec: k.Specification, Format: k.Format, Object: k.PipelineRun, Children: k.TaskRuns}
	if len(k.PipelineRun) == 0 {
		if len(k.TaskRuns) != 1 {
			return nil, fmt.Errorf("the planner handed in %d TaskRuns and no PipelineRun", len(k.TaskRuns))
		}
		st.Object, st.Children = k.TaskRuns[0], nil
	}
	stated, err := s.Observer().State(ctx, st)
	if err != nil && s.noLog != nil {
		err = fmt.Errorf("%w; the home's own log is not there: %w", err, s.noLog)
	}
	if err != nil {
		return res, fmt.Errorf("stating run %s: %w", id, err)
	}
	res.Stated = stated
	if len(stated.Subjects) == 0 {
		res.Unsigned = "the run names no artifact, so there is nothing to attest"
	}
	return res, nil
}

// kept is what stays of a run beside the ledger.
type kept struct {
	Finished
	Specification json.RawMessage `json:"specification"`
	Format        string          `json:"format,omitempty"`
}

// keep writes the finished objects where people and later commands find them.
func (s *Session) keep(id string, k kept) error {
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	p := s.Home.Path("runs", id+".json")
	if err := os.WriteFile(p+".tmp", b, 0o644); err != nil {
		return fmt.Errorf("keeping the run's objects: %w", err)
	}
	return os.Rename(p+".tmp", p)
}

// workspaces splits --workspace bindings into what the executor binds and what
// the planner is told.
type binding struct {
	Name string `json:"name"`
	Host string `json:"host,omitempty"`
}

func workspaces(in map[string]string, others bool) (map[string]service.HostFolder, []binding, error) {
	hosts := map[string]service.HostFolder{}
	var out []binding
	for name, dir := range in {
		b := binding{Name: name}
		if dir != "" {
			f := service.HostFolder{Path: dir}
			f.Path, f.ReadOnly = strings.CutSuffix(dir, ":ro")
			abs, err := filepath.Abs(f.Path)
			if err != nil {
				return nil, nil, err
			}
			if st, err := os.Stat(abs); err != nil || !st.IsDir() {
				return nil, nil, &InputError{fmt.Sprintf("workspace %s: %s is no folder", name, f.Path)}
			}
			if others {
				if err := reachable(abs); err != nil {
					return nil, nil, &InputError{fmt.Sprintf("workspace %s: %v", name, err)}
				}
			}
			f.Path, b.Host = abs, "ws-"+name
			hosts[b.Host] = f
		}
		out = append(out, b)
	}
	return hosts, out, nil
}

// reachable says whether users other than the folder's owner can get to it: the
// executor has a user of its own, and root's rights end at its namespace.
func reachable(dir string) error {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	for at := real; ; at = filepath.Dir(at) {
		st, err := os.Stat(at)
		if err != nil {
			return err
		}
		want := fs.FileMode(0o001)
		if at == real {
			want = 0o005
		}
		if st.Mode().Perm()&want != want {
			return fmt.Errorf("%s has mode %04o, which lets no other user in, and steps run as other users: use a folder outside of it, or chmod o+rx", at, st.Mode().Perm())
		}
		if at == filepath.Dir(at) {
			return nil
		}
	}
}

// staged are the user's files where the planner, which has no right to the
// user's folders, can read them.
type staged struct {
	dir   string
	paths []string
	names map[string]string // staged path → as the user wrote it
}

const maxFiles = 64 << 20

func (s *Session) stage(id string, files []string) (*staged, error) {
	st := &staged{dir: s.Home.Path("run", "plan-"+id), names: map[string]string{}}
	if err := os.Mkdir(st.dir, 0o755); err != nil {
		return nil, fmt.Errorf("staging files: %w", err)
	}
	refs, err := s.catalog()
	if err != nil {
		return nil, err
	}
	left := int64(maxFiles)
	put := func(from, to string) error {
		f, err := os.Open(from)
		if err != nil {
			return err
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, left+1))
		if err != nil {
			return fmt.Errorf("reading %s: %w", from, err)
		}
		if left -= int64(len(b)); left < 0 {
			return &InputError{fmt.Sprintf("%s: the files given have more than %d bytes", from, maxFiles)}
		}
		if b, err = fill(b, refs); err != nil {
			return &InputError{fmt.Sprintf("%s: %v", from, err)}
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		return os.WriteFile(to, b, 0o644)
	}
	for i, f := range files {
		target := filepath.Join(st.dir, fmt.Sprint(i), filepath.Base(filepath.Clean(f)))
		err := filepath.WalkDir(f, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() {
				return os.MkdirAll(filepath.Join(target, strings.TrimPrefix(p, f)), 0o755)
			}
			switch filepath.Ext(p) {
			case ".yaml", ".yml", ".json":
			default:
				if p != f {
					return nil
				}
			}
			if p == f {
				return put(p, target)
			}
			return put(p, filepath.Join(target, strings.TrimPrefix(p, f)))
		})
		if err != nil {
			os.RemoveAll(st.dir)
			var in *InputError
			if errors.As(err, &in) {
				return nil, err
			}
			return nil, &InputError{fmt.Sprintf("reading %s: %v", f, err)}
		}
		st.paths = append(st.paths, target)
		st.names[target] = f
	}
	return st, nil
}

// catalog reads what `assay catalog push` wrote: references by the names that
// files may use for them.
func (s *Session) catalog() (map[string]string, error) {
	b, err := os.ReadFile(s.Home.Path("catalog.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the catalog: %w", err)
	}
	var c struct{ Images, Tasks, Pipelines map[string]string }
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("reading the catalog: %w", err)
	}
	refs := map[string]string{}
	for prefix, m := range map[string]map[string]string{"image/": c.Images, "bundle/": c.Tasks} {
		for k, v := range m {
			refs[prefix+k] = v
		}
	}
	for k, v := range c.Pipelines {
		refs["bundle/"+k] = v
	}
	return refs, nil
}

// fill puts the pushed catalog's digests in the place of assay.dev/image/NAME
// and assay.dev/bundle/NAME.
func fill(b []byte, refs map[string]string) ([]byte, error) {
	if !bytes.Contains(b, []byte("assay.dev/image/")) && !bytes.Contains(b, []byte("assay.dev/bundle/")) {
		return b, nil
	}
	if refs == nil {
		return nil, errors.New("it refers to the built-in catalog, which was not pushed yet: run `assay catalog push` first")
	}
	return catalog.Fill(b, refs)
}

// unstage turns staged paths in a message back into the user's.
func (st *staged) unstage(msg string) string {
	for p, name := range st.names {
		msg = strings.ReplaceAll(msg, p, name)
	}
	return msg
}

// executor is a running executor and its two pipes.
type executor struct {
	cmd      *exec.Cmd
	commands *os.File // write end
	events   *os.File // read end
	tail     *lockedTail
}

func (s *Session) startExecutor(ctx context.Context, id string, uid uint32, a *channel.Admitted, hosts map[string]service.HostFolder, j Job) (*executor, error) {
	path, err := Binary("assay-executor")
	if err != nil {
		return nil, err
	}
	runtime := j.Runtime
	if runtime == "" {
		if runtime, err = Binary("runc"); err != nil {
			return nil, err
		}
	}
	var shared []string
	for _, h := range hosts {
		if !slices.Contains(shared, h.Path) {
			shared = append(shared, h.Path)
		}
	}
	scratch := s.scratch(id)
	input, err := json.Marshal(service.Executor{
		Service: service.Config{Home: s.Home.Dir, Root: s.Home.Root, Instance: s.Config.Instance, Registry: s.Config.Registry},
		Run:     id, Nonce: a.Nonce, Scratch: scratch, Hosts: hosts, Forward: j.Forwards, Runtime: runtime, Limits: j.Limits,
	})
	if err != nil {
		return nil, err
	}
	cmd, err := confine.Command(context.WithoutCancel(ctx), path, confine.Spec{
		Args: []string{"run"}, UID: uid, Steps: s.steps(), ReadOnly: []string{s.Home.Cache()},
		Scratch: scratch, Cgroup: group(id), Open: runtime, Shared: shared, Input: input,
	})
	if err != nil {
		return nil, err
	}
	cr, cw, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	er, ew, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	x := &executor{cmd: cmd, commands: cw, events: er, tail: &lockedTail{}}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = cr, ew, io.MultiWriter(x.tail, s.Log)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch strings.ToUpper(name) {
		case "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "GOMAXPROCS", "ASSAY_DEBUG":
			cmd.Env = append(cmd.Env, kv)
		}
	}
	err = cmd.Start()
	cr.Close()
	ew.Close()
	if err != nil {
		cw.Close()
		er.Close()
		return nil, fmt.Errorf("starting the executor: %w", err)
	}
	return x, nil
}

func (x *executor) wait() error {
	x.commands.Close()
	x.events.Close()
	err := x.cmd.Wait()
	if err == nil {
		return nil
	}
	return fmt.Errorf("the executor ended with %w: %s", err, x.tail)
}

// plan starts the planner between the user's files and the executor, and
// returns its last line.
func (s *Session) plan(ctx context.Context, id string, files *staged, bindings []binding, j Job, x *executor) (*Line, error) {
	path, err := Binary("assay-planner")
	if err != nil {
		return nil, err
	}
	job, err := memfile(map[string]any{
		"runId": id, "files": files.paths, "run": j.Run, "params": j.Params, "workspaces": bindings,
		"registrySocket": s.Home.RegistrySocket(), "parallel": j.Parallel, "executorIn": 4, "executorOut": 5,
	})
	if err != nil {
		return nil, err
	}
	defer job.Close()
	cmd := exec.Command(path)
	cmd.ExtraFiles = []*os.File{job, x.commands, x.events}
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/nonexistent"}
	for _, k := range []string{"SSL_CERT_FILE", "SSL_CERT_DIR", "GOMAXPROCS"} {
		if v := os.Getenv(k); v != "" {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if s.Home.Root {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: home.UIDPlanner, Gid: home.UIDPlanner}
	}
	exe, err := confine.Through(cmd, path)
	if err != nil {
		return nil, err
	}
	defer exe.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var tail lockedTail
	cmd.Stderr = &tail
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the planner: %w", err)
	}
	// The planner has them now; as long as we did too, the executor would not
	// see it go.
	x.commands.Close()
	x.events.Close()
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(os.Interrupt) }) //nolint:errcheck // it may be gone
	defer stop()
	var last *Line
	r := bufio.NewReaderSize(out, 64<<10)
	for {
		raw, err := channel.ReadLine(r, 256<<20)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				cmd.Process.Kill() //nolint:errcheck // Wait tells
			}
			break
		}
		l := new(Line)
		if err := json.Unmarshal(raw, l); err != nil {
			cmd.Process.Kill() //nolint:errcheck // Wait tells
			return nil, errors.Join(fmt.Errorf("reading the planner: %w", err), cmd.Wait())
		}
		last = l
		if j.Line != nil {
			j.Line(*l)
		}
	}
	err = cmd.Wait()
	if last != nil && (last.Type == "finished" || last.Type == "error") {
		return last, nil
	}
	return nil, fmt.Errorf("the planner ended with %v: %s", err, tail.String())
}
