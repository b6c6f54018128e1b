package registry

import (
	"net/http"
	"path"
	"strings"
)

// target is what a request of the distribution API is about.
type target struct {
	op   op
	repo string
	ref  string // tag or digest, or an upload's id
}

type op int

const (
	opOther op = iota
	opPing
	opManifest
	opBlob
	opReferrers
	opTags
	opUploads // …/blobs/uploads, where uploads begin
	opUpload  // …/blobs/uploads/<id>
)

// parse takes a path apart in the same order as olareg, from the end, so that
// both see the same repository. ok is false for a path that is not clean.
func parse(p string) (t target, ok bool) {
	clean := path.Clean("/" + p)
	if clean != p && clean+"/" != p {
		return target{}, false
	}
	e := strings.Split(strings.Trim(clean, "/"), "/")
	if e[0] != "v2" {
		return target{}, true
	}
	n := len(e)
	repo := func(tail int) string { return strings.Join(e[1:n-tail], "/") }
	switch {
	case n == 1:
		return target{op: opPing}, true
	case n > 3 && e[n-2] == "manifests":
		return target{opManifest, repo(2), e[n-1]}, true
	case n > 3 && e[n-2] == "blobs" && e[n-1] == "uploads":
		return target{opUploads, repo(2), ""}, true
	case n > 3 && e[n-2] == "blobs":
		return target{opBlob, repo(2), e[n-1]}, true
	case n > 3 && e[n-2] == "referrers":
		return target{opReferrers, repo(2), e[n-1]}, true
	case n > 3 && e[n-2] == "tags" && e[n-1] == "list":
		return target{opTags, repo(2), ""}, true
	case n > 4 && e[n-3] == "blobs" && e[n-2] == "uploads":
		return target{opUpload, repo(3), e[n-1]}, true
	}
	return target{}, true
}

// reads tells requests that anyone may make.
func (t target) reads(method string) bool {
	if method != http.MethodGet && method != http.MethodHead {
		return false
	}
	switch t.op {
	case opManifest, opBlob, opReferrers, opTags, opPing:
		return true
	}
	return false
}

// writes tells requests that need authorization.
func (t target) writes(method string) bool {
	switch t.op {
	case opManifest:
		return method == http.MethodPut
	case opUploads:
		return method == http.MethodPost
	case opUpload:
		return method == http.MethodPatch || method == http.MethodPut || method == http.MethodGet
	}
	return false
}

var errPath = refuse(http.StatusBadRequest, "NAME_INVALID", "the path is not clean; repository names hold no empty, . or .. parts")

func errMethod(method string) *refusal {
	return refuse(http.StatusMethodNotAllowed, "UNSUPPORTED",
		"%s is not supported here: this registry reads, and adds what is authorized; it deletes nothing", method)
}

// readOnly lets nothing but reads through.
func readOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t, ok := parse(r.URL.Path)
		switch {
		case !ok:
			errPath.write(w)
		case t.op == opOther:
			refuse(http.StatusNotFound, "UNSUPPORTED", "there is nothing at this path; the distribution API is below /v2/").write(w)
		case t.reads(r.Method):
			h.ServeHTTP(w, r)
		case t.writes(r.Method):
			refuse(http.StatusForbidden, "DENIED", "this registry is read-only here; writes go through its Unix socket").write(w)
		default:
			errMethod(r.Method).write(w)
		}
	})
}
