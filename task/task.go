// Package task is the built-in tasks' code: one static program, assay-task,
// with a command for each. The Tasks themselves, as Tekton objects, are in
// package catalog.
//
// A command is what a step runs. It gets everything as flags, so that the
// TaskRun and its provenance show what it was told; it writes results as files
// where Tekton looks for them; and what it says is on standard output. What it
// takes in has been unpacked before the first step, and what it leaves in its
// output folders is measured and exported after the last process of the task is
// dead: no command here computes a digest that anybody has to believe, but for
// those that push to the registry themselves.
//
//	task/gitclone   a commit's tree, byte for byte
//	task/gomod      Go modules, as go.sum pins them
//	task/goimage    Go program → image and bill of materials, without a network
//	task/layout     OCI image layouts
//	task/remote     index, tags, artifacts in a registry
//	task/unicheck   characters that deceive readers
package task

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Env is what a command sees of the world beside its flags.
type Env struct {
	// Getenv looks up an environment variable; required.
	Getenv func(string) string
	Stdout io.Writer
	Stderr io.Writer
}

// Exit codes of the program.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

// command is one command of the program.
type command struct {
	name, brief string
	run         func(ctx context.Context, env Env, args []string) error
}

func commands() []command {
	return []command{
		{"init", "print the run's settings", runInit},
		{"git-clone", "fetch a commit and write its tree", runGitClone},
		{"prefetch", "fetch what the source's lock files pin", runPrefetch},
		{"build-go-image", "build a Go program into an image, without a network", runBuildGoImage},
		{"build-image-index", "push an index of images", runBuildImageIndex},
		{"sast-unicode-check", "find characters that deceive readers", runUnicodeCheck},
		{"apply-tags", "set tags on an image", runApplyTags},
		{"push-dockerfile", "hang the build description on an image", runPushDockerfile},
		{"show-sbom", "print an image's bill of materials", runShowSBOM},
	}
}

// Main runs the command that args name and returns the program's exit code: 0,
// 1 for an error, 2 for wrong usage.
func Main(ctx context.Context, env Env, args []string) int {
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		to, code := env.Stdout, exitOK
		if len(args) == 0 {
			to, code = env.Stderr, exitUsage
		}
		fmt.Fprintln(to, "usage: assay-task COMMAND [flags]")
		for _, c := range commands() {
			fmt.Fprintf(to, "  %-20s %s\n", c.name, c.brief)
		}
		return code
	}
	for _, c := range commands() {
		if c.name != args[0] {
			continue
		}
		err := c.run(ctx, env, args[1:])
		var usage *usageError
		switch {
		case err == nil:
			return exitOK
		case errors.Is(err, flag.ErrHelp):
			return exitOK
		case errors.As(err, &usage):
			fmt.Fprintf(env.Stderr, "assay-task %s: %v\n", c.name, err)
			return exitUsage
		}
		fmt.Fprintf(env.Stderr, "assay-task %s: %v\n", c.name, err)
		return exitError
	}
	fmt.Fprintf(env.Stderr, "assay-task: unknown command %q; hint: assay-task help\n", args[0])
	return exitUsage
}

// usageError is a mistake in the flags.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

// flags is a flag set whose flags must be given unless they have a default.
type flags struct {
	*flag.FlagSet
	required []string
}

func newFlags(env Env, name string) *flags {
	f := &flags{FlagSet: flag.NewFlagSet(name, flag.ContinueOnError)}
	f.SetOutput(env.Stderr)
	return f
}

// need declares a flag that has to be given and not empty.
func (f *flags) need(name, usage string) *string {
	f.required = append(f.required, name)
	return f.String(name, "", usage)
}

// parse fails with a usageError on unknown flags, missing ones, and arguments
// where none are taken.
func (f *flags) parse(args []string, positional bool) error {
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return &usageError{err.Error()}
	}
	for _, name := range f.required {
		if f.Lookup(name).Value.String() == "" {
			return &usageError{fmt.Sprintf("flag --%s must be given", name)}
		}
	}
	if !positional && f.NArg() > 0 {
		return &usageError{fmt.Sprintf("unexpected argument %q", f.Arg(0))}
	}
	return nil
}

// results writes task results into the folder where Tekton reads them.
type results struct{ dir string }

func (f *flags) results() *results {
	r := &results{}
	f.StringVar(&r.dir, "results", "/tekton/results", "folder of the task's results")
	return r
}

// result is one name and value; commands write them in one go, at the end, so
// that a failed command leaves none.
type result struct{ name, value string }

func (r *results) write(list ...result) error {
	for _, x := range list {
		if err := os.WriteFile(filepath.Join(r.dir, x.name), []byte(x.value), 0o644); err != nil {
			return fmt.Errorf("writing result %s: %w", x.name, err)
		}
	}
	return nil
}

// parseEpoch reads SOURCE_DATE_EPOCH: seconds since 1970; empty is 1970 itself.
func parseEpoch(s string) (time.Time, error) {
	if s == "" {
		return time.Unix(0, 0).UTC(), nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	// Year 9999 is as far as RFC 3339 goes.
	if err != nil || n < 0 || n > 253402300799 {
		return time.Time{}, &usageError{fmt.Sprintf("source date epoch %q: want seconds since 1970", s)}
	}
	return time.Unix(n, 0).UTC(), nil
}

// network are the variables that say how to reach the world. They come from
// the machine, not from the run.
func network(getenv func(string) string) []string {
	var out []string
	for _, name := range []string{
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
		"SSL_CERT_FILE", "SSL_CERT_DIR",
	} {
		if v := getenv(name); v != "" {
			out = append(out, name+"="+v)
		}
	}
	return out
}

// labels reads NAME=value arguments; later ones win.
func labels(args []string) (map[string]string, error) {
	out := map[string]string{}
	for _, a := range args {
		name, value, ok := strings.Cut(a, "=")
		if !ok || name == "" || strings.ContainsAny(name, " \t\n") {
			return nil, &usageError{fmt.Sprintf("label %q: want NAME=value", a)}
		}
		out[name] = value
	}
	return out, nil
}

// tags drops empty entries and repetitions.
func tags(args []string) []string {
	var out []string
	for _, a := range args {
		if a = strings.TrimSpace(a); a != "" && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}
