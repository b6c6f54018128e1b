// Package kubetest gives tests a real Kubernetes API server with etcd, and a real
// Tekton: Tekton's own definitions, settings and controller, and if wanted its
// admission and conversion webhook. Nothing of it is faked; what runs pods is
// package testrig/kubelet.
//
//	c := kubetest.Start(t)               // one for all tests of a package, 4 s
//	c.ApplyTektonCRDs(t)                     // its custom resources and settings
//	ns := c.Namespace(t)                 // fresh, furnished, deleted after the test
//	c.StartTekton(t, kubetest.Tekton{})  // Tekton's controller, as a process
//
// The programs are built by tools/peers and found by the variables that it
// prints. Without them, or without ASSAY_SLOW=1, Start skips the test and says
// what to do. Everything ends with the test binary, even if that is killed: the
// processes by the kernel, the folder by a small shell that waits for them.
package kubetest
