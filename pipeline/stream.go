package pipeline

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"assay.dev/assay/plan"
)

// maxEventBytes bounds one line of the executor: results are in it, whose bound
// is the executor's setting and far below.
const maxEventBytes = 64 << 20

// Stream is an Executor at the other end of two pipes, one JSON value a line.
// Reading and writing do not wait for each other, so that neither side can
// block both.
type Stream struct {
	commands chan []byte
	events   chan plan.Event
	gone     chan struct{} // closed once the executor is
	broken   chan struct{} // closed after err is set
	err      error
}

var _ Executor = (*Stream)(nil)

// NewStream speaks to an executor that reads from w and writes to r. It reads
// until r ends; a line that is no event, or too long, arrives as an event with
// Error set and is the last.
func NewStream(r io.Reader, w io.Writer) *Stream {
	s := &Stream{
		// More than a run has open at once: Send only waits for a stuck executor.
		commands: make(chan []byte, 1024),
		events:   make(chan plan.Event, 64),
		gone:     make(chan struct{}),
		broken:   make(chan struct{}),
	}
	go s.read(r)
	go s.write(w)
	return s
}

func (s *Stream) write(w io.Writer) {
	for {
		select {
		case <-s.gone:
			return
		case line := <-s.commands:
			if _, err := w.Write(line); err != nil {
				s.err = err
				close(s.broken)
				return
			}
		}
	}
}

func (s *Stream) read(r io.Reader) {
	defer close(s.events)
	defer close(s.gone)
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 64<<10), maxEventBytes)
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue
		}
		ev, err := decodeEvent(lines.Bytes())
		if err != nil {
			s.events <- plan.Event{Error: "reading what the executor says: " + err.Error()}
			return
		}
		s.events <- ev
	}
	if err := lines.Err(); err != nil {
		s.events <- plan.Event{Error: "reading what the executor says: " + err.Error()}
	}
}

// decodeEvent wants exactly one field set, as the protocol says.
func decodeEvent(line []byte) (plan.Event, error) {
	var ev plan.Event
	if err := json.Unmarshal(line, &ev); err != nil {
		return plan.Event{}, err
	}
	set := 0
	for _, is := range []bool{ev.Ready != nil, ev.Step != nil, ev.Log != nil, ev.Done != nil, ev.Closed != nil, ev.Error != ""} {
		if is {
			set++
		}
	}
	if set != 1 {
		return plan.Event{}, fmt.Errorf("an event with %d fields set, of which exactly one belongs", set)
	}
	return ev, nil
}

// Send implements Executor. It fails once the executor has closed either pipe;
// a command it took may still be lost with the executor, which Events tells.
func (s *Stream) Send(c plan.Command) error {
	line, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("writing a command: %w", err)
	}
	// The one that can always go on must not win over the one that says no.
	select {
	case <-s.gone:
		return errors.New("writing a command: the executor has gone")
	case <-s.broken:
		return fmt.Errorf("writing a command: %w", s.err)
	default:
	}
	select {
	case <-s.gone:
		return errors.New("writing a command: the executor has gone")
	case <-s.broken:
		return fmt.Errorf("writing a command: %w", s.err)
	case s.commands <- append(line, '\n'):
		return nil
	}
}

// Events implements Executor.
func (s *Stream) Events() <-chan plan.Event { return s.events }
