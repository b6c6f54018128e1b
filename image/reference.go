package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Platform is what an image is made for. The zero value means this machine's.
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

// HostPlatform is this machine's platform.
func HostPlatform() Platform {
	return Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
}

// ParsePlatform reads os/arch or os/arch/variant. An empty string is the zero
// Platform; anything else is an error.
func ParsePlatform(s string) (Platform, error) {
	if s == "" {
		return Platform{}, nil
	}
	p := strings.Split(s, "/")
	if len(p) < 2 || len(p) > 3 || p[0] == "" || p[1] == "" || p[len(p)-1] == "" {
		return Platform{}, fmt.Errorf("parsing platform %q: want os/arch or os/arch/variant, such as linux/amd64 or linux/arm/v7", s)
	}
	out := Platform{OS: p[0], Architecture: p[1]}
	if len(p) == 3 {
		out.Variant = p[2]
	}
	return out, nil
}

// String is os/arch or os/arch/variant.
func (p Platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// orHost replaces the zero value.
func (p Platform) orHost() Platform {
	if p == (Platform{}) {
		return HostPlatform()
	}
	return p
}

// rank says how well an image made for q runs on p: 0 not at all, higher is
// better. A variant is a level of a processor family, and a processor runs
// what is made for lower levels: v7 runs v6. A platform without a variant means
// the level that all of that architecture have, for arm the common v7.
func (p Platform) rank(q Platform) int {
	if p.OS != q.OS || p.Architecture != q.Architecture {
		return 0
	}
	have, ok1 := level(p.Architecture, p.Variant)
	want, ok2 := level(q.Architecture, q.Variant)
	if !ok1 || !ok2 {
		if p.Variant == q.Variant {
			return 1
		}
		return 0
	}
	if want > have {
		return 0
	}
	return 1 + want
}

// level is the number of a variant; false for one that is not a number.
func level(arch, variant string) (int, bool) {
	if variant == "" {
		switch arch {
		case "arm":
			return 7, true
		case "arm64":
			return 8, true
		}
		return 1, true
	}
	if len(variant) == 2 && variant[0] == 'v' && variant[1] >= '1' && variant[1] <= '9' {
		return int(variant[1] - '0'), true
	}
	return 0, false
}

// choose picks the manifest for a platform from an index.
func (p Platform) choose(manifests []v1.Descriptor) (v1.Descriptor, error) {
	best, bestRank := v1.Descriptor{}, 0
	var have []string
	for _, m := range manifests {
		if m.Platform == nil || m.Platform.OS == "unknown" {
			continue // attestations of some builders hide in the index like this
		}
		q := Platform{m.Platform.OS, m.Platform.Architecture, m.Platform.Variant}
		have = append(have, q.String())
		if r := p.rank(q); r > bestRank {
			best, bestRank = m, r
		}
	}
	if bestRank > 0 {
		return best, nil
	}
	if len(have) == 0 {
		return best, bad("the index lists no image with a platform")
	}
	return best, &kinded{ErrNotFound, fmt.Errorf("no image for %s in the index, which has %s", p, strings.Join(have, ", "))}
}

var digestPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// checkDigest accepts sha256:… only.
func checkDigest(d string) error {
	if digestPattern.MatchString(d) {
		return nil
	}
	if len(d) > 80 {
		d = d[:80] + "…"
	}
	return bad("digest %q is not sha256: and 64 lower-case hexadecimal digits; others are not supported", d)
}

// hex is the second half of a digest that checkDigest accepted.
func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

// parse reads a reference. Hosts in insecure are spoken to in plain HTTP.
func (o *RemoteOptions) parse(ref string) (name.Reference, error) {
	var opts []name.Option
	if o.insecure(hostOf(ref)) {
		opts = append(opts, name.Insecure)
	}
	r, err := name.ParseReference(ref, opts...)
	if err != nil {
		return nil, &Error{Kind: ErrBadReference, Op: "reading reference", Ref: fmt.Sprintf("%q", ref), Err: err,
			Hint: "want registry/repository:tag or registry/repository@sha256:…"}
	}
	return r, nil
}

// parseRepo reads a repository, without tag or digest.
func (o *RemoteOptions) parseRepo(repo string) (name.Repository, error) {
	var opts []name.Option
	if o.insecure(hostOf(repo)) {
		opts = append(opts, name.Insecure)
	}
	r, err := name.NewRepository(repo, opts...)
	if err != nil {
		return name.Repository{}, &Error{Kind: ErrBadReference, Op: "reading repository", Ref: fmt.Sprintf("%q", repo), Err: err,
			Hint: "want registry/repository without tag or digest"}
	}
	return r, nil
}

// parseDigest reads a reference that must have a digest.
func (o *RemoteOptions) parseDigest(ref string) (name.Digest, error) {
	r, err := o.parse(ref)
	if err != nil {
		return name.Digest{}, err
	}
	d, ok := r.(name.Digest)
	if !ok {
		return name.Digest{}, &Error{Kind: ErrBadReference, Op: "reading reference", Ref: ref,
			Err: errors.New("it has no digest"), Hint: "want registry/repository@sha256:…"}
	}
	if err := checkDigest(d.DigestStr()); err != nil {
		return name.Digest{}, &Error{Kind: ErrBadReference, Op: "reading reference", Ref: ref, Err: err}
	}
	return d, nil
}

// hostOf is the registry of a reference, by which mirrors, transports and
// messages name it.
func hostOf(ref string) string {
	host, _, ok := strings.Cut(ref, "/")
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return "docker.io"
	}
	if host == name.DefaultRegistry || host == "registry-1.docker.io" {
		return "docker.io"
	}
	return host
}

// candidates are the references to try in order: each mirror, then the origin.
// A mirror is a host, or a host and a prefix for all its repositories.
func (o *RemoteOptions) candidates(ref name.Reference) ([]name.Reference, error) {
	var out []name.Reference
	repo := ref.Context()
	for _, m := range o.Mirrors[hostOf(repo.Name())] {
		s := strings.TrimSuffix(m, "/") + "/" + repo.RepositoryStr()
		if d, ok := ref.(name.Digest); ok {
			s += "@" + d.DigestStr()
		} else {
			s += ":" + ref.Identifier()
		}
		r, err := o.parse(s)
		if err != nil {
			return nil, fmt.Errorf("using mirror %q of %s: %w", m, hostOf(repo.Name()), err)
		}
		out = append(out, r)
	}
	return append(out, ref), nil
}

func isPathError(err error) bool {
	var p *fs.PathError
	var l *os.LinkError
	return errors.As(err, &p) || errors.As(err, &l)
}
