# Package repository asks where the commit was found.
package repository

import data.lib.run

# METADATA
# title: The commit was found in the repository
# description: The executor found the commit under a ref of the named repository over a connection of its own, so the repository is more than the pipeline's word.
# custom:
#   short_name: checked
#   solution: Build a commit that a branch or tag of the repository points to or contains, from a repository that the executor can reach.
#   collections:
#   - release
#   depends_on:
#   - evidence.run_observed
#   - source.commit_checked
deny contains result if {
	some problem in problems
	result := {"code": "repository.checked", "msg": problem}
}

problems contains "No repository is known behind this image" if not known_repository

known_repository if run.source.repository != ""

problems contains problem if {
	known_repository
	not run.source.repositoryStatus == "checked"
	problem := sprintf("That commit %s is in %s is %s, not checked: %s", [run.field(run.source, "commit"), run.source.repository, run.field(run.source, "repositoryStatus"), object.get(run.source, "reason", "no reason given")])
}
