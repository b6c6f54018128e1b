// Package testrig brings up the real things that tests and the demo run
// against: git repositories over http, an Assay home of its own.
package testrig

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// fixedIdentity makes a commit the same wherever and whenever it is made.
var fixedIdentity = []string{
	"GIT_AUTHOR_NAME=Assay", "GIT_AUTHOR_EMAIL=assay@localhost", "GIT_AUTHOR_DATE=2026-11-01T12:00:00Z",
	"GIT_COMMITTER_NAME=Assay", "GIT_COMMITTER_EMAIL=assay@localhost", "GIT_COMMITTER_DATE=2026-11-01T12:00:00Z",
	"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
}

// GitRepository makes a bare repository root/name.git whose branch main has one
// commit with the files of dir, and returns the commit's id. The same files
// give the same id.
func GitRepository(ctx context.Context, root, name, dir string) (commit string, err error) {
	bare := filepath.Join(root, name+".git")
	git := func(args ...string) (string, error) {
		c := exec.CommandContext(ctx, "git", args...)
		c.Env = append(os.Environ(), fixedIdentity...)
		if args[0] != "init" {
			c.Env = append(c.Env, "GIT_DIR="+bare, "GIT_WORK_TREE="+dir)
			c.Dir = dir
		}
		out, err := c.CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("git %s: %w: %s", args[0], err, out)
		}
		return strings.TrimSpace(string(out)), nil
	}
	for _, args := range [][]string{
		{"init", "--quiet", "--bare", "--initial-branch=main", bare},
		{"add", "--all", "."},
		{"commit", "--quiet", "-m", "the source of " + name},
	} {
		if _, err := git(args...); err != nil {
			return "", err
		}
	}
	return git("rev-parse", "HEAD")
}

// GitServer serves the repositories below root over http on loopback, by git's
// own http-backend, and returns the address. It ends with ctx.
func GitServer(ctx context.Context, root string) (addr string, err error) {
	h, err := GitHandler(ctx, root)
	if err != nil {
		return "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("listening: %w", err)
	}
	srv := &http.Server{Handler: h}
	context.AfterFunc(ctx, func() { srv.Close() })
	go srv.Serve(l) //nolint:errcheck // it ends with ctx
	return l.Addr().String(), nil
}

// GitHandler is git's own http-backend for the repositories below root. It fails where
// there is no git.
func GitHandler(ctx context.Context, root string) (http.Handler, error) {
	out, err := exec.CommandContext(ctx, "git", "--exec-path").Output()
	if err != nil {
		return nil, fmt.Errorf("finding git: %w", err)
	}
	return &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"),
		Env: []string{
			"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1",
			// The repository may belong to another user than the server's.
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		},
		InheritEnv: []string{"PATH"},
	}, nil
}
