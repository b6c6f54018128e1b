package workflow

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// files is a repository of one commit.
type files map[string]string

func (f files) File(_ context.Context, _, path string, max int64) ([]byte, error) {
	s, ok := f[path]
	if !ok {
		return nil, ErrNotFound
	}
	if int64(len(s)) > max {
		return nil, errors.New("too large")
	}
	return []byte(s), nil
}

const commit = "0123456789abcdef0123456789abcdef01234567"

func TestRead(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("a", 64)
	repo := files{
		".github/workflows/release.yml": `
on: {push: {}}
jobs:
  build:
    if: github.ref == 'refs/heads/main'
    container: golang:1.26
    services:
      db: {image: "postgres` + digest + `"}
    steps:
    - uses: actions/checkout@v4
    - uses: actions/setup-go@` + commit + `
      if: ${{ always() }}
    - run: make
    - uses: docker://alpine:3
    - uses: docker://ghcr.io/x/y` + digest + `
    - uses: ./.github/actions/prepare
    - uses: ./made/by/a/step
    - uses: ./../outside
  sign:
    uses: theirs/builder/.github/workflows/build.yml@refs/tags/v1
  again:
    uses: ./.github/workflows/local.yml
`,
		".github/actions/prepare/action.yaml": "runs: {using: composite, steps: [{uses: actions/cache@main}, {run: x}, {uses: ./.github/actions/prepare}]}",
		".github/workflows/local.yml":         "jobs: {x: {steps: [{uses: some/one}], container: {image: debian}}, z: {uses: ./.github/workflows/release.yml, if: true}}",
	}
	got, err := Read(t.Context(), repo, commit, ".github/workflows/release.yml")
	if err != nil {
		t.Fatal(err)
	}
	want := &Reading{
		Basis: "inferred, not attested", Path: ".github/workflows/release.yml", Commit: commit, Scripts: 2,
		Files: []string{".github/workflows/release.yml", ".github/workflows/local.yml", ".github/actions/prepare/action.yaml"},
		Uses: []Use{
			{Kind: KindWorkflow, Name: "./.github/workflows/local.yml", Pinned: true, Where: "release.yml, job again"},
			{Kind: KindImage, Name: "debian", Where: "local.yml, job x, container"},
			{Kind: KindAction, Name: "some/one", Where: "local.yml, job x, step 1"},
			{Kind: KindWorkflow, Name: "./.github/workflows/release.yml", Pinned: true, Where: "local.yml, job z", Conditional: true},
			{Kind: KindImage, Name: "golang:1.26", Where: "release.yml, job build, container", Conditional: true},
			{Kind: KindImage, Name: "postgres", Ref: digest[1:], Pinned: true, Where: "release.yml, job build, service db", Conditional: true},
			{Kind: KindAction, Name: "actions/checkout", Ref: "v4", Where: "release.yml, job build, step 1", Conditional: true},
			{Kind: KindAction, Name: "actions/setup-go", Ref: commit, Pinned: true, Where: "release.yml, job build, step 2", Conditional: true},
			{Kind: KindImage, Name: "alpine:3", Where: "release.yml, job build, step 4", Conditional: true},
			{Kind: KindImage, Name: "ghcr.io/x/y", Ref: digest[1:], Pinned: true, Where: "release.yml, job build, step 5", Conditional: true},
			{Kind: KindLocal, Name: "./.github/actions/prepare", Pinned: true, Where: "release.yml, job build, step 6", Conditional: true},
			{Kind: KindAction, Name: "actions/cache", Ref: "main", Where: ".github/actions/prepare/action.yaml, step 1", Conditional: true},
			{Kind: KindLocal, Name: "./.github/actions/prepare", Pinned: true, Where: ".github/actions/prepare/action.yaml, step 3", Conditional: true},
			{Kind: KindLocal, Name: "./made/by/a/step", Where: "release.yml, job build, step 7", Conditional: true},
			{Kind: KindWorkflow, Name: "theirs/builder/.github/workflows/build.yml", Ref: "refs/tags/v1", Where: "release.yml, job sign"},
		},
		Unread: []string{
			"release.yml, job build, step 7: ./made/by/a/step: it is not in the repository at this commit; an earlier step may put it there",
			"release.yml, job build, step 8: ./../outside: it is not below the repository, or no fixed path",
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if n := len(got.Unpinned()); n != 8 {
		t.Errorf("%d are not pinned; want 8", n)
	}
}

func TestReadRefuses(t *testing.T) {
	for name, content := range map[string]string{
		"no jobs":          "on: push",
		"jobs twice":       "jobs: {a: {uses: x/y@z}}\njobs: {}",
		"no mapping":       "- 1",
		"no YAML":          "jobs: [",
		"an alias of many": "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\njobs: *f",
	} {
		if got, err := Read(t.Context(), files{"w.yml": content}, commit, "w.yml"); err == nil {
			t.Errorf("%s: read as %+v", name, got)
		}
	}
	if _, err := Read(t.Context(), files{}, commit, "w.yml"); !errors.Is(err, ErrNotFound) {
		t.Errorf("not there: %v", err)
	}
}

// FuzzRead: whatever a workflow is, reading it ends, within its bounds.
func FuzzRead(f *testing.F) {
	f.Add("jobs: {a: {steps: [{uses: a/b@c}, {run: x}], container: x}}", "runs: {steps: [{uses: ./x}]}")
	f.Add("jobs: {a: {uses: ./w.yml}}", "")
	f.Fuzz(func(t *testing.T, w, action string) {
		if len(w)+len(action) > 64<<10 {
			return
		}
		r, err := Read(t.Context(), files{"w.yml": w, "x/action.yml": action}, commit, "w.yml")
		if err == nil && (len(r.Uses) > MaxUses || len(r.Files) > MaxFiles || r.Basis != Basis) {
			t.Errorf("beyond its bounds: %d uses, %d files", len(r.Uses), len(r.Files))
		}
	})
}
