package attack_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"assay.dev/assay/internal/testrig"
	"assay.dev/assay/ledger"
)

// TestKill: kill -9 of each process in the middle of a run. The run ends
// recorded, nothing stays, and the next run in the same home works.
func TestKill(t *testing.T) {
	r := newRig(t)
	for _, k := range []struct {
		role string
		// outcome in the ledger: after the command ended, or after the next start.
		outcome string
		// lives: the run goes on without it.
		lives bool
	}{
		{role: "observer", outcome: ledger.Lost},
		{role: "registry", outcome: ledger.Failed}, // the token can no longer be revoked
		{role: "images", lives: true},
		{role: "planner", outcome: ledger.Lost},
		{role: "executor", outcome: ledger.Lost},
		{role: "confine", outcome: ledger.Lost},
		{role: "launcher", outcome: ledger.Lost},
		{role: "step", outcome: ledger.Failed},
	} {
		t.Run(k.role, func(t *testing.T) {
			script := `echo running; sleep 30; echo unreached`
			if k.role == "step" {
				script = "echo running; exec sleep 30"
			}
			if k.role == "registry" || k.lives {
				script = `echo running; sleep 3`
			}
			bg := r.start(t, task{network: "registry", steps: []string{script}})
			p := r.process(t, k.role)
			killed := time.Now()
			must(t, syscall.Kill(p.pid, syscall.SIGKILL))
			select {
			case err := <-bg.done:
				if (err == nil) != k.lives {
					t.Errorf("assay run ended with %v:\n%s", err, bg.err.String())
				}
			case <-time.After(60 * time.Second):
				t.Errorf("assay run does not end:\n%s\n%v", bg.err.String(), r.processes())
				bg.stop()
			}
			if d := time.Since(killed); d > 25*time.Second {
				t.Errorf("it took %s to notice", d)
			}
			if strings.Contains(bg.err.String(), "unreached") || strings.Contains(bg.err.String(), "panic") {
				t.Errorf("%s", bg.err.String())
			}
			t.Logf("said: %s", bg.err.String())
			// At once, as the next user would.
			next := &outcome{Result: r.RunFile(filepath.Join(testrig.Root(), "examples/run/hello.yaml")), t: t}
			if next.Code != 0 || !next.Succeeded {
				t.Errorf("the next run: exit %d\n%s", next.Code, next.Stderr)
			}
			rec, err := ledger.Read(filepath.Join(r.Home, "ledger"), bg.id)
			must(t, err)
			switch {
			case rec.Ending == nil:
				t.Error("the run did not end recorded")
			case k.outcome != "" && rec.Ending.Outcome != k.outcome:
				t.Errorf("it ended as %+v, want %s", *rec.Ending, k.outcome)
			default:
				t.Logf("recorded: %+v", *rec.Ending)
			}
			if rec.Signing != nil && !k.lives {
				t.Errorf("it was signed: %+v", rec.Signing)
			}
			r.clean(t)
		})
	}

	t.Run("machine", func(t *testing.T) {
		// Everything at once, as when the power goes.
		for range 5 {
			bg := r.start(t, task{network: "open", steps: []string{`echo running; sleep 30`}})
			for _, p := range r.processes() {
				_ = syscall.Kill(p.pid, syscall.SIGKILL)
			}
			<-bg.done
			next := r.RunFile(filepath.Join(testrig.Root(), "examples/run/hello.yaml"))
			if next.Code != 0 {
				t.Errorf("the next run: exit %d\n%s", next.Code, next.Stderr)
			}
			rec, err := ledger.Read(filepath.Join(r.Home, "ledger"), bg.id)
			must(t, err)
			if rec.Ending == nil || rec.Ending.Outcome != ledger.Lost {
				t.Errorf("it ended as %+v", rec.Ending)
			}
			r.clean(t)
		}
	})
}

// TestInterrupt: Ctrl-C in the middle of a run, once and twice.
func TestInterrupt(t *testing.T) {
	r := newRig(t)
	for n := range 2 {
		bg := r.start(t, task{network: "open", steps: []string{`trap '' INT TERM; echo running; sleep 60`}})
		for range n + 1 {
			_ = bg.cmd.Process.Signal(os.Interrupt) // it may be over after the first
			time.Sleep(100 * time.Millisecond)
		}
		select {
		case <-bg.done:
		case <-time.After(30 * time.Second):
			t.Fatalf("assay run does not end:\n%s", bg.err.String())
		}
		rec, err := ledger.Read(filepath.Join(r.Home, "ledger"), bg.id)
		must(t, err)
		if rec.Ending == nil || rec.Ending.Outcome == ledger.Succeeded || rec.Signing != nil {
			t.Errorf("it ended as %+v, %+v", rec.Ending, rec.Signing)
		}
		r.clean(t)
	}
}
