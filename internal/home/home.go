// Package home knows the folder in which one machine's Assay keeps everything,
// who owns which part of it, and the users its processes run as.
//
//	observer/   keys                     observer only
//	ledger/     runs and their facts     written by the observer, read by all
//	public/     public keys              written by the observer, read by all
//	registry/   the embedded registry    written by the registry, read by all
//	releaser/   destination credential   releaser only
//	cache/      images, unpacked         written by the image store, read by all
//	run/        sockets, scratch         gone with the processes
//	runs/       finished Tekton objects  written by the launcher
//	log/        the home's own log       written by the log, read by all; its key by it only
//	witness/    its witness' memory, key the witness only
//
// The separation is by user id, so it needs root to set up. Without root all
// parts have one owner and every record says key-separation: none.
package home

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"assay.dev/assay/api"
)

// Env is the variable that names the folder.
const Env = "ASSAY_HOME"

// Users of the processes, relative to the base; they need no entry in
// /etc/passwd. The range lies above what distributions and systemd hand out.
const (
	uidBase = 1_900_000_000

	UIDObserver = uidBase + 1
	UIDRegistry = uidBase + 2
	UIDPlanner  = uidBase + 3
	UIDReleaser = uidBase + 4
	UIDImages   = uidBase + 5
	UIDPlane    = uidBase + 6 // etcd and kube-apiserver of `assayd up`
	UIDLog      = uidBase + 7
	UIDWitness  = uidBase + 8
	// uidExecutors is the first of the executors' users, one per run.
	uidExecutors = uidBase + 1000
	// UIDSteps is the first of the 65536 users of steps. Unpacked layers belong
	// to them.
	UIDSteps = uidBase + 65536
	// StepsInside is where executors and the image store see the steps' users.
	StepsInside = 65536
	StepsSize   = 65536
)

// Home is one such folder.
type Home struct {
	Dir string
	// Root: processes have users of their own.
	Root bool
}

// Find returns the folder that ASSAY_HOME names, or the default: /var/lib/assay
// for root, $XDG_DATA_HOME/assay or ~/.local/share/assay for others. It need
// not exist.
func Find() (*Home, error) {
	root := os.Geteuid() == 0
	if root && !mapped() {
		// Root of a container that maps fewer users: one user is all there is.
		root = false
	}
	dir := os.Getenv(Env)
	if dir == "" {
		switch {
		case root:
			dir = "/var/lib/assay"
		case os.Getenv("XDG_DATA_HOME") != "":
			dir = filepath.Join(os.Getenv("XDG_DATA_HOME"), "assay")
		default:
			u, err := os.UserHomeDir()
			if err != nil {
				return nil, fmt.Errorf("finding your home folder: %w; set %s", err, Env)
			}
			dir = filepath.Join(u, ".local", "share", "assay")
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("resolving %s: %w", Env, err)
	}
	return &Home{Dir: dir, Root: root}, nil
}

// mapped says whether the users of our processes exist in this user namespace.
func mapped() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return true // no such file, no user namespaces
	}
	for line := range strings.Lines(string(b)) {
		var inside, outside, size int64
		if _, err := fmt.Sscan(line, &inside, &outside, &size); err != nil {
			continue
		}
		if inside <= uidBase && inside+size >= UIDSteps+StepsSize {
			return true
		}
	}
	return false
}

// Path joins below the folder.
func (h *Home) Path(elem ...string) string {
	return filepath.Join(append([]string{h.Dir}, elem...)...)
}

// Sockets and files that several processes name.
func (h *Home) ObserverSocket() string { return h.Path("run", "observer", "sock") }
func (h *Home) RegistrySocket() string { return h.Path("run", "registry", "sock") }
func (h *Home) TasksSocket() string    { return h.Path("run", "registry", "tasks") }
func (h *Home) ImagesSocket() string   { return h.Path("run", "images", "sock") }
func (h *Home) Registry() string       { return h.Path("registry") }
func (h *Home) Ledger() string         { return h.Path("ledger") }
func (h *Home) Cache() string          { return h.Path("cache") }

// PublicKey is the file of the public key for an origin.
func (h *Home) PublicKey(o api.Origin) string { return h.Path("public", string(o)+".pub") }

// PrivateKey is the file of the private key, readable by the observer only.
func (h *Home) PrivateKey(o api.Origin) string { return h.Path("observer", string(o)+".key") }

// User returns the user a process of this home runs as: the given one with
// root, our own without.
func (h *Home) User(uid uint32) uint32 {
	if !h.Root {
		return uint32(os.Geteuid())
	}
	return uid
}

// Separation is what keeps executors from the key here.
func (h *Home) Separation() api.KeySeparation {
	if h.Root {
		return api.SeparationUser
	}
	return api.SeparationNone
}

// ExecutorUser is the user of one run's executor.
func (h *Home) ExecutorUser(run string) uint32 {
	if !h.Root {
		return uint32(os.Geteuid())
	}
	sum := sha256.Sum256([]byte(run))
	slot := uint32(sum[0])<<8 | uint32(sum[1])
	return uidExecutors + slot%60_000
}

// Config is what the operator decides once for a home.
type Config struct {
	// Instance names this factory in builder.id.
	Instance string `json:"instance"`
	// Registry is the name of the embedded registry in references.
	Registry string `json:"registry"`
	// Mirrors are tried before a registry when images are pulled: host → hosts.
	Mirrors map[string][]string `json:"mirrors,omitempty"`
	// Insecure registries are spoken to in plain http.
	Insecure []string `json:"insecure,omitempty"`
	// Log is the transparency log that evidence is put into before it is stored;
	// without it there is none.
	Log *Log `json:"log,omitempty"`
}

var instance = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,62}$`)

// Config reads config.json; a missing file gives the defaults.
func (h *Home) Config() (Config, error) {
	c := Config{Instance: "local", Registry: api.DefaultRegistry}
	b, err := os.ReadFile(h.Path("config.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("reading the home's configuration: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return c, fmt.Errorf("parsing %s: %w; it has instance, registry, mirrors, insecure and log", h.Path("config.json"), err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return c, fmt.Errorf("parsing %s: something follows the object", h.Path("config.json"))
	}
	if !instance.MatchString(c.Instance) {
		return c, fmt.Errorf("%s: instance %q: want lower-case letters, digits, '-' and '.'", h.Path("config.json"), c.Instance)
	}
	host, port, err := net.SplitHostPort(c.Registry)
	if n, perr := strconv.Atoi(port); err != nil || perr != nil || host == "" || n < 1 || n > 65535 {
		return c, fmt.Errorf("%s: registry %q: want host:port, such as %s", h.Path("config.json"), c.Registry, api.DefaultRegistry)
	}
	if c.Log != nil {
		if err := c.Log.check(); err != nil {
			return c, fmt.Errorf("%s: log: %w", h.Path("config.json"), err)
		}
	}
	return c, nil
}

// Make creates the folders that are missing and gives each to its owner. With
// root it fails where the other users cannot pass on the way to the home.
func (h *Home) Make() error {
	if h.Root {
		for dir := filepath.Dir(h.Dir); ; dir = filepath.Dir(dir) {
			st, err := os.Stat(dir)
			if err == nil && st.Mode().Perm()&0o001 == 0 {
				return fmt.Errorf("%s: %s is closed to others (mode %04o), and the observer, the registry and the executors run as users of their own: set %s to a folder that they can reach, such as /var/lib/assay", h.Dir, dir, st.Mode().Perm(), Env)
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	self := uint32(os.Geteuid())
	return h.own([]folder{
		{"", self, 0o755},
		{"observer", UIDObserver, 0o700},
		{"ledger", UIDObserver, 0o755},
		{"public", UIDObserver, 0o755},
		{"registry", UIDRegistry, 0o755},
		{"releaser", UIDReleaser, 0o700},
		{"cache", UIDImages, 0o755},
		{"run", self, 0o755},
		{"run/observer", UIDObserver, 0o755},
		{"run/registry", UIDRegistry, 0o755},
		{"run/images", UIDImages, 0o755},
		{"runs", self, 0o755},
	})
}

// folder is a part of the home.
type folder struct {
	path string
	uid  uint32
	mode fs.FileMode
}

// own makes folders and gives each to its owner.
func (h *Home) own(folders []folder) error {
	for _, f := range folders {
		p := h.Path(f.path)
		if err := os.MkdirAll(p, f.mode); err != nil {
			return fmt.Errorf("making the home: %w", err)
		}
		if err := os.Chmod(p, f.mode); err != nil {
			return fmt.Errorf("making the home: %w", err)
		}
		if !h.Root {
			continue
		}
		if err := os.Lchown(p, int(f.uid), int(f.uid)); err != nil {
			return fmt.Errorf("making the home: %w", err)
		}
	}
	return nil
}
