// Package releaser is the process that copies to destinations. It is started
// for one release, reads policy and keys, gives up every right but its own
// user's, judges once more, and only then opens the destination's credential.
package releaser

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/image"
	"assay.dev/assay/internal/confine"
	"assay.dev/assay/internal/gate"
	"assay.dev/assay/internal/gate/recording"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/internal/registry"
	"assay.dev/assay/policy"
	"assay.dev/assay/release"
)

// Order is what the releaser is handed on file descriptor 3.
type Order struct {
	Home     string `json:"home"`
	Root     bool   `json:"root"`
	Registry string `json:"registry"`
	// Image is repo@sha256:… as it was judged.
	Image       string   `json:"image"`
	Destination string   `json:"destination"`
	Tags        []string `json:"tags"`
	// Policy is a recording of the policy alone: whatever it was fetched from, nothing is
	// fetched here. PolicyRecording is its digest.
	Policy          string `json:"policy"`
	PolicyRecording string `json:"policyRecording"`
	// Trust is whom the gate believed, and for when.
	Trust gate.Trust `json:"trust"`
	// PolicyDigest and Verdicts are what the gate concluded.
	PolicyDigest string            `json:"policyDigest"`
	Verdicts     []*policy.Verdict `json:"verdicts"`
}

// Main carries out one order and prints what was released as JSON.
func Main(ctx context.Context, out io.Writer) error {
	var o Order
	if err := confine.Input(&o); err != nil {
		return err
	}
	h := &home.Home{Dir: o.Home, Root: o.Root}
	client := registry.NewClient(h.RegistrySocket(), o.Registry)
	defer client.Close()
	route := registry.Route(o.Registry, client.HTTPTransport(), http.DefaultTransport)
	g := &gate.Gate{Transport: route, Embedded: o.Registry, Context: policy.Context{Destination: o.Destination}}
	// What was judged by may lie where only the operator can read.
	if err := judgeBy(ctx, g, o); err != nil {
		return err
	}
	if o.Root {
		if err := become(int(home.UIDReleaser)); err != nil {
			return err
		}
	}
	j, err := g.Judge(ctx, o.Image)
	if err != nil {
		return err
	}
	if err := same(j, o); err != nil {
		return err
	}
	// The gate has spoken, twice: now the credential.
	keychain, err := credential(h)
	if err != nil {
		return err
	}
	transport := func(host string) http.RoundTripper {
		if host == o.Registry {
			return route
		}
		return nil
	}
	src, err := image.NewRemote(image.RemoteOptions{Transport: transport, Insecure: []string{o.Registry}})
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := image.NewRemote(image.RemoteOptions{Transport: transport, Insecure: []string{o.Registry}, Keychain: keychain})
	if err != nil {
		return err
	}
	defer dst.Close()
	done, err := release.Copy(ctx, src, dst, release.Order{Verdicts: o.Verdicts, Destination: o.Destination, Tags: o.Tags}, time.Now())
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(done)
}

// judgeBy gives the gate the order's policy and trust.
func judgeBy(ctx context.Context, g *gate.Gate, o Order) error {
	rec, err := recording.Open(o.Policy, o.PolicyRecording)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "assay-releaser-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	set, err := g.Functions()
	if err != nil {
		return err
	}
	if g.Policy, err = rec.Policy(ctx, dir, policy.Options{Builtins: set}); err != nil {
		return err
	}
	if g.Policy.Digest() != o.PolicyDigest {
		return fmt.Errorf("the policy changed since the image was judged: %s, now %s; judge it again", o.PolicyDigest, g.Policy.Digest())
	}
	return o.Trust.Apply(g)
}

// same holds the gate's verdicts against our own judgement.
func same(j *gate.Judgement, o Order) error {
	if !j.Passed() {
		return errors.New("the image does not pass when judged again just before the copy")
	}
	if len(j.Rejected) > 0 {
		r := j.Rejected[0]
		return fmt.Errorf("evidence that does not verify hangs on the image (%s %s: %s); it would be released with it", r.Format, r.Digest, r.Reason)
	}
	if len(j.Entries) != len(o.Verdicts) {
		return fmt.Errorf("%d images were judged, now there are %d", len(o.Verdicts), len(j.Entries))
	}
	for i, e := range j.Entries {
		if e.Verdict.Image != o.Verdicts[i].Image {
			return fmt.Errorf("%s was judged, now it is %s", o.Verdicts[i].Image, e.Verdict.Image)
		}
	}
	return nil
}

// become gives up root for good.
func become(uid int) error {
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("giving up groups: %w", err)
	}
	if err := syscall.Setgid(uid); err != nil {
		return fmt.Errorf("giving up the group: %w", err)
	}
	if err := syscall.Setuid(uid); err != nil {
		return fmt.Errorf("giving up the user: %w", err)
	}
	return nil
}

// credential reads the destination's docker configuration, which only the
// releaser's user can; without one there are no credentials (the embedded
// registry knows the releaser by its user).
func credential(h *home.Home) (authn.Keychain, error) {
	dir := h.Path("releaser")
	if _, err := os.Stat(h.Path("releaser", "config.json")); errors.Is(err, fs.ErrNotExist) {
		return none{}, nil
	} else if err != nil {
		return nil, fmt.Errorf("opening the destination's credential: %w", err)
	}
	if err := os.Setenv("DOCKER_CONFIG", dir); err != nil {
		return nil, err
	}
	return authn.DefaultKeychain, nil
}

type none struct{}

func (none) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

// Repository checks a destination and splits off its tag.
func Repository(ref string) (repo, tag string, err error) {
	if t, err := name.NewTag(ref, name.StrictValidation); err == nil {
		return t.Context().Name(), t.TagStr(), nil
	}
	r, err := name.NewRepository(ref)
	if err != nil {
		return "", "", fmt.Errorf("the destination %q: %w", ref, err)
	}
	return r.Name(), "", nil
}
