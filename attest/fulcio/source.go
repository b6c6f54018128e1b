package fulcio

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/compute/metadata"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/api/idtoken"

	"assay.dev/assay/store"
)

// Where tokens are when nobody says so.
const (
	tokenFile   = "/var/run/sigstore/cosign/oidc-token"
	spireSocket = "/tmp/spire-agent/public/api.sock"
	buildkite   = "https://agent.buildkite.com/v3"
)

// tokenSource is a place that tokens come from.
type tokenSource struct {
	name  string
	alias string // as chains-config's documentation calls it
	// there says whether the source exists here, without asking it for a token.
	there func(context.Context) bool
	token func(context.Context, *Driver) (string, error)
}

// sources lists every source in the order in which they are tried: those that
// cost a look first. The names are cosign's, whom chains-config refers to.
func sources() []tokenSource {
	return []tokenSource{
		{"envvar", "", hasEnv("SIGSTORE_ID_TOKEN"), func(context.Context, *Driver) (string, error) {
			return os.Getenv("SIGSTORE_ID_TOKEN"), nil
		}},
		{"filesystem", "", hasFile(tokenFile), func(_ context.Context, d *Driver) (string, error) {
			return d.options.ReadToken(tokenFile)
		}},
		{"github-actions", "github", hasEnv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_URL"), github},
		{"buildkite-agent", "buildkite", hasEnv("BUILDKITE_AGENT_ACCESS_TOKEN"), buildkiteAgent},
		{"spiffe", "", func(ctx context.Context) bool { return hasFile(strings.TrimPrefix(spireAddress(), "unix://"))(ctx) }, spiffe},
		{"google-impersonate", "", hasEnv(googleAccount), googleImpersonate},
		{"google-workload-identity", "google", metadata.OnGCEWithContext, func(ctx context.Context, _ *Driver) (string, error) {
			return googleToken(idtoken.NewTokenSource(ctx, Audience))
		}},
	}
}

// source is the source of a name, or nil for all of them. An unknown name is an
// error.
func source(name string) (*tokenSource, error) {
	if name == "" || name == "filesystem-custom-path" {
		return nil, nil
	}
	all := sources()
	i := slices.IndexFunc(all, func(s tokenSource) bool { return s.name == name || s.alias == name })
	if i < 0 {
		var names []string
		for _, s := range all {
			names = append(names, s.name)
		}
		return nil, fmt.Errorf("unknown token source %q (signers.x509.fulcio.provider); known are %s, filesystem-custom-path, or nothing to try all", name, strings.Join(names, ", "))
	}
	return &all[i], nil
}

// token gets a token from where the settings say: the file if one is named, else
// the source that is named, else the first that has one.
func (d *Driver) token(ctx context.Context) (string, error) {
	if d.set.TokenFile != "" {
		return d.checked(d.options.ReadToken(d.set.TokenFile))
	}
	if d.set.Provider == "filesystem-custom-path" {
		return "", store.As(store.Configuration, errors.New("token source filesystem-custom-path needs a file; set signers.x509.identity.token.file"))
	}
	one, err := source(d.set.Provider)
	if err != nil {
		return "", store.As(store.Configuration, err)
	}
	if one != nil {
		token, err := d.checked(one.token(ctx, d))
		if err != nil {
			return "", fmt.Errorf("getting a token from %s: %w", one.name, err)
		}
		return token, nil
	}
	var errs []error
	for _, s := range sources() {
		if !s.there(ctx) {
			continue
		}
		token, err := d.checked(s.token(ctx, d))
		if err == nil {
			return token, nil
		}
		errs = append(errs, fmt.Errorf("getting a token from %s: %w", s.name, err))
	}
	if len(errs) == 0 {
		return "", store.As(store.Configuration, errors.New("no source of OIDC tokens is here; mount a projected service account token for audience sigstore and name it in signers.x509.identity.token.file"))
	}
	return "", errors.Join(errs...)
}

// checked refuses what cannot be a token in use, before it is shown to anybody.
func (d *Driver) checked(token string, err error) (string, error) {
	if err != nil {
		return "", err
	}
	token = strings.TrimSpace(token)
	bad := func(why string) (string, error) {
		return "", store.As(store.Configuration, errors.New("the token is no OIDC token in use: "+why))
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 || len(token) > 64<<10 {
		return bad("it is no JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return bad("its claims are no base64")
	}
	var claims struct {
		Expires float64 `json:"exp"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return bad("its claims are no JSON")
	}
	if at := time.Unix(int64(claims.Expires), 0); time.Now().After(at) {
		return bad("it ran out at " + at.UTC().Format(time.RFC3339))
	}
	return token, nil
}

// describe says what a token claims, for whoever has to find out why it was
// refused: authorities keep that to themselves.
func describe(token string) string {
	var c struct {
		Issuer   string `json:"iss"`
		Subject  string `json:"sub"`
		Audience any    `json:"aud"`
	}
	if _, rest, ok := strings.Cut(token, "."); ok {
		claims, _, _ := strings.Cut(rest, ".")
		if b, err := base64.RawURLEncoding.DecodeString(claims); err != nil || json.Unmarshal(b, &c) != nil {
			return "that cannot be read"
		}
	}
	return fmt.Sprintf("of issuer %q about %q for audience %v", c.Issuer, c.Subject, c.Audience)
}

func hasEnv(names ...string) func(context.Context) bool {
	return func(context.Context) bool {
		return !slices.ContainsFunc(names, func(n string) bool { return os.Getenv(n) == "" })
	}
}

func hasFile(path string) func(context.Context) bool {
	return func(context.Context) bool {
		_, err := os.Stat(path)
		return err == nil
	}
}

// needs refuses a source that was named and is not here.
func needs(names ...string) error {
	for _, n := range names {
		if os.Getenv(n) == "" {
			return store.As(store.Configuration, fmt.Errorf("%s is not set", n))
		}
	}
	return nil
}

func github(ctx context.Context, d *Driver) (string, error) {
	if err := needs("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_URL"); err != nil {
		return "", err
	}
	u, err := url.Parse(os.Getenv("ACTIONS_ID_TOKEN_REQUEST_URL"))
	if err != nil {
		return "", store.As(store.Configuration, err)
	}
	q := u.Query()
	q.Set("audience", Audience)
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+os.Getenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN"))
	return member(d, req, "value")
}

func buildkiteAgent(ctx context.Context, d *Driver) (string, error) {
	if err := needs("BUILDKITE_AGENT_ACCESS_TOKEN", "BUILDKITE_JOB_ID"); err != nil {
		return "", err
	}
	endpoint := os.Getenv("BUILDKITE_AGENT_ENDPOINT")
	if endpoint == "" {
		endpoint = buildkite
	}
	u := strings.TrimSuffix(endpoint, "/") + "/jobs/" + url.PathEscape(os.Getenv("BUILDKITE_JOB_ID")) + "/oidc/tokens"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, bytes.NewReader([]byte(`{"audience":"`+Audience+`"}`)))
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Token "+os.Getenv("BUILDKITE_AGENT_ACCESS_TOKEN"))
	req.Header.Set("Content-Type", "application/json")
	return member(d, req, "token")
}

// member asks for a JSON object and returns a string in it.
func member(d *Driver, req *http.Request, name string) (string, error) {
	answer, err := ask(d.options.Client, req)
	if err != nil {
		return "", err
	}
	var m map[string]any
	if err := json.Unmarshal(answer, &m); err != nil {
		return "", fmt.Errorf("reading the answer: %w", err)
	}
	s, _ := m[name].(string)
	return s, nil
}

func spireAddress() string {
	if a := os.Getenv("SPIFFE_ENDPOINT_SOCKET"); a != "" {
		return a
	}
	return spireSocket
}

func spiffe(ctx context.Context, _ *Driver) (string, error) {
	address := spireAddress()
	if !strings.Contains(address, "://") {
		address = "unix://" + address
	}
	// The client tries for ever; an agent on this machine answers at once.
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: Audience}, workloadapi.WithAddr(address))
	if err != nil {
		return "", err
	}
	return s.Marshal(), nil
}
