// Package watch is the observer: the controller that watches a Tekton which
// somebody else runs, and does for each finished TaskRun and PipelineRun what
// Tekton Chains' controller does. It states what was built from what (package
// provenance), has it signed (attest/signing; no key is ever here), logs it
// (attest/tlog), hands it to every configured back end (store.Keeper), and only
// when all of them have confirmed everything marks the run.
//
//	API server ──watch──▶ follower ─▶ table ─▶ worker ─▶ attempt ─▶ mark
//	             raw JSON    head      order              │
//	                                              gather, state, sign, log, keep
//
// # What it keeps in memory
//
// Upstream holds every run of the cluster in caches, whole. Here the watch is
// read as text: of each event a few fields are scanned (head.go), and a run's
// JSON is kept, compressed, only from its end until its mark (table.go). Where
// settings state PipelineRuns only, TaskRuns of PipelineRuns are not watched at
// all: when a PipelineRun has ended they are fetched in one list. A PipelineRun
// then costs three requests: the finalizer, the list and the mark; one that lived
// less than Config.ProtectAfter costs two. Objects are decoded once, by the
// attempt that uses them, and shared with nobody.
//
// Work goes group by group, a PipelineRun with its TaskRuns being a group: what
// is begun is finished, then comes what ended last. So under backlog whole
// PipelineRuns come out from the first second on, and new ones do not wait for
// old ones.
//
// # When a run is marked
//
// The mark is one server-side apply, with Chains' own field manager, of
// chains.tekton.dev/signed, of the annotations that the back end on the object
// needs, and of the absence of our finalizer. uid and resourceVersion are its
// preconditions. "true" means that every configured back end has confirmed every
// record; "failed" that something of the run can never be stated or stored, with
// the reason in assay.dev/reason, and that all the rest is stored. Everything else
// is neither: the run waits, longer after each attempt, and says why.
//
// # What is not done twice
//
// What an attempt has made stays in memory for the next: signatures, log entries,
// confirmations. After a crash the same run gives the same statement, byte for
// byte (our own annotations are taken out before), and back ends tell that they
// have it. Two observers on one run, or Chains beside us, therefore store nothing
// twice; of two marks, one conflicts and gives way.
//
// # Deliberate differences from Chains
//
//   - A run is failed for good only for what cannot change. Chains gives up after
//     five attempts, which took 0.16 s.
//   - Children of other kinds than TaskRun, nested or deleted ones do not keep a
//     PipelineRun from being stated; they are named. assay.children.missing:
//     refuse makes that a failure.
//   - A child counts by uid and owner, not by name alone.
//   - Finalizers come off with the mark, not with the deletion. TaskRuns of a
//     PipelineRun have none of their own, as the PipelineRun's holds them too,
//     unless a setting asks for it.
//   - TaskRuns are neither touched nor marked where nothing is stated about them,
//     unless a setting asks for it; nor are PipelineRuns.
//   - With TaskRun statements off, the images of TaskRuns are signed when their
//     PipelineRun has ended; the records belong to the PipelineRun.
//   - Settings that cannot be understood change nothing and are shown.
//
// # Files
//
//	observer.go   what it is made of, life cycle     head.go      a run in a few words
//	follow.go     off the watch, into the table      table.go     states and order of work
//	decide.go     pure decisions                     session.go   one set of settings
//	process.go    an attempt                         records.go   what there is to sign
//	keep.go       sign, log, keep                    mark.go      the mark
//	backoff.go    classes and pauses                 settings.go  chains-config
//	election.go   replicas and buckets               peer.go      Chains beside us
//	foreign.go    marks that are not ours            lookup.go    what others ask
//	events.go, metrics.go, health.go                 what others see
package watch
