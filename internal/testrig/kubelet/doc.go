// Package kubelet is a small kubelet for tests: it takes every Pod of a test
// cluster for its own and carries it out in the product's own sandbox (package
// sandbox/oci with runc), so that Tekton's real pods run to their end and
// Tekton's real controller finishes its runs by what their status says.
//
//	c := kubetest.Start(t)
//	k := kubelet.Start(t, c)     // registry on loopback, images, kubelet
//	k.StartTekton(t)             // the controller, told of those images
//	… create a PipelineRun with steps that use k.Shell …
//	run := c.Finished(t, kubetest.PipelineRuns, ns, "name")
//
// # What it does as a kubelet would
//
// Init containers one after the other, containers at the same time. Volumes:
// emptyDir, configMap, secret, projected (with service account tokens by
// TokenRequest), downwardAPI, which follows the Pod's labels and annotations, and
// persistentVolumeClaim (a folder for each claim, provided at once). Environment
// from values, fields, ConfigMaps and Secrets, with $(NAME) expanded. Termination
// messages from their file or the log, exit codes, times, image ids by digest;
// activeDeadlineSeconds; deletion; a sidecar whose image is replaced is ended,
// which is how Tekton stops one. Logs are files (Log).
//
// # What it does otherwise
//
// Each container has a network namespace of its own with nothing in it but
// loopback, on which the test registry and the API server answer at the ports
// that they have on the host's loopback. So pods reach these two as a test does
// (127.0.0.1:PORT), and nothing else; containers of one pod do not reach each
// other by network. There are no probes, no lifecycle hooks, no restarts, no
// resource limits, no fsGroup (volumes are open to every user in the pod), no
// nodes. What a Pod asks of these and would change its outcome (a restart policy,
// host namespaces, privilege, other volumes, an init container that stays) fails
// the Pod with reason Unsupported and says what it was.
//
// It needs root, static busybox (Debian: busybox-static) and runc built beside
// our binaries, and skips tests without them.
package kubelet
