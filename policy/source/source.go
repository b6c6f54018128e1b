// Package source brings the rules and data of a policy onto this machine: from
// folders, git repositories, OCI registries and https, each pinned to what it was
// when it was read.
//
//	address ──▶ Fetcher ──▶ *Tree {where it lies, what it was: Pinned, Digest} ──▶ Tree.Files
//
// Addresses are Conforma's (go-getter's): ./rules, git::https://host/repo//policy?ref=v1,
// oci::registry/repo:tag, https://host/data.yaml; KindOf says which is which.
//
// A Fetcher is asked once for each address in a run. What it returns does not
// change while the run lasts: the bytes of a Tree are read once, so that what was
// digested is what is evaluated.
//
// This package reads files and folders (Local) and links no client of anything;
// package fetch reads the rest.
package source

import (
	"context"
	"sync"
)

// Kind is what it takes to read an address.
type Kind string

// The kinds.
const (
	File  Kind = "file"
	Git   Kind = "git"
	OCI   Kind = "oci"
	HTTPS Kind = "https"
)

// A Fetcher finds sources. It fails with an error that names the address and, where
// somebody can do something about it, what. It is safe for concurrent use, and two
// calls for one address return the same tree; see Once.
type Fetcher interface {
	Fetch(ctx context.Context, address string) (*Tree, error)
}

// Once makes a Fetcher that asks another once for each address and remembers what
// it said, failures apart: those are asked for again. It is safe for concurrent use.
func Once(f Fetcher) Fetcher { return &once{from: f} }

type once struct {
	from  Fetcher
	mu    sync.Mutex
	calls map[string]*call // guarded by mu
}

type call struct {
	done chan struct{}
	tree *Tree // with err, once done is closed
	err  error
}

func (o *once) Fetch(ctx context.Context, address string) (*Tree, error) {
	for {
		o.mu.Lock()
		c := o.calls[address]
		if c == nil {
			c = &call{done: make(chan struct{})}
			if o.calls == nil {
				o.calls = map[string]*call{}
			}
			o.calls[address] = c
			o.mu.Unlock()
			c.tree, c.err = o.from.Fetch(ctx, address)
			if c.err != nil {
				o.mu.Lock()
				delete(o.calls, address)
				o.mu.Unlock()
			}
			close(c.done)
			return c.tree, c.err
		}
		o.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-c.done:
		}
		if c.err == nil {
			return c.tree, nil
		}
		// It failed, perhaps by its own context: this caller asks itself.
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
}
