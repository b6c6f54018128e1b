// Package ec is Conforma's command line over Assay's parts: what people type
// after ec works after `assay ec`, and the program by the name of ec is this one.
//
//	arguments ─▶ policy, snapshot ─▶ evidence, input ─▶ rules ─▶ report, exit code
//	             policy/conforma     verify             policy/conforma
//
// Arguments, reports and exit codes are Conforma's, so that scripts and pipelines
// run unchanged: 0 for success (or --strict=false), 1 for everything else. Every
// command and flag is there; docs/ec.md goes through them.
//
// Packages below are one command's each: compare, conftest (`ec test`), server
// (`validate input --server`, fit for other judges too) and track.
//
// # Where it does not follow
//
// Conforma exits with 0 in some cases in which nobody checked anything. Here
// these exit with 1: a policy without sources, a snapshot without components, an
// input without documents, a violation that a warning of the same code would have
// softened, and packages of several segments that Conforma leaves out and that
// have violations. Such packages are listed in the report; as long as other
// violations fail the run they change nothing else in it.
//
// What the report says more stands under one new key at its top, "assay": who had to
// have signed and who did, what could not be found out and why, what built-in
// functions could not answer, which registries the policy's rules named beside those
// of the images and which logs were asked, which pieces of evidence were set aside
// because they did not verify, which checks were skipped.
//
// # Many images
//
// What is known of an image is encoded as soon as it is judged, and lies in a file
// from some size on (spool). Reports are written from there, one image after the
// other, in every form.
//
// # What is asked of registries
//
// One cache is below all readers (package pullcache), so a manifest or blob is
// fetched once for all components, checks and rules of a run.
//
// # Signatures
//
// Package verify verifies them; what is here says whom to believe, as Conforma's
// flags, policies and environment do, and looks for log entries that do not come with
// signatures. Keys that have an address, and Snapshots in a cluster, are read by
// sibling programs. docs/ec-signatures.md has the rules.
package ec
