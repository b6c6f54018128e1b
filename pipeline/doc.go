// Package pipeline runs Tekton objects: it says what is ready next, what each
// task is given, and what became of it. It starts no process and opens no
// container; an Executor does, on the other side of the protocol in package
// plan.
//
//	Load ──▶ Objects ──Resolve──▶ Resolved ──Run──▶ Finished
//	 YAML     strict    bundles,    plan.Run.Spec    PipelineRun and TaskRuns with
//	                    checks                       the status a controller writes
//
// Tekton's own packages decide Tekton's semantics: its types, defaults,
// conversion and validation; its graph, its state of a run, its conditions, its
// matrices, when expressions and results; and its reading of a finished pod,
// which we hand it made up from what the executor reports. We write the loop
// around them. Where the loop is upstream's reconciler, and so not callable,
// this package follows its order of steps and its words, since reasons and
// messages are what people's tools match on.
//
// Nothing of the API is ignored. What a run uses and we do not execute is
// refused before anything runs, by name, with file and path: see supported.go
// for the list of what is allowed, which is a list so that fields of later
// versions are refused too.
//
// Two deliberate differences. A retry is rendered from the Task, so that
// $(context.task.retry-count) counts in referenced Tasks too, where upstream
// keeps the first attempt's. And a run whose reference, parameter or workspace
// is missing is an error of Resolve instead of a failed run.
//
// What this package says is not believed. The observer compares it with the
// executor's facts; see package observe.
package pipeline
