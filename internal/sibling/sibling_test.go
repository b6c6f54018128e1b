package sibling

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func program(t *testing.T, script string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(p, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestOutput(t *testing.T) {
	got, err := Output(t.Context(), "p", program(t, `printf '%s,%s' "$1" "$2"`), 100, "a b", "c")
	if err != nil || string(got) != "a b,c" {
		t.Errorf("%q %v", got, err)
	}
	_, err = Output(t.Context(), "p", program(t, "echo 'p: it is not there' >&2; exit 7"), 100)
	var e *Error
	if !errors.As(err, &e) || e.Code != 7 || err.Error() != "it is not there" {
		t.Errorf("%#v", err)
	}
	if _, err = Output(t.Context(), "p", program(t, "exit 1"), 100); err == nil || !strings.Contains(err.Error(), "p ended with code 1") {
		t.Errorf("a silent one: %v", err)
	}
	if _, err = Output(t.Context(), "p", program(t, "while :; do echo more; done"), 1000); err == nil || !strings.Contains(err.Error(), "more than 1000 bytes") {
		t.Errorf("an endless one: %v", err)
	}
	// What it says on standard error is bounded and does not block it.
	if _, err = Output(t.Context(), "p", program(t, "i=0; while [ $i -lt 20000 ]; do echo words >&2; i=$((i+1)); done; exit 3"), 10); !errors.As(err, &e) || len(e.Words) > maxWords {
		t.Errorf("a chatty one: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err = Output(ctx, "p", program(t, "exec sleep 60"), 10); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a slow one: %v", err)
	}
	if _, err = Output(t.Context(), "assay-nobody", "", 10); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("a missing one: %v", err)
	}
}
