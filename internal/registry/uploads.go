package registry

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// uploadsFile is the memory of uploads in the registry's folder: a JSON value a
// line, only ever appended to.
const uploadsFile = "uploads.jsonl"

// maxLine bounds a line of it.
const maxLine = 64 << 10

// Upload is one manifest or blob that was stored by a token.
type Upload struct {
	Run     string `json:"run"`
	Task    string `json:"task"`
	Attempt int    `json:"attempt"`
	Kind    Kind   `json:"kind"` // whether the task pushed it or the executor exported it
	Repo    string `json:"repo"`
	Digest  string `json:"digest"`
	// Tag is what a manifest was pushed as; empty by digest.
	Tag string `json:"tag,omitempty"`
	// MediaType is the manifest's; empty for a blob.
	MediaType string    `json:"mediaType,omitempty"`
	Time      time.Time `json:"time"`
}

// line is one line of the file; one field is set.
type line struct {
	// Opened is the run whose first token was minted while its repository was
	// empty.
	Opened string  `json:"opened,omitempty"`
	Upload *Upload `json:"upload,omitempty"`
}

// memory appends to the file. A line is on disk before add returns.
type memory struct {
	mu     sync.Mutex // guards what follows
	f      *os.File
	opened map[string]bool
	broken error // after a write that may have left half a line
}

func openMemory(dir string) (*memory, error) {
	name := filepath.Join(dir, uploadsFile)
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening the memory of uploads: %w", err)
	}
	m := &memory{f: f, opened: map[string]bool{}}
	end, err := readLines(f, func(l line) {
		if l.Opened != "" {
			m.opened[l.Opened] = true
		}
	})
	// Half a line at the end is what a kill leaves. Nobody was told that it
	// was stored.
	if err == nil {
		err = f.Truncate(end)
	}
	if err == nil {
		_, err = f.Seek(end, io.SeekStart)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("opening the memory of uploads: %w", err)
	}
	return m, nil
}

// readLines calls each for every whole line and returns where they end.
func readLines(r io.Reader, each func(line)) (end int64, err error) {
	br := bufio.NewReaderSize(r, maxLine)
	for n := 1; ; n++ {
		b, err := br.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return end, nil
		}
		if err != nil {
			return end, fmt.Errorf("reading %s, line %d: %w", uploadsFile, n, err)
		}
		var l line
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		if err := d.Decode(&l); err != nil || (l.Opened == "") == (l.Upload == nil) {
			return end, fmt.Errorf("reading %s, line %d: it is damaged, so what was uploaded can no longer be told (%v)", uploadsFile, n, err)
		}
		each(l)
		end += int64(len(b))
	}
}

func (m *memory) append(l line) error {
	b, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("remembering an upload: %w", err)
	}
	if len(b) >= maxLine {
		return fmt.Errorf("remembering an upload: its line has more than %d bytes", maxLine)
	}
	if m.broken != nil {
		return m.broken
	}
	if _, err := m.f.Write(append(b, '\n')); err != nil {
		m.broken = fmt.Errorf("remembering an upload: %w", err)
		return m.broken
	}
	if err := m.f.Sync(); err != nil {
		m.broken = fmt.Errorf("remembering an upload: %w", err)
		return m.broken
	}
	return nil
}

func (m *memory) add(u Upload) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.append(line{Upload: &u})
}

// open remembers the run's first token, for which empty must hold.
func (m *memory) open(run string, empty func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.opened[run] {
		return nil
	}
	if err := empty(); err != nil {
		return err
	}
	if err := m.append(line{Opened: run}); err != nil {
		return err
	}
	m.opened[run] = true
	return nil
}

func (m *memory) close() error { return m.f.Close() }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// ReadUploads reads from the registry's folder what the tokens of a run
// uploaded, in order, also while a server writes. A registry that has no
// uploads yet has none of the run; a damaged file is an error.
func ReadUploads(dir, run string) ([]Upload, error) {
	f, err := os.Open(filepath.Join(dir, uploadsFile))
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(dir); err != nil {
			return nil, fmt.Errorf("reading uploads: %w", err)
		}
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading uploads: %w", err)
	}
	defer f.Close()
	var out []Upload
	_, err = readLines(f, func(l line) {
		if l.Upload != nil && l.Upload.Run == run {
			out = append(out, *l.Upload)
		}
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
