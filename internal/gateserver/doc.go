// Package gateserver is the gate as a service: `assay gate serve`.
//
//	POST /v1/validate/image   references or a Snapshot ─▶ the gate's JSON report
//	POST /v1/validate/input   a document ─▶ Conforma's report (as ec validate input --server)
//	POST /v1/admit            AdmissionReview of Kubernetes ─▶ allowed or not, and why
//	GET  /v1/policy           the policy that serves, with its digest and sources
//	GET  /metrics             for Prometheus
//	GET  /live, /ready        for probes
//
// # What serves
//
// A Standing is everything that judgements are made by: policy and trust. A Server
// loads one, and again at every interval; each request takes the one that is there
// when it begins and keeps it to its end. One that cannot be loaded changes nothing:
// the old one serves on, a metric and the log say so. Until there is a first one the
// server is not ready, and refuses.
//
// Each request has a gate of its own, so that a tag is what it is now and one
// request's registry is not another's memory.
//
// # Who may ask
//
// Whoever asks names images, and the server then asks their registries: that is not
// for everybody. Callers have a token or a client certificate. Without either the
// server is for this machine alone, unless it is told otherwise by name. Probes are
// for everybody. Tokens and certificates are read again when their files change.
//
// # Bounds
//
// Requests have a bound on their size, their time and their number; what is beyond is
// answered 413, 500 (as Conforma's server has it) and 429. Admission has slots of its
// own, so that nobody who validates keeps Pods from starting.
//
// # Admission
//
// The webhook judges each image that a Pod, or the template in a workload, would run:
// containers, init and ephemeral containers, image volumes. Changes are judged for
// what they bring: an image that was there before is not asked about again, since to
// refuse the removal of a finalizer helps nobody. Three answers are told apart:
// allowed; refused, with rules and reasons; could not be checked, with the cause.
// Only the first lets anything through. It changes no object and leaves nothing
// behind, so that a dry run is as good as any.
//
// A verdict on a digest is kept for a while, by image, policy and trust, and never
// beyond its own expiry. What could not be checked is not kept, but it goes on being
// checked after the API server has lost patience: who tries again finds the verdict.
//
// A tag is refused unless Options.AllowTags is set. What is judged is the image that
// the tag names at admission; the node asks again when it pulls, and may get another.
//
// What it does not do: it holds no key, links no Kubernetes, and asks no API server.
// Namespaces and exemptions are the webhook configuration's.
package gateserver
