package logserver

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"assay.dev/assay/attest/tlog"
)

// TestMain lets the test binary be assay-log.
func TestMain(m *testing.M) {
	if os.Getenv("ASSAY_LOG_TEST_MAIN") != "" {
		os.Exit(Main(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// process runs assay-log as a process of its own and returns the address that it
// prints.
func process(t *testing.T, args ...string) (*exec.Cmd, string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(self, args...)
	c.Env = append(os.Environ(), "ASSAY_LOG_TEST_MAIN=1")
	var errw strings.Builder
	c.Stderr = &errw
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		c.Wait()
		t.Fatalf("assay-log %v: %v: %s", args, err, errw.String())
	}
	go io.Copy(io.Discard, out)
	_, at, _ := strings.Cut(strings.TrimSpace(line), " at ")
	return c, at
}

// TestKill: a log and its witness, each a process, are killed again and again while
// entries come in. Every proof that was given holds in the tree that is there in the
// end, which continues every checkpoint that was ever seen.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	logKey, _, err := makeKey(file("log.key"), "example.com/log")
	if err != nil {
		t.Fatal(err)
	}
	_, witnessKey, err := makeKey(file("witness.key"), "example.org/witness")
	if err != nil {
		t.Fatal(err)
	}
	if err := makeToken(file("token")); err != nil {
		t.Fatal(err)
	}
	trust := tlog.Trust{Logs: []tlog.LogKey{logKey}, Witnesses: []tlog.WitnessKey{witnessKey}}
	s := newSigner(t)
	var (
		mu     sync.Mutex
		proofs = map[string]tlog.Signed{} // proof → what it is of
		seen   [][]byte                   // checkpoints
	)
	listen := "127.0.0.1:0"
	for round := range 4 {
		w, wurl := process(t, "witness", "--key", file("witness.key"), "--state", file("state"), "--log-key", logKey.String(), "--listen", listen)
		l, url := process(t, "serve", "--dir", file("log"), "--key", file("log.key"), "--token-file", file("token"), "--listen", "127.0.0.1:0",
			"--witness", wurl+"="+witnessKey.String())
		c, err := tlog.NewTile(tlog.TileOptions{URL: url, LogKey: logKey.String(), Witnesses: []string{witnessKey.String()}, TokenFile: file("token"), Timeout: 20 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range 40 {
			rec := s.record(t, fmt.Sprint(round, "-", i))
			wg.Go(func() {
				e, err := c.Upload(t.Context(), rec)
				if err != nil {
					return // killed meanwhile
				}
				mu.Lock()
				proofs[string(e[0].Proof)] = tlog.SignedOf(rec)[0]
				n := len(proofs)
				mu.Unlock()
				if n > 10*(round+1) {
					// In the middle of things, once the round has given some proofs.
					l.Process.Kill()
					w.Process.Kill()
				}
			})
		}
		wg.Wait()
		l.Process.Kill()
		w.Process.Kill()
		l.Wait()
		w.Wait()
		if cp, err := os.ReadFile(file("log/checkpoint")); err == nil {
			seen = append(seen, cp)
		}
	}
	if len(proofs) < 11 {
		t.Fatalf("only %d proofs in all rounds", len(proofs))
	}
	w, wurl := process(t, "witness", "--key", file("witness.key"), "--state", file("state"), "--log-key", logKey.String(), "--listen", listen)
	l, url := process(t, "serve", "--dir", file("log"), "--key", file("log.key"), "--token-file", file("token"), "--listen", "127.0.0.1:0", "--witness", wurl+"="+witnessKey.String())
	fetch, err := tlog.NewFetch(url, nil)
	if err != nil {
		t.Fatal(err)
	}
	tiles := tlog.Tiles{Fetch: fetch}
	rep, err := Verify(t.Context(), tiles, trust, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, cp := range seen {
		if _, err := Verify(t.Context(), tiles, trust, cp); err != nil {
			t.Errorf("an earlier checkpoint: %v", err)
		}
	}
	now, err := tlog.VerifyCheckpoint([]byte(rep.Checkpoint), trust)
	if err != nil {
		t.Fatal(err)
	}
	for text, signed := range proofs {
		if _, err := tlog.CheckProof([]byte(text), signed, trust); err != nil {
			t.Error(err)
			continue
		}
		p, err := tlog.ParseProof([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		got, err := tiles.Entry(t.Context(), now.Tree, p.Index)
		if err != nil || string(got) != string(p.Extra) {
			t.Errorf("entry %d is not the one that was proved: %v", p.Index, err)
		}
	}
	l.Process.Kill()
	w.Process.Kill()
}
