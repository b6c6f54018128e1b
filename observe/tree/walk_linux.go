package tree

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Digest measures the folder dir, whose last element may not be a symbolic
// link. It fails, with the entry's path, if an entry cannot be read, is refused
// by the options, exceeds the limits (ErrLimit), changes while it is measured
// (ErrChanged), or when ctx ends.
func Digest(ctx context.Context, dir string, o Options) (Sum, error) {
	f, err := OpenDir(dir)
	if err != nil {
		return Sum{}, err
	}
	defer f.Close()
	return DigestDir(ctx, f, o)
}

// DigestDir is Digest for a folder that is open already. It neither closes dir
// nor moves its position.
func DigestDir(ctx context.Context, dir *os.File, o Options) (Sum, error) {
	limits, err := o.Limits.WithDefaults()
	if err != nil {
		return Sum{}, err
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	w := &walk{ctx: ctx, opts: o, limits: limits, holds: map[*node]struct{}{}}
	w.cond.L = &w.mu
	fd, err := openat(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return Sum{}, fmt.Errorf("opening folder %q: %w", dir.Name(), explain(err))
	}
	w.root = &node{fd: fd}
	w.held(w.root)
	// A worker that waits for work has to hear of the end as well.
	stop := context.AfterFunc(ctx, func() { w.fail(context.Cause(ctx)) })
	defer stop()

	var workers sync.WaitGroup
	for range o.Workers {
		workers.Go(func() { w.work() })
	}
	// The root's own job is not in the stack until there are workers to see it.
	w.push(job{node: w.root, scan: true})
	workers.Wait()
	w.closeAll()
	if w.err != nil {
		return Sum{}, fmt.Errorf("measuring folder %q: %w", dir.Name(), w.err)
	}
	s := Sum{Digest: digestString(w.root.sum), Files: w.files.Load(), Bytes: w.bytes.Load(), GitTreeReason: w.gitReason}
	if o.GitTree && s.GitTreeReason == "" {
		s.GitTree = hex.EncodeToString(w.root.blob[:])
	}
	return s, nil
}

// node is a folder in the walk. It is born when its job is pushed, open from
// its scan until the last of its entries is opened, and hashed by whichever
// worker finishes its last entry.
type node struct {
	parent *node
	index  int // of its record in parent.records
	depth  int
	path   int // bytes of its path

	fd      int
	records []record // sorted by name; each written by the one worker that has its job
	files   []int32  // indexes of regular files in records
	pending atomic.Int64
	unopen  atomic.Int64 // entries still to be opened through fd

	sum   [sha256.Size]byte
	blob  [sha1.Size]byte
	noGit bool
	// inGit: at or below the top-level .git, which the git tree leaves out.
	inGit bool
}

// name is the path of an entry of n, for messages.
func (n *node) name(entry string) string {
	parts := []string{entry}
	for ; n.parent != nil; n = n.parent {
		parts = append(parts, n.parent.records[n.index].name)
	}
	slices.Reverse(parts)
	if s := strings.TrimSuffix(strings.Join(parts, "/"), "/"); s != "" {
		return s
	}
	return "."
}

// job is work on the stack: scan a folder, or hash a range of its files.
type job struct {
	node   *node
	scan   bool
	lo, hi int
}

// chunk is how many files a worker takes at once: enough to not fight over the
// stack, few enough to share the large files of one folder.
const chunk = 4

type walk struct {
	ctx    context.Context
	opts   Options
	limits Limits
	root   *node

	entries, files, bytes atomic.Int64

	mu   sync.Mutex // guards what follows
	cond sync.Cond
	// stack is last in, first out: the walk goes deep before it goes wide, so
	// that few folders are open at a time.
	stack     []job
	done      bool
	err       error
	gitReason string
	holds     map[*node]struct{} // folders with a descriptor
}

func (w *walk) push(jobs ...job) {
	w.mu.Lock()
	w.stack = append(w.stack, jobs...)
	w.mu.Unlock()
	w.cond.Broadcast()
}

func (w *walk) pop() (job, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.stack) == 0 && !w.done {
		w.cond.Wait()
	}
	if w.done {
		return job{}, false
	}
	top := &w.stack[len(w.stack)-1]
	if !top.scan && top.hi-top.lo > chunk {
		j := *top
		top.lo += chunk
		j.hi = top.lo
		return j, true
	}
	j := *top
	w.stack = w.stack[:len(w.stack)-1]
	return j, true
}

// fail ends the walk with its first error.
func (w *walk) fail(err error) {
	w.mu.Lock()
	if !w.done {
		w.done, w.err = true, err
	}
	w.mu.Unlock()
	w.cond.Broadcast()
}

func (w *walk) finish() {
	w.mu.Lock()
	w.done = true
	w.mu.Unlock()
	w.cond.Broadcast()
}

// held says that n has a descriptor, which the walk then owns.
func (w *walk) held(n *node) {
	w.mu.Lock()
	w.holds[n] = struct{}{}
	w.mu.Unlock()
}

// opened says that one more entry of n needs no descriptor any more.
func (w *walk) opened(n *node) {
	if n.unopen.Add(-1) == 0 {
		w.mu.Lock()
		delete(w.holds, n)
		w.mu.Unlock()
		unix.Close(n.fd)
		n.fd = -1
	}
}

// closeAll closes what a failed walk left open.
func (w *walk) closeAll() {
	for n := range w.holds {
		unix.Close(n.fd)
	}
}

// worker is what one goroutine of the walk reuses.
type worker struct {
	*walk
	enc  encoder
	buf  []byte
	sum  hash.Hash
	blob hash.Hash
}

func (w *walk) work() {
	k := &worker{walk: w, buf: make([]byte, 128<<10), sum: sha256.New(), blob: sha1.New()}
	for {
		j, ok := w.pop()
		if !ok {
			return
		}
		var err error
		if j.scan {
			err = k.scan(j.node)
		} else {
			for _, i := range j.node.files[j.lo:j.hi] {
				if err = k.file(j.node, &j.node.records[i]); err != nil {
					break
				}
			}
			if err == nil {
				k.complete(j.node, int64(j.hi-j.lo))
			}
		}
		if err != nil {
			w.fail(err)
			return
		}
	}
}

// complete counts n entries of d as hashed, and hashes d with the last of them,
// and so on upwards.
func (k *worker) complete(d *node, n int64) {
	for ; d.pending.Add(-n) == 0; n = 1 {
		d.sum = k.enc.dir(d.records)
		if k.opts.GitTree && !d.inGit {
			var why string
			if d.blob, d.noGit, why = k.enc.gitDir(d.records, d.parent == nil); why != "" {
				k.mu.Lock()
				k.gitReason = firstReason(k.gitReason, d.name(""), why)
				k.mu.Unlock()
			}
		}
		d.records, d.files = nil, nil
		if d.parent == nil {
			k.finish()
			return
		}
		r := &d.parent.records[d.index]
		r.sum, r.blob, r.noGit = d.sum, d.blob, d.noGit
		d = d.parent
	}
}

// scan opens a folder, lists it and pushes the jobs for its entries.
func (k *worker) scan(n *node) error {
	var st unix.Stat_t
	if n.parent != nil {
		r := &n.parent.records[n.index]
		fd, err := openat(n.parent.fd, r.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			return fmt.Errorf("opening folder %q: %w", n.name(""), explain(err))
		}
		n.fd = fd
		k.held(n)
		k.opened(n.parent)
		if err := unix.Fstat(fd, &st); err != nil {
			return fmt.Errorf("reading the mode of folder %q: %w", n.name(""), err)
		}
		r.mode = st.Mode & 0o7777
	}
	// The descriptor must outlive the scan itself.
	n.unopen.Store(1)
	n.pending.Store(1)
	if err := k.list(n); err != nil {
		return err
	}
	var jobs []job
	dirs := 0
	for i := range n.records {
		switch r := &n.records[i]; r.kind {
		case File:
			n.files = append(n.files, int32(i))
		case Dir:
			dirs++
			jobs = append(jobs, job{scan: true, node: &node{
				parent: n, index: i, depth: n.depth + 1, path: n.path + len(r.name) + 1, fd: -1,
				inGit: n.inGit || n.parent == nil && r.name == ".git",
			}})
		default:
			if err := k.leaf(n, r); err != nil {
				return err
			}
		}
	}
	if len(n.files) > 0 {
		jobs = append(jobs, job{node: n, hi: len(n.files)})
	}
	left := int64(dirs + len(n.files))
	n.pending.Add(left)
	n.unopen.Add(left)
	if left > 0 {
		k.push(jobs...)
	}
	k.opened(n)
	k.complete(n, 1)
	return nil
}
