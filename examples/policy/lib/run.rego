# Package lib.run reads the run under judgement: who made what of what. Every
# fact comes from the observation, which the observer signed; names and values
# that a pipeline chose are only ever compared with what was measured.
#
#	image ◀── task ◀── input uri ◀── output of a task ◀── … ◀── clone
package lib.run

import data.lib.config

digest := split(input.image.ref, "@")[1]

observation := input.assay.run.observation.predicate

provenance := input.assay.run.provenance.predicate

# source is the commit behind the run, and the tree that the clone exported.
source := observation.source

# attempt names a task attempt in this package; label names it to people.
attempt(t) := sprintf("%s/%d", [t.taskRun, t.attempt])

label(t) := sprintf("%s (%s)", [t.pipelineTask, t.taskRun]) if {
	t.pipelineTask != ""
	t.pipelineTask != t.taskRun
} else := object.get(t, "taskRun", "unknown")

# term is what a policy configuration can name a task by; see exclude.
term(t) := object.get(t, "pipelineTask", object.get(t, "taskRun", "unknown"))

# field is a value for a message: a rule must not fall silent because a field
# that it only mentions is missing.
field(of, name) := object.get(of, name, "unknown")

# task_name is the name of the Task definition; empty for one that is written
# into the run.
task_name(t) := name if {
	name := t.ref.name
	is_string(name)
} else := ""

# done are the attempts that succeeded. What a failed attempt left behind is
# nobody's input.
done[k] := t if {
	some t in observation.tasks
	t.outcome == "succeeded"
	k := attempt(t)
}

# made: the manifests that an attempt put into the registry.
made[k] contains d if {
	some k, t in done
	some o in t.outputs
	o.kind == "image"
	some d in o.manifests
}

made[k] contains d if {
	some k, t in done
	some o in t.outputs
	o.kind == "image"
	d := split(o.uri, "@")[1]
}

made[k] contains d if {
	some k, t in done
	some d in t.uploads
}

# producers: the attempts whose measured output has this uri.
producers[o.uri] contains k if {
	some k, t in done
	some o in t.outputs
	o.uri != ""
}

# makers: the producers who were first. Who exports the same bytes again later
# made nothing: whoever took them could have had them before.
makers[uri] contains k if {
	some uri, ks in producers
	some k in ks
	not late(k, uri)
}

late(k, uri) if {
	some p in producers[uri]
	config.instant(done[p].finished) < config.instant(done[k].finished)
}

# taken: the artifacts that an attempt was given. One that a task fetches in a
# step of its own counts by its parameter, though nobody measured it.
taken[k] contains i.uri if {
	some k, t in done
	some i in t.inputs
	i.uri != ""
}

taken[k] contains value if {
	some k, t in done
	some name, value in t.params
	endswith(name, "_ARTIFACT")
	is_string(value)
	startswith(value, "oci:")
}

# values are the strings in a parameter, whatever its type.
values(param) := {v | walk(param, [_, v]); is_string(v)}

# members: the images of the index that the image is, from the index itself.
members contains m.digest if some m in input.assay.manifest.manifests

# named: the images that went into an image: those of the index, and those that
# the task which made one was told of.
named[k] contains d if {
	some k, _ in made
	some _, param in done[k].params
	some v in values(param)
	some d in regex.find_n(`sha256:[a-f0-9]{64}`, v, -1)
}

named[k] contains d if {
	some k in last
	some d in members
}

# before: the attempts whose work went into an attempt.
before[k] := {p | some uri in taken[k]; some p in makers[uri]; p != k} | images if {
	some k, _ in done
	images := {p | some d in named[k]; some p, ds in made; p != k; d in ds}
}

# last: the attempts that put the image itself into the registry.
last := {k | some k, ds in made; digest in ds}

# chain: every attempt whose work is in the image.
chain := graph.reachable(before, last)

# tree is what the clone exported.
tree := source.tree if source.tree != ""

source_params := {p | some p in config.list("source_params")}

# source_inputs are the inputs of an attempt through which it takes the source.
source_inputs(t) := [i | some i in t.inputs; i.name in source_params; given(i)]

# given: an input that is there. A task can leave one empty.
given(i) if i.uri != ""

given(i) if i.files > 0

# builds: the attempts on the chain that took the source and made an image.
builds := {k | some k in chain; made[k]; count(source_inputs(done[k])) > 0}

# clones: the attempts that exported the source artifact that was checked.
clones := {k |
	some k, t in done
	t.taskRun == source.task
	some o in t.outputs
	o.uri == source.artifact
	o.digest == tree
}

# origins are the attempts that brought a tree into the run: it is in their
# outputs and was not in their inputs.
origins(of) := {k |
	some k, t in done
	some o in t.outputs
	o.digest == of
	count([i | some i in t.inputs; i.digest == of]) == 0
}

nothing if input.assay.run == null

# missing says why the facts about the run are missing.
missing contains msg if {
	nothing
	msg := "no verified statement about a run that made this image was found"
}

missing contains msg if {
	not nothing
	not observation.run
	msg := sprintf("run %s has no observation that verified", [input.assay.run.id])
}

missing contains msg if {
	not nothing
	not provenance
	msg := sprintf("run %s has no provenance that verified", [input.assay.run.id])
}

# unobserved holds where rules about tasks cannot tell; each of them refuses
# then, rather than find nothing wrong with nothing.
unobserved contains "the tasks of the run are unknown" if count(missing) > 0

unobserved contains "the observation lists no task" if {
	observation.run
	count(done) == 0
}
