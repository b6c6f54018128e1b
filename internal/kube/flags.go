package kube

import (
	"fmt"
	"net"
	"strconv"
)

// serviceIP is the address of the Service "kubernetes": the first of serviceRange.
// Nothing routes it here; Pods of a cluster's habit find it in their environment.
var serviceIP = net.IPv4(10, 0, 0, 1)

const serviceRange = "10.0.0.0/24"

func loopback(port int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// etcdFlags say: one member, loopback, client certificates of etcd's own
// authority on both listeners.
func (f folder) etcdFlags(p ports, ephemeral bool) []string {
	client, peer := "https://"+loopback(p.Client), "https://"+loopback(p.Peer)
	flags := []string{
		"--name=assay",
		// The API server learns by it that its cache is up to date where nothing
		// changes; without, a watch can wait for minutes for its beginning to end.
		"--watch-progress-notify-interval=5s",
		"--data-dir=" + f.path("etcd"),
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=assay=" + peer,
		"--cert-file=" + f.path("pki", "etcd-server.crt"), "--key-file=" + f.path("pki", "etcd-server.key"),
		"--client-cert-auth", "--trusted-ca-file=" + f.path("pki", "etcd-ca.crt"),
		"--peer-cert-file=" + f.path("pki", "etcd-peer.crt"), "--peer-key-file=" + f.path("pki", "etcd-peer.key"),
		"--peer-client-cert-auth", "--peer-trusted-ca-file=" + f.path("pki", "etcd-ca.crt"),
		"--logger=zap", "--log-outputs=stderr", "--log-level=warn",
		// The API server compacts every five minutes; a busy factory writes more
		// than the default 2 GiB in that time.
		fmt.Sprintf("--quota-backend-bytes=%d", 8<<30),
	}
	if ephemeral {
		flags = append(flags, "--unsafe-no-fsync")
	}
	return flags
}

// apiServerFlags say: loopback, RBAC, no anonymous, no audit, no cloud, nothing
// that waits for a controller manager.
func (f folder) apiServerFlags(p ports) []string {
	return []string{
		"--etcd-servers=https://" + loopback(p.Client),
		"--etcd-cafile=" + f.path("pki", "etcd-ca.crt"),
		"--etcd-certfile=" + f.path("pki", "etcd-client.crt"), "--etcd-keyfile=" + f.path("pki", "etcd-client.key"),
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none",
		fmt.Sprintf("--secure-port=%d", p.API),
		"--tls-cert-file=" + f.path("pki", "apiserver.crt"), "--tls-private-key-file=" + f.path("pki", "apiserver.key"),
		"--client-ca-file=" + f.path("pki", "ca.crt"),
		"--tls-min-version=VersionTLS12",
		"--authorization-mode=RBAC", "--anonymous-auth=false",
		// The issuer does not name the port, so that tokens stay valid if it moves.
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + f.path("pki", "service-account.pub"),
		"--service-account-signing-key-file=" + f.path("pki", "service-account.key"),
		"--service-cluster-ip-range=" + serviceRange,
		// These leave finalizers and taints that only a controller manager removes.
		"--disable-admission-plugins=StorageObjectInUseProtection,TaintNodesByCondition",
		// Everyone here is on one machine; fair queues cost more than they bring.
		"--enable-priority-and-fairness=false",
		"--max-requests-inflight=800", "--max-mutating-requests-inflight=400",
		"--profiling=false",
		"--etcd-count-metric-poll-period=0", "--etcd-db-metric-poll-interval=0",
		"--v=0",
	}
}
