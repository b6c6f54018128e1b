package executor

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"assay.dev/assay/api"
	"assay.dev/assay/internal/registry"
	"assay.dev/assay/observe"
	"assay.dev/assay/observe/measure"
	"assay.dev/assay/observe/tree"
	"assay.dev/assay/plan"
)

// Bounds on what goes between tasks.
const (
	maxArtifact = 16 << 30 // bytes of a packed artifact
	maxCommit   = 1 << 20  // bytes of a commit object
)

var artifactURI = regexp.MustCompile(`^oci:([^@\s]+)@(sha256:[a-f0-9]{64})$`)

// unpackInputs puts each declared artifact into its folder; the whole blob's
// digest is checked before anything of it is extracted.
func (a *attempt) unpackInputs(ctx context.Context) error {
	for _, in := range a.t.Inputs {
		if in.URI == "" {
			continue
		}
		tree, err := a.unpackInput(ctx, in)
		if err != nil {
			return fmt.Errorf("unpacking input %s: %w", in.Param, err)
		}
		a.started.Inputs = append(a.started.Inputs, *tree)
	}
	return nil
}

func (a *attempt) unpackInput(ctx context.Context, in plan.Input) (*observe.Tree, error) {
	m := artifactURI.FindStringSubmatch(in.URI)
	if m == nil {
		return nil, fmt.Errorf("%q is no artifact: want oci:<repository>@sha256:<digest>", in.URI)
	}
	volume, sub, err := a.locate(in.Path)
	if err != nil {
		return nil, err
	}
	if err := a.mkdir(volume, sub); err != nil {
		return nil, err
	}
	blob, err := a.e.remote.Blob(ctx, m[1]+"@"+m[2], maxArtifact)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	sum, err := measure.Unpack(ctx, blob, m[2], filepath.Join(a.space.Dir(volume), sub), measure.UnpackOptions{
		Owner: &measure.Owner{UID: a.e.cfg.IDBase, GID: a.e.cfg.IDBase}, TempDir: a.e.cfg.Scratch, BlobBytes: maxArtifact, OutsideLinks: true,
	})
	if err != nil {
		return nil, err
	}
	return &observe.Tree{Name: in.Param, Kind: string(plan.OutputArtifact), Path: in.Path, URI: in.URI, Digest: sum.Digest, Files: sum.Files, Bytes: sum.Bytes}, nil
}

// export measures and pushes the declared outputs. Nothing of the task lives
// any more, so what is measured is what is pushed.
func (a *attempt) export(ctx context.Context) error {
	if len(a.t.Outputs) == 0 {
		return nil
	}
	e := a.e
	token, err := e.cfg.Tokens.Mint(ctx, registry.TokenRequest{Run: e.cfg.Run, Task: a.t.Name, Attempt: a.t.Attempt, Kind: registry.KindExport})
	if err != nil {
		return fmt.Errorf("getting a token to export: %w", err)
	}
	remote, err := e.authorized(token)
	if err != nil {
		return err
	}
	defer remote.Close()
	repo := e.cfg.RegistryName + "/" + api.StagingPrefix + e.cfg.Run
	var errs []error
	for _, o := range a.t.Outputs {
		tree, values, err := a.exportOne(ctx, remote, repo, o)
		if err != nil {
			errs = append(errs, fmt.Errorf("exporting %s: %w", o.Name, err))
			break
		}
		a.outputs = append(a.outputs, *tree)
		for _, v := range values {
			a.setResult(v)
		}
	}
	rctx, cancel := detached(ctx)
	defer cancel()
	if err := e.cfg.Tokens.Revoke(rctx, token); err != nil {
		errs = append(errs, fmt.Errorf("revoking the export's token: %w", err))
	}
	return errors.Join(errs...)
}

// setResult overrides what a step may have written under the same name: the
// digest comes from the export, not from the step.
func (a *attempt) setResult(v observe.Value) {
	for i := range a.results {
		if a.results[i].Name == v.Name {
			a.results[i] = v
			return
		}
	}
	a.results = append(a.results, v)
}

func (a *attempt) exportOne(ctx context.Context, remote remote, repo string, o plan.Output) (*observe.Tree, []observe.Value, error) {
	volume, sub, err := a.locate(o.Path)
	if err != nil {
		return nil, nil, err
	}
	t := &observe.Tree{Name: o.Name, Kind: string(o.Kind), Path: o.Path}
	switch o.Kind {
	case plan.OutputCommit:
		b, err := measure.ReadBounded(a.space.Dir(volume), sub, maxCommit)
		if err != nil {
			return nil, nil, err
		}
		h := sha1.New()
		fmt.Fprintf(h, "commit %d\x00", len(b))
		h.Write(b)
		t.Commit, t.CommitID = b, hex.EncodeToString(h.Sum(nil))
		return t, []observe.Value{{Name: o.Name, Value: t.CommitID}}, nil
	case plan.OutputArtifact, plan.OutputSource:
		dir, err := a.output(volume, sub)
		if err != nil {
			return nil, nil, err
		}
		defer dir.Close()
		uri, err := a.exportArtifact(ctx, remote, repo, dir, o.Kind == plan.OutputSource, t)
		if err != nil {
			return nil, nil, err
		}
		t.URI = uri
		return t, []observe.Value{{Name: o.Name, Value: uri}}, nil
	case plan.OutputImage:
		dir, err := a.output(volume, sub)
		if err != nil {
			return nil, nil, err
		}
		defer dir.Close()
		digests, err := remote.PushLayoutDir(ctx, dir, repo)
		if err != nil {
			return nil, nil, err
		}
		t.Manifests = digests
		t.URI = repo + "@" + digests[0]
		return t, []observe.Value{
			{Name: o.Name + "_URL", Value: repo},
			{Name: o.Name + "_DIGEST", Value: digests[0]},
			{Name: o.Name + "_REF", Value: t.URI},
		}, nil
	}
	return nil, nil, fmt.Errorf("unknown kind of output %q", o.Kind)
}

// output opens a folder that a task left. Every element of its path below the
// volume was the task's to make, so none may be a link.
func (a *attempt) output(volume, sub string) (*os.File, error) {
	root, err := tree.OpenDir(a.space.Dir(volume))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return tree.OpenBeneath(root, sub, unix.O_DIRECTORY|unix.O_RDONLY)
}

// exportArtifact packs a folder in the same pass that measures it, and pushes
// the blob with a manifest that keeps it from being collected.
func (a *attempt) exportArtifact(ctx context.Context, remote remote, repo string, dir *os.File, git bool, t *observe.Tree) (string, error) {
	f, err := os.CreateTemp(a.e.cfg.Scratch, "output-*")
	if err != nil {
		return "", fmt.Errorf("spooling: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	p, err := measure.PackDir(ctx, dir, f, measure.PackOptions{GitTree: git, OutsideLinks: true})
	if err != nil {
		return "", err
	}
	t.Digest, t.GitTree, t.Files, t.Bytes = p.Sum.Digest, p.Sum.GitTree, p.Sum.Files, p.Sum.Bytes
	open := func() (io.ReadCloser, error) { return os.Open(f.Name()) }
	if err := remote.PushBlob(ctx, repo, p.BlobDigest, p.Size, open); err != nil {
		return "", err
	}
	empty := []byte("{}")
	emptyDigest := digest(empty)
	if err := remote.PushBlob(ctx, repo, emptyDigest, int64(len(empty)), func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("{}")), nil
	}); err != nil {
		return "", err
	}
	type descriptor struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int64  `json:"size"`
	}
	manifest, err := json.Marshal(struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		ArtifactType  string       `json:"artifactType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}{2, string(types.OCIManifestSchema1), api.MediaTypeArtifact,
		descriptor{"application/vnd.oci.empty.v1+json", emptyDigest, int64(len(empty))},
		[]descriptor{{api.MediaTypeArtifact, p.BlobDigest, p.Size}}})
	if err != nil {
		return "", err
	}
	if _, err := remote.PushManifest(ctx, repo+"@"+digest(manifest), types.OCIManifestSchema1, manifest); err != nil {
		return "", err
	}
	return "oci:" + repo + "@" + p.BlobDigest, nil
}

// source asks the repository that the task says it cloned whether it knows the
// commit: over our own connection, under the same rules as a task's.
func (a *attempt) source(ctx context.Context) error {
	var url, commit string
	for _, r := range a.results {
		switch r.Name {
		case "CHAINS-GIT_URL":
			url = strings.TrimSpace(r.Value)
		case "CHAINS-GIT_COMMIT":
			commit = strings.TrimSpace(r.Value)
		}
	}
	if url == "" || commit == "" {
		return nil
	}
	body := observe.SourceRefBody{Attempt: a.id, Repository: url, CommitID: commit}
	ref, found, err := measure.FindCommit(ctx, &http.Client{Transport: a.e.outside()}, url, commit)
	switch {
	case err != nil:
		body.Reason = err.Error()
	case !found:
		body.Reason = "no ref of the repository points at this commit"
	default:
		body.Found, body.Ref = true, ref
	}
	return a.e.fact(observe.SourceSeen, body)
}
