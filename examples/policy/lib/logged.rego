# Package lib.logged asks whether what the observer signed is in a transparency log.
# Whoever steals its key and signs unseen makes evidence that is in none.
#
# Verification has checked the proofs: what is listed in input.assay is proved.
package lib.logged

import data.lib.run

# known: the verifier trusts a log. Where one is trusted every signature says either
# which log holds it or why none does.
known if some _ in input.assay.logs

known if {
	some s in input.assay.signatures
	s.notLogged
}

known if input.assay.run.provenanceNotLogged

known if input.assay.run.observationNotLogged

witnesses_known if some _ in input.assay.witnesses

# pieces are the observer's signatures on which a verdict rests.
pieces contains {"what": what, "log": object.get(s, "log", []), "why": run.field(s, "notLogged")} if {
	some s in input.assay.signatures
	s.grade == "observer"
	what := sprintf("the signature of image %s (%s)", [run.digest, run.field(s, "format")])
}

pieces contains {"what": what, "log": object.get(r, "provenanceLog", []), "why": run.field(r, "provenanceNotLogged")} if {
	run.provenance
	r := input.assay.run
	what := sprintf("the provenance of run %s", [run.field(r, "id")])
}

pieces contains {"what": what, "log": object.get(r, "observationLog", []), "why": run.field(r, "observationNotLogged")} if {
	run.observation
	r := input.assay.run
	what := sprintf("the observation of run %s", [run.field(r, "id")])
}

entered(p) if some _ in p.log

witnessed(p) if {
	some e in p.log
	some _ in e.witnesses
}

logs := concat(", ", [sprintf("%v", [l]) | some l in input.assay.logs])

# problems: what is in no trusted log, or under no checkpoint that one of the trusted
# witnesses cosigned.
problems contains msg if {
	known
	some p in pieces
	not entered(p)
	msg := sprintf("No trusted log (%s) proves to hold %s: %s", [logs, p.what, p.why])
}

problems contains msg if {
	known
	witnesses_known
	some p in pieces
	entered(p)
	not witnessed(p)
	msg := sprintf("A log (%s) holds %s, but no trusted witness (%s) cosigned its checkpoint", [logs, p.what, concat(", ", [sprintf("%v", [w]) | some w in input.assay.witnesses])])
}

# alone: what a log holds of which nobody else has seen the checkpoint.
alone contains msg if {
	known
	not witnesses_known
	some p in pieces
	entered(p)
	not witnessed(p)
	msg := sprintf("A log (%s) holds %s, and nobody witnesses it: only the log's operator says that everybody sees this", [logs, p.what])
}
