# Package trusted_task asks where the tasks of the run come from.
package trusted_task

import data.lib.config
import data.lib.run
import data.lib.trust

# METADATA
# title: Trusted tasks are listed
# description: The policy has a list of trusted tasks to compare with, in the form it has to have.
# custom:
#   short_name: data_provided
#   solution: 'Add a data file with trusted_tasks, for example trusted_tasks.json beside policy.yaml, or name one with --data.'
#   question: trusted_build
#   collections:
#   - release
deny contains result if {
	some problem in data_problems
	result := {"code": "trusted_task.data_provided", "msg": problem}
}

data_problems contains "No trusted tasks are listed" if count(trust.records) == 0

data_problems contains problem if {
	some x in trust.records
	ref := object.get(x.record, "ref", "")
	not is_digest(ref)
	problem := sprintf("A trusted task of %s has no digest: %v", [x.repository, x.record])
}

is_digest(ref) if {
	is_string(ref)
	regex.match(`^sha256:[a-f0-9]{64}$`, ref)
}

data_problems contains problem if {
	some x in trust.records
	some key in ["effective_on", "expires_on"]
	value := x.record[key]
	not config.instant(value)
	problem := sprintf("The %s of a trusted task of %s is no RFC 3339 time: %v", [key, x.repository, value])
}

data_problems contains problem if {
	some x in trust.records
	not x.record.effective_on
	problem := sprintf("A trusted task of %s has no effective_on: %v", [x.repository, x.record.ref])
}

# METADATA
# title: Tasks whose work is in the image are trusted
# description: Every task on the chain from the source to the image came from a bundle, pinned by digest and checked, that is trusted at this time.
# custom:
#   short_name: chain
#   solution: Use a trusted version of the task, or add its bundle's digest to trusted_tasks with the day it is trusted from.
#   question: trusted_build
#   collections:
#   - release
#   depends_on:
#   - evidence.run_observed
#   - evidence.image_exported
#   - trusted_task.data_provided
deny contains result if {
	some problem in untrusted_chain
	result := object.union({"code": "trusted_task.chain"}, problem)
}

untrusted_chain contains {"msg": problem} if some problem in run.unobserved

untrusted_chain contains {"msg": "No task is known to have made the image"} if {
	count(run.unobserved) == 0
	count(run.chain) == 0
}

untrusted_chain contains problem if {
	some k in run.chain | run.clones
	problem := doubtful(run.done[k])
}

# METADATA
# title: All tasks of the run are trusted
# description: No task ran beside those on the chain that is not trusted as well.
# custom:
#   short_name: run
#   solution: Remove the task from the pipeline, or add its bundle's digest to trusted_tasks with the day it is trusted from.
#   collections:
#   - release
#   depends_on:
#   - evidence.run_observed
#   - trusted_task.data_provided
deny contains result if {
	some problem in untrusted_others
	result := object.union({"code": "trusted_task.run"}, problem)
}

untrusted_others contains {"msg": problem} if some problem in run.unobserved

untrusted_others contains problem if {
	some t in run.observation.tasks
	not on_chain(t)
	problem := doubtful(t)
}

on_chain(t) if {
	k := run.attempt(t)
	some c in run.chain | run.clones
	k == c
}

# doubtful is the problem with a task that is not trusted.
doubtful(t) := {
	"msg": sprintf("Task %s is not trusted: %s", [run.label(t), concat("", [why | why := trust.doubt(t)])]),
	"task": object.get(t, "taskRun", "unknown"),
	"term": run.term(t),
	"digests": trust.digests_of(t),
} if not trust.trusted(t)
