package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"assay.dev/assay/internal/kube"
)

// side is a controller.
type side struct {
	name  string
	start func(ctx context.Context, c *cluster) (*exec.Cmd, func(), error)
}

// settings are Konflux's.
func settings(o options) map[string]string {
	s := map[string]string{
		"artifacts.taskrun.storage":                    "",
		"artifacts.pipelinerun.format":                 "slsa/v1",
		"artifacts.pipelinerun.storage":                "oci",
		"artifacts.pipelinerun.enable-deep-inspection": "true",
		"artifacts.oci.storage":                        "oci",
		"transparency.enabled":                         "false",
	}
	if o.taskRuns {
		s["artifacts.taskrun.storage"] = "tekton"
	}
	return s
}

// newKey writes a signing key into a folder.
func newKey(dir string) error {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "x509.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

func assay(o options) side {
	return side{"assay", func(_ context.Context, c *cluster) (*exec.Cmd, func(), error) {
		if _, err := os.Stat(o.assayd); err != nil {
			return nil, nil, fmt.Errorf("finding what to measure: %w; build it with `make build`", err)
		}
		secrets := filepath.Join(c.dir, "secrets")
		if err := newKey(secrets); err != nil {
			return nil, nil, err
		}
		cmd, err := start(filepath.Join(c.dir, "assay.log"), nil, o.assayd, "observer",
			"--kubeconfig", kube.KubeconfigFile(filepath.Join(c.dir, "kube")), "--system-namespace", system,
			"--secrets", secrets, "--metrics-addr", "127.0.0.1:0")
		return cmd, func() {}, err
	}}
}

// chainsSecrets is compiled into Chains' controller.
const chainsSecrets = "/etc/signing-secrets"

func chains(o options) side {
	return side{"chains", func(_ context.Context, c *cluster) (*exec.Cmd, func(), error) {
		if _, err := os.Stat(chainsSecrets); err == nil {
			return nil, nil, errors.New(chainsSecrets + " is there already; Chains reads its key there, move it away")
		}
		if err := newKey(chainsSecrets); err != nil {
			return nil, nil, err
		}
		tidy := func() { _ = os.RemoveAll(chainsSecrets) }
		args := []string{"--kubeconfig", kube.KubeconfigFile(filepath.Join(c.dir, "kube"))}
		if !o.chainsDefault {
			args = append(args, "--threads-per-controller=32", "--kube-api-qps=10000", "--kube-api-burst=10000")
		}
		cmd, err := start(filepath.Join(c.dir, "chains.log"), []string{
			"SYSTEM_NAMESPACE=" + system, "CONFIG_LOGGING_NAME=config-logging",
			"CONFIG_OBSERVABILITY_NAME=tekton-chains-config-observability",
			"CONFIG_LEADERELECTION_NAME=tekton-chains-config-leader-election",
			"METRICS_DOMAIN=tekton.dev/chains", "KUBERNETES_MIN_VERSION=v1.28.0", "POD_NAME=bench",
		}, o.chains, args...)
		if err != nil {
			tidy()
		}
		return cmd, tidy, err
	}}
}
