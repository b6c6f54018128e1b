// The registry of these tests is go-containerregistry's, in memory, on a loopback
// address.
package builtin_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"

	"assay.dev/assay/policy/builtin"
)

// ask evaluates an expression with the functions, in a module that the compiler
// checks as it does a policy's.
func ask(t *testing.T, s *builtin.Set, rec *builtin.Recorder, expr string) (any, error) {
	t.Helper()
	m, err := ast.ParseModuleWithOpts("t.rego", "package t\nanswer := x if x := "+expr+"\n", ast.ParserOptions{Capabilities: builtin.Capabilities()})
	if err != nil {
		return nil, err
	}
	c := ast.NewCompiler().WithCapabilities(builtin.Capabilities())
	if c.Compile(map[string]*ast.Module{"t": m}); c.Failed() {
		return nil, c.Errors
	}
	ctx := t.Context()
	if rec != nil {
		ctx = builtin.Record(ctx, rec)
	}
	rs, err := rego.New(append(s.Rego(), rego.Query("data.t.answer"), rego.Compiler(c))...).Eval(ctx)
	if err != nil {
		return nil, err
	}
	if len(rs) == 0 {
		return undefined, nil
	}
	return rs[0].Expressions[0].Value, nil
}

const undefined = "<undefined>"

func archive(t *testing.T, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zipped(b []byte) []byte {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	_, _ = w.Write(b)
	_ = w.Close()
	return z.Bytes()
}

// rig is a registry with an image, an index and blobs.
type rig struct {
	host, image, index  string
	json, tar, tgz, bad string // blobs
	digest              string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true)))
	t.Cleanup(srv.Close)
	r := &rig{host: strings.TrimPrefix(srv.URL, "http://")}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(archive(t, "manifests/a.yaml", "kind: A\n", "manifests/b.JSON", `{"kind":"B"}`, "manifests/c.txt", "text", "manifests/deep/d.yaml", "kind: D\n"))), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), layer)
	if err != nil {
		t.Fatal(err)
	}
	img = mutate.Annotations(img, map[string]string{"k": "v"}).(v1.Image)
	push := func(repo string, write func(name.Tag) error) {
		tag, err := name.NewTag(r.host + "/" + repo)
		if err == nil {
			err = write(tag)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	push("app:1", func(tag name.Tag) error { return remote.Write(tag, img) })
	h, _ := img.Digest()
	r.digest, r.image = h.String(), r.host+"/app@"+h.String()
	idx := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}})
	push("app:index", func(tag name.Tag) error { return remote.WriteIndex(tag, idx) })
	ih, _ := idx.Digest()
	r.index = r.host + "/app@" + ih.String()
	push("app:"+strings.Replace(r.digest, ":", "-", 1)+".sbom", func(tag name.Tag) error { return remote.Write(tag, empty.Image) })
	size, _ := img.Size()
	ref := mutate.Subject(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), "application/vnd.example"), v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: h, Size: size}).(v1.Image)
	push("app:ref", func(tag name.Tag) error { return remote.Write(tag, ref) })
	blob := func(b []byte) string {
		l := static.NewLayer(b, types.OCIUncompressedLayer)
		repo, _ := name.NewRepository(r.host + "/app")
		if err := remote.WriteLayer(repo, l); err != nil {
			t.Fatal(err)
		}
		d, _ := l.Digest()
		return repo.Name() + "@" + d.String()
	}
	r.json = blob([]byte(`{"n": 12345678901234567890, "l": [1, "x"]}`))
	plain := archive(t, "a.yaml", "x: 1\n", "b.txt", "{not yaml", "dir/c", "z: 2\n")
	r.tar, r.tgz, r.bad = blob(plain), blob(zipped(plain)), blob([]byte("{"))
	return r
}

func (r *rig) set(t *testing.T, o builtin.Options) *builtin.Set {
	t.Helper()
	if o.Transport == nil {
		o.Transport = http.DefaultTransport
	}
	s, err := builtin.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestFunctions(t *testing.T) {
	r := newRig(t)
	s := r.set(t, builtin.Options{})
	nowhere := "sha256:" + strings.Repeat("0", 64)
	for name, tt := range map[string]struct {
		expr string
		want any // or a JSON text
	}{
		"blob":                       {fmt.Sprintf(`ec.oci.blob(%q)`, r.json), `"{\"n\": 12345678901234567890, \"l\": [1, \"x\"]}"`},
		"blob of a zipped one":       {fmt.Sprintf(`ec.oci.blob(%q)`, r.tgz), undefined},
		"blob by tag":                {fmt.Sprintf(`ec.oci.blob("%s/app:1")`, r.host), undefined},
		"blob that is not there":     {fmt.Sprintf(`ec.oci.blob("%s/app@%s")`, r.host, nowhere), undefined},
		"parsed_blob":                {fmt.Sprintf(`ec.oci.parsed_blob(%q)`, r.json), `{"n":12345678901234567890,"l":[1,"x"]}`},
		"parsed_blob of no JSON":     {fmt.Sprintf(`ec.oci.parsed_blob(%q)`, r.bad), undefined},
		"blob_files":                 {fmt.Sprintf(`ec.oci.blob_files(%q, [p | some p in {"a.yaml", "dir/c", "none"}])`, r.tar), `{"a.yaml":{"x":1},"dir/c":{"z":2}}`},
		"blob_files of a zipped one": {fmt.Sprintf(`ec.oci.blob_files(%q, [p | some p in {"a.yaml", "b.txt"}])`, r.tgz), `{"a.yaml":{"x":1}}`},
		"blob_files of none":         {fmt.Sprintf(`ec.oci.blob_files(%q, [p | some p in set()])`, r.tar), `{}`},
		"blob_files of no archive":   {fmt.Sprintf(`ec.oci.blob_files(%q, ["a.yaml"])`, r.json), undefined},
		"descriptor":                 {fmt.Sprintf(`ec.oci.descriptor("%s/app:1").digest`, r.host), `"` + r.digest + `"`},
		"descriptor, members":        {fmt.Sprintf(`object.remove(ec.oci.descriptor(%q), ["digest", "size"])`, r.image), `{"annotations":{},"artifactType":"","data":"","mediaType":"application/vnd.oci.image.manifest.v1+json","urls":[]}`},
		"descriptor, not there":      {fmt.Sprintf(`ec.oci.descriptor("%s/none:1")`, r.host), undefined},
		"descriptor of nonsense":     {`ec.oci.descriptor("no reference !")`, undefined},
		"image_manifest":             {fmt.Sprintf(`[[m.schemaVersion, m.annotations, count(m.layers), m.config.mediaType] | m := ec.oci.image_manifest(%q)][0]`, r.image), `[2,{"k":"v"},1,"application/vnd.docker.container.image.v1+json"]`},
		"image_manifests":            {fmt.Sprintf(`[k | some k, _ in ec.oci.image_manifests({%q, "%s/none:1"})]`, r.image, r.host), `["` + r.image + `"]`},
		"image_manifests of none":    {`ec.oci.image_manifests(set())`, `{}`},
		"image_index":                {fmt.Sprintf(`[m.platform.architecture | some m in ec.oci.image_index(%q).manifests]`, r.index), `["arm64"]`},
		"image_index of an image":    {fmt.Sprintf(`ec.oci.image_index(%q)`, r.image), undefined},
		"image_files":                {fmt.Sprintf(`ec.oci.image_files(%q, ["manifests/"])`, r.image), `{"manifests/a.yaml":{"kind":"A"},"manifests/b.JSON":{"kind":"B"}}`},
		"image_tag_refs":             {fmt.Sprintf(`ec.oci.image_tag_refs("%s/app:1")`, r.host), `["` + r.host + "/app:" + strings.Replace(r.digest, ":", "-", 1) + `.sbom"]`},
		"image_referrers":            {fmt.Sprintf(`[[d.artifactType, startswith(d.ref, "%s/app@sha256:")] | some d in ec.oci.image_referrers(%q)]`, r.host, r.image), `[["application/vnd.example",true]]`},
		"purl.is_valid":              {`ec.purl.is_valid("pkg:rpm/fedora/curl@7.50.3-1.fc25?arch=i386#sub")`, `true`},
		"purl.is_valid of none":      {`ec.purl.is_valid("nope")`, `false`},
		"purl.parse":                 {`ec.purl.parse("pkg:rpm/fedora/curl@7?distro=f-25&arch=i386#sub")`, `{"type":"rpm","namespace":"fedora","name":"curl","version":"7","qualifiers":[{"key":"arch","value":"i386"},{"key":"distro","value":"f-25"}],"subpath":"sub"}`},
		"purl.parse of none":         {`ec.purl.parse("nope")`, undefined},
		"verify without a verifier":  {fmt.Sprintf(`ec.sigstore.verify_image(%q, {"ignore_rekor": true}).success`, r.image), `false`},
		"verify of a tag":            {fmt.Sprintf(`ec.sigstore.verify_attestation("%s/app:1", {"ignore_rekor": true}).attestations`, r.host), `[]`},
		// Conforma declares the paths as an array of one: more have to be computed.
		"blob_files of a literal list": {fmt.Sprintf(`ec.oci.blob_files(%q, ["a", "b"])`, r.tar), errType},
		"a member that is not there":   {fmt.Sprintf(`ec.oci.descriptor(%q).mediatype`, r.image), errType},
		"http.send":                    {`http.send({"method": "get", "url": "http://127.0.0.1"})`, errType},
		"opa.runtime":                  {`opa.runtime()`, errType},
		"net.lookup_ip_addr":           {`net.lookup_ip_addr("localhost")`, errType},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ask(t, s, nil, tt.expr)
			if tt.want == errType {
				if err == nil {
					t.Errorf("it compiles, and gives %v", got)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := tt.want
			if want != undefined {
				dec := json.NewDecoder(strings.NewReader(want.(string)))
				dec.UseNumber()
				if err := dec.Decode(&want); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

const errType = "<refused by the compiler>"

// TestFailuresAreTold: what is undefined has a cause, and what is not there is not
// what could not be asked.
func TestFailuresAreTold(t *testing.T) {
	r := newRig(t)
	s := r.set(t, builtin.Options{Allow: func(h string) bool { return h != "forbidden.example:5000" }})
	for range 2 { // also when it is remembered
		rec := new(builtin.Recorder)
		for _, expr := range []string{
			fmt.Sprintf(`ec.oci.descriptor("%s/none:1")`, r.host),
			`ec.oci.image_manifest("127.0.0.1:1/app:1")`,
			`ec.oci.image_manifest("forbidden.example:5000/app:1")`,
			`ec.purl.parse("nope")`,
		} {
			if got, err := ask(t, s, rec, expr); err != nil || got != undefined {
				t.Errorf("%s: %v, %v", expr, got, err)
			}
		}
		list := rec.Failures()
		if len(list) != 4 {
			t.Fatalf("%d failures: %v", len(list), list)
		}
		if !list[0].NotFound || list[1].NotFound || !strings.Contains(list[1].Cause, "connect") || !strings.Contains(list[2].Cause, builtin.ErrNotAllowed.Error()) || list[3].Function != builtin.PURLParse {
			t.Errorf("failures: %+v", list)
		}
		if got := rec.Hosts(); !slices.Contains(got, r.host) || !slices.Contains(got, "127.0.0.1:1") {
			t.Errorf("hosts: %v", got)
		}
	}
}

func TestBounds(t *testing.T) {
	r := newRig(t)
	for name, tt := range map[string]struct {
		o    builtin.Options
		expr string
		want string // in the failure's cause; or in the error
		halt bool
	}{
		"blob":           {builtin.Options{MaxBlob: 10}, fmt.Sprintf(`ec.oci.blob(%q)`, r.json), "larger than", false},
		"unpacked blob":  {builtin.Options{MaxBlob: 1000}, fmt.Sprintf(`ec.oci.blob_files(%q, ["a.yaml"])`, r.tgz), "larger than", false},
		"files of image": {builtin.Options{MaxBlob: 4}, fmt.Sprintf(`ec.oci.image_files(%q, ["manifests"])`, r.image), "larger than", false},
		"references":     {builtin.Options{MaxRefs: 1}, `ec.oci.image_manifests({"a/b:1", "a/b:2"})`, "at most 1", false},
		"calls":          {builtin.Options{MaxCalls: 1}, fmt.Sprintf(`[ec.oci.descriptor("%s/a:1"), ec.oci.descriptor("%s/a:2")]`, r.host, r.host) + `; true`, "more than 1 times", true},
	} {
		t.Run(name, func(t *testing.T) {
			rec := new(builtin.Recorder)
			if name == "calls" {
				tt.expr = fmt.Sprintf(`count([1 | some n in ["1", "2", "3"]; not ec.oci.descriptor(concat("", ["%s/a:", n]))])`, r.host)
			}
			got, err := ask(t, r.set(t, tt.o), rec, tt.expr)
			if tt.halt {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v, %v; want the evaluation to end: %s", got, err, tt.want)
				}
				return
			}
			if err != nil || got != undefined {
				t.Fatalf("%v, %v", got, err)
			}
			if list := rec.Failures(); len(list) != 1 || !strings.Contains(list[0].Cause, tt.want) {
				t.Errorf("failures: %+v", list)
			}
		})
	}
}

// TestCancelled: an evaluation that is over does not go on with "undefined".
func TestCancelled(t *testing.T) {
	s, err := builtin.New(builtin.Options{Transport: blocking{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = rego.New(append(s.Rego(), rego.Query(`x := ec.oci.descriptor("127.0.0.1:1/a:1")`), rego.Capabilities(builtin.Capabilities()))...).Eval(ctx)
	if err == nil {
		t.Error("no error")
	}
}

type blocking struct{}

func (blocking) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, errors.New("cancelled")
}

func TestDeclarations(t *testing.T) {
	var names []string
	for _, b := range builtin.Declarations() {
		names = append(names, b.Name)
		if b.Description == "" {
			t.Errorf("%s has no description", b.Name)
		}
		if b.Nondeterministic == strings.HasPrefix(b.Name, "ec.purl.") {
			t.Errorf("%s: nondeterministic is %t", b.Name, b.Nondeterministic)
		}
	}
	if len(names) != 14 {
		t.Errorf("%d functions: %v", len(names), names)
	}
	caps := builtin.Capabilities()
	for _, d := range builtin.Denied() {
		if slices.ContainsFunc(caps.Builtins, func(b *ast.Builtin) bool { return b.Name == d }) {
			t.Errorf("%s may be called", d)
		}
	}
	if caps.AllowNet == nil || len(caps.AllowNet) != 0 {
		t.Errorf("hosts that may be reached: %v", caps.AllowNet)
	}
}

func FuzzIn(f *testing.F) {
	f.Add("manifests/a.yaml", "manifests/")
	f.Add("../a.json", "..")
	f.Fuzz(func(t *testing.T, file, dir string) {
		if builtin.In(file, []string{dir}) && !strings.Contains(strings.ToLower(file), ".") {
			t.Errorf("%q in %q", file, dir)
		}
	})
}
