package kube

import (
	"fmt"
	"os"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientapi "k8s.io/client-go/tools/clientcmd/api"
)

// contextName is what the administrator's kubeconfig calls cluster and context.
const contextName = "assay"

// restConfig is the administrator's, from the files of the folder.
func (f folder) restConfig(p ports) (*rest.Config, error) {
	c := &rest.Config{
		Host:      "https://" + loopback(p.API),
		UserAgent: "assayd",
		// The server bounds what runs at once; a client of its own machine that
		// waits by itself only adds delay.
		QPS: -1,
	}
	for _, x := range []struct {
		to   *[]byte
		file string
	}{{&c.CAData, "ca.crt"}, {&c.CertData, "admin.crt"}, {&c.KeyData, "admin.key"}} {
		b, err := os.ReadFile(f.path("pki", x.file))
		if err != nil {
			return nil, fmt.Errorf("reading the administrator's credentials: %w", err)
		}
		*x.to = b
	}
	return c, nil
}

// Kubeconfig renders a client configuration as kubectl reads it, with everything
// inside. It fails only if c cannot be encoded.
func Kubeconfig(c *rest.Config) ([]byte, error) {
	k := clientapi.NewConfig()
	k.Clusters[contextName] = &clientapi.Cluster{Server: c.Host, CertificateAuthorityData: c.CAData}
	k.AuthInfos[contextName] = &clientapi.AuthInfo{ClientCertificateData: c.CertData, ClientKeyData: c.KeyData, Token: c.BearerToken}
	k.Contexts[contextName] = &clientapi.Context{Cluster: contextName, AuthInfo: contextName, Namespace: "default"}
	k.CurrentContext = contextName
	b, err := clientcmd.Write(*k)
	if err != nil {
		return nil, fmt.Errorf("encoding the kubeconfig: %w", err)
	}
	return b, nil
}
