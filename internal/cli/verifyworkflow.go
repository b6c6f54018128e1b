package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/internal/gitfile"
	"assay.dev/assay/verify"
	"assay.dev/assay/verify/workflow"
)

// readWorkflows reads the workflows that a certificate names, from whichever of the
// repositories has their commits: a commit's id covers its content, so it does not
// matter which. Nil where no repository is given.
func (a *app) readWorkflows(ctx context.Context, c *verify.Certificate, where []string) ([]*workflow.Reading, error) {
	if len(where) == 0 {
		return nil, nil
	}
	if c == nil {
		return nil, usagef("--workflow-repo: the provenance is signed by a key, and no workflow is named")
	}
	files := c.WorkflowFiles()
	if len(files) == 0 {
		return nil, usagef("--workflow-repo: the certificate names no workflow with its commit")
	}
	var repos []*gitfile.Repository
	for _, w := range where {
		r, err := gitfile.Open(w)
		if err != nil {
			return nil, err
		}
		repos = append(repos, r)
	}
	var out []*workflow.Reading
	for _, f := range files {
		found := false
		for _, r := range repos {
			reading, err := workflow.Read(ctx, r, f.Commit, f.Path)
			if errors.Is(err, workflow.ErrNotFound) {
				continue
			}
			if err != nil {
				fmt.Fprintf(a.err, "assay: %v\n", err)
				continue
			}
			out, found = append(out, reading), true
			break
		}
		if !found {
			fmt.Fprintf(a.err, "assay: %s of %s at %s is in none of the repositories given\n", f.Path, f.Repository, f.Commit)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("none of the workflows could be read")
	}
	return out, nil
}

// inferences are what workflow files say about statements, by the statements' payload
// digests. Nil where no repository is given; that no provenance names a workflow is an
// error then.
func (a *app) inferences(ctx context.Context, e *verify.Evidence, where []string) (map[string][]*workflow.Reading, error) {
	if len(where) == 0 {
		return nil, nil
	}
	out := map[string][]*workflow.Reading{}
	var last error
	for _, s := range e.Statements() {
		if _, ok := s.Typed.(predicate.Provenance); !ok {
			continue
		}
		r, err := a.readWorkflows(ctx, s.Certificate, where)
		if err != nil {
			last = err
			continue
		}
		out[s.PayloadDigest] = r
	}
	if len(out) == 0 && last == nil {
		last = usagef("--workflow-repo: no provenance verified, and only provenance names a workflow")
	}
	if len(out) == 0 {
		return nil, last
	}
	return out, nil
}

// printUnsaid says what provenance leaves open, and what the workflow's file says.
func (a *app) printUnsaid(s statementJSON) {
	if len(s.Unsaid) > 0 {
		var codes []string
		for _, u := range s.Unsaid {
			codes = append(codes, u.Code)
		}
		fmt.Fprintf(a.out, "    not said   %s (assay trace explains)\n", strings.Join(codes, ", "))
	}
	for _, r := range s.Inferred {
		unpinned := r.Unpinned()
		fmt.Fprintf(a.out, "    %s, from %s at %.12s: %d uses, %d not pinned by digest, %d scripts\n",
			r.Basis, r.Path, r.Commit, len(r.Uses), len(unpinned), r.Scripts)
		for _, u := range r.Uses {
			word := "pinned"
			if !u.Pinned {
				word = "NOT PINNED"
			}
			ref := u.Name
			if u.Ref != "" {
				ref += "@" + u.Ref
			}
			fmt.Fprintf(a.out, "      %-10s %s %s (%s)\n", word, u.Kind, ref, u.Where)
		}
		for _, u := range r.Unread {
			fmt.Fprintf(a.out, "      not read   %s\n", u)
		}
	}
}
