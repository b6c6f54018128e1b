// Command demo does Assay's main job on real input: it rebuilds yq from a git
// commit, gates and releases the image; shows a tampered build refused; and
// tells the story of a harmless task that becomes trusted. `make demo` runs it.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"assay.dev/assay/catalog"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/internal/testrig"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type demo struct {
	ctx     context.Context
	root    string // of the repository
	bin     string
	home    *home.Home
	work    string
	forward string
	refs    map[string]string // image/NAME, bundle/NAME → repo@digest
	tasks   map[string]string // task → repo@digest, of the built-in ones
	policy  string
}

func run(ctx context.Context) error {
	h, err := home.Find()
	if err != nil {
		return err
	}
	d := &demo{ctx: ctx, root: testrig.Root(), home: h, refs: map[string]string{}}
	d.bin = filepath.Join(d.root, "bin", "assay")
	if d.work, err = os.MkdirTemp("", "assay-demo-"); err != nil {
		return err
	}
	defer os.RemoveAll(d.work)
	began := time.Now()

	say("1  Set up: a transparency log, the catalog as Tekton bundles, a git repository with the source of yq")
	if err := d.setUp(); err != nil {
		return err
	}

	say("2  Build: from the commit to a two-platform image, the builds without a network")
	good, err := d.build("build-go", nil)
	if err != nil {
		return err
	}

	say("3  Gate: may this image be released?")
	if err := d.gate(good, "release", 0); err != nil {
		return err
	}
	if err := d.assay("release", good, "--key", d.key(), "--policy", d.policyOf("release"), "--to", "localhost:5055/released/yq", "--tag", "v4.47.2", "--tag", "latest"); err != nil {
		return err
	}
	released := "localhost:5055/released/yq@" + digestOf(good)

	say("4  Forgery: the same pipeline with a task slipped in that edits the source")
	tampered, err := d.build("build-go-tampered", nil)
	if err != nil {
		return err
	}
	fmt.Println("\nIts signatures are good: the observer tells the truth about what was done.")
	if err := d.assay("verify", tampered, "--key", d.key()); err != nil {
		return err
	}
	fmt.Println("\nSo the gate can refuse it:")
	if err := d.gate(tampered, "prototype", 3); err != nil {
		return err
	}
	if err := d.expect(3, "release", tampered, "--key", d.key(), "--policy", d.policyOf("release"), "--to", "localhost:5055/released/yq", "--tag", "latest", "--output", "json"); err != nil {
		return fmt.Errorf("releasing the forgery: %w", err)
	}
	if err := d.untouched(released); err != nil {
		return err
	}
	fmt.Println("The released repository was not touched: latest is still the good image.")

	say("5  Growth: a pipeline with one more task, harmless but not trusted yet")
	extra, err := d.build("build-go-extra", []string{`build-platforms=["linux/amd64"]`})
	if err != nil {
		return err
	}
	if err := d.gate(extra, "prototype", 0); err != nil {
		return err
	}
	if err := d.gate(extra, "release", 3); err != nil {
		return err
	}
	fmt.Println("\nThe security team trusts the task from today on. The same image, not rebuilt:")
	if err := d.trust("read-source"); err != nil {
		return err
	}
	if err := d.gate(extra, "release", 0); err != nil {
		return err
	}

	say("6  The log: every signature above is in it, under checkpoints that a witness cosigned")
	if err := d.assay("log", "verify"); err != nil {
		return err
	}
	fmt.Println("\nThe release policy refuses what is not, so a stolen key cannot be used unseen.")

	say("7  The chain, from commit to verdict")
	if err := d.assay("trace", released, "--key", d.key(), "--policy", d.policyOf("release")); err != nil {
		return err
	}
	svg := h.Path("trace.svg")
	out, err := d.output("trace", released, "--key", d.key(), "--policy", d.policyOf("release"), "--output", "svg")
	if err != nil {
		return err
	}
	if err := os.WriteFile(svg, out, 0o644); err != nil {
		return err
	}
	fmt.Printf(`
It took %s. Look around:
  bin/assay runs                                   every run and how it ended
  bin/assay trace $IMAGE --key $KEY                the chain as a tree
  %s   the same as a picture
  bin/assay download attestation $IMAGE | jq -r '.payload | @base64d | fromjson | .predicate.buildConfig.tasks[].name'
  bin/assay gate $TAMPERED --key $KEY --policy $POLICY
  bin/assay registry serve                         then cosign, oras and skopeo can read it

`, time.Since(began).Round(time.Second), svg)
	if h.Dir != defaultDir() {
		fmt.Printf("These references are in %s: keep %s set to it.\n", h.Dir, home.Env)
	}
	fmt.Printf("IMAGE=%s\nTAMPERED=%s\nKEY=%s\nPOLICY=%s\n", released, tampered, d.key(), d.policyOf("release"))
	return nil
}

func defaultDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/assay"
	}
	return ""
}

func say(title string) { fmt.Printf("\n\x1b[1m%s\x1b[0m\n\n", title) }

func digestOf(ref string) string { _, d, _ := strings.Cut(ref, "@"); return d }

func (d *demo) key() string { return d.home.Path("public", "executed.pub") }

func (d *demo) policyOf(name string) string { return filepath.Join(d.policy, name) }

// command prepares a call of assay.
func (d *demo) command(args ...string) *exec.Cmd {
	c := exec.CommandContext(d.ctx, d.bin, args...)
	c.Dir = d.root
	c.Stderr = os.Stderr
	return c
}

func (d *demo) assay(args ...string) error {
	fmt.Println("$ assay " + strings.Join(args, " "))
	c := d.command(args...)
	c.Stdout = os.Stdout
	if err := c.Run(); err != nil {
		return fmt.Errorf("assay %s: %w", args[0], err)
	}
	return nil
}

func (d *demo) output(args ...string) ([]byte, error) {
	out, err := d.command(args...).Output()
	if err != nil {
		return nil, fmt.Errorf("assay %s: %w", args[0], err)
	}
	return out, nil
}

// expect runs assay and wants an exit code.
func (d *demo) expect(want int, args ...string) error {
	c := d.command(args...)
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	if got := c.ProcessState.ExitCode(); got != want {
		return fmt.Errorf("assay %s: exit code %d, expected %d", args[0], got, want)
	}
	return nil
}

func (d *demo) setUp() error {
	if err := d.log(); err != nil {
		return err
	}
	out, err := d.output("catalog", "push", "--output", "json")
	if err != nil {
		return err
	}
	var c struct{ Images, Tasks, Pipelines map[string]string }
	if err := json.Unmarshal(out, &c); err != nil {
		return err
	}
	d.tasks = c.Tasks
	for prefix, m := range map[string]map[string]string{"image/": c.Images, "bundle/": c.Tasks} {
		for k, v := range m {
			d.refs[prefix+k] = v
		}
	}
	for k, v := range c.Pipelines {
		d.refs["bundle/"+k] = v
	}
	for _, f := range []string{"tasks/edit-source", "tasks/read-source", "pipelines/build-go-tampered", "pipelines/build-go-extra"} {
		if err := d.push(f); err != nil {
			return err
		}
	}
	fmt.Printf("%d tasks and %d pipelines pushed, each by digest\n", len(c.Tasks)+2, len(c.Pipelines)+2)

	repos := filepath.Join(d.work, "git")
	if err := os.Mkdir(repos, 0o755); err != nil {
		return err
	}
	commit, err := testrig.GitRepository(d.ctx, repos, "yq", filepath.Join(d.root, "examples", "yq"))
	if err != nil {
		return err
	}
	addr, err := testrig.GitServer(d.ctx, repos)
	if err != nil {
		return err
	}
	// Tasks see the server as localhost:8080, wherever it listens here: the
	// repository's address is in the image's labels.
	d.forward = "8080=" + addr
	fmt.Printf("source at commit %s\n", commit)
	return d.copyPolicy()
}

// log gives the home a transparency log and a witness, unless it names a log already.
// Each has a key of its own and is a process of its own, which a run starts.
func (d *demo) log() error {
	cfg, err := d.home.Config()
	if err != nil || cfg.Log != nil {
		return err
	}
	return d.assay("log", "init")
}

// push fills in the digests of a file of examples/run and pushes it as a bundle.
func (d *demo) push(file string) error {
	b, err := os.ReadFile(filepath.Join(d.root, "examples", "run", file+".yaml"))
	if err != nil {
		return err
	}
	if b, err = catalog.Fill(b, d.refs); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	name := filepath.Base(file)
	filled := filepath.Join(d.work, name+".yaml")
	if err := os.WriteFile(filled, b, 0o644); err != nil {
		return err
	}
	prefix := "localhost:5055/catalog/task-"
	if strings.HasPrefix(file, "pipelines/") {
		prefix = "localhost:5055/catalog/pipeline-"
	}
	out, err := d.output("bundle", "push", prefix+name+":latest", filled)
	if err != nil {
		return err
	}
	d.refs["bundle/"+name] = strings.TrimSpace(string(out))
	return nil
}

// copyPolicy copies the example policies and trusts the built-in tasks.
func (d *demo) copyPolicy() error {
	d.policy = d.home.Path("policy")
	if err := os.RemoveAll(d.policy); err != nil {
		return err
	}
	if err := os.CopyFS(d.policy, os.DirFS(filepath.Join(d.root, "examples", "policy"))); err != nil {
		return err
	}
	return d.writeTrusted("2026-01-01T00:00:00Z")
}

func (d *demo) trust(task string) error {
	d.tasks[task] = d.refs["bundle/"+task]
	return d.writeTrusted(time.Now().UTC().Truncate(time.Second).Format(time.RFC3339))
}

// writeTrusted writes the list of trusted tasks; those on it already keep the
// date they have.
func (d *demo) writeTrusted(from string) error {
	type record struct {
		Ref         string `json:"ref"`
		EffectiveOn string `json:"effective_on"`
	}
	file := filepath.Join(d.policy, "release", "trusted_tasks.json")
	doc := struct {
		TrustedTasks map[string][]record `json:"trusted_tasks"`
	}{map[string][]record{}}
	if b, err := os.ReadFile(file); err == nil {
		if err := json.Unmarshal(b, &doc); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, ref := range d.tasks {
		repo, digest, _ := strings.Cut(ref, "@")
		if key := "oci://" + repo; len(doc.TrustedTasks[key]) == 0 {
			doc.TrustedTasks[key] = []record{{digest, from}}
		}
	}
	b, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}

// build runs a pipeline on the source and returns its image by digest.
func (d *demo) build(pipeline string, params []string) (string, error) {
	b, err := os.ReadFile(filepath.Join(d.root, "examples", "run", "build-yq.yaml"))
	if err != nil {
		return "", err
	}
	b = bytes.ReplaceAll(b, []byte("assay.dev/bundle/build-go"), []byte("assay.dev/bundle/"+pipeline))
	b = bytes.ReplaceAll(b, []byte("value: build-go\n"), []byte("value: "+pipeline+"\n"))
	if b, err = catalog.Fill(b, d.refs); err != nil {
		return "", err
	}
	file := filepath.Join(d.work, "run-"+pipeline+".yaml")
	if err := os.WriteFile(file, b, 0o644); err != nil {
		return "", err
	}
	args := []string{"run", "-f", file, "--forward", d.forward, "--quiet", "--output", "json"}
	for _, p := range params {
		args = append(args, "--param", p)
	}
	fmt.Println("$ assay " + strings.Join(args, " "))
	out, err := d.output(args...)
	if err != nil {
		return "", err
	}
	var res struct {
		PipelineRun struct {
			Status struct {
				Results []struct {
					Name  string `json:"name"`
					Value string `json:"value"`
				} `json:"results"`
			} `json:"status"`
		} `json:"pipelineRun"`
		Stated *struct{ Subjects []string } `json:"stated"`
	}
	if err := json.Unmarshal(out, &res); err != nil {
		return "", err
	}
	values := map[string]string{}
	for _, r := range res.PipelineRun.Status.Results {
		values[r.Name] = r.Value
	}
	image := values["IMAGE_URL"] + "@" + values["IMAGE_DIGEST"]
	if res.Stated == nil {
		return "", errors.New("the run was not attested")
	}
	fmt.Printf("built and attested %s\n", image)
	return image, nil
}

func (d *demo) gate(image, policy string, want int) error {
	args := []string{"gate", image, "--key", d.key(), "--policy", d.policyOf(policy)}
	fmt.Println("$ assay " + strings.Join(args, " "))
	c := d.command(args...)
	out, err := c.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	// One image's verdict is enough to read; the others say the same.
	first, rest, more := strings.Cut(string(out), "\n\n")
	fmt.Println(first)
	if more {
		lines := strings.Split(strings.TrimSpace(rest), "\n")
		fmt.Println("…\n" + lines[len(lines)-1])
	}
	if got := c.ProcessState.ExitCode(); got != want {
		return fmt.Errorf("the gate's exit code is %d, expected %d:\n%s", got, want, out)
	}
	fmt.Printf("exit code %d\n", want)
	return nil
}

// untouched checks that the tag still names the good image.
func (d *demo) untouched(released string) error {
	out, err := d.output("verify", "localhost:5055/released/yq:latest", "--key", d.key(), "--output", "json")
	if err != nil {
		return err
	}
	var v struct{ Digest string }
	if err := json.Unmarshal(out, &v); err != nil {
		return err
	}
	if v.Digest != digestOf(released) {
		return fmt.Errorf("released/yq:latest is %s, expected %s", v.Digest, digestOf(released))
	}
	return nil
}
