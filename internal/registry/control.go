package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"assay.dev/assay/api"
)

// controlPrefix is where executors mint and revoke, on the Unix socket only.
//
//	POST   tokens            TokenRequest → {"token": …}
//	DELETE tokens/<token>
//	DELETE tokens?run=…[&task=…[&attempt=…]]
const controlPrefix = "/assay/v1/"

// runRE is what a run's id must look like to be part of a repository's name.
var runRE = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`)

type tokenResponse struct {
	Token string `json:"token"`
}

type revokeResponse struct {
	Revoked int `json:"revoked"`
}

func (s *Server) control(w http.ResponseWriter, r *http.Request) {
	uid, ok := peerOf(r.Context())
	if !ok {
		refuse(http.StatusNotFound, "UNSUPPORTED", "the control API is on the registry's Unix socket only").write(w)
		return
	}
	var reply any
	var no *refusal
	what := strings.TrimPrefix(r.URL.Path, controlPrefix)
	switch {
	case what == "tokens" && r.Method == http.MethodPost:
		reply, no = s.mint(r, uid)
	case what == "tokens" && r.Method == http.MethodDelete:
		reply, no = s.revokeAttempt(r, uid)
	case strings.HasPrefix(what, "tokens/") && r.Method == http.MethodDelete:
		reply, no = s.revokeToken(strings.TrimPrefix(what, "tokens/"), uid)
	default:
		no = refuse(http.StatusNotFound, "UNSUPPORTED", "there is no %s %s; see POST and DELETE %stokens", r.Method, r.URL.Path, controlPrefix)
	}
	if no != nil {
		no.write(w)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(reply); err != nil {
		s.conf.Log.Error("answering", "err", err)
	}
}

func (s *Server) mint(r *http.Request, uid uint32) (any, *refusal) {
	var req TokenRequest
	d := json.NewDecoder(io.LimitReader(r.Body, 16<<10))
	d.DisallowUnknownFields()
	if err := d.Decode(&req); err != nil {
		return nil, refuse(http.StatusBadRequest, "UNSUPPORTED", "reading the request for a token: %v", err)
	}
	switch {
	case !runRE.MatchString(req.Run) || len(req.Run) > 128:
		return nil, refuse(http.StatusBadRequest, "NAME_INVALID", "run %q cannot name a repository: lower-case letters and digits, with single - . _ between", req.Run)
	case req.Task == "" || len(req.Task) > 253 || req.Attempt < 0:
		return nil, refuse(http.StatusBadRequest, "UNSUPPORTED", "a token is for one attempt (from 0) of one task")
	case req.Kind != KindTask && req.Kind != KindExport:
		return nil, refuse(http.StatusBadRequest, "UNSUPPORTED", "kind %q is neither %s nor %s", req.Kind, KindTask, KindExport)
	}
	executor, open, err := s.conf.Runs.Executor(r.Context(), req.Run)
	if err != nil {
		s.conf.Log.Error("asking for a run", "run", req.Run, "err", err)
		return nil, refuse(http.StatusServiceUnavailable, "UNKNOWN", "the observer does not say whether run %s is open; try again", req.Run)
	}
	if !open {
		return nil, refuse(http.StatusForbidden, "DENIED", "run %s is not open at the observer; open it before its first token", req.Run)
	}
	if executor != uid {
		return nil, refuse(http.StatusForbidden, "DENIED", "uid %d is not the executor of run %s", uid, req.Run)
	}
	if err := s.uploads.open(req.Run, func() error { return s.empty(api.StagingPrefix + req.Run) }); err != nil {
		if no := new(refusal); errors.As(err, &no) {
			return nil, no
		}
		s.conf.Log.Error("opening a run's repository", "run", req.Run, "err", err)
		return nil, refuse(http.StatusInternalServerError, "UNKNOWN", "the run's repository could not be prepared; see to the disk of the registry")
	}
	return tokenResponse{s.tokens.mint(req, uid)}, nil
}

// empty refuses a repository that holds anything.
func (s *Server) empty(repo string) error {
	dir := filepath.Join(s.conf.Dir, filepath.FromSlash(repo))
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || p == filepath.Join(dir, "oci-layout") {
			return err
		}
		if p == filepath.Join(dir, "index.json") {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			var index struct{ Manifests []json.RawMessage }
			if err := json.Unmarshal(b, &index); err == nil && len(index.Manifests) == 0 {
				return nil
			}
		}
		return refuse(http.StatusConflict, "DENIED", "repository %s is not empty, so it is not this run's alone; use another run id", repo)
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking into repository %s: %w", repo, err)
	}
	return nil
}

// mayRevoke: whoever minted a token, and the observer, whose runs they are.
func (s *Server) mayRevoke(t *token, uid uint32) bool {
	return t.uid == uid || s.conf.Roles(uid)&Observer != 0
}

func (s *Server) revokeToken(secret string, uid uint32) (any, *refusal) {
	t := s.tokens.find(secret)
	if t == nil {
		return revokeResponse{0}, nil // gone is what was asked for
	}
	if !s.mayRevoke(t, uid) {
		return nil, refuse(http.StatusForbidden, "DENIED", "uid %d did not mint this token", uid)
	}
	return revokeResponse{s.tokens.revoke(func(x *token) bool { return x == t })}, nil
}

func (s *Server) revokeAttempt(r *http.Request, uid uint32) (any, *refusal) {
	q := r.URL.Query()
	run, task, attempt := q.Get("run"), q.Get("task"), -1
	if q.Has("attempt") {
		n, err := strconv.Atoi(q.Get("attempt"))
		if err != nil || n < 0 || task == "" {
			return nil, refuse(http.StatusBadRequest, "UNSUPPORTED", "attempt %q is not a number from 0 of a named task", q.Get("attempt"))
		}
		attempt = n
	}
	if run == "" {
		return nil, refuse(http.StatusBadRequest, "UNSUPPORTED", "say which tokens to revoke: run, and perhaps task and attempt")
	}
	return revokeResponse{s.tokens.revoke(func(t *token) bool {
		return t.Run == run && (task == "" || t.Task == task) && (attempt < 0 || t.Attempt == attempt) && s.mayRevoke(t, uid)
	})}, nil
}
