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
		"log": {`{"log": {"key": "a/log+00+x", "witnesses": ["b+00+x"], "quorum": 1, "tokenFile": "/t", "url": "https://a"}}`,
			Config{Instance: "local", Registry: defaults.Registry, Log: &Log{URL: "https://a", Key: "a/log+00+x", Witnesses: []string{"b+00+x"}, Quorum: 1, TokenFile: "/t"}}, ""},
		"log without key":    {`{"log": {}}`, Config{}, "want a verifier key"},
		"log unknown word":   {`{"log": {"key": "a+b+c", "keys": []}}`, Config{}, "keys"},
		"bad witness":        {`{"log": {"key": "a+b+c", "witnesses": ["w"]}}`, Config{}, "witness \"w\""},
		"token in the clear": {`{"log": {"key": "a+b+c", "url": "http://log.example.com", "tokenFile": "/t"}}`, Config{}, "in the clear"},
		"quorum too large":   {`{"log": {"key": "a+b+c", "quorum": 1}}`, Config{}, "there are 0 witnesses"},
		"port too large":     {`{"registry": "localhost:70000"}`, Config{}, "want host:port"},
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
	seen := map[uint32]bool{UIDObserver: true, UIDRegistry: true, UIDPlanner: true, UIDReleaser: true, UIDImages: true, UIDPlane: true, UIDLog: true, UIDWitness: true}
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
		if err := h.MakeLog(); err != nil {
			t.Fatal(err)
		}
	}
	for dir, want := range map[string]os.FileMode{"observer": 0o700, "releaser": 0o700, "witness": 0o700, "log": 0o755, "ledger": 0o755, "registry": 0o755, "cache": 0o755} {
		st, err := os.Stat(h.Path(dir))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", dir, st.Mode().Perm(), want)
		}
	}
}

// What is in config.json stays; a log that is there is not replaced.
func TestSetLog(t *testing.T) {
	h := &Home{Dir: t.TempDir()}
	if _, err := h.OwnLog(); err == nil || !strings.Contains(err.Error(), "assay log init") {
		t.Errorf("without a log: %v", err)
	}
	if err := os.WriteFile(h.Path("config.json"), []byte(`{"instance": "factory-1"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	l, own := Log{Key: "a/log+00+x", Witnesses: []string{"b+00+x", "c+00+x"}, Quorum: 2}, OwnLog{Witness: "b+00+x", Witnesses: []string{"https://c=c+00+x"}, Quorum: 2}
	if err := h.SetLog(l, own); err != nil {
		t.Fatal(err)
	}
	got, err := h.Config()
	if diff := cmp.Diff(Config{Instance: "factory-1", Registry: api.DefaultRegistry, Log: &l}, got); err != nil || diff != "" {
		t.Errorf("error %v, -want +got:\n%s", err, diff)
	}
	if o, err := h.OwnLog(); err != nil || !cmp.Equal(own, o) {
		t.Errorf("own log %+v, %v; want %+v", o, err, own)
	}
	if url := h.LogURL(got.Log); url != "unix://"+h.Path("run", "log", "sock") {
		t.Errorf("the home's own log is at %s", url)
	}
	if err := h.SetLog(l, own); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a second log: %v", err)
	}
	if err := (&Home{Dir: t.TempDir()}).SetLog(Log{}, own); err == nil {
		t.Error("a log without a key was set")
	}
}
