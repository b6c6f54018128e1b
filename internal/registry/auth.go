package registry

import (
	"net/http"
	"strings"

	"assay.dev/assay/api"
)

// writer is on whose authority a request writes: a token's, or a peer's role.
type writer struct {
	token *token
	role  Role
}

var errRevoked = refuse(http.StatusForbidden, "DENIED",
	"the token is not known or was revoked: a token ends with its task attempt; push from within the task")

// identify finds out who asks. A credential that is shown is the one that
// counts, also where the peer has a role.
func (s *Server) identify(r *http.Request) (writer, *refusal) {
	secret := credential(r)
	if secret != "" {
		if t := s.tokens.find(secret); t != nil {
			return writer{token: t}, nil
		}
		return writer{}, errRevoked
	}
	if uid, ok := peerOf(r.Context()); ok {
		if role := s.conf.Roles(uid); role != 0 {
			return writer{role: role}, nil
		}
	}
	return writer{}, refuse(http.StatusUnauthorized, "UNAUTHORIZED",
		"writing needs a credential: the token of a task attempt, as password of any user or as bearer; reading needs none")
}

// credential is the token in a request, "" if there is none. Clients that have
// no credential answer the challenge with an empty password.
func credential(r *http.Request) string {
	if _, password, ok := r.BasicAuth(); ok {
		return password
	}
	scheme, value, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(value)
	}
	return ""
}

// may decides whether w writes to repo.
func (s *Server) may(r *http.Request, w writer, repo string) *refusal {
	if t := w.token; t != nil {
		if repo != t.repo {
			return refuse(http.StatusForbidden, "DENIED", "this token writes to %s only; push to %s/%s", t.repo, s.conf.Name, t.repo)
		}
		// An executor that died revokes nothing, so its run's end counts too.
		uid, open, err := s.conf.Runs.Executor(r.Context(), t.Run)
		if err != nil {
			s.conf.Log.Error("asking for a run", "run", t.Run, "err", err)
			return refuse(http.StatusServiceUnavailable, "UNKNOWN", "the observer does not say whether run %s is open; try again", t.Run)
		}
		if !open || uid != t.uid {
			return refuse(http.StatusForbidden, "DENIED", "run %s is not open any more; start another run", t.Run)
		}
		return nil
	}
	for _, rule := range []struct {
		role   Role
		prefix string
	}{{Observer, api.StagingPrefix}, {Releaser, api.ReleasedPrefix}, {Operator, api.CatalogPrefix}} {
		if w.role&rule.role != 0 && strings.HasPrefix(repo, rule.prefix) && len(repo) > len(rule.prefix) {
			return nil
		}
	}
	return refuse(http.StatusForbidden, "DENIED",
		"you may not write to %q: the observer writes to %s*, the releaser to %s*, the operator to %s*", repo, api.StagingPrefix, api.ReleasedPrefix, api.CatalogPrefix)
}
