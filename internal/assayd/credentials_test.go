package assayd

import (
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	corev1 "k8s.io/api/core/v1"
)

// TestCredentials: which entry of which Secret is used for a repository.
func TestCredentials(t *testing.T) {
	c := credentials{}
	for _, s := range []*corev1.Secret{
		{Type: corev1.SecretTypeOpaque, Data: map[string][]byte{".dockerconfigjson": []byte("not read")}},
		{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{".dockerconfigjson": []byte(`{"auths":{
			"https://index.docker.io/v1/":{"username":"hub","password":"p"},
			"quay.example.com":{"auth":"aG9zdDpw"},
			"quay.example.com/team/app":{"username":"app","password":"p"}}}`)}},
		{Type: corev1.SecretTypeDockercfg, Data: map[string][]byte{".dockercfg": []byte(`{"quay.example.com":{"username":"second"},"https://old.example.com":{"username":"old"}}`)}},
	} {
		if err := c.add(s); err != nil {
			t.Fatal(err)
		}
	}
	for ref, want := range map[string]string{
		"quay.example.com/team/app":     "app",
		"quay.example.com/team/app/sub": "app",
		"quay.example.com/team/apple":   "host",
		"quay.example.com/x":            "host",
		"old.example.com/a/b":           "old",
		"library/busybox":               "hub",
		"other.example.com/x":           "",
	} {
		repo, err := name.NewRepository(ref)
		if err != nil {
			t.Fatal(err)
		}
		a, err := c.Resolve(repo)
		if err != nil {
			t.Fatal(err)
		}
		got, err := a.Authorization()
		if err != nil {
			t.Fatal(err)
		}
		if got.Username != want {
			t.Errorf("%s: credentials of %q, want %q", ref, got.Username, want)
		}
	}
	if a, _ := c.Resolve(must(name.NewRepository("other.example.com/x"))); a != authn.Anonymous {
		t.Error("a foreign registry is shown a credential")
	}
	if err := c.add(&corev1.Secret{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{".dockerconfigjson": []byte("{")}}); err == nil {
		t.Error("garbage was taken for credentials")
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
