package fulcio

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/credentials"
	"golang.org/x/oauth2"

	"assay.dev/assay/store"
)

const (
	// googleAccount names the service account whose token is wanted.
	googleAccount = "GOOGLE_SERVICE_ACCOUNT_NAME"
	googleScope   = "https://www.googleapis.com/auth/cloud-platform"
)

// accountForm is a service account's e-mail address or unique number; it becomes
// part of a path.
var accountForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.:@_-]{0,253}$`)

// googleImpersonate asks Google's IAM for an identity token of another service
// account, with the credentials that are found where Google's libraries look for
// them: GOOGLE_APPLICATION_CREDENTIALS, gcloud's file, the metadata server. The
// account that they are of needs roles/iam.serviceAccountOpenIdTokenCreator on the
// one that is named.
func googleImpersonate(ctx context.Context, d *Driver) (string, error) {
	if err := needs(googleAccount); err != nil {
		return "", err
	}
	account := os.Getenv(googleAccount)
	if !accountForm.MatchString(account) {
		return "", store.As(store.Configuration, fmt.Errorf("%s is %.100q, which is no service account's address", googleAccount, account))
	}
	own, err := credentials.DetectDefault(&credentials.DetectOptions{Scopes: []string{googleScope}, Client: d.options.Client})
	if err != nil {
		return "", store.As(store.Configuration, fmt.Errorf("finding Google's credentials: %w", err))
	}
	access, err := own.Token(ctx)
	if err != nil {
		return "", fmt.Errorf("getting an access token: %w", googleFault(err))
	}
	universe, err := own.UniverseDomain(ctx)
	if err != nil {
		return "", fmt.Errorf("asking for Google's domain: %w", googleFault(err))
	}
	body, err := json.Marshal(map[string]any{"audience": Audience, "includeEmail": true})
	if err != nil {
		return "", err
	}
	u := "https://iamcredentials." + universe + "/v1/projects/-/serviceAccounts/" + account + ":generateIdToken"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, bytes.NewReader(body))
	if err != nil {
		return "", store.As(store.Configuration, err)
	}
	req.Header.Set("Authorization", "Bearer "+access.Value)
	req.Header.Set("Content-Type", "application/json")
	token, err := member(d, req, "token")
	if err != nil {
		return "", fmt.Errorf("impersonating %s: %w", account, err)
	}
	return token, nil
}

// googleFault gives an answer of Google's token services its class.
func googleFault(err error) error {
	var e *auth.Error
	if errors.As(err, &e) && e.Response != nil && !e.Temporary() {
		return store.As(store.Configuration, err)
	}
	return err
}

func googleToken(s oauth2.TokenSource, err error) (string, error) {
	if err != nil {
		return "", store.As(store.Configuration, err)
	}
	t, err := s.Token()
	if err != nil {
		return "", err
	}
	return t.AccessToken, nil
}
