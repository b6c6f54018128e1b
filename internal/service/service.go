// Package service is what a process that the launcher starts has in common with
// the others: its configuration on file descriptor 3, a lifeline on standard
// input, a socket, and the word that it is ready. It is small, since the
// executor links it.
package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"assay.dev/assay/internal/home"
	"assay.dev/assay/observe"
)

// Config is what every service is told on file descriptor 3.
type Config struct {
	Home     string `json:"home"`
	Root     bool   `json:"root"`
	Launcher uint32 `json:"launcher"`
	Instance string `json:"instance"`
	Registry string `json:"registry"`
	// Mirrors and Insecure are for pulling images; see home.Config.
	Mirrors  map[string][]string `json:"mirrors,omitempty"`
	Insecure []string            `json:"insecure,omitempty"`
	// Log is for the observer; see home.Config.
	Log *home.Log `json:"log,omitempty"`
}

// Executor is what `assay-executor run` is handed on descriptor 3.
type Executor struct {
	Service Config                `json:"service"`
	Run     string                `json:"run"`
	Nonce   string                `json:"nonce"`
	Scratch string                `json:"scratch"`
	Hosts   map[string]HostFolder `json:"hosts,omitempty"`
	Forward []string              `json:"forward,omitempty"`
	Runtime string                `json:"runtime"`
	Limits  observe.Limits        `json:"limits"`
}

// HostFolder is a folder of this machine that a run may mount.
type HostFolder struct {
	Path     string `json:"path"`
	ReadOnly bool   `json:"readOnly"`
}

// Lifeline returns a context that ends when standard input does: for services.
func Lifeline(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		io.Copy(io.Discard, os.Stdin) //nolint:errcheck // its end is all we want
		cancel()
	}()
	return ctx, cancel
}

// Ready tells the launcher that a service answers.
func Ready() { fmt.Println("ready") }

// Listen makes a service's socket; one left by a killed predecessor is
// replaced. Anybody may connect: the peer's credentials decide.
func Listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("replacing %s: %w", path, err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
