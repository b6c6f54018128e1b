package registry

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/olareg/olareg"
	"github.com/olareg/olareg/config"
)

// OpenReadOnly serves the registry in a folder without writing to it, whether or
// not a Server has it. It sees what was acknowledged before a request. It fails
// if dir is not a folder that can be read; a registry that has nothing yet
// answers that there is nothing.
func OpenReadOnly(dir string) (http.Handler, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("opening registry: %w", err)
	}
	f, err := os.Open(abs)
	if err != nil {
		return nil, fmt.Errorf("opening registry: %w", err)
	}
	defer f.Close()
	if i, err := f.Stat(); err != nil || !i.IsDir() {
		return nil, fmt.Errorf("opening registry: %s is not a folder", dir)
	}
	return readOnly(&folder{dir: abs, repos: map[string]*snapshot{}}), nil
}

// folder gives every repository an olareg of its own, which is replaced when
// the repository's index is. By itself olareg looks at an index once a second,
// and never again at a repository that was not there when first asked for.
type folder struct {
	dir   string
	mu    sync.Mutex // guards repos
	repos map[string]*snapshot
}

type snapshot struct {
	state   state
	handler http.Handler
}

// state tells one index file from the next: it is replaced by rename.
type state struct {
	dev, ino    uint64
	size, nanos int64
}

// maxRepos bounds how many repositories are kept at hand.
const maxRepos = 1000

func (f *folder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	t, _ := parse(r.URL.Path)
	if t.op == opPing {
		f.open().ServeHTTP(w, r)
		return
	}
	now, err := stateOf(filepath.Join(f.dir, filepath.FromSlash(t.repo), "index.json"))
	if err != nil {
		refuse(http.StatusInternalServerError, "UNKNOWN",
			"this user cannot read repository %s in the registry's folder; use the registry's socket, or read as its owner or root", t.repo).write(w)
		return
	}
	f.mu.Lock()
	s := f.repos[t.repo]
	if s == nil || s.state != now {
		s = &snapshot{state: now, handler: f.open()}
		if now != (state{}) {
			if len(f.repos) >= maxRepos {
				clear(f.repos)
			}
			f.repos[t.repo] = s
		}
	}
	f.mu.Unlock()
	s.handler.ServeHTTP(w, r)
}

func (f *folder) open() http.Handler {
	yes, no := true, false
	return olareg.New(config.Config{
		Storage: config.ConfigStorage{StoreType: config.StoreDir, RootDir: f.dir, ReadOnly: &yes, GC: config.ConfigGC{Frequency: -1, GracePeriod: forever}},
		API:     config.ConfigAPI{PushEnabled: &no, DeleteEnabled: &no, Referrer: config.ConfigAPIReferrer{Enabled: &yes}},
	})
}

// stateOf is the zero value for an index that is not there.
func stateOf(name string) (state, error) {
	f, err := os.Open(name)
	if errors.Is(err, os.ErrPermission) {
		return state{}, err
	}
	if err != nil {
		return state{}, nil // olareg says the same in its own words
	}
	defer f.Close()
	i, err := f.Stat()
	if err != nil {
		return state{}, err
	}
	st, ok := i.Sys().(*syscall.Stat_t)
	if !ok {
		return state{}, fmt.Errorf("reading the state of %s: no inode", name)
	}
	return state{uint64(st.Dev), st.Ino, i.Size(), i.ModTime().UnixNano()}, nil
}
