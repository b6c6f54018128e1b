package ledger_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"assay.dev/assay/ledger"
	"assay.dev/assay/observe"
)

var at = time.Date(2026, 11, 23, 12, 0, 0, 123456789, time.UTC)

func open(t *testing.T, dir string) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(dir, func() time.Time { return at })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func fact(t observe.FactType, body string) observe.Fact {
	return observe.Fact{Type: t, Body: json.RawMessage(body)}
}

func TestRunEndsAndSignsOnce(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	r, err := l.Admit(ledger.Admission{Run: "r1", Nonce: "n", ExecutorUID: 7})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Admit(ledger.Admission{Run: "r1"}); !errors.Is(err, ledger.ErrExists) {
		t.Errorf("second admission: %v", err)
	}
	for _, f := range []observe.Fact{fact(observe.RunOpened, `{"run":"r1"}`), fact(observe.TaskStarted, `{}`), fact(observe.RunClosed, `{}`)} {
		if _, err := r.Append(f); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Signable("r1"); err == nil {
		t.Error("a running run is signable")
	}
	head := r.Head()
	if err := r.End(ledger.Succeeded, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Append(fact(observe.TaskStarted, `{}`)); !errors.Is(err, ledger.ErrEnded) {
		t.Errorf("fact after the end: %v", err)
	}
	if err := r.End(ledger.Failed, ""); !errors.Is(err, ledger.ErrEnded) {
		t.Errorf("second end: %v", err)
	}
	rec, err := l.Signable("r1")
	if err != nil {
		t.Fatal(err)
	}
	if rec.Head == head || rec.Ending.Outcome != ledger.Succeeded || len(rec.Entries) != 5 {
		t.Errorf("record: %+v", rec)
	}
	if err := l.Sign("r1", ledger.Signing{Subjects: []string{"a@sha256:b"}}); err != nil {
		t.Fatal(err)
	}
	if err := l.Sign("r1", ledger.Signing{}); !errors.Is(err, ledger.ErrSigned) {
		t.Errorf("second signing: %v", err)
	}
	again, err := ledger.Read(dir, "r1")
	if err != nil || again.Head != rec.Head || again.Signing == nil {
		t.Errorf("signing moved the head or was lost: %v", err)
	}
}

func TestKilledObserverLeavesNoOpenRun(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	r, err := l.Admit(ledger.Admission{Run: "r1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Append(fact(observe.RunOpened, `{}`)); err != nil {
		t.Fatal(err)
	}
	l.Close() // as a kill: nothing is ended
	path := filepath.Join(dir, "runs", "r1.jsonl")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"seq":2,"time":"2026-`) // the line the kill cut off
	f.Close()

	open(t, dir)
	rec, err := ledger.Read(dir, "r1")
	if err != nil {
		t.Fatal(err)
	}
	if rec.Ending == nil || rec.Ending.Outcome != ledger.Lost {
		t.Errorf("ending: %+v", rec.Ending)
	}
}

func TestAlteredLedgerIsRefused(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	r, _ := l.Admit(ledger.Admission{Run: "r1"})
	for range 3 {
		if _, err := r.Append(fact(observe.TaskFinished, `{"exit":1}`)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.End(ledger.Failed, "x"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "runs", "r1.jsonl")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(good, []byte("\n"))
	for name, bad := range map[string][]byte{
		"value altered": bytes.Replace(good, []byte(`"exit":1`), []byte(`"exit":0`), 1),
		"line removed":  bytes.Join(append(append([][]byte{}, lines[:2]...), lines[3:]...), nil),
		"line repeated": append(append([]byte{}, good...), lines[len(lines)-2]...),
		"lines swapped": bytes.Join([][]byte{lines[0], lines[2], lines[1], lines[3], lines[4]}, nil),
		"outcome":       bytes.Replace(good, []byte(`"outcome":"failed"`), []byte(`"outcome":"succeeded"`), 1),
		"empty":         {},
	} {
		if _, err := ledger.Decode("r1", bytes.NewReader(bad)); !errors.Is(err, ledger.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ledger.Decode("r2", bytes.NewReader(good)); !errors.Is(err, ledger.ErrCorrupt) {
		t.Error("a run passes as another")
	}
}

func TestOnlyOneWriter(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	if _, err := ledger.Open(dir, nil); err == nil || !strings.Contains(err.Error(), "another observer") {
		t.Errorf("second writer: %v", err)
	}
}

func TestRunIDsStayInTheFolder(t *testing.T) {
	l := open(t, t.TempDir())
	for _, id := range []string{"", "../x", "a/b", "a..b", ".x", strings.Repeat("a", 200)} {
		if _, err := l.Admit(ledger.Admission{Run: id}); err == nil {
			t.Errorf("id %q was admitted", id)
		}
	}
}

func FuzzDecode(f *testing.F) {
	dir := f.TempDir()
	l, err := ledger.Open(dir, func() time.Time { return at })
	if err != nil {
		f.Fatal(err)
	}
	r, _ := l.Admit(ledger.Admission{Run: "r1"})
	r.End(ledger.Failed, "")
	l.Close()
	good, _ := os.ReadFile(filepath.Join(dir, "runs", "r1.jsonl"))
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, err := ledger.Decode("r1", bytes.NewReader(b))
		if (rec == nil) == (err == nil) {
			t.Fatal("neither a record nor an error")
		}
	})
}
