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
// Conforma is more lenient we are not; docs/compatibility.md lists it.
//
// # Could not check
//
// Rules may ask registries through the ec.* functions of package builtin. A
// function without an answer is undefined, and the rule goes on. Where the
// registry said that there is no such thing that is an answer, listed in
// Verdict.NotFound. Any other cause makes the verdict Unchecked: what the rules
// said without the answer is in it, and none of it is a pass.
//
// They may ask the registries of the images at hand (the image, the components of
// the snapshot) and those that the policy lists in assay.registries. Who else was
// to be asked is in Verdict.Hosts, and the verdict Unchecked: a reference that a
// policy makes up can carry out what it read.
//
// # Bounds
//
// An evaluation ends after Limits.Time, or when the heap has grown by
// Limits.Memory, with an error that names the rule. Files of a policy, its
// configuration and chains of extends are bounded in number, size and depth.
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
// It verifies no signature and reads no clock but the one the caller hands it. It
// opens no connection of its own: sources come from Options.Sources, answers about
// registries from Options.Builtins.
package policy
