package gateserver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"assay.dev/assay/policy"
)

func TestVerdicts(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var mu sync.Mutex
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	v := newVerdicts(1, time.Minute, clock)
	defer v.stop()
	q := question{"r@sha256:1", "p", "t"}
	calls := 0
	judge := func(o policy.Outcome) func(context.Context) answer {
		return func(context.Context) answer {
			calls++
			return answer{outcome: o, until: clock().Add(time.Minute)}
		}
	}
	get := func(q question, o policy.Outcome) answer {
		t.Helper()
		a, _, err := v.get(t.Context(), q, judge(o))
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for _, s := range []struct {
		what  string
		q     question
		says  policy.Outcome
		want  policy.Outcome
		calls int
		later time.Duration
	}{
		{"not known is not kept", q, policy.Unchecked, policy.Unchecked, 1, 0},
		{"judged", q, policy.Pass, policy.Pass, 2, 0},
		{"kept", q, policy.Fail, policy.Pass, 2, 0},
		{"of another policy", question{q.image, "p2", "t"}, policy.Fail, policy.Fail, 3, 0},
		{"of another trust", question{q.image, "p", "t2"}, policy.Fail, policy.Fail, 4, 0},
		{"until it is over", q, policy.Fail, policy.Fail, 5, time.Minute},
	} {
		mu.Lock()
		now = now.Add(s.later)
		mu.Unlock()
		if got := get(s.q, s.says); got.outcome != s.want || calls != s.calls {
			t.Errorf("%s: %s, %d judgements", s.what, got.outcome, calls)
		}
	}
	for i := range maxVerdicts + 10 {
		get(question{image: fmt.Sprint(i)}, policy.Pass)
	}
	if len(v.kept) != maxVerdicts || len(v.order) != maxVerdicts {
		t.Errorf("%d verdicts are kept, %d in order", len(v.kept), len(v.order))
	}
	if a := get(question{image: "panics"}, ""); a.outcome != "" {
		t.Errorf("%+v", a)
	}
	a, _, err := v.get(t.Context(), question{image: "panic"}, func(context.Context) answer { panic("x") })
	if err != nil || a.outcome != policy.Unchecked {
		t.Errorf("a judgement that breaks off: %+v, %v", a, err)
	}
}

// TestVerdictsShared: one question is asked once, goes on when nobody waits, and there is
// an end to how many wait.
func TestVerdictsShared(t *testing.T) {
	v := newVerdicts(1, time.Minute, time.Now)
	defer v.stop()
	begun, end := make(chan bool), make(chan bool)
	slow := func(context.Context) answer {
		close(begun)
		<-end
		return answer{outcome: policy.Pass, until: time.Now().Add(time.Hour)}
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, _, err := v.get(ctx, question{image: "a"}, slow)
		first <- err
	}()
	<-begun
	cancel()
	if err := <-first; !errors.Is(err, errWaiting) {
		t.Errorf("whoever does not wait: %v", err)
	}
	gone, over := context.WithCancel(t.Context())
	over()
	for i := range v.maxWait - 1 {
		if _, _, err := v.get(gone, question{image: fmt.Sprint(i)}, func(context.Context) answer { return answer{outcome: policy.Pass} }); !errors.Is(err, errWaiting) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if _, _, err := v.get(t.Context(), question{image: "one more"}, slow); !errors.Is(err, errBusy) {
		t.Errorf("beyond all that wait: %v", err)
	}
	close(end)
	a, from, err := v.get(t.Context(), question{image: "a"}, func(context.Context) answer { t.Error("asked again"); return answer{} })
	if err != nil || a.outcome != policy.Pass || from == "judged" {
		t.Errorf("%+v from %q, %v", a, from, err)
	}
}

// TestCut: what is said is whole letters, within bounds, on one line.
func TestCut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.String().Draw(t, "s")
		most := rapid.IntRange(8, 64).Draw(t, "most")
		if got := cut(s, most); len(got) > most || utf8.ValidString(s) && !utf8.ValidString(got) {
			t.Fatalf("%q: %q", s, got)
		}
		if got := reason(s); strings.ContainsAny(got, "\n\r\x1b\x00") || !utf8.ValidString(got) {
			t.Fatalf("%q: %q", s, got)
		}
	})
}
