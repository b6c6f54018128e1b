package log

import data.lib.logged

# METADATA
# title: The evidence is in a transparency log
# description: Where the verifier trusts a log, it proves to hold each signature of the observer on which the verdict rests, under a checkpoint that a trusted witness cosigned if there is one.
# custom:
#   short_name: entry
#   solution: Find out who signed it. If it was made before there was a log, build the image again.
#   collections:
#   - release
#   depends_on:
#   - evidence.run_observed
deny contains result if {
	some problem in logged.problems
	result := {"code": "log.entry", "msg": problem}
}

# METADATA
# title: A transparency log is trusted
# description: With a log, whoever signs with a stolen key has to do it where the key's owner looks.
# custom:
#   short_name: trusted
#   solution: Make a log with assay log init, and name it in the trust configuration.
#   collections:
#   - release
note contains result if {
	not logged.known
	result := {"code": "log.trusted", "msg": "No transparency log is trusted, so evidence that was signed with a stolen key would not be noticed"}
}
