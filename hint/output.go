package hint

import (
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
)

// pair is two results that only differ in their suffix.
type pair struct {
	prefix              string
	uri, digest         string
	uriName, digestName string
}

// pairs finds results that end in one of two suffixes and puts those of the
// same prefix together, in the order in which prefixes first appear. Only
// strings that are not blank count; a later result overwrites an earlier one.
// Halves are reported and left out.
func (r *reader) pairs(results []result, uriSuffix, digestSuffix string) []pair {
	var all []pair
	var index map[string]int
	for _, res := range results {
		suffix := uriSuffix
		if !strings.HasSuffix(res.name, suffix) {
			suffix = digestSuffix
			if !strings.HasSuffix(res.name, suffix) {
				continue
			}
		}
		value := strings.TrimSpace(res.value.StringVal)
		if value == "" {
			r.malformed(res.name, notText(res.value), "write it as a string that is not blank")
			continue
		}
		prefix := strings.TrimSuffix(res.name, suffix)
		i, ok := index[prefix]
		if !ok {
			if index == nil {
				index = make(map[string]int)
			}
			i = len(all)
			index[prefix] = i
			all = append(all, pair{prefix: prefix})
		}
		p := &all[i]
		val, from := &p.uri, &p.uriName
		if suffix == digestSuffix {
			val, from = &p.digest, &p.digestName
		}
		if *from != "" {
			r.misread(res.name, "is there twice; only the last one counts", "declare each result once")
		}
		*val, *from = value, res.name
	}
	whole := all[:0]
	for _, p := range all {
		switch {
		case p.digest == "":
			r.malformed(p.uriName, "has no "+p.prefix+digestSuffix+" beside it", "write "+p.prefix+digestSuffix+" too, in the same task or step")
		case p.uri == "":
			r.malformed(p.digestName, "has no "+p.prefix+uriSuffix+" beside it", "write "+p.prefix+uriSuffix+" too, in the same task or step")
		default:
			whole = append(whole, p)
		}
	}
	return whole
}

// notText says what stands where a string that is not blank is wanted.
func notText(v *v1.ParamValue) string {
	switch v.Type {
	case v1.ParamTypeArray:
		return "is an array, where a string is wanted"
	case v1.ParamTypeObject:
		return "is an object, where a string is wanted"
	}
	return "is empty"
}

// image is the claim that ref, <repository>[:tag]@sha256:…, is an image.
func (r *reader) image(ref string) (Claim, error) {
	d, err := name.NewDigest(ref)
	if err != nil {
		return Claim{}, err
	}
	// The library takes other algorithms too; Chains writes sha256 only.
	hex, ok := strings.CutPrefix(d.DigestStr(), "sha256:")
	if !ok {
		return Claim{}, fmt.Errorf("digest %s is not sha256", d.DigestStr())
	}
	// Nor does it take repositories of one character, which newer versions of
	// the library allow. "library/" does not count where the library put it.
	repo := d.RepositoryStr()
	if rest, ok := strings.CutPrefix(repo, "library/"); ok && !strings.Contains(ref, "library/") {
		repo = rest
	}
	if len(repo) < 2 {
		return Claim{}, fmt.Errorf("repository %q is shorter than 2 characters", repo)
	}
	return Claim{
		Where: r.w, Kind: Image, Role: Output,
		URI:    d.Repository.Name(),
		Digest: Digest{"sha256", hex},
	}, nil
}

func (r *reader) imagePairs(results []result) {
	for _, p := range r.pairs(results, SuffixImageURL, SuffixImageDig) {
		c, err := r.image(p.uri + "@" + p.digest)
		if err != nil {
			r.malformed(p.uriName, "is with "+p.digestName+" no image reference: "+err.Error(),
				"write registry/repository[:tag] into "+p.uriName+" and sha256:<64 lower-case hex characters> into "+p.digestName)
			continue
		}
		c.Field = strings.TrimSuffix(p.uriName, "_URL")
		c.Results = []string{p.uriName, p.digestName}
		r.h.Images = append(r.h.Images, c)
	}
}

func (r *reader) imageLists(results []result) {
	for _, res := range results {
		if res.name != Images {
			continue
		}
		if res.value.StringVal == "" {
			r.malformed(res.name, notText(res.value), "write references between commas into one string")
		}
		for ref := range strings.FieldsFuncSeq(res.value.StringVal, func(c rune) bool { return c == ',' || c == '\n' }) {
			ref = strings.TrimSpace(ref)
			if ref == "" {
				continue
			}
			c, err := r.image(ref)
			if err != nil {
				r.malformed(res.name, "has an item that is no image reference: "+err.Error(),
					"write registry/repository@sha256:<64 lower-case hex characters>, with a comma or a line's end between two")
				continue
			}
			c.Field, c.Results = Images, []string{Images}
			r.h.Images = append(r.h.Images, c)
		}
	}
}

func (r *reader) artifactPairs(results []result) {
	for _, p := range r.pairs(results, SuffixURI, SuffixURIDigest) {
		if _, err := ParseDigest(p.digest); err != nil {
			r.malformed(p.digestName, err.Error(), "write algorithm:hex, such as sha256:<64 lower-case hex characters>")
			continue
		}
		r.h.Artifacts = append(r.h.Artifacts, Claim{
			Where: r.w, Kind: Artifact, Role: Output,
			Field:   strings.TrimSuffix(p.uriName, "_URI"),
			Results: []string{p.uriName, p.digestName},
			URI:     p.uri, Digest: rawDigest(p.digest),
		})
	}
}

// objects reads *ARTIFACT_INPUTS and *ARTIFACT_OUTPUTS.
func (r *reader) objects(results []result) {
	for _, res := range results {
		in := strings.HasSuffix(res.name, SuffixInputs)
		if !in && !strings.HasSuffix(res.name, SuffixOutputs) {
			continue
		}
		object := res.value.ObjectVal
		if object == nil {
			r.malformed(res.name, "is no object with uri and digest",
				"declare the result with type: object and the properties uri and digest, and write it as a JSON object")
			continue
		}
		uri, digest := object["uri"], object["digest"]
		if uri == "" || digest == "" {
			r.malformed(res.name, "lacks uri or digest", "give both; neither may be empty")
			continue
		}
		parsed, err := ParseDigest(digest)
		if err != nil {
			r.malformed(res.name, err.Error(), "write the digest as algorithm:hex, such as sha256:<64 lower-case hex characters>")
			continue
		}
		c := Claim{Where: r.w, Kind: Object, Field: res.name, Results: []string{res.name}, URI: uri}
		if in {
			c.Role, c.Digest = Input, parsed
			r.h.Inputs = append(r.h.Inputs, c)
			continue
		}
		c.Role, c.Digest, c.Build = Output, rawDigest(digest), object["isBuildArtifact"] == "true"
		r.h.Outputs = append(r.h.Outputs, c)
		if !c.Build {
			continue
		}
		// Many build artifacts are no images; that alone is no fault.
		if img, err := r.image(uri + "@" + digest); err == nil {
			img.Field, img.Results, img.Build = c.Field, c.Results, true
			r.h.Images = append(r.h.Images, img)
		}
	}
}

// IsByproduct says whether statements of v2alpha4 list a result among their
// byproducts: everything that is no image hint and no build artifact. A result
// that claims to be a build artifact and is malformed is neither; upstream
// lists it nowhere.
func IsByproduct(name string, object map[string]string) bool {
	if strings.HasSuffix(name, SuffixOutputs) {
		return object != nil && object["isBuildArtifact"] != "true"
	}
	return name != Images && !strings.HasSuffix(name, SuffixImageURL) && !strings.HasSuffix(name, SuffixImageDig)
}
