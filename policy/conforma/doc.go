// Package conforma evaluates policies exactly as Conforma's ec does: the same
// rules are chosen, the same results kept, moved and dropped, in the same words.
// It is what stands behind `assay ec`, where people put Assay in the place of ec
// and want to see no difference but the time it takes.
//
//	configuration ─▶ ParseSpec ─▶ *Spec ─┐
//	rules, data (files) ─────────────────┼─▶ Load ─▶ *Policy ─▶ Evaluate ─▶ []Outcome
//	package builtin ─────────────────────┘             (input, image, component)
//
// Package policy is the native way, and judges more strictly; what is strict
// there and lenient here is written in docs/compatibility.md.
//
// # What happens in an evaluation
//
// A policy has source groups, each evaluated apart. In each:
//
//  1. Packages are chosen: a package runs if any of its rules is included.
//  2. All chosen packages run, in one query, so that what they share is computed
//     once. Rules named deny, violation and warn (with a suffix or without) give
//     results: a string, or an object with msg. Exceptions as in conftest.
//  3. What the rule's annotations say is added to each result, by its code.
//  4. Results are kept or dropped by the include and exclude items that match
//     their code, terms and collections: the higher score wins, a tie is out.
//  5. Severity moves a result; a violation that is not in force yet is a warning.
//  6. Rules of the packages that ran, that are included and said nothing, are
//     successes.
//  7. What depends on a rule that was reported is dropped.
//
// # Where it does not follow
//
// Conforma passes some things that nobody checked. Here they do not pass:
//
//   - A policy without sources, and an input of no documents, is an error.
//   - A result keeps the kind of the rule that gave it: a warning with a
//     violation's code does not make it a warning.
//   - Packages of several segments are left out by Conforma's choice of packages.
//     They are run all the same, apart (Evaluation.Nested): whoever is about to
//     report success has to add them first.
//
// # Compiled once
//
// Load parses, inspects and compiles each group once, with its data. Evaluate is
// safe for concurrent use and reads nothing but its arguments; the functions of
// package builtin reach registries if the caller's Set does.
//
// # Bounds
//
// Rules see no network, no environment and no file. The number and size of files
// of a policy are bounded, and an evaluation ends with its context or after
// Options.MaxTime.
package conforma
