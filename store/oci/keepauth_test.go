package oci_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"

	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
)

// guard is a registry that wants tokens, and the service that gives them.
type guard struct {
	*served
	basic  bool
	mu     sync.Mutex
	valid  map[string]string // guarded by mu; token → scope
	tokens int               // guarded by mu; given
}

func (g *guard) check(w http.ResponseWriter, r *http.Request) bool {
	user, password, _ := r.BasicAuth()
	if r.URL.Path == "/token" {
		if user != "robot" || password != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.tokens++
		name := fmt.Sprint("token-", g.tokens)
		g.valid[name] = r.URL.Query().Get("scope")
		fmt.Fprintf(w, `{"token":%q,"expires_in":300}`, name)
		return true
	}
	challenge := fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, g.addr)
	ok := false
	if g.basic {
		challenge, ok = `Basic realm="test"`, user == "robot" && password == "secret"
	} else {
		g.mu.Lock()
		scope := g.valid[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
		g.mu.Unlock()
		path, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/")
		path, _, _ = strings.Cut(path, "/blobs/")
		ok = scope != "" && strings.HasPrefix(scope, "repository:"+path+":")
	}
	if ok {
		return false
	}
	w.Header().Set("WWW-Authenticate", challenge)
	w.WriteHeader(http.StatusUnauthorized)
	return true
}

type keychain struct{ authn.AuthConfig }

func (k keychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(k.AuthConfig), nil
}

// Credentials are asked for per run; what registries make of them is remembered.
func TestKeeperAuthorises(t *testing.T) {
	for _, basic := range []bool{false, true} {
		s := serve(t, olareg(t))
		g := &guard{served: s, basic: basic, valid: map[string]string{}}
		var images []string
		for i := range 6 {
			images = append(images, s.image(t, "team/app", fmt.Sprint(i)))
		}
		signer := storetest.NewRecordSigner(t)
		s.breaks(g.check)
		var asked []string
		login := authn.AuthConfig{Username: "robot", Password: "secret"}
		k := s.keeper(t, oci.KeeperOptions{Settle: time.Millisecond, Keychain: func(_ context.Context, run store.Run) (authn.Keychain, error) {
			asked = append(asked, run.UID)
			return keychain{login}, nil
		}})
		first, second := work(t, images[:3], 10, signer), work(t, images[3:], 10, signer)
		s.mustKeep(t, k, first...)
		s.mustKeep(t, k, second...)
		if n := strings.Count(s.requests(), "GET /v2/\n") + strings.Count(s.requests(), "/token"); n != 0 {
			t.Errorf("basic %t: %d questions about credentials for the second run; want none", basic, n)
		}
		if d := cmp.Diff([]string{first[0].Run.UID, second[0].Run.UID}, asked); d != "" {
			t.Errorf("basic %t: keychain asked for %s", basic, d)
		}
		if want := map[bool]int{true: 0, false: 1}[basic]; g.tokens != want {
			t.Errorf("basic %t: %d tokens; want %d", basic, g.tokens, want)
		}
		// Tokens that no longer hold are renewed without anybody noticing.
		g.mu.Lock()
		clear(g.valid)
		g.mu.Unlock()
		s.mustKeep(t, k, work(t, images, 10, signer)...)
		if want := map[bool]int{true: 0, false: 2}[basic]; g.tokens != want {
			t.Errorf("basic %t: %d tokens after one was revoked; want %d", basic, g.tokens, want)
		}
		// A password that no longer holds is a matter of configuration; the next one works.
		login.Password = "wrong"
		for i, o := range k.Keep(t.Context(), work(t, images, 10, signer)) {
			if store.ClassOf(o.Err) != store.Configuration {
				t.Errorf("basic %t: record %d with a wrong password: %+v; want a configuration error", basic, i, o)
			}
			if o.Err != nil && strings.Contains(o.Err.Error(), "wrong") {
				t.Errorf("the error tells the password: %v", o.Err)
			}
		}
		login.Password = "secret"
		s.mustKeep(t, k, work(t, images, 10, signer)...)
		k.Close()
	}
}
