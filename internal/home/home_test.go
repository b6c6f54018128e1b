package home

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/api"
)

func TestConfig(t *testing.T) {
	defaults := Config{Instance: "local", Registry: api.DefaultRegistry}
	for name, tc := range map[string]struct {
		file string
		want Config
		fail string // part of the error
	}{
		"empty object":     {`{}`, defaults, ""},
		"instance":         {`{"instance": "build-7.example"}`, Config{Instance: "build-7.example", Registry: defaults.Registry}, ""},
		"registry":         {`{"registry": "assay.internal:8443"}`, Config{Instance: "local", Registry: "assay.internal:8443"}, ""},
		"unknown word":     {`{"instnace": "x"}`, Config{}, "instnace"},
		"no JSON":          {`instance: x`, Config{}, "parsing"},
		"two objects":      {`{} {}`, Config{}, "something follows"},
		"empty file":       {``, Config{}, "parsing"},
		"instance escapes": {`{"instance": "../x"}`, Config{}, "want lower-case"},
		"instance upper":   {`{"instance": "Local"}`, Config{}, "want lower-case"},
		"instance empty":   {`{"instance": ""}`, Config{}, "want lower-case"},
		"instance long":    {`{"instance": "` + strings.Repeat("a", 64) + `"}`, Config{}, "want lower-case"},
		"no port":          {`{"registry": "localhost"}`, Config{}, "want host:port"},
		"no host":          {`{"registry": ":5055"}`, Config{}, "want host:port"},
		"port is a name":   {`{"registry": "localhost:http"}`, Config{}, "want host:port"},
		"port too large":   {`{"registry": "localhost:70000"}`, Config{}, "want host:port"},
	} {
		t.Run(name, func(t *testing.T) {
			h := &Home{Dir: t.TempDir()}
			if err := os.WriteFile(h.Path("config.json"), []byte(tc.file), 0o644); err != nil {
				t.Fatal(err)
			}
			got, err := h.Config()
			if tc.fail != "" {
				if err == nil || !strings.Contains(err.Error(), tc.fail) || !strings.Contains(err.Error(), "config.json") {
					t.Errorf("error %v, want %q and the file's name", err, tc.fail)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
	t.Run("no file", func(t *testing.T) {
		got, err := (&Home{Dir: t.TempDir()}).Config()
		if diff := cmp.Diff(defaults, got); err != nil || diff != "" {
			t.Errorf("error %v, -want +got:\n%s", err, diff)
		}
	})
}

func TestFind(t *testing.T) {
	t.Setenv(Env, "some/where")
	h, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	if !filepath.IsAbs(h.Dir) || !strings.HasSuffix(h.Dir, "some/where") {
		t.Errorf("Dir %s, want an absolute path of some/where", h.Dir)
	}
}

// Executors' users are in a range of their own, the same for the same run.
func TestExecutorUser(t *testing.T) {
	h := &Home{Dir: "/x", Root: true}
	seen := map[uint32]bool{UIDObserver: true, UIDRegistry: true, UIDPlanner: true, UIDReleaser: true, UIDImages: true}
	for _, run := range []string{"a", "b", "c", "00000000-0000-0000-0000-000000000000"} {
		uid := h.ExecutorUser(run)
		if uid != h.ExecutorUser(run) || uid < uidExecutors || uid >= UIDSteps || seen[uid] {
			t.Errorf("run %s: user %d", run, uid)
		}
		seen[uid] = true
	}
	if got := (&Home{Dir: "/x"}).Separation(); got != api.SeparationNone {
		t.Errorf("without root the separation is %s", got)
	}
}

// Nobody but its owner reads what is secret, whatever the umask and whatever
// was there before.
func TestMake(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: folders get owners of their own; CI as root runs it")
	}
	dir := t.TempDir()
	h := &Home{Dir: filepath.Join(dir, "home"), Root: true}
	if err := h.Make(); err == nil {
		t.Error("a home was made below a folder that others cannot pass")
	}
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(h.Path("observer"), 0o777); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it is called at every start
		if err := h.Make(); err != nil {
			t.Fatal(err)
		}
	}
	for dir, want := range map[string]os.FileMode{"observer": 0o700, "releaser": 0o700, "ledger": 0o755, "registry": 0o755, "cache": 0o755} {
		st, err := os.Stat(h.Path(dir))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", dir, st.Mode().Perm(), want)
		}
	}
}
