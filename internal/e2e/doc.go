// Package e2e holds the line's own controls: each really runs a pipeline with
// the binaries, lets somebody tamper with it in one way, and asks the gate. A
// control that passes for the wrong reason is worth nothing, so each names the
// rule that refuses, and what holds apart from it.
//
// Most pipelines build with a shell script instead of a compiler: what is
// witnessed and judged is the same, in a second. `make test-all` runs them all,
// as root.
package e2e
