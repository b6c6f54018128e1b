# Package build asks how the image was built.
package build

import data.lib.config
import data.lib.run

# METADATA
# title: The builds were hermetic
# description: Each task that made an image of the source had no network and no credential, as observed while it ran.
# custom:
#   short_name: hermetic
#   solution: Give the build task "assay.dev/network none" and hand it its inputs as artifacts.
#   question: trusted_build
#   collections:
#   - release
#   depends_on:
#   - evidence.run_observed
#   - source.chain_complete
deny contains result if {
	some problem in open_builds
	result := object.union({"code": "build.hermetic"}, problem)
}

open_builds contains {"msg": problem} if some problem in no_build

open_builds contains problem if {
	some k in run.builds
	t := run.done[k]
	not t.hermetic.enforced == true
	problem := {
		"msg": sprintf("Build %s was not hermetic: %s", [run.label(t), concat("; ", object.get(t, ["hermetic", "reasons"], ["no reason given"]))]),
		"task": t.taskRun,
		"term": run.term(t),
	}
}

no_build contains problem if some problem in run.unobserved

no_build contains "No task is known to have built the image" if {
	count(run.unobserved) == 0
	count(run.builds) == 0
}

# METADATA
# title: The builds were given appropriate parameters
# description: Build tasks had only parameters that are allowed, with values that do not make the compiler run or build something else.
# custom:
#   short_name: params
#   solution: Remove the parameter from the pipeline, or list it in allowed_params.
#   question: trusted_build
#   collections:
#   - release
#   depends_on:
#   - evidence.run_observed
#   - source.chain_complete
deny contains result if {
	some problem in bad_params
	result := object.union({"code": "build.params"}, problem)
}

bad_params contains {"msg": problem} if some problem in no_build

bad_params contains {"msg": problem, "task": t.taskRun} if {
	some k in run.builds
	t := run.done[k]
	params := object.get(t, "params", null)
	not is_object(params)
	problem := sprintf("The parameters of build %s are unknown", [run.label(t)])
}

bad_params contains {"msg": problem, "task": t.taskRun} if {
	some k in run.builds
	t := run.done[k]
	name := run.task_name(t)
	not listed(name)
	problem := sprintf("No parameters are listed for Task %q of build %s", [run.task_name(t), run.label(t)])
}

listed(name) if is_array(config.rule_data("allowed_params")[name])

bad_params contains {"msg": problem, "task": t.taskRun, "term": name} if {
	some k in run.builds
	t := run.done[k]
	allowed := config.rule_data("allowed_params")[run.task_name(t)]
	some name, _ in t.params
	not name in allowed
	problem := sprintf("Build %s was given parameter %s, which is not allowed", [run.label(t), name])
}

bad_params contains {"msg": problem, "task": t.taskRun, "term": name} if {
	some k in run.builds
	t := run.done[k]
	some name, param in t.params
	some value in run.values(param)
	some bad in config.list("forbidden_param_values")
	contains(value, bad)
	problem := sprintf("Build %s was given parameter %s with %q, which is forbidden: %s", [run.label(t), name, bad, value])
}
