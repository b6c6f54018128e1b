package task

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"assay.dev/assay/sbom"
	"assay.dev/assay/task/gitclone"
	"assay.dev/assay/task/gomod"
	"assay.dev/assay/task/unicheck"
)

// runInit prints what the run was asked for, which is handy at the top of a
// log, and passes on the proxy that other tasks should use.
func runInit(_ context.Context, env Env, args []string) error {
	f := newFlags(env, "init")
	res := f.results()
	image := f.String("image", "", "where the image will go")
	cacheProxy := f.String("enable-cache-proxy", "false", "pass the machine's http proxy on: true or false")
	if err := f.parse(args, false); err != nil {
		return err
	}
	var proxy, direct string
	switch *cacheProxy {
	case "true":
		proxy, direct = env.Getenv("HTTP_PROXY"), env.Getenv("NO_PROXY")
		if u, err := url.Parse(proxy); err != nil || u.User != nil {
			return errors.New("the machine's HTTP_PROXY does not parse or holds credentials, which must not become a result")
		}
	case "false":
	default:
		return &usageError{fmt.Sprintf("--enable-cache-proxy=%q: want true or false", *cacheProxy)}
	}
	fmt.Fprintf(env.Stdout, "output image: %s\nhttp proxy:   %s\nno proxy:     %s\n", *image, orNone(proxy), orNone(direct))
	return res.write(result{"http-proxy", proxy}, result{"no-proxy", direct})
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func runGitClone(ctx context.Context, env Env, args []string) error {
	f := newFlags(env, "git-clone")
	res := f.results()
	repo := f.need("url", "repository, http or https")
	revision := f.String("revision", "", "branch, tag, ref or full commit id; empty: the default branch")
	depth := f.Int("depth", 1, "commits to fetch; 0: all")
	out := f.need("output", "folder for the tree")
	commit := f.need("commit", "file for the raw commit object")
	work := f.need("work", "folder for scratch files")
	auth := f.String("basic-auth", "", "folder of the workspace with .git-credentials, or username and password")
	if err := f.parse(args, false); err != nil {
		return err
	}
	if *depth < 0 {
		return &usageError{"--depth must not be negative"}
	}
	user, password, err := gitLogin(*auth, *repo)
	if err != nil {
		return err
	}
	got, err := gitclone.Clone(ctx, gitclone.Options{
		URL: *repo, Revision: *revision, Depth: *depth, Tree: *out, Commit: *commit, Work: *work,
		Username: user, Password: password, Log: env.Stdout,
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(env.Stdout, "commit %s of %s: %d files, tree %s\n", got.Commit, got.Committed.UTC().Format(time.RFC3339), got.Files, got.Tree)
	if got.LFS {
		fmt.Fprintln(env.Stdout, "note: files kept by git-lfs are left as the pointers that the commit holds")
	}
	return res.write(
		result{"commit", got.Commit},
		result{"short-commit", got.Commit[:7]},
		result{"url", got.URL},
		result{"commit-timestamp", strconv.FormatInt(got.Committed.Unix(), 10)},
		result{"CHAINS-GIT_URL", got.URL},
		result{"CHAINS-GIT_COMMIT", got.Commit},
	)
}

// maxSecret bounds a credential file.
const maxSecret = 64 << 10

// gitLogin reads the workspace basic-auth as Konflux's git-clone takes it:
// .git-credentials with lines https://user:password@host, or the files username
// and password of a Kubernetes basic-auth Secret. No folder is no login.
// Credentials for other hosts are not used.
func gitLogin(dir, repo string) (user, password string, err error) {
	if dir == "" {
		return "", "", nil
	}
	read := func(name string) (string, bool, error) {
		file, err := os.Open(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return "", false, nil
		}
		if err != nil {
			return "", false, fmt.Errorf("reading workspace basic-auth: %w", err)
		}
		defer file.Close()
		data, err := io.ReadAll(io.LimitReader(file, maxSecret))
		if err != nil {
			return "", false, fmt.Errorf("reading workspace basic-auth: %w", err)
		}
		return string(data), true, nil
	}
	list, ok, err := read(".git-credentials")
	if err != nil {
		return "", "", err
	}
	if ok {
		return loginFor(list, repo)
	}
	user, hasUser, err := read("username")
	if err != nil {
		return "", "", err
	}
	password, hasPassword, err := read("password")
	if err != nil {
		return "", "", err
	}
	if !hasUser || !hasPassword {
		return "", "", errors.New("workspace basic-auth holds neither .git-credentials nor username and password")
	}
	return strings.TrimSpace(user), strings.TrimSpace(password), nil
}

// loginFor picks the line of a .git-credentials file that is for the
// repository's scheme and host.
func loginFor(list, repo string) (user, password string, err error) {
	want, err := url.Parse(repo)
	if err != nil {
		return "", "", errors.New("the repository's url does not parse")
	}
	for _, line := range strings.Split(list, "\n") {
		u, err := url.Parse(strings.TrimSpace(line))
		if err != nil || u.User == nil || u.Scheme != want.Scheme || u.Host != want.Host {
			continue
		}
		password, _ := u.User.Password()
		return u.User.Username(), password, nil
	}
	return "", "", nil
}

func runPrefetch(ctx context.Context, env Env, args []string) error {
	f := newFlags(env, "prefetch")
	res := f.results()
	input := f.String("input", "", `what to fetch, such as {"type": "gomod", "path": "."}`)
	source := f.need("source", "folder of the source")
	out := f.need("output", "folder for what was fetched")
	work := f.need("work", "folder for scratch files")
	goroot := f.need("goroot", "folder of the Go toolchain")
	proxy := f.String("goproxy", "", "GOPROXY; empty: the go command's default")
	epoch := f.String("source-date-epoch", "", "time stated in the bill of materials")
	if err := f.parse(args, false); err != nil {
		return err
	}
	created, err := parseEpoch(*epoch)
	if err != nil {
		return err
	}
	pkgs, err := gomod.ParseInput(*input)
	if err != nil {
		return err
	}
	fetcher := gomod.Fetcher{GoRoot: *goroot, Proxy: *proxy, Work: *work, Env: network(env.Getenv), Log: env.Stdout}
	mods, err := fetcher.Fetch(ctx, *source, pkgs, *out, created)
	if err != nil {
		return err
	}
	purls := []string{}
	for _, m := range mods {
		if m.Sum != "" {
			purls = append(purls, sbom.GoPURL(m.Path, m.Version))
			fmt.Fprintf(env.Stdout, "%s %s %s\n", m.Path, m.Version, m.Sum)
		}
	}
	fmt.Fprintf(env.Stdout, "%d modules fetched, each as go.sum pins it\n", len(purls))
	data, err := json.Marshal(purls)
	if err != nil {
		return fmt.Errorf("writing MODULES: %w", err)
	}
	return res.write(result{"MODULES", string(data)})
}

// testOutput is Konflux's TEST_OUTPUT.
type testOutput struct {
	Result    string `json:"result"`
	Timestamp string `json:"timestamp"`
	Successes int    `json:"successes"`
	Failures  int    `json:"failures"`
	Warnings  int    `json:"warnings"`
	Namespace string `json:"namespace"`
	Note      string `json:"note"`
}

// runUnicodeCheck never fails for what it finds: builds go on, and policy
// judges the finding. A scan that could not be done is a result, too.
func runUnicodeCheck(ctx context.Context, env Env, args []string) error {
	f := newFlags(env, "sast-unicode-check")
	res := f.results()
	source := f.need("source", "folder of the source")
	if err := f.parse(args, false); err != nil {
		return err
	}
	out := testOutput{Timestamp: time.Now().UTC().Format(time.RFC3339), Namespace: "default"}
	report, err := unicheck.Scan(ctx, *source)
	if err != nil {
		fmt.Fprintln(env.Stdout, err)
		out.Result, out.Note = "ERROR", "The source could not be scanned; see the task's log."
	} else {
		for _, finding := range report.Findings {
			fmt.Fprintln(env.Stdout, finding)
		}
		out.Failures, out.Warnings = report.Failures, report.Warnings
		switch {
		case report.Failures > 0:
			out.Result = "FAILURE"
		case report.Warnings > 0:
			out.Result = "WARNING"
		default:
			out.Result, out.Successes = "SUCCESS", 1
		}
		out.Note = fmt.Sprintf("%d files scanned, %d binary files left out: %d bidirectional controls, %d invisible characters.",
			report.Files-report.Binary, report.Binary, report.Failures, report.Warnings)
	}
	data, err := json.Marshal(out)
	if err != nil {
		return fmt.Errorf("writing TEST_OUTPUT: %w", err)
	}
	fmt.Fprintf(env.Stdout, "%s: %s\n", out.Result, out.Note)
	return res.write(result{"TEST_OUTPUT", string(data)})
}
