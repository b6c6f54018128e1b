package channel

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzReadLine: whatever comes, lines are what stands between newlines, none is
// longer than the bound, and the end is only the end between lines.
func FuzzReadLine(f *testing.F) {
	for _, s := range []string{"", "\n", "a\n", "a", "a\n\nb\n", strings.Repeat("x", 70) + "\n", strings.Repeat("x", 40)} {
		f.Add([]byte(s))
	}
	const max = 64
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 4<<10 {
			t.Skip("bounded input")
		}
		r := bufio.NewReaderSize(bytes.NewReader(in), 16) // the smallest there is
		rest := in
		for {
			line, err := ReadLine(r, max)
			i := bytes.IndexByte(rest, '\n')
			if err == nil {
				if i < 0 || !bytes.Equal(line, rest[:i]) || len(line) >= max {
					t.Fatalf("line %q of %q", line, rest)
				}
				rest = rest[i+1:]
				continue
			}
			switch {
			case errors.Is(err, io.EOF):
				if len(rest) > 0 {
					t.Fatalf("the end, with %q left", rest)
				}
			case errors.Is(err, io.ErrUnexpectedEOF):
				if len(rest) == 0 || i >= 0 && i < max {
					t.Fatalf("cut off, with %q left", rest)
				}
			default:
				if len(rest) <= max && i < 0 || i >= 0 && i < max {
					t.Fatalf("%v for %q", err, rest)
				}
			}
			return
		}
	})
}

func TestRefusal(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go NewConn(b).WriteError(errors.New("the run is closed")) //nolint:errcheck // the reader tells
	var out Accepted
	err := NewConn(a).Read(&out)
	var refused *Refused
	if !errors.As(err, &refused) || refused.Reason != "the run is closed" {
		t.Errorf("error %v, want the refusal", err)
	}
}

// A message beyond the bound is refused before it is sent.
func TestWriteBound(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	err := NewConn(a).Write(strings.Repeat("x", MaxLine))
	if err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("error %v", err)
	}
}

func TestPeer(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	uid, pid, err := Peer(s)
	if err != nil || int(uid) != os.Geteuid() || int(pid) != os.Getpid() {
		t.Errorf("peer %d %d %v", uid, pid, err)
	}
	p, q := net.Pipe()
	defer p.Close()
	defer q.Close()
	if _, _, err := Peer(p); err == nil {
		t.Error("a pipe has no credentials, and some were found")
	}
}
