// Package workflow reads a GitHub workflow and lists what it runs that is not its own:
// actions, reusable workflows and container images, and which of them are named by
// something that can be moved under them.
//
// Provenance names the workflow and its commit, and not what ran of it. So all of this
// is inferred and attested by nobody: a step may have been skipped, and an action that
// is named by a tag was whatever the tag was that minute. What actions use themselves
// is in their own repositories, which are not read.
package workflow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Bounds on what strangers' repositories make us read.
const (
	MaxFile  = 1 << 20 // bytes of a workflow or action
	MaxFiles = 64      // workflows and actions of one run, in the repository itself
	MaxUses  = 4096
)

// Kinds of what is used.
const (
	KindAction   = "action"
	KindWorkflow = "reusable workflow"
	KindImage    = "image"
	KindLocal    = "local action"
)

// Use is one place where a workflow uses something.
type Use struct {
	Kind string `json:"kind"`
	// Name is what is used, as the file has it, without the ref: actions/checkout.
	Name string `json:"name"`
	Ref  string `json:"ref,omitempty"`
	// Pinned says that the ref is a commit or a digest, or that it is of the same
	// commit as the workflow.
	Pinned bool `json:"pinned"`
	// Where is the file, job and step, such as build.yml, job build, step 2.
	Where string `json:"where"`
	// Conditional says that the step or job has an if: it may not have run.
	Conditional bool `json:"conditional,omitempty"`
}

// Reading is what a workflow uses, as its files say. See the package's comment for how
// little that is.
type Reading struct {
	// Basis is always "inferred, not attested".
	Basis  string `json:"basis"`
	Path   string `json:"path"`
	Commit string `json:"commit"`
	// Files are those that were read, all of that commit.
	Files []string `json:"files"`
	Uses  []Use    `json:"uses"`
	// Scripts is how many steps run a script that is written into the file.
	Scripts int `json:"scripts"`
	// Unread is what could not be read or followed, with the reason.
	Unread []string `json:"unread,omitempty"`
}

// Basis is how these facts are known.
const Basis = "inferred, not attested"

// Unpinned are the uses that can be moved.
func (r *Reading) Unpinned() []Use {
	return slices.DeleteFunc(slices.Clone(r.Uses), func(u Use) bool { return u.Pinned })
}

// ErrNotFound is what a Repository returns for a commit or file that it does not have.
var ErrNotFound = errors.New("not there")

// Repository is a repository at hand.
type Repository interface {
	// File returns a file of a commit, whose full id it checks; ErrNotFound where there
	// is no such commit or file, and an error if the file has more than max bytes.
	File(ctx context.Context, commit, path string, max int64) ([]byte, error)
}

// Read reads a workflow at a commit, and the local actions and workflows that it uses.
// It fails if the workflow itself is not there or is no workflow (ErrNotFound for the
// first); what else cannot be read is listed as unread.
func Read(ctx context.Context, repo Repository, commit, file string) (*Reading, error) {
	r := reader{ctx: ctx, repo: repo, out: &Reading{Basis: Basis, Path: file, Commit: commit, Uses: []Use{}}}
	if err := r.workflow(file, false); err != nil {
		return nil, fmt.Errorf("reading workflow %s at %s: %w", file, commit, err)
	}
	return r.out, nil
}

type reader struct {
	ctx  context.Context
	repo Repository
	out  *Reading
}

// text is a scalar, or nothing where a file has something else.
type text string

// UnmarshalJSON implements json.Unmarshaler.
func (t *text) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		*t = text(s)
		return nil
	}
	// Conditions may be plain booleans.
	if s := strings.TrimSpace(string(b)); s != "null" && !strings.HasPrefix(s, "{") && !strings.HasPrefix(s, "[") {
		*t = text(s)
	}
	return nil
}

// image is written as a name or as an object with one.
type image struct{ Image text }

// UnmarshalJSON implements json.Unmarshaler.
func (i *image) UnmarshalJSON(b []byte) error {
	if json.Unmarshal(b, &i.Image) == nil && i.Image != "" {
		return nil
	}
	var o struct {
		Image text `json:"image"`
	}
	err := json.Unmarshal(b, &o)
	i.Image = o.Image
	return err
}

type step struct {
	Uses text `json:"uses"`
	Run  text `json:"run"`
	If   text `json:"if"`
}

type job struct {
	Uses      text             `json:"uses"`
	If        text             `json:"if"`
	Container *image           `json:"container"`
	Services  map[string]image `json:"services"`
	Steps     []step           `json:"steps"`
}

func (r *reader) load(file string, into any) error {
	if len(r.out.Files) == MaxFiles {
		return fmt.Errorf("more than %d files", MaxFiles)
	}
	data, err := r.repo.File(r.ctx, r.out.Commit, file, MaxFile)
	if err != nil {
		return err
	}
	// Strict in what two readers could read differently: a member twice.
	j, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return err
	}
	r.out.Files = append(r.out.Files, file)
	return json.Unmarshal(j, into)
}

func (r *reader) workflow(file string, conditional bool) error {
	if slices.Contains(r.out.Files, file) {
		return nil
	}
	var w struct {
		Jobs map[string]job `json:"jobs"`
	}
	if err := r.load(file, &w); err != nil {
		return err
	}
	if len(w.Jobs) == 0 {
		return errors.New("it has no jobs")
	}
	for _, name := range slices.Sorted(maps.Keys(w.Jobs)) {
		j := w.Jobs[name]
		where := fmt.Sprintf("%s, job %s", path.Base(file), name)
		maybe := conditional || j.If != ""
		if j.Uses != "" {
			r.use(string(j.Uses), KindWorkflow, where, maybe)
		}
		if j.Container != nil && j.Container.Image != "" {
			r.image(string(j.Container.Image), where+", container", maybe)
		}
		for _, s := range slices.Sorted(maps.Keys(j.Services)) {
			r.image(string(j.Services[s].Image), where+", service "+s, maybe)
		}
		r.steps(j.Steps, where, maybe)
	}
	return nil
}

func (r *reader) steps(steps []step, where string, conditional bool) {
	for i, s := range steps {
		at := fmt.Sprintf("%s, step %d", where, i+1)
		if s.Run != "" {
			r.out.Scripts++
		}
		if s.Uses != "" {
			r.use(string(s.Uses), KindAction, at, conditional || s.If != "")
		}
	}
}

var (
	commitForm = regexp.MustCompile(`^(?:[0-9a-f]{40}|[0-9a-f]{64})$`)
	digestForm = regexp.MustCompile(`@sha256:[0-9a-f]{64}$`)
)

func (r *reader) use(uses, kind, where string, conditional bool) {
	switch {
	case strings.HasPrefix(uses, "docker://"):
		r.image(strings.TrimPrefix(uses, "docker://"), where, conditional)
		return
	case strings.HasPrefix(uses, "./"):
		r.local(uses, kind, where, conditional)
		return
	}
	name, ref, _ := strings.Cut(uses, "@")
	r.add(Use{Kind: kind, Name: name, Ref: ref, Pinned: commitForm.MatchString(ref), Where: where, Conditional: conditional})
}

func (r *reader) image(name, where string, conditional bool) {
	u := Use{Kind: KindImage, Name: name, Pinned: digestForm.MatchString(name), Where: where, Conditional: conditional}
	if i := strings.LastIndex(name, "@"); i >= 0 {
		u.Name, u.Ref = name[:i], name[i+1:]
	}
	r.add(u)
}

func (r *reader) add(u Use) {
	switch {
	case len(r.out.Uses) < MaxUses:
		r.out.Uses = append(r.out.Uses, u)
	case len(r.out.Uses) == MaxUses && !slices.Contains(r.out.Unread, tooMany):
		r.out.Unread = append(r.out.Unread, tooMany)
	}
}

var tooMany = fmt.Sprintf("more than %d uses", MaxUses)

// local follows what is in the same repository, at the same commit.
func (r *reader) local(uses, kind, where string, conditional bool) {
	unread := func(err error) { r.out.Unread = append(r.out.Unread, fmt.Sprintf("%s: %s: %v", where, uses, err)) }
	clean := path.Clean(strings.TrimPrefix(uses, "./"))
	if clean == "." || clean == ".." || strings.HasPrefix(clean, "../") || strings.Contains(clean, "${{") {
		unread(errors.New("it is not below the repository, or no fixed path"))
		return
	}
	if kind == KindWorkflow {
		r.add(Use{Kind: kind, Name: uses, Pinned: true, Where: where, Conditional: conditional})
		if err := r.workflow(clean, conditional); err != nil {
			unread(err)
		}
		return
	}
	at := len(r.out.Uses)
	r.add(Use{Kind: KindLocal, Name: uses, Where: where, Conditional: conditional})
	var a struct {
		Runs struct {
			Image text   `json:"image"`
			Steps []step `json:"steps"`
		} `json:"runs"`
	}
	var (
		err  error
		file string
	)
	for _, name := range []string{"/action.yml", "/action.yaml"} {
		file = clean + name
		if slices.Contains(r.out.Files, file) {
			r.pinned(at)
			return
		}
		if err = r.load(file, &a); !errors.Is(err, ErrNotFound) {
			break
		}
	}
	if errors.Is(err, ErrNotFound) {
		// Steps may have made it: a checkout into a folder, say.
		err = errors.New("it is not in the repository at this commit; an earlier step may put it there")
	}
	if err != nil {
		unread(err)
		return
	}
	r.pinned(at)
	if img := string(a.Runs.Image); strings.HasPrefix(img, "docker://") {
		r.image(strings.TrimPrefix(img, "docker://"), file, conditional)
	}
	r.steps(a.Runs.Steps, file, conditional)
}

// pinned marks a use that is of the same commit.
func (r *reader) pinned(at int) {
	if at < len(r.out.Uses) {
		r.out.Uses[at].Pinned = true
	}
}
