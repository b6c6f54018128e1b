// Package keyref reads public keys by whatever name people keep them under:
//
//	-----BEGIN PUBLIC KEY-----…     the key itself
//	cosign.pub                      a file
//	env://NAME                      an environment variable with the key
//	k8s://NAMESPACE/SECRET          cosign.pub of a Secret
//	awskms:// gcpkms:// azurekms:// hashivault://   a key of a key service
//	pkcs11:token=…;object=…         a key of a token
//
// Nothing here links a Kubernetes client or a driver. Secrets are read by the
// sibling program assayd (package kubeobject), services and tokens are asked by
// `assay-observer public-key`, a process that ends with the answer.
package keyref

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/internal/kubeobject"
	"assay.dev/assay/internal/sibling"
)

// Options say what a reference may use. The zero value reads everything but PKCS #11
// keys.
type Options struct {
	// Kubeconfig is for k8s://; empty: the usual rules.
	Kubeconfig string
	// Modules are the PKCS #11 libraries that may be loaded: code that will run. The
	// variables ASSAY_PKCS11_MODULE and COSIGN_PKCS11_MODULE_PATH add one each.
	Modules []string
	// OwnWords says that the reference is the user's own, from the command line, so
	// that a library that it names (module-path) may be loaded as well. It must not
	// be set for what a policy or another's file says.
	OwnWords bool
	// Assayd and Observer are paths of programs; empty: those beside this one.
	Assayd, Observer string
}

// secretKey is the entry of a Secret with the public key, as cosign writes it.
const secretKey = "cosign.pub"

// services are the schemes that `assay-observer public-key` reads.
var services = []string{"awskms", "gcpkms", "azurekms", "hashivault"}

// IsFile says whether a reference names a file.
func IsFile(ref string) bool {
	scheme, _, ok := strings.Cut(ref, "://")
	return !strings.Contains(ref, "-----BEGIN") && !strings.HasPrefix(ref, "pkcs11:") && (!ok || strings.ContainsAny(scheme, "/."))
}

// Public returns the public key that a reference names, as PEM. A scheme that is not
// known, a private key and everything else that is no public key are errors, and so
// are a missing file, Secret or program and a service that does not answer.
func Public(ctx context.Context, ref string, o Options) ([]byte, error) {
	pem, err := public(ctx, ref, o)
	if err == nil {
		_, err = dsse.ParsePublicKey(pem)
	}
	if err != nil {
		return nil, fmt.Errorf("reading public key %s: %w", short(ref), err)
	}
	return pem, nil
}

// short is a reference for messages.
func short(ref string) string {
	if line, _, more := strings.Cut(ref, "\n"); more {
		return line + "…"
	}
	return ref
}

func public(ctx context.Context, ref string, o Options) ([]byte, error) {
	if ref == "" {
		return nil, errors.New("it is empty; want a file or one of " + known())
	}
	if strings.Contains(ref, "-----BEGIN") {
		return []byte(ref), nil
	}
	if IsFile(ref) {
		return file(ref)
	}
	if strings.HasPrefix(ref, "pkcs11:") {
		return o.token(ctx, ref)
	}
	scheme, rest, _ := strings.Cut(ref, "://")
	switch {
	case scheme == "k8s":
		return o.secret(ctx, rest)
	case scheme == "env":
		v, ok := os.LookupEnv(rest)
		if !ok {
			return nil, fmt.Errorf("environment variable %q is not set", rest)
		}
		return []byte(v), nil
	case slices.Contains(services, scheme):
		return o.ask(ctx, ref)
	}
	return nil, fmt.Errorf("scheme %s:// is not known; want a file or one of %s", scheme, known())
}

func known() string {
	return "k8s://, env://, " + strings.Join(services, "://, ") + "://, pkcs11:"
}

func file(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%w; want a PEM file, or one of %s", err, known())
		}
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, dsse.MaxKeyPEM+1))
	if err != nil {
		return nil, err
	}
	if len(data) > dsse.MaxKeyPEM {
		return nil, fmt.Errorf("larger than %d bytes", dsse.MaxKeyPEM)
	}
	return data, nil
}

// secret reads cosign.pub of a Secret.
func (o Options) secret(ctx context.Context, ref string) ([]byte, error) {
	if namespace, name, ok := strings.Cut(ref, "/"); !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return nil, errors.New("want k8s://NAMESPACE/SECRET")
	}
	raw, err := kubeobject.Client{Kubeconfig: o.Kubeconfig, Program: o.Assayd}.Get(ctx, "secrets", ref)
	if err != nil {
		return nil, err
	}
	var s struct {
		Data map[string]string `json:"data"`
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("reading the Secret: %w", err)
	}
	v, ok := s.Data[secretKey]
	if !ok {
		return nil, fmt.Errorf("the Secret has no %s, which `cosign generate-key-pair k8s://%s` writes", secretKey, ref)
	}
	pem, err := base64.StdEncoding.DecodeString(v)
	if err != nil {
		return nil, fmt.Errorf("reading %s of the Secret: %w", secretKey, err)
	}
	return pem, nil
}

// token asks for a key of a token, with the libraries that may be loaded.
func (o Options) token(ctx context.Context, uri string) ([]byte, error) {
	modules := slices.Clone(o.Modules)
	for _, name := range []string{"ASSAY_PKCS11_MODULE", "COSIGN_PKCS11_MODULE_PATH"} {
		if v := os.Getenv(name); v != "" {
			modules = append(modules, v)
		}
	}
	if o.OwnWords {
		if m := modulePath(uri); m != "" {
			modules = append(modules, m)
		}
	}
	if len(modules) == 0 {
		return nil, errors.New("no PKCS #11 library may be loaded; name one in ASSAY_PKCS11_MODULE, or with module-path= where the URI is given on the command line")
	}
	var flags []string
	for _, m := range modules {
		flags = append(flags, "--pkcs11-module", m)
	}
	return o.ask(ctx, uri, flags...)
}

// modulePath is the library that a URI names.
func modulePath(uri string) string {
	_, query, _ := strings.Cut(uri, "?")
	for a := range strings.SplitSeq(query, "&") {
		if v, ok := strings.CutPrefix(a, "module-path="); ok {
			if p, err := url.PathUnescape(v); err == nil {
				return p
			}
		}
	}
	return ""
}

func (o Options) ask(ctx context.Context, uri string, flags ...string) ([]byte, error) {
	args := append(append([]string{"public-key"}, flags...), "--", uri)
	return sibling.Output(ctx, "assay-observer", o.Observer, dsse.MaxKeyPEM, args...)
}
