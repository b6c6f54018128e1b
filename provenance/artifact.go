package provenance

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"

	"assay.dev/assay/hint"
)

// digestSet is an in-toto DigestSet, ordered by algorithm.
type digestSet struct {
	all []hint.Digest
	one [1]hint.Digest // room for the set of one, which nearly all are
}

func oneDigest(d hint.Digest) *digestSet {
	s := &digestSet{one: [1]hint.Digest{d}}
	s.all = s.one[:]
	return s
}

func (s *digestSet) set(alg, hex string) {
	if len(s.all) == 0 {
		s.one[0] = hint.Digest{Algorithm: alg, Hex: hex}
		s.all = s.one[:]
		return
	}
	i, found := slices.BinarySearchFunc(s.all, alg, func(d hint.Digest, alg string) int { return cmp.Compare(d.Algorithm, alg) })
	if found {
		s.all[i].Hex = hex
		return
	}
	s.all = slices.Insert(s.all, i, hint.Digest{Algorithm: alg, Hex: hex})
}

// get returns "" for an algorithm that is not there.
func (s *digestSet) get(alg string) string {
	for _, d := range s.all {
		if d.Algorithm == alg {
			return d.Hex
		}
	}
	return ""
}

// agrees says whether some digest of s is in other as well.
func (s *digestSet) agrees(other *digestSet) bool {
	for _, d := range s.all {
		if other.get(d.Algorithm) == d.Hex {
			return true
		}
	}
	return false
}

// agreesWith is agrees for a set of one.
func (s *digestSet) agreesWith(d hint.Digest) bool {
	for _, own := range s.all {
		if own.Algorithm == d.Algorithm && own.Hex == d.Hex || own.Algorithm != d.Algorithm && own.Hex == "" {
			return true
		}
	}
	return false
}

// equal says whether both hold the same; nil is the empty set.
func (s *digestSet) equal(other *digestSet) bool {
	var a, b []hint.Digest
	if s != nil {
		a = s.all
	}
	if other != nil {
		b = other.all
	}
	return slices.Equal(a, b)
}

// artifact is a subject or a material.
type artifact struct {
	name   string
	digest *digestSet
}

// artifacts is a list in which two entries of one name that agree in a digest
// are one: the later one's digests go into the first. A set that came from a
// source stays shared with it, so what is merged into a definition's material
// shows in its configSource too, as it does upstream.
type artifacts struct {
	list  []artifact
	index chains
}

// addOne is add for a single digest, and copies nothing of what is there already.
func (a *artifacts) addOne(name []byte, d hint.Digest) {
	for i := a.index.first(name); i >= 0; i = a.index.next(i) {
		if first := a.list[i].digest; first.agreesWith(d) {
			first.set(d.Algorithm, d.Hex)
			return
		}
	}
	a.append(string(name), oneDigest(d))
}

func (a *artifacts) add(name string, digest *digestSet) {
	for i := a.index.firstOf(name); i >= 0; i = a.index.next(i) {
		if first := a.list[i].digest; first.agrees(digest) {
			for _, d := range digest.all {
				first.set(d.Algorithm, d.Hex)
			}
			return
		}
	}
	a.append(name, digest)
}

func (a *artifacts) append(name string, digest *digestSet) {
	a.index.add(name)
	a.list = append(a.list, artifact{name, digest})
}

// chains finds the entries of a list that share a key, in order, with a number
// for each entry and not a slice for each key.
type chains struct {
	ends  map[string]ends
	links []int32 // per entry: the next one of its key, or -1
}

// ends are the first and last entry of a key.
type ends struct{ first, last int32 }

// add appends an entry.
func (c *chains) add(key string) {
	if c.ends == nil {
		c.ends = make(map[string]ends)
	}
	i := int32(len(c.links)) //nolint:gosec // lists are bounded by MaxObject
	c.links = append(c.links, -1)
	e, ok := c.ends[key]
	if ok {
		c.links[e.last] = i
	} else {
		e.first = i
	}
	e.last = i
	c.ends[key] = e
}

// firstOf is the first entry of a key, or -1; first is the same without a copy
// of the key.
func (c *chains) firstOf(key string) int32 {
	if e, ok := c.ends[key]; ok {
		return e.first
	}
	return -1
}

func (c *chains) first(key []byte) int32 {
	if e, ok := c.ends[string(key)]; ok {
		return e.first
	}
	return -1
}

func (c *chains) next(i int32) int32 { return c.links[i] }

// subjects adds the claims that Options.Keep lets through.
func (s *statement) subjects(to *artifacts, claims []hint.Claim) {
	for _, c := range claims {
		if s.opts.Keep != nil && !s.opts.Keep(Subject{Name: c.URI, Digest: c.Digest, Claim: c}) {
			continue
		}
		to.add(c.URI, oneDigest(c.Digest))
	}
}

// inputs adds the claims that Options.KeepInput lets through.
func (s *statement) inputs(to *artifacts, claims []hint.Claim) {
	for _, c := range claims {
		if s.opts.KeepInput == nil || s.opts.KeepInput(c) {
			to.add(c.URI, oneDigest(c.Digest))
		}
	}
}

// left is the last word on subjects.
func (s *statement) left(subjects artifacts) ([]artifact, error) {
	if s.opts.Keep != nil && len(subjects.list) == 0 {
		return nil, ErrNoSubjects
	}
	return subjects.list, nil
}

// allOutputs are the subjects of v0.2 and v2alpha3: whatever a run says it
// made. With deep inspection a PipelineRun's tasks come before itself.
func (s *statement) allOutputs() ([]artifact, error) {
	var out artifacts
	own := func(h *hint.Hints) {
		s.subjects(&out, h.Images)
		s.subjects(&out, h.Artifacts)
		s.subjects(&out, h.Outputs)
	}
	if s.cfg.DeepInspection {
		_ = s.run.executed(func(c *child) error { own(c.taskHints()); return nil })
	}
	own(&s.run.hints)
	return s.left(out)
}

// pullable is what container runtimes of old put before an image id.
const pullable = "docker-pullable://"

// containers calls add for what a TaskRun's steps ran, then for what its
// sidecars ran. The name is add's until it returns.
func containers(tr *v1.TaskRun, add func(name []byte, d hint.Digest)) error {
	var room [256]byte
	name := append(room[:0], "oci://"...)
	image := func(id string) error {
		repository, d, err := parseImageID(id)
		if err == nil {
			name = append(name[:len("oci://")], repository...)
			add(name, d)
		}
		return err
	}
	for i := range tr.Status.Steps {
		if err := image(tr.Status.Steps[i].ImageID); err != nil {
			return fmt.Errorf("step %s of TaskRun %s: %w", tr.Status.Steps[i].Name, tr.Name, err)
		}
	}
	for i := range tr.Status.Sidecars {
		if err := image(tr.Status.Sidecars[i].ImageID); err != nil {
			return fmt.Errorf("sidecar %s of TaskRun %s: %w", tr.Status.Sidecars[i].Name, tr.Name, err)
		}
	}
	return nil
}

// parseImageID reads <repository>[:tag]@<algorithm>:<hex>.
func parseImageID(id string) (repository string, d hint.Digest, err error) {
	repository, digest, found := strings.Cut(id, "@")
	if !found || strings.Contains(digest, "@") {
		return "", d, imageIDError(id)
	}
	alg, hex, found := strings.Cut(digest, ":")
	if !found || strings.Contains(hex, ":") {
		return "", d, imageIDError(id)
	}
	return strings.TrimPrefix(repository, pullable), hint.Digest{Algorithm: alg, Hex: hex}, nil
}

func imageIDError(id string) error {
	if id == "" {
		return errors.New("image id is empty: the container never started, so nobody knows what it would have run")
	}
	return fmt.Errorf("image id %.200q has not the form repository@algorithm:hex", id)
}
