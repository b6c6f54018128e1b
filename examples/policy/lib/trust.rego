# Package lib.trust reads the list of trusted tasks, in Conforma's form:
#
#	trusted_tasks:
#	  oci://registry.example/tasks/task-build:0.1:
#	  - ref: sha256:…
#	    effective_on: "2026-01-01T00:00:00Z"
#	    expires_on: "2026-06-01T00:00:00Z"   # optional
package lib.trust

import data.lib.config

# repository of a bundle or of a key of the list, without tag and digest.
repository(ref) := regex.replace(split(trim_prefix(ref, "oci://"), "@")[0], `:[^/]+$`, "")

# pinned is the digest of a bundle reference; undefined where it has none.
pinned(bundle) := d if {
	d := split(bundle, "@")[1]
	regex.match(`^sha256:[a-f0-9]{64}$`, d)
}

records contains {"repository": repository(key), "record": r} if {
	some key, list in data.trusted_tasks
	startswith(key, "oci://")
	some r in list
}

records contains {"repository": repository(key), "record": r} if {
	some key, list in config.rule_data("trusted_tasks")
	startswith(key, "oci://")
	some r in list
}

# matching are the records of this very bundle.
matching(bundle) := [x.record |
	some x in records
	x.repository == repository(bundle)
	x.record.ref == pinned(bundle)
]

begun(r) if config.instant(r.effective_on) <= config.when

ended(r) if {
	r.expires_on
	not lasting(r)
}

lasting(r) if config.instant(r.expires_on) > config.when

in_force(r) if {
	begun(r)
	not ended(r)
}

# trusted holds only where everything is known: a missing field is a doubt.
trusted(t) if {
	t.ref.status == "checked"
	some r in matching(t.ref.bundle)
	in_force(r)
}

# doubt is why a task is not trusted.
doubt(t) := "it is written into the run and comes from no bundle" if {
	object.get(t, ["ref", "bundle"], "") == ""
} else := sprintf("its bundle %s is not pinned by digest", [t.ref.bundle]) if {
	not pinned(t.ref.bundle)
} else := sprintf("its bundle %s is %s, not checked: %s", [t.ref.bundle, object.get(t.ref, "status", "unknown"), object.get(t.ref, "reason", "no reason given")]) if {
	not t.ref.status == "checked"
} else := sprintf("its bundle %s is not among the trusted tasks", [t.ref.bundle]) if {
	count(matching(t.ref.bundle)) == 0
} else := sprintf("its bundle %s is trusted from %s on only", [t.ref.bundle, concat(", ", starts)]) if {
	count([r | some r in matching(t.ref.bundle); begun(r)]) == 0
	starts := [sprintf("%v", [object.get(r, "effective_on", "no day")]) | some r in matching(t.ref.bundle)]
} else := sprintf("its bundle %s is trusted no more since %s", [t.ref.bundle, concat(", ", ends)]) if {
	ends := [sprintf("%v", [r.expires_on]) | some r in matching(t.ref.bundle); r.expires_on]
}

# digests_of a task's reference, for reports.
digests_of(t) := [d | d := pinned(t.ref.bundle)]
