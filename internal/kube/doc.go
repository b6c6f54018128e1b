// Package kube is the embedded control plane: upstream's own etcd and
// kube-apiserver as child processes of ours, with a data folder, certificates
// and ports of their own. kubectl works against it, RBAC works, namespaces are
// tenants, and controllers cannot tell it from a cluster.
//
//	Start ─▶ etcd answers ─▶ kube-apiserver /readyz ─▶ namespaces kept ─▶ Plane
//	Stop  ─▶ kube-apiserver, then etcd
//
// # What it is not
//
// No scheduler, no kubelet, no kube-controller-manager: there is nothing here
// that runs Pods. What a controller manager does and we cannot do without, this
// package does while a Plane runs: each namespace gets the ServiceAccount
// "default" and the ConfigMap "kube-root-ca.crt", and a namespace that is being
// deleted is emptied and let go. What is left out: deleting what an
// ownerReference points at (garbage collection), token Secrets (TokenRequest
// works), quota accounting (a ResourceQuota therefore refuses what it counts),
// Deployments, Jobs and every other kind that needs a controller.
//
// # The folder
//
//	lock                  held by us and by both children; our process id
//	state.json            where it answers and who runs; there while it is ready
//	ports.json            remembered: a kubeconfig stays valid over restarts
//	kubeconfig            the administrator's
//	pki/                  two authorities, so that no client of one is one of the other
//	etcd/                 etcd's data
//	logs/                 etcd.log, kube-apiserver.log, and .1 of the start before
//
// It belongs to us alone (0700). With Options.UID the children run as that user
// and the folder can be passed through, but everything in it is closed: the
// authorities' keys stay ours, and each child reads its own keys only.
//
// # Life and death
//
// The children die with us, however we die: the kernel kills them when the
// thread that started them ends. They inherit the lock, so that a successor
// starts only when the last of them is gone. If one of them dies, the Plane says
// so (Done, Err), stops the other, and a new Start finds everything that had been
// confirmed to a client. Everything listens on loopback, everything speaks TLS
// with client certificates, anonymous requests are refused.
package kube
