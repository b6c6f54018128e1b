// Package kubeobject reads one object of a cluster for programs that link no
// Kubernetes client. It asks the sibling program assayd, which does: one process per
// object, gone with the answer.
//
//	Get ─▶ assayd object RESOURCE [NS/]NAME [--kubeconfig F] ─▶ API server
//
// Which cluster and whose rights are the kubeconfig's: that which is named, or the
// usual rules (KUBECONFIG, ~/.kube/config, a Pod's account).
package kubeobject

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"assay.dev/assay/internal/sibling"
)

// MaxObject is the size in bytes of the largest object that is read. The API server
// itself keeps none above 3 MiB.
const MaxObject = 16 << 20

// Exit codes by which `assayd object` tells what a caller may want to know.
const (
	CodeNotFound  = 4
	CodeForbidden = 5
)

// Errors that callers may tell apart with errors.Is; the message has the server's
// words.
var (
	// ErrNotFound says that the cluster has no such object, or no such kind of it.
	ErrNotFound = errors.New("not found")
	// ErrForbidden says that the kubeconfig's user may not read it.
	ErrForbidden = errors.New("forbidden")
)

// Client asks one cluster. Its zero value asks that of the usual rules by the
// assayd beside the running program.
type Client struct {
	// Kubeconfig is a file; empty: the usual rules.
	Kubeconfig string
	// Program is assayd's path; empty: the one beside the running program.
	Program string
}

// Get is Client.Get for the cluster of a kubeconfig; "" stands for the usual rules.
func Get(ctx context.Context, kubeconfig, resource, ref string) (json.RawMessage, error) {
	return Client{Kubeconfig: kubeconfig}.Get(ctx, resource, ref)
}

// Get returns an object as JSON. Resource is its kind's plural name, with the group
// where it has one (secrets, snapshots.appstudio.redhat.com); ref is NAME, then in
// the namespace of the kubeconfig's context, or NAMESPACE/NAME. The errors are
// ErrNotFound and ErrForbidden, and others for no assayd, no cluster, an ambiguous
// or wrong name and an object larger than MaxObject.
func (c Client) Get(ctx context.Context, resource, ref string) (json.RawMessage, error) {
	args := []string{"object"}
	if c.Kubeconfig != "" {
		args = append(args, "--kubeconfig", c.Kubeconfig)
	}
	args = append(args, "--", resource, ref)
	out, err := sibling.Output(ctx, "assayd", c.Program, MaxObject, args...)
	if err == nil && !json.Valid(out) {
		err = errors.New("assayd's answer is no JSON")
	}
	var e *sibling.Error
	if errors.As(err, &e) {
		switch e.Code {
		case CodeNotFound:
			err = kind{ErrNotFound, err}
		case CodeForbidden:
			err = kind{ErrForbidden, err}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s %s of the cluster: %w", resource, ref, err)
	}
	return out, nil
}

// kind gives an error a sentinel without adding its words.
type kind struct {
	is error
	error
}

func (k kind) Is(target error) bool { return target == k.is }
func (k kind) Unwrap() error        { return k.error }
