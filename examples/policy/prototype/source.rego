# Package source follows the image back to the commit and asks whether anything
# touched the source on the way.
package source

import data.lib.config
import data.lib.run

# METADATA
# title: The source commit was checked
# description: The commit object hashes to the commit's id, and its tree is the one that the clone exported.
# custom:
#   short_name: commit_checked
#   solution: Clone with a task that exports tree and commit object, such as git-clone-oci-ta.
#   collections:
#   - prototype
#   - release
#   depends_on:
#   - evidence.run_observed
deny contains result if {
	some problem in commit_problems
	result := {"code": "source.commit_checked", "msg": problem}
}

commit_problems contains "No commit is known behind this image" if not known_commit

known_commit if run.source.commit != ""

commit_problems contains problem if {
	known_commit
	not run.source.commitStatus == "checked"
	problem := sprintf("Commit %s of %s is %s, not checked: %s", [run.source.commit, run.field(run.source, "repository"), run.field(run.source, "commitStatus"), object.get(run.source, "reason", "no reason given")])
}

commit_problems contains problem if {
	known_commit
	count(run.clones) == 0
	problem := sprintf("No task of the run exported the source of commit %s with tree %s", [run.source.commit, run.field(run.source, "tree")])
}

# METADATA
# title: The chain leads from the image to the clone
# description: Everything the image was made of was made by a task of the same run, down to the source.
# custom:
#   short_name: chain_complete
#   solution: Hand artifacts from task to task by their results, as the executor exported them.
#   question: untouched_source
#   collections:
#   - prototype
#   - release
#   depends_on:
#   - evidence.run_observed
#   - evidence.image_exported
deny contains result if {
	some problem in broken
	result := object.union({"code": "source.chain_complete"}, problem)
}

broken contains {"msg": problem} if some problem in run.unobserved

broken contains {"msg": problem, "task": t.taskRun, "digests": [uri]} if {
	some k in run.chain
	t := run.done[k]
	some uri in run.taken[k]
	not run.producers[uri]
	problem := sprintf("Task %s took %s, which no task of this run made", [run.label(t), uri])
}

broken contains {"msg": problem, "task": t.taskRun, "digests": [was, is]} if {
	some k in run.chain
	t := run.done[k]
	some i in t.inputs
	some p in run.producers[i.uri]
	some o in run.done[p].outputs
	o.uri == i.uri
	not o.digest == i.digest
	was := run.field(o, "digest")
	is := run.field(i, "digest")
	problem := sprintf("Task %s was given %s with tree %s, but task %s exported it with tree %s", [run.label(t), i.uri, is, run.label(run.done[p]), was])
}

# An index that a task was given to make may hold what no build made.
broken contains {"msg": problem, "digests": [d]} if {
	count(run.unobserved) == 0
	some d in run.members
	count([p | some p, ds in run.made; d in ds; builder_or_other(p)]) == 0
	problem := sprintf("Image %s is an index with image %s, which no build of this run made", [run.digest, d])
}

builder_or_other(p) if p in run.builds

builder_or_other(p) if not p in run.last

broken contains {"msg": "The manifest of the image is unknown"} if {
	count(run.unobserved) == 0
	not is_object(input.assay.manifest)
}

broken contains {"msg": problem, "task": t.taskRun} if {
	some k in run.chain
	t := run.done[k]
	run.made[k]
	not k in run.builds
	count(run.before[k]) == 0
	problem := sprintf("Task %s made an image of nothing that another task of this run made", [run.label(t)])
}

broken contains {"msg": problem} if {
	count(run.unobserved) == 0
	count(run.builds) == 0
	problem := sprintf("No task on the chain of image %s took the source (%s)", [run.digest, concat(", ", run.source_params)])
}

# METADATA
# title: Nothing touched the source between clone and build
# description: Each task whose work is in the image was given the very tree that the clone exported.
# custom:
#   short_name: untouched
#   solution: Remove the task that changes the source from the pipeline, or make the change a commit.
#   question: untouched_source
#   collections:
#   - prototype
#   - release
#   depends_on:
#   - evidence.run_observed
#   - source.chain_complete
deny contains result if {
	some problem in touched
	result := object.union({"code": "source.untouched"}, problem)
}

touched contains {"msg": problem} if some problem in run.unobserved

touched contains {"msg": "It is unknown which tree the clone exported"} if not run.tree

touched contains {"msg": "No task is known to have been given the source"} if count(takers) == 0

takers := {k | some k in run.chain; count(run.source_inputs(run.done[k])) > 0}

# clone and exported name, for messages, what the source should have been.
clone := concat(" or ", names) if {
	names := {run.label(run.done[k]) | some k in run.clones}
	count(names) > 0
} else := "the clone"

exported := object.get(input.assay.run.observation.predicate, ["source", "tree"], "unknown")

# changed are the source inputs on the chain that are not the clone's tree.
changed contains {"attempt": k, "tree": run.field(i, "digest")} if {
	some k in takers
	some i in run.source_inputs(run.done[k])
	not i.digest == run.tree
}

touched contains problem if {
	some c in changed
	some o in run.origins(c.tree)
	problem := {
		"msg": sprintf(
			"Task %s changed the source: %s exported tree %s, but %s was given tree %s",
			[run.label(run.done[o]), clone, exported, run.label(run.done[c.attempt]), c.tree],
		),
		"task": run.done[o].taskRun,
		"term": run.term(run.done[o]),
		"digests": [exported, c.tree],
	}
}

touched contains problem if {
	some c in changed
	count(run.origins(c.tree)) == 0
	problem := {
		"msg": sprintf(
			"Task %s was given source tree %s, which no task of this run made; %s exported tree %s",
			[run.label(run.done[c.attempt]), c.tree, clone, exported],
		),
		"task": run.done[c.attempt].taskRun,
		"digests": [exported, c.tree],
	}
}

# A source that a step fetches itself was seen by nobody.
touched contains {"msg": problem, "task": t.taskRun} if {
	some k in run.chain
	t := run.done[k]
	some name in run.source_params
	startswith(t.params[name], "oci:")
	not name in {i.name | some i in run.source_inputs(t)}
	problem := sprintf("Task %s fetched its source (%s) in a step, so its tree was not measured", [run.label(t), name])
}

# METADATA
# title: Nothing touched the dependencies before the build
# description: Each further input of a build was made by a task that is there to make it.
# custom:
#   short_name: dependencies_untouched
#   solution: Give the build the result of the prefetch task, or list the Task in input_producers.
#   question: untouched_source
#   collections:
#   - prototype
#   - release
#   depends_on:
#   - evidence.run_observed
#   - source.chain_complete
deny contains result if {
	some problem in foreign_inputs
	result := object.union({"code": "source.dependencies_untouched"}, problem)
}

foreign_inputs contains {"msg": problem} if some problem in run.unobserved

foreign_inputs contains problem if {
	some k in run.builds
	t := run.done[k]
	some i in t.inputs
	run.given(i)
	param := run.field(i, "name")
	not param in run.source_params
	makers := object.get(run.producers, run.field(i, "uri"), set())
	count([p | some p in makers; allowed_maker(param, run.done[p])]) == 0
	names := [sprintf("task %s (Task %q)", [run.label(run.done[p]), run.task_name(run.done[p])]) | some p in makers]
	tree := run.field(i, "digest")
	problem := {
		"msg": sprintf(
			"Input %s of task %s was made by %s, not by a task that is there to make it; its tree is %s",
			[param, run.label(t), concat(" and ", array.concat(names, [w | count(names) == 0; w := "no task of this run"])), tree],
		),
		"task": t.taskRun,
		"digests": [tree],
	}
}

foreign_inputs contains {"msg": problem, "task": t.taskRun} if {
	some k in run.builds
	t := run.done[k]
	some name, value in t.params
	endswith(name, "_ARTIFACT")
	startswith(value, "oci:")
	not name in run.source_params
	not name in {i.name | some i in t.inputs}
	problem := sprintf("Task %s fetched its input %s in a step, so its tree was not measured", [run.label(t), name])
}

allowed_maker(param, t) if {
	some name in config.rule_data("input_producers")[param]
	name == run.task_name(t)
}

# METADATA
# title: Tasks between clone and build
# description: Tasks that took the source before it was built and left no effect on what was built.
# custom:
#   short_name: between
#   question: untouched_source
#   collections:
#   - prototype
#   - release
note contains result if {
	count(touched) == 0
	count(bystanders) > 0
	result := {
		"code": "source.between",
		"msg": sprintf("Tasks between clone and build: %s; they left no effect, each build was given tree %s", [concat(", ", bystanders), run.tree]),
	}
}

bystanders contains run.label(t) if {
	some k, t in run.done
	not k in run.builds
	count(run.source_inputs(t)) > 0
	some b in run.builds
	config.instant(t.finished) <= config.instant(run.done[b].started)
}
