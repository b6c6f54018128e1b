package kube_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"assay.dev/assay/internal/kube"
)

func decode(t testing.TB, file string, v any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

func port(n int) string { return strconv.Itoa(n) }

func number(t testing.TB, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("waited in vain for %s", what)
}

func TestFindSaysHow(t *testing.T) {
	for _, v := range []string{kube.EnvEtcd, kube.EnvAPIServer} {
		t.Setenv(v, "")
	}
	t.Setenv("PATH", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	peers := t.TempDir()
	t.Setenv("ASSAY_PEERS", peers)
	for _, name := range []string{"etcd-0123456789abcdef", "kube-apiserver-fedcba9876543210", "etcd-notes"} {
		if err := os.WriteFile(filepath.Join(peers, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := kube.Find()
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Base(b.Etcd) != "etcd-0123456789abcdef" || filepath.Base(b.APIServer) != "kube-apiserver-fedcba9876543210" {
		t.Errorf("found %+v", b)
	}
	if os.Geteuid() != 0 { // root also looks where tools/peers builds as root
		t.Setenv("ASSAY_PEERS", t.TempDir())
		if _, err := kube.Find(); !errors.Is(err, kube.ErrNoBinaries) || !strings.Contains(err.Error(), "tools/peers") {
			t.Errorf("nothing there: %v", err)
		}
	}
	t.Setenv(kube.EnvEtcd, filepath.Join(peers, "gone"))
	if _, err := kube.Find(); err == nil || !strings.Contains(err.Error(), kube.EnvEtcd) {
		t.Errorf("a variable that names nothing: %v", err)
	}
}

func TestStartRefusesFolders(t *testing.T) {
	// No process is started for any of these; any file will do as a binary.
	o := kube.Options{Etcd: "/bin/true", APIServer: "/bin/true"}
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "thesis.tex"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ dir, want string }{
		"none given":        {"", "no data folder"},
		"somebody's things": {full, "thesis.tex"},
		"a file":            {file, "not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			o.Dir = tt.dir
			_, err := kube.Start(t.Context(), o)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v", err)
			}
		})
	}
	if os.Geteuid() == 0 {
		t.Run("another user's", func(t *testing.T) {
			o.Dir = t.TempDir()
			if err := os.Chown(o.Dir, 12345, 12345); err != nil {
				t.Fatal(err)
			}
			_, err := kube.Start(t.Context(), o)
			if err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestStartReportsDeadChild(t *testing.T) {
	o := kube.Options{Dir: filepath.Join(t.TempDir(), "kube"), Etcd: "/bin/false", APIServer: "/bin/false"}
	_, err := kube.Start(context3m(t), o)
	if err == nil || !strings.Contains(err.Error(), "exit status 1") || !strings.Contains(err.Error(), "logs") {
		t.Errorf("%v", err)
	}
	if _, err := kube.Running(o.Dir); !errors.Is(err, kube.ErrNotRunning) {
		t.Errorf("after a failed start: %v", err)
	}
}

func TestParseManifests(t *testing.T) {
	for name, tt := range map[string]struct {
		in    string
		names []string
		fails bool
	}{
		"one":           {"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n", []string{"a"}, false},
		"two and empty": {"---\n# nothing\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\n", []string{"a", "b"}, false},
		"json":          {`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}`, []string{"a"}, false},
		"list":          {"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: b}}\n", []string{"a", "b"}, false},
		"no name":       {"apiVersion: v1\nkind: ConfigMap\n", nil, true},
		"no kind":       {"apiVersion: v1\nmetadata: {name: a}\n", nil, true},
		"a word":        {"hello\n", nil, true},
		"bad yaml":      {"a: [\n", nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := kube.ParseManifests([]byte(tt.in))
			if (err != nil) != tt.fails {
				t.Fatalf("error %v", err)
			}
			var names []string
			for _, o := range got {
				names = append(names, o.GetName())
			}
			if strings.Join(names, " ") != strings.Join(tt.names, " ") {
				t.Errorf("got %v", names)
			}
		})
	}
}

func FuzzParseManifests(f *testing.F) {
	f.Add([]byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\nx\n"))
	f.Add([]byte(`{"apiVersion":"v1","kind":"List","items":[{}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		objects, err := kube.ParseManifests(b)
		if err != nil && objects != nil {
			t.Error("objects beside an error")
		}
		for _, o := range objects {
			if o.GetKind() == "" {
				t.Error("an object without kind")
			}
		}
	})
}
