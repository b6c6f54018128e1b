// Package ledger is the observer's memory of runs: which were opened, the
// facts that came while they ran, and how each ended.
//
// A run is one file of JSON lines. Each entry is chained to the one before it
// by SHA-256, so an entry cannot be altered, left out or put in later without
// every later hash changing; the last hash is what a statement names. The file
// is only ever appended to, by one process, which holds the folder's lock.
//
//	admitted ─▶ facts … ─▶ ended (succeeded | failed | lost) ─▶ signed
//
// A run that was admitted always ends: Open looks for runs that a killed
// observer left without an end and records them as lost. A last line that was
// half written when the machine stopped is cut off; whoever sent it never got
// an answer.
package ledger

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"assay.dev/assay/observe"
)

// Errors that callers may distinguish.
var (
	// ErrNotFound: no such run was ever admitted here.
	ErrNotFound = errors.New("no such run in the ledger")
	// ErrEnded: the run is over; nothing can be added to it.
	ErrEnded = errors.New("the run has ended")
	// ErrExists: a run of this id was admitted before. Ids are never reused.
	ErrExists = errors.New("the run is in the ledger already")
	// ErrSigned: statements were signed for this run already.
	ErrSigned = errors.New("the run is signed already")
	// ErrCorrupt: the file does not hash to what it says.
	ErrCorrupt = errors.New("the ledger is corrupt")
)

// Bounds on what an executor may send.
const (
	MaxEntry   = 4 << 20 // bytes of one fact's body
	MaxEntries = 20_000  // facts of one run
)

// Types of the entries that the observer writes itself.
const (
	typeAdmitted observe.FactType = "admitted"
	typeEnded    observe.FactType = "ended"
	typeSigned   observe.FactType = "signed"
)

// Admission opens a run, before its executor has started.
type Admission struct {
	Run         string `json:"run"`
	Nonce       string `json:"nonce"`
	ExecutorUID uint32 `json:"executorUid"`
	// KeySeparation as the observer finds it, not as anyone claims.
	KeySeparation string `json:"keySeparation"`
}

// Ending is how a run ended.
type Ending struct {
	Outcome string `json:"outcome"` // succeeded, failed, lost
	Reason  string `json:"reason,omitempty"`
}

// Outcomes of a run.
const (
	Succeeded = "succeeded"
	Failed    = "failed"
	Lost      = "lost"
)

// Signing records that statements were signed and stored.
type Signing struct {
	Payloads []observe.Payload `json:"payloads"`
	Subjects []string          `json:"subjects"` // repo@sha256:…
}

// Entry is one line.
type Entry struct {
	Seq  int              `json:"seq"`
	Time time.Time        `json:"time"`
	Type observe.FactType `json:"type"`
	Body json.RawMessage  `json:"body"`
	Prev string           `json:"prev"` // sha256:… of the entry before; of the run id for the first
	Hash string           `json:"hash"`
}

// digest is over every field but Hash. The time is in it as written.
func (e *Entry) digest() string {
	h := sha256.New()
	fmt.Fprintf(h, "assay-ledger/v1\n%s\n%d\n%s\n%s\n", e.Prev, e.Seq, e.Time.UTC().Format(time.RFC3339Nano), e.Type)
	h.Write(e.Body)
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// Ledger is the writing side; one process at a time.
type Ledger struct {
	dir  string
	now  func() time.Time
	lock *os.File

	mu   sync.Mutex
	open map[string]*Run // guarded by mu; runs without an end
}

// Open takes the folder's lock, makes the folder if it is missing, and ends the
// runs that an earlier observer left open as lost. It fails while another
// process holds the ledger.
func Open(dir string, now func() time.Time) (*Ledger, error) {
	if now == nil {
		now = time.Now
	}
	if err := os.MkdirAll(filepath.Join(dir, "runs"), 0o755); err != nil {
		return nil, fmt.Errorf("making the ledger: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening the ledger's lock: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("locking %s: %w; another observer runs on this ledger", dir, err)
	}
	l := &Ledger{dir: dir, now: now, lock: lock, open: map[string]*Run{}}
	if err := l.recover(); err != nil {
		lock.Close()
		return nil, err
	}
	return l, nil
}

// Close ends nothing; runs still open are found and ended by the next Open.
func (l *Ledger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.open {
		r.f.Close()
	}
	l.open = nil
	return l.lock.Close()
}

func (l *Ledger) recover() error {
	files, err := os.ReadDir(filepath.Join(l.dir, "runs"))
	if err != nil {
		return fmt.Errorf("reading the ledger: %w", err)
	}
	for _, f := range files {
		id, ok := strings.CutSuffix(f.Name(), ".jsonl")
		if !ok {
			continue
		}
		path := filepath.Join(l.dir, "runs", f.Name())
		if over(path) {
			continue // start-up must not grow with what was ever run
		}
		if err := cutPartialLine(path); err != nil {
			return err
		}
		rec, err := Read(l.dir, id)
		if errors.Is(err, ErrCorrupt) {
			continue // List shows it; nothing may be appended to it
		}
		if err != nil {
			return err
		}
		if rec.Ending != nil {
			continue
		}
		r, err := l.reopen(rec)
		if err != nil {
			return err
		}
		if err := r.End(Lost, "the observer stopped before the run ended"); err != nil {
			return err
		}
	}
	return nil
}

// over tells from the last line alone that a run has ended. It only spares work:
// whoever reads the run verifies it whole.
func over(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	const tail = 64 << 10
	st, err := f.Stat()
	if err != nil {
		return false
	}
	b := make([]byte, min(st.Size(), tail))
	if _, err := f.ReadAt(b, st.Size()-int64(len(b))); err != nil {
		return false
	}
	b, whole := bytes.CutSuffix(b, []byte("\n"))
	if !whole {
		return false
	}
	var e Entry
	if json.Unmarshal(b[bytes.LastIndexByte(b, '\n')+1:], &e) != nil {
		return false
	}
	return e.Type == typeEnded || e.Type == typeSigned
}

// cutPartialLine removes what a crash left behind the last newline.
func cutPartialLine(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("opening a run: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	if end := bytes.LastIndexByte(b, '\n') + 1; end != len(b) {
		if err := f.Truncate(int64(end)); err != nil {
			return fmt.Errorf("cutting the half-written line of %s: %w", path, err)
		}
		return f.Sync()
	}
	return nil
}

var idPattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9.-]{0,127}$`)

func runPath(dir, id string) (string, error) {
	if !idPattern.MatchString(id) || strings.Contains(id, "..") {
		return "", fmt.Errorf("run id %q: letters, digits, '-' and '.' only, at most 128", id)
	}
	return filepath.Join(dir, "runs", id+".jsonl"), nil
}

// Run is a run that can still take facts.
type Run struct {
	l     *Ledger
	id    string
	admit Admission

	mu    sync.Mutex
	f     *os.File // guarded by mu, as are the rest
	seq   int
	head  string
	ended bool
}

// Admit records a new run and makes it durable before it returns. ErrExists if
// there ever was one of this id.
func (l *Ledger) Admit(a Admission) (*Run, error) {
	path, err := runPath(l.dir, a.Run)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND|unix.O_CLOEXEC, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("admitting %s: %w", a.Run, ErrExists)
	}
	if err != nil {
		return nil, fmt.Errorf("admitting %s: %w", a.Run, err)
	}
	r := &Run{l: l, id: a.Run, admit: a, f: f, head: firstPrev(a.Run)}
	if err := r.append(typeAdmitted, a, true); err != nil {
		f.Close()
		return nil, err
	}
	// The folder's entry must survive too, or the run could vanish.
	if d, err := os.Open(filepath.Dir(path)); err == nil {
		err = d.Sync()
		d.Close()
		if err != nil {
			return nil, fmt.Errorf("syncing the ledger: %w", err)
		}
	}
	l.mu.Lock()
	l.open[a.Run] = r
	l.mu.Unlock()
	return r, nil
}

func firstPrev(id string) string {
	sum := sha256.Sum256([]byte("assay-ledger/v1 run " + id))
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (l *Ledger) reopen(rec *Record) (*Run, error) {
	path, err := runPath(l.dir, rec.Admission.Run)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("reopening a run: %w", err)
	}
	return &Run{l: l, id: rec.Admission.Run, admit: rec.Admission, f: f, seq: len(rec.Entries), head: rec.Head}, nil
}

// Live returns a run that is open in this process; ErrEnded or ErrNotFound
// otherwise.
func (l *Ledger) Live(id string) (*Run, error) {
	l.mu.Lock()
	r := l.open[id]
	l.mu.Unlock()
	if r != nil {
		return r, nil
	}
	path, err := runPath(l.dir, id)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("run %s: %w", id, ErrNotFound)
	}
	return nil, fmt.Errorf("run %s: %w", id, ErrEnded)
}

// Admission as it was recorded.
func (r *Run) Admission() Admission { return r.admit }

// Append adds an executor's fact and returns the new head. Facts that end a
// task attempt or open the run are durable when it returns; others at the
// latest with the next of those.
func (r *Run) Append(f observe.Fact) (string, error) {
	switch f.Type {
	case observe.RunOpened, observe.TaskStarted, observe.StepFinished, observe.TaskFinished, observe.SourceSeen, observe.RunClosed:
	default:
		return "", fmt.Errorf("fact of unknown type %q", f.Type)
	}
	if len(f.Body) > MaxEntry {
		return "", fmt.Errorf("fact %s of %d bytes: at most %d", f.Type, len(f.Body), MaxEntry)
	}
	if !json.Valid(f.Body) {
		return "", fmt.Errorf("fact %s: the body is not JSON", f.Type)
	}
	durable := f.Type != observe.TaskStarted && f.Type != observe.StepFinished
	if err := r.append(f.Type, f.Body, durable); err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.head, nil
}

// Head is the hash of the last entry.
func (r *Run) Head() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.head
}

func (r *Run) append(t observe.FactType, body any, durable bool) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", t, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return fmt.Errorf("run %s: %w", r.id, ErrEnded)
	}
	if r.seq >= MaxEntries && t != typeEnded {
		return fmt.Errorf("run %s: more than %d facts", r.id, MaxEntries)
	}
	e := Entry{Seq: r.seq, Time: r.l.now().UTC(), Type: t, Body: raw, Prev: r.head}
	e.Hash = e.digest()
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encoding an entry: %w", err)
	}
	if _, err := r.f.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("writing the ledger: %w", err)
	}
	if durable {
		if err := r.f.Sync(); err != nil {
			return fmt.Errorf("syncing the ledger: %w", err)
		}
	}
	r.seq++
	r.head = e.Hash
	return nil
}

// End records how the run ended. It can be called once; later calls return
// ErrEnded and change nothing.
func (r *Run) End(outcome, reason string) error {
	switch outcome {
	case Succeeded, Failed, Lost:
	default:
		return fmt.Errorf("outcome %q is none of succeeded, failed, lost", outcome)
	}
	if err := r.append(typeEnded, Ending{Outcome: outcome, Reason: reason}, true); err != nil {
		return err
	}
	r.mu.Lock()
	r.ended = true
	r.f.Close()
	r.mu.Unlock()
	r.l.mu.Lock()
	delete(r.l.open, r.id)
	r.l.mu.Unlock()
	return nil
}

// Sign records what was signed for an ended run, once: ErrSigned the second
// time. The caller asks before it signs with Signable.
func (l *Ledger) Sign(id string, s Signing) error {
	rec, err := l.Signable(id)
	if err != nil {
		return err
	}
	r, err := l.reopen(rec)
	if err != nil {
		return err
	}
	defer r.f.Close()
	return r.append(typeSigned, s, true)
}

// Signable returns the record of a run that ended, was not lost and is not
// signed yet; an error says which of these it is.
func (l *Ledger) Signable(id string) (*Record, error) {
	rec, err := Read(l.dir, id)
	if err != nil {
		return nil, err
	}
	switch {
	case rec.Ending == nil:
		return nil, fmt.Errorf("run %s has not ended", id)
	case rec.Ending.Outcome == Lost:
		return nil, fmt.Errorf("run %s was lost: %s", id, rec.Ending.Reason)
	case rec.Signing != nil:
		return nil, fmt.Errorf("run %s: %w", id, ErrSigned)
	}
	return rec, nil
}

// Record is a run as read back, its chain verified.
type Record struct {
	Admission Admission
	Entries   []Entry
	Ending    *Ending  // nil while it runs
	Signing   *Signing // nil until signed
	// Head is the hash of the last entry before the observer's own "signed":
	// what statements about the run name.
	Head   string
	Opened time.Time
	Closed time.Time
}

// Facts returns the bodies of one type, decoded.
func Facts[T any](r *Record, t observe.FactType) ([]T, error) {
	var out []T
	for _, e := range r.Entries {
		if e.Type != t {
			continue
		}
		var v T
		dec := json.NewDecoder(bytes.NewReader(e.Body))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&v); err != nil {
			return nil, fmt.Errorf("decoding fact %d (%s): %w", e.Seq, t, err)
		}
		out = append(out, v)
	}
	return out, nil
}

// Read reads and verifies one run. ErrNotFound, or ErrCorrupt when a hash, a
// sequence number or the order of entries is wrong.
func Read(dir, id string) (*Record, error) {
	path, err := runPath(dir, id)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("run %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("reading run %s: %w", id, err)
	}
	defer f.Close()
	return Decode(id, f)
}

// Decode is Read for a stream; it stops at a half-written last line.
func Decode(id string, in io.Reader) (*Record, error) {
	corrupt := func(line int, format string, a ...any) error {
		return fmt.Errorf("run %s, line %d: %s: %w", id, line, fmt.Sprintf(format, a...), ErrCorrupt)
	}
	rec := &Record{}
	prev := firstPrev(id)
	br := bufio.NewReaderSize(in, 64<<10)
	for n := 1; ; n++ {
		line, err := readLine(br)
		if err == io.EOF {
			break // what follows the last newline was never acknowledged
		}
		if err != nil {
			return nil, corrupt(n, "%v", err)
		}
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, corrupt(n, "%v", err)
		}
		if e.Seq != n-1 || e.Prev != prev || e.digest() != e.Hash {
			return nil, corrupt(n, "entry %d does not continue the chain", e.Seq)
		}
		if (n == 1) != (e.Type == typeAdmitted) {
			return nil, corrupt(n, "unexpected entry %s", e.Type)
		}
		if rec.Ending != nil && e.Type != typeSigned {
			return nil, corrupt(n, "entry %s after the end", e.Type)
		}
		switch e.Type {
		case typeAdmitted:
			err = json.Unmarshal(e.Body, &rec.Admission)
			rec.Opened = e.Time
		case typeEnded:
			rec.Ending = new(Ending)
			err = json.Unmarshal(e.Body, rec.Ending)
			rec.Closed = e.Time
		case typeSigned:
			if rec.Ending == nil || rec.Signing != nil {
				return nil, corrupt(n, "unexpected entry %s", e.Type)
			}
			rec.Signing = new(Signing)
			err = json.Unmarshal(e.Body, rec.Signing)
		}
		if err != nil {
			return nil, corrupt(n, "%v", err)
		}
		if e.Type != typeSigned {
			rec.Head = e.Hash
		}
		rec.Entries = append(rec.Entries, e)
		prev = e.Hash
	}
	if len(rec.Entries) == 0 {
		return nil, corrupt(1, "empty")
	}
	if rec.Admission.Run != id {
		return nil, corrupt(1, "it is run %q", rec.Admission.Run)
	}
	return rec, nil
}

func readLine(br *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		frag, err := br.ReadSlice('\n')
		line = append(line, frag...)
		switch {
		case err == nil:
			return line, nil
		case errors.Is(err, bufio.ErrBufferFull):
			if len(line) > 2*MaxEntry {
				return nil, errors.New("line of more than " + strconv.Itoa(2*MaxEntry) + " bytes")
			}
		default:
			return nil, io.EOF
		}
	}
}

// Summary is one line of a listing.
type Summary struct {
	Run     string    `json:"run"`
	Opened  time.Time `json:"opened,omitzero"`
	Closed  time.Time `json:"closed,omitzero"`
	Outcome string    `json:"outcome"` // running, succeeded, failed, lost, corrupt
	Reason  string    `json:"reason,omitempty"`
	Signed  bool      `json:"signed"`
	Facts   int       `json:"facts"`
	// Subjects are what was signed, repo@sha256:….
	Subjects []string `json:"subjects,omitempty"`
}

// List reads every run of the folder, newest first. It takes no lock; a corrupt
// run is listed as such.
func List(dir string) ([]Summary, error) {
	files, err := os.ReadDir(filepath.Join(dir, "runs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the ledger: %w", err)
	}
	var out []Summary
	for _, f := range files {
		id, ok := strings.CutSuffix(f.Name(), ".jsonl")
		if !ok {
			continue
		}
		rec, err := Read(dir, id)
		if err != nil {
			out = append(out, Summary{Run: id, Outcome: "corrupt", Reason: err.Error()})
			continue
		}
		s := Summary{Run: id, Opened: rec.Opened, Closed: rec.Closed, Outcome: "running", Signed: rec.Signing != nil, Facts: len(rec.Entries)}
		if rec.Ending != nil {
			s.Outcome, s.Reason = rec.Ending.Outcome, rec.Ending.Reason
		}
		if rec.Signing != nil {
			s.Subjects = rec.Signing.Subjects
		}
		out = append(out, s)
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Opened.After(out[j].Opened) })
	return out, nil
}
