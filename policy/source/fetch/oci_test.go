package fetch

import (
	"archive/tar"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOCI(t *testing.T) {
	reg := newRegistry(t)
	digest := pushArtifact(t, reg+"/org/policy:v1", layer{title: "rules/a.rego", bytes: []byte("package a")}, layer{title: "d.yaml", bytes: []byte("k: v")}, layer{bytes: []byte("no title")})
	pushArtifact(t, reg+"/org/policy:latest", layer{title: "l.rego", bytes: []byte("package l")})
	packed := archive(t, tar.Header{Name: "policy/", Typeflag: tar.TypeDir}, tar.Header{Name: "policy/x/p.rego", Typeflag: tar.TypeReg, Linkname: "package p"}, tar.Header{Name: "policy/d.json", Typeflag: tar.TypeReg, Linkname: "{}"})
	pushArtifact(t, reg+"/org/policy:tar", layer{title: "policy", bytes: packed, more: map[string]string{unpackKey: "true"}})
	pushArtifact(t, reg+"/org/policy:kept", layer{title: "bundle.tar.gz", bytes: packed}, layer{title: "a.rego", bytes: []byte("package a")})
	net := &counter{base: http.DefaultTransport}
	cache := t.TempDir()
	for _, tt := range []struct {
		address, pinned string
		want            []string
	}{
		{"oci::REG/org/policy:v1", "oci::REG/org/policy:v1@" + digest, []string{"d.yaml", "rules/a.rego"}},
		{"oci://REG/org/policy:v1", "oci::REG/org/policy:v1@" + digest, []string{"d.yaml", "rules/a.rego"}},
		{"REG/org/policy@" + digest, "oci::REG/org/policy@" + digest, []string{"d.yaml", "rules/a.rego"}},
		{"oci::REG/org/policy:v9@" + digest, "oci::REG/org/policy:v9@" + digest, []string{"d.yaml", "rules/a.rego"}},
		{"oci::REG/org/policy", "", []string{"l.rego"}},
		{"oci::REG/org/policy:tar", "", []string{"policy/d.json", "policy/x/p.rego"}},
		{"oci::REG/org/policy:kept", "", []string{"a.rego"}},
	} {
		address, pinned := strings.ReplaceAll(tt.address, "REG", reg), strings.ReplaceAll(tt.pinned, "REG", reg)
		t.Run(tt.address, func(t *testing.T) {
			tree, err := fetcher(t, net, Options{Cache: cache}).Fetch(t.Context(), address)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, paths(t, tree)); diff != "" {
				t.Error(diff)
			}
			if pinned != "" && tree.Pinned != pinned {
				t.Errorf("pinned %s, want %s", tree.Pinned, pinned)
			}
			net.cut.Store(true)
			defer net.cut.Store(false)
			again, err := fetcher(t, net, Options{Cache: cache}).Fetch(t.Context(), tree.Pinned)
			if err != nil || again.Digest != tree.Digest {
				t.Errorf("%v, %v", again, err)
			}
		})
	}
}

func TestOCIRefused(t *testing.T) {
	reg := newRegistry(t)
	unpacked := func(h ...tar.Header) layer {
		return layer{title: "policy", bytes: archive(t, h...), more: map[string]string{unpackKey: "true"}}
	}
	file := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg, Linkname: "x"} }
	for tag, tt := range map[string]struct {
		layers []layer
		limits Limits
		want   string
	}{
		"none":     {nil, Limits{}, "none of its layers has a file's name"},
		"untitled": {[]layer{{bytes: []byte("x")}}, Limits{}, "none of its layers has a file's name"},
		"out":      {[]layer{{title: "../x.rego", bytes: []byte("x")}}, Limits{}, "leads out of its folder"},
		"absolute": {[]layer{{title: "/etc/x.rego", bytes: []byte("x")}}, Limits{}, "leads out of its folder"},
		"dots":     {[]layer{{title: "a/../../x", bytes: []byte("x")}}, Limits{}, "leads out of its folder"},
		"nul":      {[]layer{{title: "a\x00b", bytes: []byte("x")}}, Limits{}, "does not belong"},
		"windows":  {[]layer{{title: `..\x`, bytes: []byte("x")}}, Limits{}, "does not belong"},
		"twice":    {[]layer{{title: "a", bytes: []byte("x")}, {title: "a", bytes: []byte("y")}}, Limits{}, "two files by the name a"},
		"over":     {[]layer{{title: "a", bytes: []byte("x")}, {title: "a/b", bytes: []byte("y")}}, Limits{}, "writing a/b"},
		"many":     {[]layer{{title: "a", bytes: []byte("x")}, {title: "b", bytes: []byte("y")}}, Limits{Files: 1}, "more than 1 files"},
		"large":    {[]layer{{title: "a", bytes: make([]byte, 100)}}, Limits{File: 99}, "a is larger"},
		"sum":      {[]layer{{title: "a", bytes: make([]byte, 100)}, {title: "b", bytes: make([]byte, 101)}}, Limits{Bytes: 150}, "its files have more"},
		"way":      {[]layer{{title: "a", bytes: make([]byte, 100)}}, Limits{Transfer: 99}, "its layers have more"},
		"tar-out":  {[]layer{unpacked(file("../x"))}, Limits{}, "is not in that folder"},
		"tar-abs":  {[]layer{unpacked(file("/x"))}, Limits{}, "is not in that folder"},
		"tar-dots": {[]layer{unpacked(file("policy/../../x"))}, Limits{}, "leads out of its folder"},
		"tar-away": {[]layer{unpacked(file("other/x"))}, Limits{}, "is not in that folder"},
		"tar-sym":  {[]layer{unpacked(tar.Header{Name: "policy/x", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"})}, Limits{}, "is a link or a device"},
		"tar-hard": {[]layer{unpacked(tar.Header{Name: "policy/x", Typeflag: tar.TypeLink, Linkname: "policy/y"})}, Limits{}, "is a link or a device"},
		"tar-bomb": {[]layer{unpacked(tar.Header{Name: "policy/x", Typeflag: tar.TypeReg, Linkname: strings.Repeat("0", 1<<20)})}, Limits{File: 1 << 10}, "policy/x is larger"},
		"tar-none": {[]layer{{title: "policy", bytes: []byte("no gzip"), more: map[string]string{unpackKey: "true"}}}, Limits{}, "unpacking policy"},
		"tar-half": {[]layer{{title: "policy", bytes: archive(t, file("policy/x"))[:40], more: map[string]string{unpackKey: "true"}}}, Limits{}, "unpacking policy"},
	} {
		t.Run(tag, func(t *testing.T) {
			ref := reg + "/org/" + tag + ":v1"
			pushArtifact(t, ref, tt.layers...)
			cache := t.TempDir()
			_, err := fetcher(t, http.DefaultTransport, Options{Cache: cache, Limits: tt.limits}).Fetch(t.Context(), "oci::"+ref)
			refused(t, err, tt.want, "oci::"+ref)
			// Nothing is left, neither in the cache nor beside it.
			if list, err := filepath.Glob(filepath.Join(cache, "v1", "*")); err != nil || len(list) != 0 {
				t.Errorf("left: %v, %v", list, err)
			}
			if _, err := os.Stat(filepath.Join(cache, "v1", "x")); err == nil {
				t.Error("a file got out")
			}
		})
	}
	f := fetcher(t, http.DefaultTransport, Options{})
	for address, want := range map[string]string{
		"oci::org/policy":                    "want a registry and a repository",
		"oci::" + reg + "/org/absent:v1":     "does not have it",
		"oci::" + reg + "/org/x@sha256:1234": "reading the address",
		"oci::" + reg:                        "want a registry",
	} {
		_, err := f.Fetch(t.Context(), address)
		refused(t, err, want)
	}
}

// TestOCILies: a registry that sends other bytes than the digest says.
func TestOCILies(t *testing.T) {
	reg := newRegistry(t)
	digest := pushArtifact(t, reg+"/org/policy:v1", layer{title: "a.rego", bytes: []byte("package a")})
	other := pushArtifact(t, reg+"/org/policy:v2", layer{title: "a.rego", bytes: []byte("package b")})
	lie := roundTrip(func(r *http.Request) (*http.Response, error) {
		if strings.HasSuffix(r.URL.Path, "/manifests/"+digest) {
			r = r.Clone(r.Context())
			r.URL.Path = strings.Replace(r.URL.Path, digest, other, 1)
		}
		return http.DefaultTransport.RoundTrip(r)
	})
	_, err := fetcher(t, lie, Options{}).Fetch(t.Context(), "oci::"+reg+"/org/policy@"+digest)
	refused(t, err, "digest")
	blobs := roundTrip(func(r *http.Request) (*http.Response, error) {
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err == nil && strings.Contains(r.URL.Path, "/blobs/") {
			resp.Body.Close()
			resp.Body = body("package X")
		}
		return resp, err
	})
	_, err = fetcher(t, blobs, Options{}).Fetch(t.Context(), "oci::"+reg+"/org/policy@"+digest)
	refused(t, err, "a.rego")
}
