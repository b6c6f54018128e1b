package kube

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Variables that name the binaries.
const (
	EnvEtcd      = "ASSAY_ETCD"
	EnvAPIServer = "ASSAY_KUBE_APISERVER"
	// envPeers is where tools/peers keeps what it builds.
	envPeers = "ASSAY_PEERS"
)

// Binaries are the programs that a control plane is made of.
type Binaries struct {
	Etcd      string `json:"etcd"`
	APIServer string `json:"kubeApiserver"`
}

// ErrNoBinaries says that etcd or kube-apiserver is not on this machine.
var ErrNoBinaries = errors.New("not found on this machine")

// Find looks for etcd and kube-apiserver: where ASSAY_ETCD and
// ASSAY_KUBE_APISERVER say, beside this program, in PATH, and among what
// tools/peers has built, in this order. A variable that names something that
// cannot be executed is an error, as is a binary that is in none of these places
// (ErrNoBinaries); the error tells how to get it.
func Find() (Binaries, error) {
	var b Binaries
	var err error
	if b.Etcd, err = find("etcd", EnvEtcd); err != nil {
		return Binaries{}, err
	}
	if b.APIServer, err = find("kube-apiserver", EnvAPIServer); err != nil {
		return Binaries{}, err
	}
	return b, nil
}

func find(name, env string) (string, error) {
	if p := os.Getenv(env); p != "" {
		if err := executable(p); err != nil {
			return "", fmt.Errorf("finding %s where %s says: %w", name, env, err)
		}
		return filepath.Abs(p)
	}
	if self, err := os.Executable(); err == nil {
		if p := filepath.Join(filepath.Dir(self), name); executable(p) == nil {
			return p, nil
		}
	}
	if p, err := exec.LookPath(name); err == nil {
		return filepath.Abs(p)
	}
	if p := newest(name); p != "" {
		return p, nil
	}
	return "", fmt.Errorf("finding %s: %w: put it beside assayd or into PATH, set %s to it, or build it in a checkout with: eval \"$(tools/peers etcd kube-apiserver)\"", name, ErrNoBinaries, env)
}

func executable(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Mode().Perm()&0o111 == 0 {
		return fmt.Errorf("%s is no executable file", path)
	}
	return nil
}

// newest is the latest that tools/peers built: NAME-<hex of what pins it>.
func newest(name string) string {
	var dirs []string
	if d := os.Getenv(envPeers); d != "" {
		dirs = append(dirs, d)
	}
	if os.Geteuid() == 0 {
		dirs = append(dirs, "/var/cache/assay-peers")
	}
	if d, err := os.UserCacheDir(); err == nil {
		dirs = append(dirs, filepath.Join(d, "assay-peers"))
	}
	for _, dir := range dirs {
		found, err := filepath.Glob(filepath.Join(dir, name+"-*"))
		if err != nil {
			continue // a folder with a pattern's characters in its name
		}
		found = slices.DeleteFunc(found, func(p string) bool {
			key := strings.TrimPrefix(filepath.Base(p), name+"-")
			return len(key) != 16 || strings.Trim(key, "0123456789abcdef") != "" || executable(p) != nil
		})
		slices.SortFunc(found, func(a, b string) int {
			sa, ea := os.Stat(a)
			sb, eb := os.Stat(b)
			if ea != nil || eb != nil {
				return 0
			}
			return sb.ModTime().Compare(sa.ModTime())
		})
		if len(found) > 0 {
			return found[0]
		}
	}
	return ""
}
