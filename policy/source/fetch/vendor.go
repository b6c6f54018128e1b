package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"

	"assay.dev/assay/policy/source"
	"assay.dev/assay/policy/spec"
)

// Bounds of a chain of extends.
const (
	maxExtends  = 8
	maxPolicies = 32
)

// VendorOptions are how a policy is vendored. The zero value takes relative addresses
// from the folder of the configuration that has them.
type VendorOptions struct {
	// Base is the folder that relative addresses of a configuration on this machine
	// are relative to. Conforma takes the working folder.
	Base string
	// Resource reads a policy of a cluster, named k8s://[namespace/]name. Default:
	// none, and such names are refused.
	Resource func(ctx context.Context, name string) (json.RawMessage, error)
}

// Vendored is what was vendored.
type Vendored struct {
	Lock *Lock
	// Left are things that the policy needs and a folder cannot hold, such as a key in
	// a cluster, in words.
	Left []string
}

// Vendor writes everything that a policy needs into a folder:
//
//	policy.yaml        the configuration, with what it extends put into it and with
//	                   addresses in this folder
//	policy.lock.json   what each of these was, and its digest
//	sources/…          rules and data
//
// Whoever reads policy.yaml needs no network; whoever reads the lock as well
// (OpenVendored, ReadConfig) is sure that nothing has changed. The folder has to be
// empty, absent or vendored before; it is replaced as a whole or not at all.
//
// It fails on what f cannot fetch and on a configuration that does not hold.
func Vendor(ctx context.Context, f source.Fetcher, ref, dir string, o VendorOptions) (*Vendored, error) {
	v := &vendorer{from: source.Once(f), opts: o, lock: &Lock{Version: lockVersion, Policy: "policy.yaml", Sources: map[string]Locked{}}}
	s, err := v.flat(ctx, ref, "", nil)
	if err != nil {
		return nil, err
	}
	if err := s.Check(); err != nil {
		return nil, err
	}
	dir = filepath.Clean(dir)
	if err := replaceable(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("vendoring: %w", err)
	}
	aside, err := os.MkdirTemp(filepath.Dir(dir), ".vendor-")
	if err != nil {
		return nil, fmt.Errorf("vendoring: %w", err)
	}
	defer os.RemoveAll(aside)
	v.dir = filepath.Join(aside, "new")
	if err := v.write(ctx, s); err != nil {
		return nil, err
	}
	if err := os.Rename(dir, filepath.Join(aside, "old")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("vendoring: replacing %s: %w", dir, err)
	}
	if err := os.Rename(v.dir, dir); err != nil {
		return nil, errors.Join(fmt.Errorf("vendoring: %w", err), os.Rename(filepath.Join(aside, "old"), dir))
	}
	v.lock.dir = dir
	return &Vendored{Lock: v.lock, Left: v.left}, nil
}

// replaceable refuses a folder that holds anything that Vendor has not written.
func replaceable(dir string) error {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(list) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("vendoring: %w", err)
	}
	if ok, err := exists(filepath.Join(dir, LockName)); err != nil || !ok {
		return errors.Join(fmt.Errorf("vendoring: %s is not empty and was not written by this command; name another folder", dir), err)
	}
	for _, d := range list {
		if n := d.Name(); n != "policy.yaml" && n != LockName && n != "sources" {
			return fmt.Errorf("vendoring: %s has %s, which was not written by this command; move it away", dir, n)
		}
	}
	return nil
}

type vendorer struct {
	from source.Fetcher
	opts VendorOptions
	lock *Lock
	left []string
	dir  string
	seen int
}

// flat reads a policy with those it extends. Relative paths become absolute, since
// each configuration has its own folder.
func (v *vendorer) flat(ctx context.Context, ref, base string, within []string) (*spec.Spec, error) {
	if v.seen++; v.seen > maxPolicies || len(within) > maxExtends {
		return nil, fmt.Errorf("vendoring: too many policies extend each other: %s", strings.Join(within, " → "))
	}
	raw, base, local, err := v.read(ctx, ref, base)
	if err != nil {
		return nil, fmt.Errorf("vendoring: %w", err)
	}
	s := &spec.Spec{Name: filepath.Base(base), Sources: []spec.Source{{Policy: []string{"."}, Data: []string{"."}}}}
	if raw != nil {
		if s, err = spec.Parse(raw); err != nil {
			return nil, fmt.Errorf("vendoring %s: %w", called(ref), err)
		}
	}
	if local && v.opts.Base != "" {
		base = v.opts.Base
	}
	if base, err = filepath.Abs(base); err != nil {
		return nil, fmt.Errorf("vendoring: %w", err)
	}
	extends, err := v.absolute(s, base)
	if err != nil {
		return nil, fmt.Errorf("vendoring %s: %w", called(ref), err)
	}
	var under *spec.Spec
	for _, e := range extends {
		b, err := v.flat(ctx, e, base, append(within[:len(within):len(within)], called(ref)))
		if err != nil {
			return nil, err
		}
		if under == nil {
			under = b
			continue
		}
		under, _ = spec.Overlay(under, b)
	}
	if under == nil {
		return s, nil
	}
	s, _ = spec.Overlay(under, s)
	return s, nil
}

// called is a reference in messages.
func called(ref string) string {
	if inline(ref) {
		return "the inline policy"
	}
	return Redacted(ref)
}

func inline(ref string) bool {
	return strings.HasPrefix(strings.TrimSpace(ref), "{") || strings.Contains(ref, "\n")
}

// read returns a configuration, nil for a folder without one.
func (v *vendorer) read(ctx context.Context, ref, base string) (raw []byte, at string, local bool, err error) {
	if inline(ref) {
		return []byte(ref), base, true, nil
	}
	if n, ok := strings.CutPrefix(ref, "k8s://"); ok {
		if v.opts.Resource == nil {
			return nil, "", false, fmt.Errorf("%s: policies of clusters are not read here", ref)
		}
		raw, err := v.opts.Resource(ctx, n)
		return raw, base, true, err
	}
	kind, err := source.Local{Base: base}.Kind(ref)
	if err != nil {
		return nil, "", false, err
	}
	c, err := ReadConfig(ctx, v.from, base, ref)
	if err == nil {
		return c.Raw, c.Base, kind == source.File, nil
	}
	if kind == source.File {
		p, perr := source.Path(base, ref)
		if perr != nil {
			return nil, "", false, perr
		}
		// A folder of rules beside their data is a policy.
		if info, serr := os.Stat(p); serr == nil && info.IsDir() {
			if _, cerr := choose(p); cerr != nil {
				return nil, p, false, nil
			}
		}
	}
	return nil, "", false, err
}

// absolute makes the paths in a policy absolute, and returns what it extends. Keys that
// are files become their text.
func (v *vendorer) absolute(s *spec.Spec, base string) (extends []string, err error) {
	abs := func(address string) (string, error) {
		kind, err := source.Local{Base: base}.Kind(address)
		if err != nil || kind != source.File {
			return address, err
		}
		return source.Path(base, address)
	}
	all := func(list []string) ([]string, error) {
		if len(list) == 0 {
			return list, nil
		}
		out := make([]string, len(list))
		for i, a := range list {
			var err error
			if out[i], err = abs(a); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	for i := range s.Sources {
		if s.Sources[i].Policy, err = all(s.Sources[i].Policy); err != nil {
			return nil, err
		}
		if s.Sources[i].Data, err = all(s.Sources[i].Data); err != nil {
			return nil, err
		}
	}
	if s.PublicKey, err = v.key(base, s.PublicKey); err != nil {
		return nil, err
	}
	if s.Assay == nil {
		return nil, nil
	}
	a := *s.Assay
	s.Assay, extends, a.Extends = &a, a.Extends, nil
	if len(a.Checksums) > 0 {
		sums := map[string]string{}
		for address, d := range a.Checksums {
			if address, err = abs(address); err != nil {
				return nil, err
			}
			sums[address] = d
		}
		a.Checksums = sums
	}
	lists := []*[]spec.Signer{&a.SourceSigners}
	if a.Signers != nil {
		signers := *a.Signers
		a.Signers = &signers
		lists = append(lists, &signers.Image, &signers.Provenance, &signers.SBOM)
	}
	for _, l := range lists {
		*l = append([]spec.Signer(nil), *l...)
		for i := range *l {
			if (*l)[i].PublicKey, err = v.key(base, (*l)[i].PublicKey); err != nil {
				return nil, err
			}
		}
	}
	return extends, nil
}

// key is a key's text, where it is a file.
func (v *vendorer) key(base, key string) (string, error) {
	if key == "" || strings.Contains(key, "-----BEGIN") {
		return key, nil
	}
	if strings.Contains(key, "://") || strings.HasPrefix(key, "pkcs11:") {
		v.left = append(v.left, "the public key "+key)
		return key, nil
	}
	p, err := source.Path(base, key)
	if err != nil {
		return "", err
	}
	b, err := source.ReadFile(p, 1<<20)
	if err != nil {
		return "", fmt.Errorf("reading the public key: %w", err)
	}
	return string(b), nil
}

// write makes the folder.
func (v *vendorer) write(ctx context.Context, s *spec.Spec) error {
	if err := os.MkdirAll(filepath.Join(v.dir, "sources"), 0o755); err != nil {
		return fmt.Errorf("vendoring: %w", err)
	}
	sums := map[string]string(nil)
	if s.Assay != nil {
		sums = s.Assay.Checksums
	}
	at := map[string]string{} // new address by old
	take := func(list []string) ([]string, error) {
		out := make([]string, len(list))
		for i, a := range list {
			if at[a] == "" {
				t, err := v.from.Fetch(ctx, a)
				if err != nil {
					return nil, fmt.Errorf("vendoring: %w", err)
				}
				if err := CheckSum(sums, a, t); err != nil {
					return nil, fmt.Errorf("vendoring: %w", err)
				}
				if at[a], err = v.take(a, t); err != nil {
					return nil, fmt.Errorf("vendoring source %q: %w", Redacted(a), err)
				}
			}
			out[i] = at[a]
		}
		return out, nil
	}
	var err error
	for i := range s.Sources {
		if s.Sources[i].Policy, err = take(s.Sources[i].Policy); err != nil {
			return err
		}
		if s.Sources[i].Data, err = take(s.Sources[i].Data); err != nil {
			return err
		}
	}
	if sums != nil {
		s.Assay.Checksums = map[string]string{}
		for old, now := range at {
			s.Assay.Checksums[now] = sums[old]
		}
	}
	raw, err := yaml.Marshal(s)
	if err != nil {
		return fmt.Errorf("vendoring: encoding the configuration: %w", err)
	}
	if err := writeFile(filepath.Join(v.dir, v.lock.Policy), raw); err != nil {
		return fmt.Errorf("vendoring: %w", err)
	}
	if err := v.lock.Write(filepath.Join(v.dir, LockName)); err != nil {
		return fmt.Errorf("vendoring: %w", err)
	}
	return nil
}

// word is what is left of an address in a folder's name.
var word = regexp.MustCompile(`[A-Za-z0-9][A-Za-z0-9._-]*`)

// take writes one source, and returns its address in the folder.
func (v *vendorer) take(address string, t *source.Tree) (string, error) {
	files, err := t.Files(nil)
	if err != nil {
		return "", err
	}
	head, _, _ := strings.Cut(Redacted(address), "?")
	head, _, _ = strings.Cut(strings.TrimRight(head, "/"), "@")
	label := word.FindString(head[strings.LastIndexByte(head, '/')+1:])
	if label == "" {
		label = "source"
	}
	if len(label) > 40 {
		label = label[:40]
	}
	p := "sources/" + label + "-" + strings.TrimPrefix(t.Digest, "sha256:")[:12]
	folder := filepath.Join(v.dir, filepath.FromSlash(p))
	now := "./" + p
	if old, ok := v.lock.Sources[now]; ok {
		if old.Digest != t.Digest {
			return "", errors.New("two sources have one name")
		}
		return now, nil // the same by another address
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", err
	}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return "", err
	}
	to := &place{root: root, limits: Limits{}.withDefaults()}
	for _, f := range files {
		if err = to.file(f.Path, strings.NewReader(string(f.Bytes))); err != nil {
			break
		}
	}
	if err := errors.Join(err, root.Close()); err != nil {
		return "", err
	}
	v.lock.Sources[now] = Locked{Pinned: t.Pinned, Digest: t.Digest, Path: p}
	return now, nil
}

// OpenVendored makes a Fetcher of a folder that Vendor wrote. It reads nothing but the
// folder, and fails on what is not in the lock or not as the lock says.
func OpenVendored(dir string) (source.Fetcher, *Lock, error) {
	l, err := ReadLock(filepath.Join(dir, LockName))
	if err != nil {
		return nil, nil, fmt.Errorf("opening the vendored policy %s: %w", dir, err)
	}
	return source.Once(fetcherFunc(func(ctx context.Context, address string) (*source.Tree, error) {
		e, ok := l.Sources[address]
		if !ok || e.Path == "" {
			return nil, fmt.Errorf("source %q: it was not vendored; vendor the policy anew", Redacted(address))
		}
		return l.vendored(ctx, address, e)
	})), l, nil
}

// vendored reads a source that lies with the lock.
func (l *Lock) vendored(ctx context.Context, address string, e Locked) (*source.Tree, error) {
	t, err := source.Local{Base: l.dir}.Fetch(ctx, "./"+e.Path)
	if err != nil {
		return nil, err
	}
	if t.Digest != e.Digest {
		return nil, fmt.Errorf("source %q: it has the digest %s, and the lock says %s; somebody changed it: vendor the policy anew", address, t.Digest, e.Digest)
	}
	t.Address, t.Pinned = address, e.Pinned
	return t, nil
}

// Check reads everything that lies with a lock. It fails on the first that is not as
// the lock says.
func (l *Lock) Check(ctx context.Context) error {
	for address, e := range l.Sources {
		if e.Path == "" {
			continue
		}
		if _, err := l.vendored(ctx, address, e); err != nil {
			return err
		}
	}
	return nil
}
