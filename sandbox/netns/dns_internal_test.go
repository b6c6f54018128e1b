package netns

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"
)

func TestHostNameservers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	content := "# nameserver 192.0.2.9\nsearch example\nnameserver 192.0.2.1\nnameserver\nnameserver x\nnameserver 2001:db8::1 # second\n"
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := hostNameservers(path)
	want := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("[2001:db8::1]:53")}
	if err != nil || cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })) != "" {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if _, err := hostNameservers(path + ".missing"); err == nil {
		t.Error("a missing file is no error")
	}
}

func TestRecordIsBounded(t *testing.T) {
	r := newRecord(2)
	long := string(bytes.Repeat([]byte("x"), 1000))
	for _, to := range []string{"a", "b", "a", "c", long} {
		r.add("tcp", to, resultOK, 1, 2)
	}
	list, dropped := r.list()
	if len(list) != 2 || list[0].Count != 2 || list[0].Sent != 2 || dropped != 2 {
		t.Errorf("%+v, %d dropped", list, dropped)
	}
	one := newRecord(1)
	one.add("dns", long, resultOK, 0, 0)
	if list, _ := one.list(); len(list[0].To) != 255 {
		t.Errorf("a destination of %d bytes is kept", len(list[0].To))
	}
}

// The bytes that a task sends to its nameserver are its own choice.
func FuzzQuestion(f *testing.F) {
	m := dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("Example.test."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	b, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xc0}, 64))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 65535 {
			t.Skip("larger than a frame")
		}
		name, err := question(b)
		if err == nil && (len(b) < 12 || len(name) > 255) {
			t.Errorf("%d bytes are a question for a name of %d", len(b), len(name))
		}
		var buf bytes.Buffer
		if err := writeFrame(&buf, b); err != nil {
			t.Fatal(err)
		}
		if got, err := readFrame(&buf); err != nil || !bytes.Equal(got, b) {
			t.Errorf("a frame does not come back: %v", err)
		}
		_, _ = readFrame(bytes.NewReader(b))
	})
}
