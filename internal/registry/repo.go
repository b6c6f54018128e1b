package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/olareg/olareg/types"
)

// repoRE is what the distribution specification allows as a repository's name.
var repoRE = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)

// checkRepo refuses names that are none, and those that a folder inside a
// repository's folder has.
func checkRepo(repo string) *refusal {
	if len(repo) > 255 || !repoRE.MatchString(repo) ||
		slices.ContainsFunc(strings.Split(repo, "/"), func(p string) bool { return p == "blobs" || p == "index.json" || p == "oci-layout" }) {
		return refuse(http.StatusBadRequest, "NAME_INVALID", "%q cannot name a repository", repo)
	}
	return nil
}

// prepare makes an empty repository, unless it is there. olareg would do it
// itself with the first upload, but as files that others cannot read.
func (s *Server) prepare(repo string) error {
	dir := filepath.Join(s.conf.Dir, filepath.FromSlash(repo))
	index := filepath.Join(dir, "index.json")
	s.repos.Lock()
	defer s.repos.Unlock()
	if _, err := os.Lstat(index); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making repository %s: %w", repo, err)
	}
	for _, f := range []struct {
		name  string
		value any
	}{
		{filepath.Join(dir, "oci-layout"), types.Layout{Version: types.LayoutVersion}},
		// The annotation tells olareg that there are no referrers to convert,
		// so that reading does not rewrite the file.
		{index, types.Index{
			SchemaVersion: 2, MediaType: types.MediaTypeOCI1ManifestList, Manifests: []types.Descriptor{},
			Annotations: map[string]string{types.AnnotReferrerConvert: "true"},
		}},
	} {
		b, err := json.Marshal(f.value)
		if err == nil {
			err = os.WriteFile(f.name+".new", b, 0o644)
		}
		if err == nil {
			err = os.Rename(f.name+".new", f.name)
		}
		if err == nil {
			err = sync1(f.name)
		}
		if err != nil {
			return fmt.Errorf("making repository %s: %w", repo, err)
		}
	}
	return nil
}
