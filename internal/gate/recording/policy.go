package recording

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"assay.dev/assay/policy"
	"assay.dev/assay/policy/source"
	"assay.dev/assay/policy/spec"
)

// Policy loads a policy as policy.Load does and keeps everything that it was loaded
// from. Opts.Sources must be given. It fails where Load does; and on an inline policy
// with files among its sources, whose paths would mean something else elsewhere.
func (r *Recorder) Policy(ctx context.Context, ref string, opts policy.Options) (*policy.Policy, error) {
	if opts.Sources == nil {
		return nil, errors.New("recording a policy: no fetcher of sources is given")
	}
	if kind, err := (source.Local{}).Kind(ref); err == nil && kind == source.File && !isInline(ref) && !strings.HasPrefix(ref, "k8s://") && !filepath.IsAbs(ref) {
		return nil, fmt.Errorf("recording a policy: %s is no absolute path", ref)
	}
	opts.Sources = source.Once(&recordingFetcher{r, opts.Sources})
	if read := opts.Resource; read != nil {
		opts.Resource = func(ctx context.Context, name string) (json.RawMessage, error) {
			b, err := read(ctx, name)
			if err == nil {
				err = r.keep(&r.policy.Resources, name, b)
			}
			return b, err
		}
	}
	if read := opts.PublicKey; read != nil {
		opts.PublicKey = func(ctx context.Context, address string) ([]byte, error) {
			b, err := read(ctx, address)
			if err == nil {
				err = r.keep(&r.policy.Keys, address, b)
			}
			return b, err
		}
	}
	p, err := policy.Load(ctx, ref, opts)
	if err != nil {
		return nil, err
	}
	if err := r.configuration(ref, "", 0); err != nil {
		return nil, fmt.Errorf("recording policy: %w", err)
	}
	for _, d := range opts.Data {
		b, err := source.ReadFile(d, source.MaxFileBytes)
		if err == nil {
			err = r.keep(&r.policy.Data, filepath.Base(d), b)
		}
		if err != nil {
			return nil, fmt.Errorf("recording policy: %w", err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.policy.Ref, r.policy.Digest, r.policy.RuleData = ref, p.Digest(), opts.RuleData
	return p, nil
}

func (r *Recorder) keep(to *[]content, name string, b []byte) error {
	d, err := r.put(b)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := content{name, d}
	if to == &r.policy.Data || !slices.Contains(*to, c) {
		*to = append(*to, c)
	}
	return nil
}

// maxExtends bounds how deep configurations extend each other; policy.Load has
// refused deeper ones.
const maxExtends = 16

// configNames are where a policy folder keeps its configuration.
var configNames = []string{"policy.yaml", "policy.yml", "policy.json"}

// configuration keeps the configuration files on this machine, and the key files that
// they name. Those that were fetched are in their trees.
func (r *Recorder) configuration(ref, base string, depth int) error {
	if depth > maxExtends {
		return errors.New("policies extend each other too deeply")
	}
	var raw []byte
	switch {
	case strings.HasPrefix(ref, "k8s://"):
		for _, c := range r.policy.Resources {
			if c.Name == strings.TrimPrefix(ref, "k8s://") {
				b, err := os.ReadFile(r.path(c.Digest))
				if err != nil {
					return err
				}
				raw = b
			}
		}
	case isInline(ref):
		raw = []byte(ref)
	default:
		kind, err := source.Local{Base: base}.Kind(ref)
		if err != nil || kind != source.File {
			return err // one that was fetched
		}
		path, err := source.Path(base, ref)
		if err != nil {
			return err
		}
		if info, err := os.Stat(path); err != nil {
			return err
		} else if info.IsDir() {
			base = path
			if path = found(path); path == "" {
				return nil
			}
		} else {
			base = filepath.Dir(path)
		}
		if raw, err = source.ReadFile(path, spec.MaxBytes); err != nil {
			return err
		}
		if err := r.keep(&r.policy.Files, path, raw); err != nil {
			return err
		}
	}
	s, err := spec.Parse(raw)
	if err != nil {
		return err
	}
	if base == "" {
		for _, src := range s.Sources {
			for _, a := range slices.Concat(src.Policy, src.Data) {
				if kind, err := (source.Local{}).Kind(a); err == nil && kind == source.File {
					return fmt.Errorf("the policy is text and names the file %q; save it to a file beside its sources and name that", a)
				}
			}
		}
	}
	return r.named(s, base, depth)
}

// isInline says whether a policy is given as its text, as policy.Load has it.
func isInline(ref string) bool {
	return strings.HasPrefix(strings.TrimSpace(ref), "{") || strings.Contains(ref, "\n")
}

func found(dir string) string {
	for _, name := range configNames {
		p := filepath.Join(dir, name)
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return ""
}

// named keeps the local keys of a configuration and the policies that it extends.
func (r *Recorder) named(s *spec.Spec, base string, depth int) error {
	keys := []string{s.PublicKey}
	if s.Assay != nil && s.Assay.Signers != nil {
		for _, list := range [][]spec.Signer{s.Assay.Signers.Image, s.Assay.Signers.Provenance, s.Assay.Signers.SBOM} {
			for _, k := range list {
				keys = append(keys, k.PublicKey)
			}
		}
	}
	for _, k := range keys {
		if k == "" || strings.Contains(k, "-----BEGIN") {
			continue
		}
		path, err := source.Path(base, k)
		if err != nil {
			return err
		}
		b, err := source.ReadFile(path, 1<<20)
		if err != nil {
			continue // at an address, and kept as such
		}
		if err := r.keep(&r.policy.Files, path, b); err != nil {
			return err
		}
	}
	if s.Assay == nil {
		return nil
	}
	for _, e := range s.Assay.Extends {
		if err := r.configuration(e, base, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// recordingFetcher keeps the sources that it is asked for.
type recordingFetcher struct {
	*Recorder
	from source.Fetcher
}

func (f *recordingFetcher) Fetch(ctx context.Context, address string) (*source.Tree, error) {
	t, err := f.from.Fetch(ctx, address)
	if err != nil {
		return nil, err
	}
	out := tree{Asked: address, Address: t.Address, Pinned: t.Pinned, Digest: t.Digest, Files: []content{}}
	info, err := os.Stat(t.Path)
	if err != nil {
		return nil, fmt.Errorf("recording source %q: %w", address, err)
	}
	out.File = !info.IsDir()
	if kind, err := (source.Local{}).Kind(address); err == nil && kind == source.File {
		out.Path = filepath.Clean(t.Path)
	}
	list, err := t.Files(nil)
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		d, err := f.put(c.Bytes)
		if err != nil {
			return nil, err
		}
		out.Files = append(out.Files, content{c.Path, d})
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.policy.Sources = append(f.policy.Sources, out)
	return t, nil
}

// Policy loads the recorded policy in a folder of its own, which the caller removes
// when it is done with the policy. Builtins and Limits of the options count, the rest
// is the recording's. It fails if the policy is not, to the last byte, the recorded one.
func (r *Recording) Policy(ctx context.Context, dir string, opts policy.Options) (*policy.Policy, error) {
	p, err := r.policy(ctx, dir, opts)
	if err != nil {
		return nil, fmt.Errorf("loading the recorded policy: %w", err)
	}
	if p.Digest() != r.doc.Policy.Digest {
		return nil, fmt.Errorf("loading the recorded policy: it has %s, and %s was recorded", p.Digest(), r.doc.Policy.Digest)
	}
	return p, nil
}

func (r *Recording) policy(ctx context.Context, dir string, opts policy.Options) (*policy.Policy, error) {
	rec := &r.doc.Policy
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	root := filepath.Join(dir, "files")
	f := &replayFetcher{root: root, trees: map[string]*source.Tree{}}
	for i, t := range rec.Sources {
		to := filepath.Join(dir, "fetched", fmt.Sprint(i))
		if t.Path != "" {
			if to, err = inside(root, t.Path); err != nil {
				return nil, err
			}
		}
		if !t.File {
			if err := os.MkdirAll(to, 0o700); err != nil {
				return nil, err
			}
		}
		for _, c := range t.Files {
			at := filepath.Join(to, filepath.FromSlash(c.Name))
			switch {
			case !filepath.IsLocal(filepath.FromSlash(c.Name)):
				return nil, fmt.Errorf("source %q has a file %q, which is outside", t.Asked, c.Name)
			case t.File && t.Path != "":
				at = to
			case t.File:
				to = at
			}
			if err := r.write(at, c.Digest); err != nil {
				return nil, err
			}
		}
		got, err := source.Open(to)
		if err != nil {
			return nil, err
		}
		if got.Digest != t.Digest {
			return nil, fmt.Errorf("source %q has %s, and %s was recorded", t.Asked, got.Digest, t.Digest)
		}
		got.Address, got.Pinned = t.Address, t.Pinned
		f.trees[t.Asked] = got
	}
	for _, c := range rec.Files {
		to, err := inside(root, c.Name)
		if err == nil {
			err = r.write(to, c.Digest)
		}
		if err != nil {
			return nil, err
		}
	}
	opts.Sources, opts.Data, opts.RuleData = f, nil, rec.RuleData
	for i, c := range rec.Data {
		if !filepath.IsLocal(c.Name) || filepath.Base(c.Name) != c.Name {
			return nil, fmt.Errorf("the data file %q is outside", c.Name)
		}
		to := filepath.Join(dir, "data", fmt.Sprint(i), c.Name)
		if err := r.write(to, c.Digest); err != nil {
			return nil, err
		}
		opts.Data = append(opts.Data, to)
	}
	opts.Resource = func(_ context.Context, name string) (json.RawMessage, error) { return r.named(rec.Resources, name) }
	opts.PublicKey = func(_ context.Context, name string) ([]byte, error) { return r.named(rec.Keys, name) }
	ref := rec.Ref
	if filepath.IsAbs(ref) {
		if ref, err = inside(root, ref); err != nil {
			return nil, err
		}
	}
	return policy.Load(ctx, ref, opts)
}

// inside is a recorded path below root. Only what was a clean absolute path was
// recorded.
func inside(root, path string) (string, error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return "", fmt.Errorf("the path %q is outside", path)
	}
	return filepath.Join(root, path), nil
}

func (r *Recording) write(to, digest string) error {
	b, err := r.blob(digest)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(to), 0o700)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}

func (r *Recording) named(list []content, name string) ([]byte, error) {
	for _, c := range list {
		if c.Name == name {
			return r.blob(c.Digest)
		}
	}
	return nil, fmt.Errorf("%s is not in the recording", name)
}

// replayFetcher answers for recorded sources alone.
type replayFetcher struct {
	root  string
	trees map[string]*source.Tree
}

func (f *replayFetcher) Fetch(_ context.Context, address string) (*source.Tree, error) {
	for _, a := range []string{address, strings.TrimPrefix(address, f.root)} {
		if t := f.trees[a]; t != nil {
			return t, nil
		}
	}
	return nil, fmt.Errorf("source %q is not in the recording", address)
}
