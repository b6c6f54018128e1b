// Package vsa makes verification summaries and decides whether one may stand in for
// an evaluation. It is pure: bytes, evidence and times in, statements and decisions out.
//
//	evidence + verdict ──Statement──▶ in-toto statement ──signed elsewhere──▶ kept beside the image
//	evidence + Want    ──Find──────▶ *Accepted, or *NotTaken with a reason for each summary seen
//
// A verification summary (VSA) is a verifier's word that an artifact met a policy. Who
// believes it need not evaluate again, and so believes everything that the verifier
// believed. This package therefore takes a summary only for exactly the question at
// hand: this image, under this name, by this policy (rules, data and configuration, by
// digest), with this trust, for this component, destination and snapshot, as of now,
// signed by a key that is trusted for summaries, by the verifier that is expected, and
// recently.
// Anything else is not taken, and the reason is said. Nothing is half taken.
//
// Two forms are known. SLSA's (https://slsa.dev/verification_summary/v1, Statement and
// Find) is Assay's own. Its member assay_judgement carries what SLSA has no member for
// and what a verdict depends on; a summary without it, such as another verifier's, is
// never taken instead of an evaluation. Conforma's (Conforma, Snapshot and
// CheckConforma) has the fields that its ec writes and reads; it names its policy by
// configuration alone, so it says less, and only `assay ec` takes it.
//
// # Levels
//
// verifiedLevels repeats what the verifier's own configuration binds to a signer
// (Binding), never what a statement says of itself. Where nothing is bound it says
// SLSA_BUILD_LEVEL_UNEVALUATED.
package vsa
