# Package log asks whether the evidence is where the key's owner looks.
package log

import data.lib.config
import data.lib.logged

# METADATA
# title: The evidence is in a transparency log
# description: Where the verifier trusts a log, it holds the observer's signatures. Policy release demands it.
# custom:
#   short_name: unlogged
#   solution: Find out who signed it. If it was made before there was a log, build the image again.
#   collections:
#   - prototype
warn contains result if {
	not demanded
	some problem in logged.problems
	result := {"code": "log.unlogged", "msg": problem}
}

# demanded: a policy that includes this one denies what is warned of here.
demanded if config.rule_data("log_demanded") == true

# METADATA
# title: The log is witnessed
# description: Somebody else than the log's operator has seen the checkpoint that the evidence is under.
# custom:
#   short_name: witnessed
#   solution: Have the log's checkpoints cosigned (docs/log.md), and name the witness in the trust configuration.
#   collections:
#   - prototype
#   - release
warn contains result if {
	some problem in logged.alone
	result := {"code": "log.witnessed", "msg": problem}
}
