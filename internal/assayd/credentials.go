package assayd

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"assay.dev/assay/store"
)

// credentialsLast is how long a service account's credentials are used before
// they are looked up again. It bounds both the requests to the API server, which
// are one per account and Secret, and how long a revoked credential is tried.
const credentialsLast = 5 * time.Minute

// accounts finds the registry credentials of runs: the Secrets that the run's
// service account lists, as Tekton Chains has it, and after those what the
// operator gave the observer itself (DOCKER_CONFIG).
type accounts struct {
	client kubernetes.Interface
	own    authn.Keychain
	// ownOnly leaves the runs' service accounts alone.
	ownOnly bool
	now     func() time.Time

	mu    sync.Mutex
	known map[string]*account // namespace/name
}

type account struct {
	mu      sync.Mutex // held while it is looked up, so that it is once
	chain   authn.Keychain
	expires time.Time
}

func newAccounts(client kubernetes.Interface, own authn.Keychain) *accounts {
	return &accounts{client: client, own: own, now: time.Now, known: map[string]*account{}}
}

// Keychain implements oci.KeeperOptions.Keychain. Missing accounts and Secrets
// are none: the registry says whether it wanted some. A refused look is a
// store.Configuration fault.
func (a *accounts) Keychain(ctx context.Context, run store.Run) (authn.Keychain, error) {
	if a.ownOnly {
		return a.own, nil
	}
	name := run.ServiceAccount
	if name == "" {
		name = "default"
	}
	a.mu.Lock()
	if len(a.known) > 10_000 { // accounts of namespaces long gone
		a.known = map[string]*account{}
	}
	k := a.known[run.Namespace+"/"+name]
	if k == nil {
		k = &account{}
		a.known[run.Namespace+"/"+name] = k
	}
	a.mu.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.chain != nil && a.now().Before(k.expires) {
		return k.chain, nil
	}
	chain, err := a.look(ctx, run.Namespace, name)
	if err != nil {
		return nil, err
	}
	k.chain, k.expires = chain, a.now().Add(credentialsLast)
	return chain, nil
}

func (a *accounts) look(ctx context.Context, namespace, name string) (authn.Keychain, error) {
	sa, err := a.client.CoreV1().ServiceAccounts(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return a.own, nil
	}
	if err != nil {
		return nil, denied("reading service account", namespace, name, err)
	}
	out := credentials{}
	for _, ref := range sa.Secrets {
		s, err := a.client.CoreV1().Secrets(namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, denied("reading Secret", namespace, ref.Name, err)
		}
		if err := out.add(s); err != nil {
			return nil, store.As(store.Configuration, fmt.Errorf("reading Secret %s/%s: %w", namespace, ref.Name, err))
		}
	}
	return authn.NewMultiKeychain(out, a.own), nil
}

func denied(what, namespace, name string, err error) error {
	err = fmt.Errorf("%s %s/%s: %w", what, namespace, name, err)
	if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
		return store.As(store.Configuration, fmt.Errorf("%w; give the observer the right, or start it with --registry-credentials=own", err))
	}
	return err
}

// credentials are entries of docker's configuration: registry, or registry/path,
// → credential.
type credentials map[string]authn.AuthConfig

// add takes what a Secret holds for registries; other kinds of Secrets hold
// nothing of the sort.
func (c credentials) add(s *corev1.Secret) error {
	var entries map[string]authn.AuthConfig
	switch s.Type {
	case corev1.SecretTypeDockerConfigJson:
		var file struct {
			Auths map[string]authn.AuthConfig `json:"auths"`
		}
		if err := json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &file); err != nil {
			return fmt.Errorf("parsing %s: %w", corev1.DockerConfigJsonKey, err)
		}
		entries = file.Auths
	case corev1.SecretTypeDockercfg:
		if err := json.Unmarshal(s.Data[corev1.DockerConfigKey], &entries); err != nil {
			return fmt.Errorf("parsing %s: %w", corev1.DockerConfigKey, err)
		}
	default:
		return nil
	}
	for place, auth := range entries {
		place = strings.TrimPrefix(strings.TrimPrefix(place, "https://"), "http://")
		place = strings.TrimSuffix(place, "/")
		if host, path, ok := strings.Cut(place, "/"); ok && (path == "v1" || path == "v2") {
			place = host
		}
		if _, ok := c[place]; !ok { // the first Secret wins
			c[place] = auth
		}
	}
	return nil
}

// Resolve implements authn.Keychain: the longest entry that the resource is in.
func (c credentials) Resolve(r authn.Resource) (authn.Authenticator, error) {
	want := r.String()
	for {
		for _, form := range hubForms(want) {
			if auth, ok := c[form]; ok {
				return authn.FromConfig(auth), nil
			}
		}
		i := strings.LastIndexByte(want, '/')
		if i < 0 {
			return authn.Anonymous, nil
		}
		want = want[:i]
	}
}

// hubForms are the names under which docker keeps its own registry.
func hubForms(place string) []string {
	if rest, ok := strings.CutPrefix(place, "index.docker.io"); ok {
		return []string{place, "docker.io" + rest}
	}
	return []string{place}
}
