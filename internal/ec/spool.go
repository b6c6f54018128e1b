package ec

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// spoolMemory is how much a spool keeps in memory.
const spoolMemory = 4 << 20

// spool keeps encoded pieces of a report until it is written: the first ones in
// memory, and from then on in a temporary file that has no name, so that what a
// report takes in memory does not grow with it. Its zero value is empty. It is not
// safe for concurrent use.
type spool struct {
	memory []byte
	file   *os.File
	size   int64
}

// span is where a piece is. Its zero value is the empty piece.
type span struct{ at, n int64 }

func (s *spool) put(b []byte) (span, error) {
	at := span{s.size, int64(len(b))}
	if s.file == nil && len(s.memory)+len(b) <= spoolMemory {
		s.memory = append(s.memory, b...)
		s.size += at.n
		return at, nil
	}
	if s.file == nil {
		f, err := os.CreateTemp("", "ec-report")
		if err != nil {
			return span{}, fmt.Errorf("keeping results of many images: %w", err)
		}
		if err := os.Remove(f.Name()); err != nil {
			return span{}, errors.Join(fmt.Errorf("keeping results of many images: %w", err), f.Close())
		}
		s.file = f
	}
	if _, err := s.file.WriteAt(b, at.at-int64(len(s.memory))); err != nil {
		return span{}, fmt.Errorf("keeping results of many images: %w", err)
	}
	s.size += at.n
	return at, nil
}

func (s *spool) get(p span) ([]byte, error) {
	kept := int64(len(s.memory))
	if p.at+p.n <= kept {
		return s.memory[p.at : p.at+p.n], nil
	}
	b := make([]byte, p.n)
	if _, err := s.file.ReadAt(b, p.at-kept); err != nil {
		return nil, fmt.Errorf("reading kept results: %w", err)
	}
	return b, nil
}

// copy writes a piece without having it in memory as a whole.
func (s *spool) copy(w io.Writer, p span) error {
	kept := int64(len(s.memory))
	if p.at+p.n <= kept {
		_, err := w.Write(s.memory[p.at : p.at+p.n])
		return err
	}
	_, err := io.Copy(w, io.NewSectionReader(s.file, p.at-kept, p.n))
	return err
}

func (s *spool) close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}
