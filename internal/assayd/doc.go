// Package assayd is the command line of the program assayd: what needs a
// Kubernetes API, or is one. It wires packages that know nothing of each other:
// the controller (internal/watch) with the storage back ends (store/…), the
// transparency logs (attest/tlog) and the signer's process (attest/signing), and
// the embedded control plane (internal/kube).
//
// Nothing here holds a signing key.
package assayd
