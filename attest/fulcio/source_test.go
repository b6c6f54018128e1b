package fulcio

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"assay.dev/assay/attest/signing"
	"assay.dev/assay/store"
)

// sourceEnv is every variable that a source looks at.
var sourceEnv = []string{
	"SIGSTORE_ID_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_URL", "BUILDKITE_AGENT_ACCESS_TOKEN",
	"BUILDKITE_AGENT_ENDPOINT", "BUILDKITE_JOB_ID", "GOOGLE_SERVICE_ACCOUNT_NAME", "GOOGLE_APPLICATION_CREDENTIALS", "SPIFFE_ENDPOINT_SOCKET",
}

type agent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	token string
}

func (a *agent) FetchJWTSVID(ctx context.Context, r *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	if md, _ := metadata.FromIncomingContext(ctx); len(md.Get("workload.spiffe.io")) != 1 || strings.Join(r.Audience, ",") != Audience {
		return nil, status.Error(codes.InvalidArgument, "no")
	}
	return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{SpiffeId: "spiffe://cluster.test/signer", Svid: a.token}}}, nil
}

func TestSources(t *testing.T) {
	iss := startIssuer(t)
	token := iss.token(t, Audience, time.Hour)
	spiffeToken := spiffeID(t, iss)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/github" && r.Method == "GET" && r.URL.Query().Get("audience") == Audience && r.URL.Query().Get("api-version") == "2" && r.Header.Get("Authorization") == "Bearer gh":
			fmt.Fprintf(w, `{"count":1,"value":%q}`, token)
		case r.URL.Path == "/v3/jobs/job-1/oidc/tokens" && r.Method == "POST" && r.Header.Get("Authorization") == "Token bk":
			fmt.Fprintf(w, `{"token":%q}`, token)
		case strings.HasSuffix(r.URL.Path, "/service-accounts/default/identity") && r.URL.Query().Get("audience") == Audience && r.Header.Get("Metadata-Flavor") == "Google":
			w.Header().Set("Metadata-Flavor", "Google")
			fmt.Fprint(w, token)
		default:
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"message":"not you"}`)
		}
	}))
	defer srv.Close()
	dir, err := os.MkdirTemp("", "spire")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(g, &agent{token: spiffeToken})
	go g.Serve(l) //nolint:errcheck // ends with Stop
	defer g.Stop()

	google := map[string]string{"GCE_METADATA_HOST": strings.TrimPrefix(srv.URL, "http://")}
	for _, tc := range []struct {
		name string
		set  signing.Fulcio
		env  map[string]string
		want string // empty: refused
		says string
	}{
		{"envvar", signing.Fulcio{Provider: "envvar"}, map[string]string{"SIGSTORE_ID_TOKEN": token}, token, ""},
		{"envvar among all", signing.Fulcio{}, map[string]string{"SIGSTORE_ID_TOKEN": token}, token, ""},
		{"github", signing.Fulcio{Provider: "github"}, map[string]string{"ACTIONS_ID_TOKEN_REQUEST_TOKEN": "gh", "ACTIONS_ID_TOKEN_REQUEST_URL": srv.URL + "/github?api-version=2"}, token, ""},
		{"github-actions, refused", signing.Fulcio{Provider: "github-actions"}, map[string]string{"ACTIONS_ID_TOKEN_REQUEST_TOKEN": "x", "ACTIONS_ID_TOKEN_REQUEST_URL": srv.URL + "/github?api-version=2"}, "", "not you"},
		{"github, elsewhere", signing.Fulcio{Provider: "github"}, nil, "", "is not set"},
		{"buildkite", signing.Fulcio{Provider: "buildkite-agent"}, map[string]string{"BUILDKITE_AGENT_ACCESS_TOKEN": "bk", "BUILDKITE_JOB_ID": "job-1", "BUILDKITE_AGENT_ENDPOINT": srv.URL + "/v3"}, token, ""},
		{"spiffe", signing.Fulcio{Provider: "spiffe"}, map[string]string{"SPIFFE_ENDPOINT_SOCKET": "unix://" + socket}, spiffeToken, ""},
		{"spiffe among all", signing.Fulcio{}, map[string]string{"SPIFFE_ENDPOINT_SOCKET": socket}, spiffeToken, ""},
		{"google", signing.Fulcio{Provider: "google"}, google, token, ""},
		{"google among all", signing.Fulcio{}, google, token, ""},
		{"one that fails leads to the next", signing.Fulcio{}, map[string]string{"SIGSTORE_ID_TOKEN": "stale", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "gh", "ACTIONS_ID_TOKEN_REQUEST_URL": srv.URL + "/github?api-version=2"}, token, ""},
		{"the file goes before", signing.Fulcio{TokenFile: "/nonexistent"}, map[string]string{"SIGSTORE_ID_TOKEN": token}, "", "no such file"},
		{"custom path without a file", signing.Fulcio{Provider: "filesystem-custom-path"}, nil, "", "signers.x509.identity.token.file"},
		{"filesystem", signing.Fulcio{Provider: "filesystem"}, nil, "", "no such file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, name := range sourceEnv {
				t.Setenv(name, tc.env[name])
			}
			if host, ok := tc.env["GCE_METADATA_HOST"]; ok {
				t.Setenv("GCE_METADATA_HOST", host)
			}
			tc.set.Address = "https://fulcio.test"
			d, err := Open(tc.set, Options{ReadToken: readFile})
			if err != nil {
				t.Fatal(err)
			}
			got, err := d.token(t.Context())
			if tc.want != "" {
				if err != nil || got != tc.want {
					t.Errorf("%q, %v", got, err)
				}
				return
			}
			if err == nil || store.ClassOf(err) != store.Configuration || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v (%v), want configuration %q", err, store.ClassOf(err), tc.says)
			}
		})
	}
}

// spiffeID is a token as a SPIRE server makes them.
func spiffeID(t *testing.T, i *issuer) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: "1"}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(s).Claims(jwt.Claims{
		Subject: "spiffe://cluster.test/signer", Audience: jwt.Audience{Audience}, Expiry: jwt.NewNumericDate(time.Now().Add(time.Hour)),
	}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}
