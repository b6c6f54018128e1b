package fetch

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/policy/spec"
)

// vendorRig is a policy with a source of every kind, and a base that it extends.
func vendorRig(t *testing.T) (dir string, net *counter) {
	t.Helper()
	root := t.TempDir()
	newRepository(t, filepath.Join(root, "p.git"))
	g := gitServer(t, root, nil)
	reg := newRegistry(t)
	pushArtifact(t, reg+"/org/data:v1", layer{title: "tasks.json", bytes: []byte(`{"tasks":[]}`)})
	h := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "extra: 1") }))
	t.Cleanup(h.Close)
	t.Setenv("NETRC", filepath.Join(root, "none"))
	// One transport believes both servers, whose certificate is httptest's.
	net = &counter{base: g.Client().Transport}
	dir = t.TempDir()
	write(t, dir, map[string]string{
		"base/policy.yaml":  "name: base\nsources:\n- name: main\n  policy: [\"git::" + g.URL + "/p.git//rules\", \"./own\"]\n  ruleData: {a: 1}\n",
		"base/own/o.rego":   "package o\n",
		"top/policy.yaml":   "publicKey: key.pub\nassay: {extends: [../base]}\nsources:\n- name: main\n  data: [\"oci::" + reg + "/org/data:v1\"]\n  ruleData: {b: 2}\n- policy: [./mine]\n  data: [\"" + h.URL + "/extra.yaml\"]\n",
		"top/mine/m.rego":   "package m\n",
		"top/mine/NOTES.md": "not needed",
		"top/key.pub":       "-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----\n",
	})
	return dir, net
}

func TestVendor(t *testing.T) {
	dir, net := vendorRig(t)
	out := filepath.Join(t.TempDir(), "deep", "vendored")
	f := fetcher(t, net, Options{})
	v, err := Vendor(t.Context(), f, filepath.Join(dir, "top"), out, VendorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Left) != 0 || len(v.Lock.Sources) != 5 {
		t.Errorf("%+v", v)
	}
	net.cut.Store(true)
	none := fetcher(t, net, Options{})
	c, err := ReadConfig(t.Context(), none, "", out)
	if err != nil {
		t.Fatal(err)
	}
	s, err := spec.Parse(c.Raw)
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "base" || !strings.Contains(s.PublicKey, "BEGIN PUBLIC KEY") || len(s.Sources) != 2 || s.Assay != nil && len(s.Assay.Extends) > 0 {
		t.Errorf("%s", c.Raw)
	}
	vendored, _, err := OpenVendored(out)
	if err != nil {
		t.Fatal(err)
	}
	locked := fetcher(t, net, Options{Lock: c.Lock})
	local := fetcher(t, net, Options{Base: out})
	var pins []string
	for _, src := range s.Sources {
		for _, a := range append(src.Policy, src.Data...) {
			one, err := vendored.Fetch(t.Context(), a)
			if err != nil {
				t.Fatal(err)
			}
			two, err := locked.Fetch(t.Context(), a)
			if err != nil {
				t.Fatal(err)
			}
			three, err := local.Fetch(t.Context(), a) // as whoever knows nothing of locks
			if err != nil {
				t.Fatal(err)
			}
			// A reader that makes paths absolute is held to the lock, too.
			if _, err := locked.Fetch(t.Context(), filepath.Join(out, a)); err != nil {
				t.Error(err)
			}
			if one.Digest != two.Digest || one.Digest != three.Digest || one.Pinned != two.Pinned {
				t.Errorf("%+v, %+v, %+v", one, two, three)
			}
			pins = append(pins, one.Pinned[:strings.Index(one.Pinned, ":")])
		}
	}
	if diff := cmp.Diff([]string{"git", "file", "oci", "file", "https"}, pins); diff != "" {
		t.Error(diff)
	}
	if n := net.n.Load(); n == 0 {
		t.Error("nothing was fetched")
	}
	_, err = vendored.Fetch(t.Context(), "./sources/other")
	refused(t, err, "was not vendored")
	_, err = locked.Fetch(t.Context(), "git::https://x/y")
	refused(t, err, "the lock has no entry")

	// Vendored again, with the network back, it is the same, byte for byte.
	net.cut.Store(false)
	before := all(t, out)
	if _, err := Vendor(t.Context(), fetcher(t, net, Options{}), filepath.Join(dir, "top"), out, VendorOptions{}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, all(t, out)); diff != "" {
		t.Error(diff)
	}
	// Somebody's own files are not replaced.
	write(t, out, map[string]string{"mine.txt": "x"})
	_, err = Vendor(t.Context(), fetcher(t, net, Options{}), filepath.Join(dir, "top"), out, VendorOptions{})
	refused(t, err, "mine.txt")
	_, err = Vendor(t.Context(), fetcher(t, net, Options{}), filepath.Join(dir, "top"), filepath.Join(dir, "base"), VendorOptions{})
	refused(t, err, "is not empty")
	must(t, os.Remove(filepath.Join(out, "mine.txt")))

	// A change is found.
	for a, e := range v.Lock.Sources {
		p := filepath.Join(out, filepath.FromSlash(e.Path), "evil.rego")
		write(t, out, map[string]string{e.Path + "/evil.rego": "package evil"})
		vendored, _, err := OpenVendored(out)
		must(t, err)
		_, err = vendored.Fetch(t.Context(), a)
		refused(t, err, "somebody changed it", e.Digest)
		refused(t, v.Lock.Check(t.Context()), "somebody changed it")
		must(t, os.Remove(p))
	}
}

func all(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	must(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		out[p] = string(b)
		return err
	}))
	return out
}

func TestPush(t *testing.T) {
	dir, net := vendorRig(t)
	out := filepath.Join(t.TempDir(), "v")
	if _, err := Vendor(t.Context(), fetcher(t, net, Options{}), filepath.Join(dir, "top", "policy.yaml"), out, VendorOptions{}); err != nil {
		t.Fatal(err)
	}
	reg := newRegistry(t)
	one, err := Push(t.Context(), out, "oci::"+reg+"/org/vendored:v1", Options{})
	if err != nil {
		t.Fatal(err)
	}
	two, err := Push(t.Context(), out, reg+"/org/vendored:v2", Options{})
	if err != nil || one[strings.Index(one, "@"):] != two[strings.Index(two, "@"):] {
		t.Errorf("%s, %s, %v", one, two, err)
	}
	// From there nothing but that one artifact is fetched.
	var elsewhere []string
	only := roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.URL.Host != reg {
			elsewhere = append(elsewhere, r.URL.Host)
		}
		return http.DefaultTransport.RoundTrip(r)
	})
	f := fetcher(t, only, Options{})
	c, err := ReadConfig(t.Context(), f, "", one)
	if err != nil {
		t.Fatal(err)
	}
	if c.Lock == nil {
		t.Fatal("it has no lock")
	}
	s, err := spec.Parse(c.Raw)
	must(t, err)
	locked := fetcher(t, only, Options{Lock: c.Lock})
	for _, src := range s.Sources {
		for _, a := range append(src.Policy, src.Data...) {
			if _, err := locked.Fetch(t.Context(), a); err != nil {
				t.Error(err)
			}
		}
	}
	if len(elsewhere) > 0 {
		t.Errorf("asked %v", elsewhere)
	}
	write(t, out, map[string]string{"sources/evil.rego": "x"})
	for address, want := range map[string]string{"oci::" + reg + "/org/v@" + one[strings.Index(one, "@")+1:]: "name a tag", "oci::x": "want a registry"} {
		_, err := Push(t.Context(), out, address, Options{})
		refused(t, err, want)
	}
}

func TestVendorRefuses(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"loop/policy.yaml":  "assay: {extends: [.]}\nsources: [{policy: [.]}]\n",
		"gone/policy.yaml":  "sources: [{policy: [./none]}]\n",
		"key/policy.yaml":   "publicKey: none.pub\nsources: [{policy: [.]}]\n",
		"sums/policy.yaml":  "assay: {checksums: {./r: \"sha256:" + strings.Repeat("0", 64) + "\"}}\nsources: [{policy: [./r]}]\n",
		"sums/r/x.rego":     "package x",
		"bad/policy.yaml":   "sauces: []\n",
		"left/policy.yaml":  "publicKey: k8s://ns/key\nsources: [{policy: [./r]}]\n",
		"left/r/x.rego":     "package x",
		"plain/x.rego":      "package x",
		"cluster/x/x.rego":  "package x",
		"cluster/notes.txt": "",
	})
	f := fetcher(t, http.DefaultTransport, Options{})
	for name, want := range map[string]string{"loop": "too many policies", "gone": "none", "key": "public key", "sums": strings.Repeat("0", 64), "bad": "sauces", "absent": "no such file"} {
		out := filepath.Join(t.TempDir(), "v")
		_, err := Vendor(t.Context(), f, filepath.Join(dir, name), out, VendorOptions{})
		refused(t, err, want)
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%s left something", name)
		}
	}
	v, err := Vendor(t.Context(), f, filepath.Join(dir, "left"), filepath.Join(t.TempDir(), "v"), VendorOptions{})
	if err != nil || len(v.Left) != 1 {
		t.Errorf("%+v, %v", v, err)
	}
	if v, err = Vendor(t.Context(), f, filepath.Join(dir, "plain"), filepath.Join(t.TempDir(), "v"), VendorOptions{}); err != nil || len(v.Lock.Sources) != 1 {
		t.Errorf("%+v, %v", v, err)
	}
	_, err = Vendor(t.Context(), f, "k8s://ns/p", filepath.Join(t.TempDir(), "v"), VendorOptions{})
	refused(t, err, "clusters")
	o := VendorOptions{Base: filepath.Join(dir, "cluster"), Resource: func(_ context.Context, name string) (json.RawMessage, error) {
		return json.RawMessage(`{"sources":[{"policy":["./x"]}]}`), nil
	}}
	if v, err = Vendor(t.Context(), f, "k8s://ns/p", filepath.Join(t.TempDir(), "v"), o); err != nil || len(v.Lock.Sources) != 1 {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestParseLock(t *testing.T) {
	d := "sha256:" + strings.Repeat("a", 64)
	for raw, want := range map[string]string{
		`{"version":1,"sources":{"./a":{"pinned":"file::a","digest":"` + d + `","path":"sources/a"}}}`: "",
		`{"version":2,"sources":{}}`:                                                           "version",
		`{"version":1,"sources":{},"more":1}`:                                                  "more",
		`{"version":1,"sources":{}}{}`:                                                         "",
		`{"version":1,"version":1,"sources":{}}`:                                               "duplicate",
		`{"version":1,"policy":"../x","sources":{}}`:                                           "no file beside it",
		`{"version":1,"sources":{"a":{"digest":"` + d + `"}}}`:                                 "not pinned",
		`{"version":1,"sources":{"a":{"pinned":"a","digest":"md5:x"}}}`:                        "is none",
		`{"version":1,"sources":{"a":{"pinned":"a","digest":"` + d + `","path":"/etc"}}}`:      "leads elsewhere",
		`{"version":1,"sources":{"a":{"pinned":"a","digest":"` + d + `","path":"a/../../b"}}}`: "leads elsewhere",
	} {
		l, err := ParseLock([]byte(raw))
		switch {
		case strings.HasSuffix(raw, "{}"):
			if err == nil {
				t.Errorf("%s: %v", raw, l)
			}
		case want == "" && err != nil:
			t.Errorf("%s: %v", raw, err)
		case want != "":
			refused(t, err, want)
		}
	}
}

// TestSomeLock: a lock without contents pins addresses.
func TestSomeLock(t *testing.T) {
	root := t.TempDir()
	r := newRepository(t, filepath.Join(root, "p.git"))
	address := "git::file://" + r.dir + "//rules"
	f := fetcher(t, http.DefaultTransport, Options{})
	first, err := f.Fetch(t.Context(), address)
	must(t, err)
	file := filepath.Join(root, LockName)
	must(t, f.Pinned().Write(file))
	git(t, r.dir, "update-ref", "refs/heads/main", r.first)
	lock, err := ReadLock(file)
	must(t, err)
	held, err := fetcher(t, http.DefaultTransport, Options{Lock: lock}).Fetch(t.Context(), address)
	if err != nil || held.Digest != first.Digest || held.Address != address {
		t.Errorf("%v, %v", held, err)
	}
	e := lock.Sources[address]
	e.Digest = "sha256:" + strings.Repeat("0", 64)
	lock.Sources[address] = e
	_, err = fetcher(t, http.DefaultTransport, Options{Lock: lock}).Fetch(t.Context(), address)
	refused(t, err, first.Digest, e.Digest, address)
}
