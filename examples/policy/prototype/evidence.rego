# Package evidence asks whether there is evidence at all, and whose it is.
package evidence

import data.lib.config
import data.lib.run

# METADATA
# title: The run that made the image was observed
# description: Provenance and observation of a run that made this image were found and verified.
# custom:
#   short_name: run_observed
#   solution: Build the image with assay run, or name the key of the observer that watched it.
#   collections:
#   - prototype
#   - release
deny contains result if {
	some problem in unobserved
	result := {"code": "evidence.run_observed", "msg": sprintf("Image %s: %s", [run.digest, problem])}
}

unobserved contains problem if some problem in run.missing

unobserved contains problem if {
	run.provenance
	run.observation.run
	signed := input.assay.run.provenanceDigest
	count([p | some p in run.observation.provenance; p.digest == signed]) == 0
	problem := sprintf("the observation of run %s does not name the provenance %s", [input.assay.run.id, signed])
}

# METADATA
# title: The image is signed by the observer
# description: A signature of the image was made with a key that is trusted as an observer's.
# custom:
#   short_name: image_signed
#   solution: Verify with the observer's public key, and bind it as an observer in the trust configuration.
#   collections:
#   - prototype
#   - release
deny contains result if {
	count([s | some s in input.assay.signatures; s.grade == "observer"]) == 0
	grades := sort({sprintf("%s (%s)", [run.field(s, "keyName"), run.field(s, "grade")]) | some s in input.assay.signatures})
	result := {
		"code": "evidence.image_signed",
		"msg": sprintf("Image %s has no signature by an observer; signed by: %s", [run.digest, concat(", ", array.concat(grades, [w | count(grades) == 0; w := "nobody who is trusted"]))]),
	}
}

# METADATA
# title: The provenance is the observer's
# description: Provenance and observation were signed by a key that is trusted as an observer's, and builder.id fits it.
# custom:
#   short_name: provenance_signed
#   solution: Verify with the observer's public key, and bind it as an observer in the trust configuration.
#   collections:
#   - prototype
#   - release
#   depends_on:
#   - evidence.run_observed
deny contains result if {
	some problem in not_observers
	result := {"code": "evidence.provenance_signed", "msg": problem}
}

not_observers contains problem if {
	who := input.assay.run.identity
	not who.grade == "observer"
	problem := sprintf("The statements about run %s are signed by %s, whose grade is %q, not %q: %s", [input.assay.run.id, run.field(who, "keyName"), run.field(who, "grade"), "observer", run.field(who, "reason")])
}

not_observers contains "It is unknown who signed the provenance" if not input.assay.run.identity.grade

# METADATA
# title: The builder executed the run
# description: The provenance names a builder that executed the run itself, not one that watched it or was told.
# custom:
#   short_name: builder
#   solution: Build the image with assay run, or allow the builder id in allowed_builder_prefixes.
#   collections:
#   - prototype
#   - release
#   depends_on:
#   - evidence.run_observed
deny contains result if {
	some problem in builder_problems
	result := {"code": "evidence.builder", "msg": problem}
}

builder_ids contains run.provenance.builder.id

builder_ids contains run.provenance.runDetails.builder.id

builder_problems contains "The provenance names no builder" if count(builder_ids) == 0

builder_problems contains problem if {
	some id in builder_ids
	not allowed_builder(id)
	problem := sprintf("Builder %s is not among the allowed ones (%s)", [id, concat(", ", config.list("allowed_builder_prefixes"))])
}

builder_problems contains problem if {
	some id in builder_ids
	observed := object.get(input.assay, ["run", "observation", "predicate", "builder"], "none")
	id != observed
	problem := sprintf("The provenance names builder %s, the observation %s", [id, observed])
}

allowed_builder(id) if {
	some prefix in config.list("allowed_builder_prefixes")
	startswith(id, prefix)
}

# METADATA
# title: The run exported the image itself
# description: The observer saw a task of this very run put the image into the registry.
# custom:
#   short_name: image_exported
#   solution: Let the pipeline's IMAGE results come from the task that exports the image.
#   collections:
#   - prototype
#   - release
#   depends_on:
#   - evidence.run_observed
deny contains result if {
	some problem in not_exported
	result := {"code": "evidence.image_exported", "msg": problem}
}

claims := [c | some c in run.observation.claims; endswith(c.value, concat("", ["@", run.digest]))]

not_exported contains problem if {
	count([c | some c in claims; c.status == "checked"]) == 0
	said := [sprintf("%s of %s is %s: %s", [run.field(c, "field"), object.get(c, "taskRun", "the pipeline"), run.field(c, "status"), object.get(c, "reason", "no reason given")]) | some c in claims]
	problem := sprintf("Image %s is not known to be made by run %s; %s", [run.digest, input.assay.run.id, concat("; ", array.concat(said, [w | count(said) == 0; w := "no result of the run claims it"]))])
}

not_exported contains problem if {
	count(run.last) == 0
	problem := sprintf("No task of the run put image %s into the registry", [run.digest])
}

not_exported contains "It is unknown who exported the image" if count(run.missing) > 0

# METADATA
# title: The run succeeded
# description: The run that made the image ended well, as its ledger has it.
# custom:
#   short_name: run_succeeded
#   solution: Mend the pipeline and build again.
#   collections:
#   - prototype
#   - release
#   depends_on:
#   - evidence.run_observed
deny contains result if {
	not run.observation.run.outcome == "succeeded"
	result := {
		"code": "evidence.run_succeeded",
		"msg": sprintf("Run %s of image %s did not succeed: %v", [object.get(input.assay, ["run", "id"], "unknown"), run.digest, object.get(input.assay, ["run", "observation", "predicate", "run", "outcome"], "its outcome is unknown")]),
	}
}
