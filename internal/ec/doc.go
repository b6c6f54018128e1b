// Package ec is Conforma's command line over Assay's parts: what people type
// after ec works after `assay ec`, and the program by the name of ec is this one.
//
//	arguments ─▶ policy, snapshot ─▶ evidence, input ─▶ rules ─▶ report, exit code
//	             policy/conforma     verify             policy/conforma
//
// Arguments, reports and exit codes are Conforma's, so that scripts and pipelines
// run unchanged: 0 for success (or --strict=false), 1 for everything else. What it
// takes and this does not is refused by its name; nothing is ignored that would
// have checked something. docs/compatibility.md has the list.
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
// What the report says more stands under one new key at its top, "assay": what
// built-in functions could not answer and why, which registries the policy's rules
// named beside those of the images, which pieces of evidence were set aside
// because they did not verify, which checks were skipped.
//
// # What is asked of registries
//
// One cache is below all readers (package pullcache), so a manifest or blob is
// fetched once for all components, checks and rules of a run.
//
// Signatures are verified by package verify with a long-lived key. Keyless
// identities and Rekor are refused by name.
package ec
