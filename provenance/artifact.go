package provenance

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"

	"assay.dev/assay/hint"
)

// digestSet is an in-toto DigestSet, ordered by algorithm.
type digestSet struct {
	all []hint.Digest
}

func oneDigest(d hint.Digest) *digestSet { return &digestSet{all: []hint.Digest{d}} }

func (s *digestSet) set(alg, hex string) {
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

// key identifies the set: lengths keep apart what would otherwise run together.
func (s *digestSet) key() string {
	var b []byte
	for _, d := range s.all {
		b = strconv.AppendInt(b, int64(len(d.Algorithm)), 10)
		b = append(append(b, ':'), d.Algorithm...)
		b = strconv.AppendInt(b, int64(len(d.Hex)), 10)
		b = append(append(b, ':'), d.Hex...)
	}
	return string(b)
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
	list   []artifact
	byName map[string][]int
}

func (a *artifacts) add(name string, digest *digestSet) {
	for _, i := range a.byName[name] {
		if first := a.list[i].digest; first.agrees(digest) {
			for _, d := range digest.all {
				first.set(d.Algorithm, d.Hex)
			}
			return
		}
	}
	if a.byName == nil {
		a.byName = make(map[string][]int)
	}
	a.byName[name] = append(a.byName[name], len(a.list))
	a.list = append(a.list, artifact{name, digest})
}

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

// stepImages and sidecarImages are what a TaskRun's containers ran.
func stepImages(tr *v1.TaskRun) ([]artifact, error) {
	var out artifacts
	for i := range tr.Status.Steps {
		if err := addImageID(&out, tr.Status.Steps[i].ImageID); err != nil {
			return nil, fmt.Errorf("step %s of TaskRun %s: %w", tr.Status.Steps[i].Name, tr.Name, err)
		}
	}
	return out.list, nil
}

func sidecarImages(tr *v1.TaskRun) ([]artifact, error) {
	var out artifacts
	for i := range tr.Status.Sidecars {
		if err := addImageID(&out, tr.Status.Sidecars[i].ImageID); err != nil {
			return nil, fmt.Errorf("sidecar %s of TaskRun %s: %w", tr.Status.Sidecars[i].Name, tr.Name, err)
		}
	}
	return out.list, nil
}

// pullable is what container runtimes of old put before an image id.
const pullable = "docker-pullable://"

// addImageID adds <repository>[:tag]@<algorithm>:<hex> as oci://….
func addImageID(to *artifacts, id string) error {
	uri, digest, found := strings.Cut(id, "@")
	if !found || strings.Contains(digest, "@") {
		return imageIDError(id)
	}
	alg, hex, found := strings.Cut(digest, ":")
	if !found || strings.Contains(hex, ":") {
		return imageIDError(id)
	}
	to.add("oci://"+strings.TrimPrefix(uri, pullable), oneDigest(hint.Digest{Algorithm: alg, Hex: hex}))
	return nil
}

func imageIDError(id string) error {
	if id == "" {
		return errors.New("image id is empty: the container never started, so nobody knows what it would have run")
	}
	return fmt.Errorf("image id %.200q has not the form repository@algorithm:hex", id)
}
