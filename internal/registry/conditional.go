package registry

import (
	"net/http"
	"strings"
	"sync"
)

// lockManifests takes the lock under which manifests of a repository are
// written, and returns how to give it back.
func (s *Server) lockManifests(repo string) (unlock func()) {
	l, _ := s.manifests.LoadOrStore(repo, new(sync.Mutex))
	mu := l.(*sync.Mutex)
	mu.Lock()
	return mu.Unlock
}

// precondition honours If-Match and If-None-Match on a manifest (RFC 9110,
// section 13.1), by which writers of a tag notice each other: the entity tag of
// a manifest is its digest. It is called with the repository's lock held.
func (s *Server) precondition(r *http.Request) *refusal {
	match, none := r.Header.Get("If-Match"), r.Header.Get("If-None-Match")
	if match == "" && none == "" {
		return nil
	}
	head := r.Clone(r.Context())
	head.Method, head.Body, head.ContentLength = http.MethodHead, http.NoBody, 0
	head.Header = http.Header{"Accept": {"*/*"}}
	var out answer
	s.store.ServeHTTP(&out, head)
	now := ""
	if out.status == http.StatusOK {
		now = out.header.Get("Docker-Content-Digest")
	}
	if match != "" && !listed(match, now) || none != "" && listed(none, now) {
		return refuse(http.StatusPreconditionFailed, "DENIED", "the manifest changed meanwhile; read it again")
	}
	return nil
}

// listed says whether an entity tag, quoted or not, is in a header's list.
func listed(header, digest string) bool {
	if digest == "" {
		return false
	}
	for _, tag := range strings.Split(header, ",") {
		tag = strings.Trim(strings.TrimPrefix(strings.TrimSpace(tag), "W/"), `"`)
		if tag == "*" || tag == digest {
			return true
		}
	}
	return false
}
