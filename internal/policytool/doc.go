// Package policytool is what people who write policies are given: it says what is
// wrong with a policy, runs its tests, documents it, lists what its rules would decide,
// and compares two policies over recorded evidence.
//
//	files ──▶ Check ──▶ findings (file:line, what to do)
//	files ──▶ Test  ──▶ results, coverage
//	files ──▶ Document ──▶ Markdown
//	policy, day ──▶ Show ──▶ states of rules
//	two policies, recordings or inputs ──▶ Diff ──▶ what would now fail, and by which rules
//
// Package policy decides what a policy means; nothing here decides anything about an
// image. Where policy.Load stops at the first thing that is wrong, Check goes on to the
// next, and then asks Load, so that it accepts no policy that the gate would refuse.
//
// # Messages
//
// A Finding has a place, what is wrong, and what to do about it. Errors of the Rego
// compiler get the line with a caret; a wrong type names the function; a function that
// does not exist here says which versions of this program and of OPA that is, since a
// policy written for a newer one is the likeliest cause.
//
// # What it does not do
//
// It does not format Rego, nor lint its style; opa fmt and Regal do. It changes no file.
package policytool
