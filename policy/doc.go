// Package policy judges evidence: verified statements and a policy go in, a
// verdict with reasons comes out.
//
//	verify.Image ──▶ *verify.Evidence ─┐
//	                                   ├─▶ Policy.Evaluate ──▶ *Verdict ──▶ report, releaser
//	policy folder ──▶ Load ──▶ *Policy ┘
//
// A policy is Rego v1 with Conforma's conventions: rules named deny, violation
// or warn yield results; METADATA annotations give each rule its code, title,
// solution, collections and the day it comes into force; a policy configuration
// (EnterpriseContractPolicy) names sources and says which rules count. The
// input document is Conforma's, so its rules run unmodified. What only Assay
// knows stands under the one key "assay":
//
//	{"manifest":   the image's manifest or index,
//	 "signatures": [{keyid, key, keyName, grade, reason, independence, certificate, sig, format, log, notLogged}],
//	 "statements": [{predicateType, payloadDigest, outcome, identity, unsaid}], one for each of attestations,
//	 "logs":       names of the transparency logs that the verifier trusts,
//	 "witnesses":  and of the witnesses,
//	 "runs":       [{id, provenance, observation, identity, provenanceLog, observationLog}],
//	 "run":        the one of these under judgement, or null,
//	 "rejected":   [{format, digest, reason}]}
//
// identity has the members that a signature has, grade to certificate; independence
// is {grade, reasons: [{code, text}], workflow}: see docs/independence.md.
//
// log, provenanceLog and observationLog list what the trusted logs prove of a
// signature, [{log, kind, index, size, witnesses, time, promise}]; notLogged,
// provenanceNotLogged and observationNotLogged say why such a list is empty.
//
// # Runs are judged one at a time
//
// Two runs can make the same digest. The policy is evaluated once for each,
// with input.assay.run set to it, and the image passes when some one run meets
// every rule. Facts of two runs are never added up to make one that passes.
//
// # Failing closed
//
// A verdict exists only if every rule ran. An error in a rule, a builtin that
// was given nonsense, a result without a message, a rule that is no set, a
// policy without rules, a filter that leaves nothing: each is an error of
// Evaluate or Load and never an undefined that reads like a pass. Where
// Conforma is more lenient we are not, and docs/compatibility.md lists it:
//
//   - a result keeps the kind of the rule that made it: a warning with the same
//     code does not turn a violation into a warning;
//   - depends_on hides a violation only behind another violation;
//   - packages of several segments run like any other;
//   - a source of which no rule remains is a violation, not a lost report, and a
//     policy without sources is an error;
//   - effective_on may be any RFC 3339 time or a plain date; anything else is an
//     error at Load;
//   - "*:term" and "package." filter as Conforma documents them;
//   - a rule whose violations were all excluded is not listed as a success.
//
// # Questions
//
// A release engineer asks three things: was it scanned, did a trusted task
// build it, did anything touch the sources. Rules say which of these they help
// answer with the annotation custom.question; the answers in a verdict are made
// of the results of these rules and of nothing else. Rules named note say
// something without judging; Conforma ignores them.
//
// # What it does not do
//
// It verifies no signature, reaches no network and reads no clock but the one
// the caller hands it. Sources are files and folders; git and OCI sources are
// refused by name.
package policy
