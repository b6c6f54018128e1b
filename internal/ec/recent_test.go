package ec

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

func TestRecent(t *testing.T) {
	r := newRecent(10_000, func(v string) int64 { return int64(len(v)) })
	var n atomic.Int64
	ask := func(key string, size int) {
		t.Helper()
		v, err := r.get(key, func() (string, error) { n.Add(1); return string(make([]byte, size)), nil })
		if err != nil || len(v) != size {
			t.Errorf("%s: %d bytes, %v", key, len(v), err)
		}
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { ask("a", 4000) })
	}
	wg.Wait()
	if n.Load() != 1 {
		t.Errorf("made %d times, want once", n.Load())
	}
	ask("b", 4000)
	ask("a", 4000)
	ask("c", 4000) // b goes, which was not asked for the longest
	n.Store(0)
	ask("a", 4000)
	ask("c", 4000)
	if n.Load() != 0 {
		t.Errorf("%d of the last two were made again", n.Load())
	}
	ask("b", 4000)
	if n.Load() != 1 {
		t.Error("more is remembered than is allowed")
	}
	ask("large", 20_000)
	n.Store(0)
	ask("large", 20_000)
	if n.Load() != 1 || r.total > 10_000 {
		t.Errorf("what is larger than all is remembered: %d bytes", r.total)
	}
}

func TestRecentErrors(t *testing.T) {
	r := newRecent(10_000, func(string) int64 { return 1 << 40 })
	n := 0
	broken := errors.New("broken")
	for range 3 {
		if _, err := r.get("a", func() (string, error) { n++; return "", broken }); !errors.Is(err, broken) {
			t.Error(err)
		}
	}
	if n != 1 {
		t.Errorf("failed %d times, want once", n)
	}
	for i := range 100 {
		_, _ = r.get(string(rune('b'+i)), func() (string, error) { return "", broken })
	}
	if r.total > 10_000 || len(r.byKey) != r.order.Len() {
		t.Errorf("errors are remembered without end: %d", r.order.Len())
	}
}

// TestRecentDuring: one that is being made is not forgotten for others.
func TestRecentDuring(t *testing.T) {
	r := newRecent(1000, func(v string) int64 { return int64(len(v)) })
	started, release := make(chan bool), make(chan bool)
	var n atomic.Int64
	slow := func() (string, error) {
		n.Add(1)
		close(started)
		<-release
		return "slow", nil
	}
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = r.get("slow", slow) })
	<-started
	for i := range 10 {
		_, _ = r.get(string(rune('a'+i)), func() (string, error) { return string(make([]byte, 900)), nil })
	}
	wg.Go(func() { _, _ = r.get("slow", slow) })
	close(release)
	wg.Wait()
	if n.Load() != 1 {
		t.Errorf("made %d times", n.Load())
	}
}
