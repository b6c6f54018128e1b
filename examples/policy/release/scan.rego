# Package scan asks whether the image was scanned for vulnerabilities.
package scan

import data.lib.config
import data.lib.run

# METADATA
# title: The image was scanned for CVEs
# description: A task of the run that made the image gave the results of a scan (SCAN_OUTPUT), not long ago.
# custom:
#   short_name: found
#   solution: Add a task to the pipeline that scans the image, and build or scan again when the scan is old.
#   question: scanned
#   collections:
#   - release
#   depends_on:
#   - evidence.run_observed
warn contains result if {
	some problem in problems
	result := {"code": "scan.found", "msg": problem}
}

scans[k] := t if {
	some k, t in run.done
	some r in t.results
	r.name == "SCAN_OUTPUT"
}

hour := 3600000000000

age(t) := floor((config.when - config.instant(t.finished)) / hour)

problems contains "No task of the run scanned the image for CVEs" if count(scans) == 0

problems contains problem if {
	count(scans) > 0
	youngest := min([age(t) | some t in scans])
	limit := config.rule_data("scan_max_age_hours")
	youngest > limit
	problem := sprintf("The last scan for CVEs is %d hours old, more than %d", [youngest, limit])
}

# METADATA
# title: Scans for CVEs
# description: Who scanned the image, and how long ago.
# custom:
#   short_name: when
#   question: scanned
#   collections:
#   - release
note contains result if {
	some t in scans
	result := {"code": "scan.when", "msg": sprintf("Task %s scanned for CVEs %d hours before this judgement (%s)", [run.label(t), age(t), t.finished])}
}
