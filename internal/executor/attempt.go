package executor

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"assay.dev/assay/image"
	"assay.dev/assay/internal/registry"
	"assay.dev/assay/observe"
	"assay.dev/assay/observe/measure"
	"assay.dev/assay/observe/tree"
	"assay.dev/assay/plan"
	"assay.dev/assay/sandbox"
)

// Folders that every step has, and where steps find them.
var standardMounts = []sandbox.Mount{
	{Volume: "workspace", Path: "/workspace"},
	{Volume: "results", Path: "/tekton/results"},
	{Volume: "steps", Path: "/tekton/steps"},
	{Volume: "scripts", Path: "/tekton/scripts", ReadOnly: true},
	{Volume: "home", Path: "/tekton/home"},
}

// attempt is one task attempt while it goes through its stages.
type attempt struct {
	e     *Executor
	t     plan.Task
	id    observe.Attempt
	space sandbox.Space
	token string

	images  map[string]*image.Image // by reference
	steps   []observe.StepFinishedBody
	started observe.TaskStartedBody
	outputs []observe.Tree
	results []observe.Value
	// stepResults are the values for $(steps.<name>.results.<result>).
	stepResults map[string]string
}

// attempt runs one task attempt from its images to its outputs.
func (e *Executor) attempt(ctx context.Context, t plan.Task) *plan.Done {
	a := &attempt{e: e, t: t, id: observe.Attempt{Task: t.Name, Attempt: t.Attempt}, images: map[string]*image.Image{}, stepResults: map[string]string{}}
	a.started = observe.TaskStartedBody{
		Attempt: a.id, PipelineTask: t.PipelineTask, TaskName: t.Task, Bundle: t.Bundle,
		Started: e.now(), Network: string(t.Network),
	}
	if t.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, t.Timeout, &reason{"TaskRunTimeout", fmt.Sprintf("it ran longer than %s", t.Timeout)})
		defer cancel()
	}
	done := &plan.Done{Task: t.Name, Attempt: t.Attempt, Started: a.started.Started}
	fin, err := a.run(ctx)
	if err != nil {
		why := classify(ctx, err)
		done.Reason, done.Message = why.name, why.message
	}
	fin.Attempt = a.id
	fin.Finished = e.now()
	fin.Reason = done.Reason
	fin.Outputs, fin.Results = a.outputs, a.results
	fin.Token = a.token != ""
	fin.Hermetic = measure.HermeticConclusion(a.started, fin, a.steps)
	if err := e.fact(observe.TaskFinished, fin); err != nil && done.Reason == "" {
		done.Reason, done.Message = "TaskRunCancelled", err.Error()
	}
	done.Finished = fin.Finished
	for _, r := range a.results {
		done.Results = append(done.Results, plan.Result{Name: r.Name, Value: r.Value})
	}
	return done
}

// classify turns an error into the reason that Tekton would give.
func classify(ctx context.Context, err error) *reason {
	var r *reason
	if errors.As(err, &r) {
		return r
	}
	if cause := context.Cause(ctx); cause != nil && errors.As(cause, &r) {
		return r
	}
	return &reason{"Failed", err.Error()}
}

// run goes through the stages. The returned body holds what sealing measured,
// whatever the error.
func (a *attempt) run(ctx context.Context) (fin observe.TaskFinishedBody, err error) {
	e := a.e
	began := false
	begin := func() error {
		began = true
		return e.fact(observe.TaskStarted, a.started)
	}
	defer func() {
		// An attempt that did not come as far is in the ledger all the same.
		if !began {
			err = errors.Join(err, begin())
		}
	}()
	if err := a.pull(ctx); err != nil {
		return fin, err
	}
	if err := a.open(ctx); err != nil {
		return fin, err
	}
	defer func() {
		if cerr := a.space.Close(); cerr != nil && err == nil {
			err = fmt.Errorf("removing the sandbox of %s: %w", a.t.Name, cerr)
		}
	}()
	if err := a.credential(ctx); err != nil {
		return fin, err
	}
	revoked := false
	revoke := func() error {
		if a.token == "" || revoked {
			return nil
		}
		revoked = true
		// A cancelled task's token must go all the same.
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if err := e.cfg.Tokens.Revoke(rctx, a.token); err != nil {
			return fmt.Errorf("revoking the token of %s: %w", a.t.Name, err)
		}
		return nil
	}
	defer func() { err = errors.Join(err, revoke()) }()
	if err := a.unpackInputs(ctx); err != nil {
		return fin, err
	}
	if a.started.Interfaces, err = a.space.Interfaces(); err != nil {
		return fin, fmt.Errorf("measuring the network: %w", err)
	}
	if err := begin(); err != nil {
		return fin, err
	}
	stepErr := a.runSteps(ctx)

	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	sealed, err := a.space.Seal(sctx)
	if err != nil {
		return fin, errors.Join(stepErr, fmt.Errorf("sealing %s: %w", a.t.Name, err))
	}
	fin.Interfaces, fin.Network, fin.Dropped = sealed.Interfaces, sealed.Network, sealed.Dropped
	if err := revoke(); err != nil {
		return fin, errors.Join(stepErr, err)
	}
	// Results of a failed task are read too, as Tekton does; its outputs are not.
	if rerr := a.readResults(); rerr != nil {
		return fin, errors.Join(stepErr, rerr)
	}
	if stepErr != nil {
		return fin, stepErr
	}
	if err := ctx.Err(); err != nil {
		return fin, err
	}
	if err := a.export(ctx); err != nil {
		return fin, err
	}
	return fin, a.source(ctx)
}

// pull makes every image of the task ready and verifies its layers.
func (a *attempt) pull(ctx context.Context) error {
	for _, s := range a.t.Steps {
		if a.images[s.Image] != nil {
			continue
		}
		img, err := a.e.cfg.Images.Ensure(ctx, s.Image, a.e.cfg.Platform)
		if err != nil {
			return &reason{"TaskRunImagePullFailed", fmt.Sprintf("step %s: %v", s.Name, err)}
		}
		if _, err := a.e.layerDirs(ctx, img); err != nil {
			return &reason{"TaskRunImagePullFailed", fmt.Sprintf("step %s: %v", s.Name, err)}
		}
		a.images[s.Image] = img
	}
	return nil
}

func (a *attempt) open(ctx context.Context) error {
	e := a.e
	spec := sandbox.SpaceSpec{
		ID:         fmt.Sprintf("%s-%d", a.t.Name, a.t.Attempt),
		Network:    string(a.t.Network),
		WriteBytes: e.cfg.Limits.WriteBytes,
		Limits:     e.cfg.Limits,
	}
	for _, v := range a.t.Volumes {
		sv := sandbox.Volume{Name: "v-" + v.Name, ReadOnly: v.ReadOnly || v.Kind == plan.VolumeFiles}
		fact := observe.Volume{Name: v.Name, Kind: string(v.Kind), Workspace: v.Workspace, ReadOnly: sv.ReadOnly}
		if v.Kind == plan.VolumeHost {
			h, ok := e.cfg.Hosts[v.Host]
			if !ok {
				return fmt.Errorf("volume %s: no folder was shared as %q", v.Name, v.Host)
			}
			sv.Host, sv.ReadOnly = h.Path, sv.ReadOnly || h.ReadOnly
			fact.ReadOnly, fact.Shared = sv.ReadOnly, true
		}
		a.started.Volumes = append(a.started.Volumes, fact)
		spec.Volumes = append(spec.Volumes, sv)
	}
	if a.t.Network != plan.NetworkNone {
		spec.Forward = append(spec.Forward, sandbox.Forward{Port: e.cfg.RegistryPort, Name: "registry", Dial: e.cfg.RegistryDial})
	}
	if a.t.Network == plan.NetworkOpen {
		for _, f := range e.cfg.Forwards {
			spec.Forward = append(spec.Forward, sandbox.Forward(f))
		}
	}
	space, err := e.cfg.Driver.Open(ctx, spec)
	if err != nil {
		return fmt.Errorf("opening a sandbox: %w", err)
	}
	a.space = space
	if err := a.prepare(); err != nil {
		return errors.Join(err, space.Close())
	}
	return nil
}

// prepare writes what steps find in their folders: scripts, files of
// ConfigMaps, a folder per step.
func (a *attempt) prepare() error {
	for i, s := range a.t.Steps {
		if s.Script != "" {
			if err := a.write("scripts", scriptName(i), []byte(s.Script), 0o755); err != nil {
				return err
			}
		}
		if err := a.mkdir("steps", path.Join(s.Name, "results")); err != nil {
			return err
		}
	}
	for _, v := range a.t.Volumes {
		for name, content := range v.Files {
			if err := a.write("v-"+v.Name, name, content, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

func scriptName(i int) string { return fmt.Sprintf("script-%d", i) }

// write puts a file into a volume before any step runs, so nothing in it can be
// a link of a step's making; the name comes from the planner and stays inside.
func (a *attempt) write(volume, name string, content []byte, mode os.FileMode) error {
	if !filepath.IsLocal(name) {
		return fmt.Errorf("file %q of %s leaves its volume", name, volume)
	}
	p := filepath.Join(a.space.Dir(volume), name)
	if dir := filepath.Dir(name); dir != "." {
		if err := a.mkdir(volume, dir); err != nil {
			return err
		}
	}
	if err := os.WriteFile(p, content, mode); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if err := os.Chmod(p, mode); err != nil { // whatever the umask
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return a.space.Chown(p)
}

func (a *attempt) mkdir(volume, name string) error {
	if !filepath.IsLocal(name) {
		return fmt.Errorf("folder %q of %s leaves its volume", name, volume)
	}
	dir := a.space.Dir(volume)
	for _, part := range strings.Split(filepath.ToSlash(name), "/") {
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o777); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("making %s: %w", name, err)
		}
		if err := os.Chmod(dir, 0o777); err != nil {
			return fmt.Errorf("making %s: %w", name, err)
		}
		if err := a.space.Chown(dir); err != nil {
			return err
		}
	}
	return nil
}

// credential mints the task's registry token and puts it where registry clients
// look; a task without network gets none.
func (a *attempt) credential(ctx context.Context) error {
	if a.t.Network == plan.NetworkNone {
		return nil
	}
	token, err := a.e.cfg.Tokens.Mint(ctx, registry.TokenRequest{Run: a.e.cfg.Run, Task: a.t.Name, Attempt: a.t.Attempt, Kind: registry.KindTask})
	if err != nil {
		return fmt.Errorf("getting a registry token: %w", err)
	}
	a.token = token
	auth := base64.StdEncoding.EncodeToString([]byte("task:" + token))
	cfg, err := json.Marshal(map[string]any{"auths": map[string]any{a.e.cfg.RegistryName: map[string]string{"auth": auth}}})
	if err != nil {
		return err
	}
	return a.write("home", ".docker/config.json", cfg, 0o644)
}

// locate finds the volume that holds a path as steps see it: the deepest mount
// above it.
func (a *attempt) locate(p string) (volume, sub string, err error) {
	p = path.Clean(p)
	best := ""
	consider := func(m sandbox.Mount) {
		at := path.Clean(m.Path)
		if (p == at || strings.HasPrefix(p, at+"/")) && len(at) > len(best) {
			best, volume = at, m.Volume
			sub = path.Join(m.SubPath, strings.TrimPrefix(strings.TrimPrefix(p, at), "/"))
		}
	}
	for _, m := range standardMounts {
		consider(m)
	}
	for _, s := range a.t.Steps {
		for _, m := range s.Mounts {
			consider(sandbox.Mount{Volume: "v-" + m.Volume, Path: m.Path, SubPath: m.SubPath})
		}
	}
	if best == "" {
		return "", "", fmt.Errorf("%s is in no volume of the task: mount an emptyDir there, for example with a stepTemplate", p)
	}
	for _, v := range a.t.Volumes {
		if "v-"+v.Name == volume && v.Kind != plan.VolumeEmpty {
			return "", "", fmt.Errorf("%s lies in volume %s, which is shared: inputs and outputs need an emptyDir", p, v.Name)
		}
	}
	if sub == "" {
		sub = "."
	}
	return volume, sub, nil
}

func (a *attempt) runSteps(ctx context.Context) error {
	var failed error
	for i, s := range a.t.Steps {
		if failed != nil {
			a.e.out <- plan.Event{Step: &plan.StepState{Task: a.t.Name, Attempt: a.t.Attempt, Name: s.Name, Image: a.imageRef(s.Image), Started: a.e.now(), Finished: a.e.now(), ExitCode: 1, Reason: "Skipped"}}
			continue
		}
		failed = a.runStep(ctx, i, s)
	}
	return failed
}

func (a *attempt) imageRef(ref string) string {
	if img := a.images[ref]; img != nil {
		return img.Pinned()
	}
	return ref
}

func (a *attempt) runStep(ctx context.Context, i int, s plan.Step) error {
	e := a.e
	img := a.images[s.Image]
	argv, shown, err := a.argv(i, s, img)
	if err != nil {
		return err
	}
	uid, gid, err := a.user(s, img)
	if err != nil {
		return err
	}
	dirs, err := e.layerDirs(ctx, img)
	if err != nil {
		return err
	}
	env, envFacts := a.environment(s, img)
	spec := sandbox.StepSpec{
		Name: s.Name, Layers: dirs, Argv: argv, Env: env, WorkingDir: s.WorkingDir,
		UID: uid, GID: gid, ReadOnlyRoot: s.ReadOnlyRoot, MemoryBytes: s.Memory,
		Hermetic: a.t.Network == plan.NetworkNone,
		Mounts:   slices.Clone(standardMounts),
	}
	if spec.WorkingDir == "" {
		spec.WorkingDir = img.Config.WorkingDir
	}
	for _, m := range s.Mounts {
		spec.Mounts = append(spec.Mounts, sandbox.Mount{Volume: "v-" + m.Volume, Path: m.Path, SubPath: m.SubPath, ReadOnly: m.ReadOnly})
	}
	stepCtx := ctx
	if s.Timeout > 0 {
		var cancel context.CancelFunc
		stepCtx, cancel = context.WithTimeout(ctx, s.Timeout)
		defer cancel()
	}
	state := plan.StepState{Task: a.t.Name, Attempt: a.t.Attempt, Name: s.Name, Image: a.imageRef(s.Image), Started: e.now()}
	running := state
	e.out <- plan.Event{Step: &running}
	logs := &logWriter{e: e, task: a.t.Name, step: s.Name}
	res, err := a.space.Run(stepCtx, spec, logs, logs)
	var unstartable *sandbox.StartError
	if errors.As(err, &unstartable) {
		// As Kubernetes has it: the container ended with StartError and 128.
		now := e.now()
		fmt.Fprintf(logs, "assay: %v\n", err)
		res, err = &sandbox.Result{Started: now, Finished: now, ExitCode: 128}, nil
	}
	if err != nil {
		return fmt.Errorf("running step %s: %w", s.Name, err)
	}
	body := observe.StepFinishedBody{
		Attempt: a.id, Step: s.Name, Image: s.Image, ImageDigest: img.Digest,
		Argv: shown, Env: envFacts, User: fmt.Sprintf("%d:%d", uid, gid),
		Capabilities: res.Capabilities, Seccomp: res.Seccomp, Mounts: res.Mounts,
		Started: res.Started.UTC(), Finished: res.Finished.UTC(), ExitCode: res.ExitCode,
		CPU: res.CPU, MaxRSS: res.MaxRSS,
	}
	if s.Script != "" {
		body.Script = digest([]byte(a.redact(s, s.Script)))
	}
	stepErr := a.outcome(ctx, stepCtx, s, res, unstartable, &body)
	for _, name := range s.Results {
		// A step's results are read when its last process is dead: its own pid
		// namespace is gone, and no other step runs.
		v, ok, err := a.readFile("steps", path.Join(s.Name, "results", name))
		if err != nil {
			stepErr = errors.Join(stepErr, err)
			continue
		}
		if ok {
			body.Results = append(body.Results, observe.Value{Name: name, Value: v})
			a.stepResults["steps."+strings.TrimPrefix(s.Name, "step-")+".results."+name] = v
		}
	}
	a.steps = append(a.steps, body)
	if err := e.fact(observe.StepFinished, body); err != nil {
		return err
	}
	state.Started, state.Finished, state.ExitCode, state.Reason = body.Started, body.Finished, body.ExitCode, body.Reason
	for _, r := range body.Results {
		state.Results = append(state.Results, plan.Result(r))
	}
	e.out <- plan.Event{Step: &state}
	return stepErr
}

// outcome sets the step's reason and says whether the task goes on.
func (a *attempt) outcome(ctx, stepCtx context.Context, s plan.Step, res *sandbox.Result, unstartable *sandbox.StartError, body *observe.StepFinishedBody) error {
	switch {
	case res.Killed && ctx.Err() != nil:
		why := classify(ctx, ctx.Err())
		body.Reason = why.name
		return why
	case res.Killed && stepCtx.Err() != nil:
		body.Reason = "TimeoutExceeded"
		return &reason{"Failed", fmt.Sprintf("%q exceeded its timeout of %s", s.Name, s.Timeout)}
	case unstartable != nil:
		body.Reason = "StartError"
	case res.OOMKilled:
		body.Reason = "OOMKilled"
	case res.ExitCode != 0:
		body.Reason = "Error"
	default:
		body.Reason = "Completed"
		return nil
	}
	if err := a.writeExitCode(s.Name, res.ExitCode); err != nil {
		return err
	}
	if s.Continue {
		return nil
	}
	return &reason{"Failed", fmt.Sprintf("%q exited with code %d (%s)", s.Name, res.ExitCode, body.Reason)}
}

// writeExitCode leaves the exit code for later steps. Steps have run by now and
// may have put links in its way; those are refused.
func (a *attempt) writeExitCode(step string, code int) error {
	root, err := tree.OpenDir(a.space.Dir("steps"))
	if err != nil {
		return fmt.Errorf("writing the exit code of %s: %w", step, err)
	}
	defer root.Close()
	dir, err := tree.OpenBeneath(root, step, unix.O_DIRECTORY|unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("writing the exit code of %s: %w", step, err)
	}
	defer dir.Close()
	fd, err := unix.Openat(int(dir.Fd()), "exitCode", unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return fmt.Errorf("writing the exit code of %s: %w", step, err)
	}
	f := os.NewFile(uintptr(fd), "exitCode")
	defer f.Close()
	if _, err := fmt.Fprint(f, code); err != nil {
		return fmt.Errorf("writing the exit code of %s: %w", step, err)
	}
	return nil
}

// argv is what to execute, and the same as it may be recorded.
func (a *attempt) argv(i int, s plan.Step, img *image.Image) (argv, shown []string, err error) {
	switch {
	case s.Script != "":
		argv = append([]string{"/tekton/scripts/" + scriptName(i)}, s.Args...)
	case len(s.Command) > 0:
		argv = append(slices.Clone(s.Command), s.Args...)
	case len(s.Args) > 0:
		argv = append(slices.Clone(img.Config.Entrypoint), s.Args...)
	default:
		argv = append(slices.Clone(img.Config.Entrypoint), img.Config.Cmd...)
	}
	if len(argv) == 0 {
		return nil, nil, fmt.Errorf("step %s has no command and image %s has no entrypoint: set command or script", s.Name, s.Image)
	}
	for j := range argv {
		argv[j] = a.substitute(argv[j])
		shown = append(shown, a.redact(s, argv[j]))
	}
	return argv, shown, nil
}

// substitute fills in results of earlier steps, the one kind of variable that
// only exists while the task runs.
func (a *attempt) substitute(s string) string {
	if !strings.Contains(s, "$(steps.") {
		return s
	}
	for name, v := range a.stepResults {
		s = strings.ReplaceAll(s, "$("+name+")", v)
	}
	return s
}

// redact replaces values that came from Secrets by their variable's name.
func (a *attempt) redact(s plan.Step, text string) string {
	for _, v := range s.Env {
		if v.Secret && v.Value != "" {
			text = strings.ReplaceAll(text, v.Value, "«secret:"+v.Name+"»")
		}
	}
	return text
}

// environment is the image's, then the step's; the facts list only what the
// step set, the image's is known by its digest.
func (a *attempt) environment(s plan.Step, img *image.Image) ([]string, []observe.EnvVar) {
	values := map[string]string{}
	var names []string
	set := func(name, value string) {
		if _, ok := values[name]; !ok {
			names = append(names, name)
		}
		values[name] = value
	}
	for _, kv := range img.Config.Env {
		name, value, _ := strings.Cut(kv, "=")
		set(name, value)
	}
	if _, ok := values["PATH"]; !ok {
		set("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	if _, ok := values["HOME"]; !ok {
		set("HOME", "/tekton/home")
	}
	if a.token != "" {
		set("DOCKER_CONFIG", "/tekton/home/.docker")
	}
	facts := []observe.EnvVar{}
	for _, v := range s.Env {
		value := a.substitute(v.Value)
		set(v.Name, value)
		f := observe.EnvVar{Name: v.Name}
		if !v.Secret {
			f.Digest = digest([]byte(value))
		}
		facts = append(facts, f)
	}
	env := make([]string, 0, len(names))
	for _, n := range names {
		env = append(env, n+"="+values[n])
	}
	return env, facts
}

func (a *attempt) user(s plan.Step, img *image.Image) (uid, gid uint32, err error) {
	if s.User == nil && img.Config.User != "" {
		uid, gid, err = image.User(img.Dirs(), img.Config.User)
		if err != nil {
			return 0, 0, fmt.Errorf("step %s: %w", s.Name, err)
		}
	}
	set := func(to *uint32, v *int64, field string) error {
		if v == nil {
			return nil
		}
		if *v < 0 || *v > 65535 {
			return fmt.Errorf("step %s: %s %d is outside 0 to 65535", s.Name, field, *v)
		}
		*to = uint32(*v)
		return nil
	}
	return uid, gid, errors.Join(err, set(&uid, s.User, "runAsUser"), set(&gid, s.Group, "runAsGroup"))
}

// readResults reads the declared results after the last process is dead.
func (a *attempt) readResults() error {
	var total int64
	for _, name := range a.t.Results {
		v, ok, err := a.readFile("results", name)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		total += int64(len(v))
		if limit := a.e.cfg.Limits.ResultBytes; limit > 0 && total > limit {
			a.results = nil
			return &reason{"TaskRunResultLargerThanAllowedLimit", fmt.Sprintf("the results have more than %d bytes: write large data to an artifact output, or raise --max-result-bytes", limit)}
		}
		a.results = append(a.results, observe.Value{Name: name, Value: v})
	}
	return nil
}

func (a *attempt) readFile(volume, name string) (string, bool, error) {
	max := a.e.cfg.Limits.ResultBytes
	if max <= 0 {
		max = 1 << 20
	}
	b, err := measure.ReadBounded(a.space.Dir(volume), name, max)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", false, nil
	case errors.Is(err, tree.ErrLimit):
		return "", false, &reason{"TaskRunResultLargerThanAllowedLimit", fmt.Sprintf("result %s has more than %d bytes: write large data to an artifact output, or raise --max-result-bytes", name, max)}
	case err != nil:
		return "", false, fmt.Errorf("reading result %s: %w", name, err)
	}
	return string(b), true, nil
}

// logWriter passes a step's output on as it comes.
type logWriter struct {
	e          *Executor
	task, step string
}

func (w *logWriter) Write(p []byte) (int, error) {
	w.e.out <- plan.Event{Log: &plan.Log{Task: w.task, Step: w.step, Data: slices.Clone(p)}}
	return len(p), nil
}

var _ io.Writer = (*logWriter)(nil)
