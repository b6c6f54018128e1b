# Package tasks asks which tasks ran.
package tasks

import data.lib.config
import data.lib.run

# METADATA
# title: Required tasks ran
# description: The tasks that every release has to have run succeeded in this run.
# custom:
#   short_name: required
#   solution: Add the task to the pipeline.
#   collections:
#   - release
#   depends_on:
#   - evidence.run_observed
deny contains result if {
	some problem in lacking
	result := object.union({"code": "tasks.required"}, problem)
}

lacking contains {"msg": problem} if some problem in run.unobserved

lacking contains {"msg": "No required tasks are listed in required_tasks"} if count(config.list("required_tasks")) == 0

lacking contains {"msg": problem, "term": names} if {
	some entry in config.list("required_tasks")
	names := alternatives(entry)
	count([t | some t in run.done; run.task_name(t) in names]) == 0
	problem := sprintf("Required task %s did not run, or did not succeed", [concat(" or ", names)])
}

alternatives(entry) := [entry] if is_string(entry)

alternatives(entry) := entry if is_array(entry)
