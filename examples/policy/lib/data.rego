# Package lib.config reads the policy's own settings.
#
# In this policy, "not" stands only before a plain reference, an equality of
# such, or a call whose arguments are variables. Rego evaluates anything else
# first and, finding it undefined, drops the whole rule: a missing field would
# then read as a pass.
package lib.config

# rule_data is a setting by name: from the source's ruleData in policy.yaml,
# else from data files under rule_data. Undefined where neither has it.
rule_data(name) := data.rule_data__configuration__[name]

rule_data(name) := value if {
	not data.rule_data__configuration__[name]
	value := data.rule_data[name]
}

# list is a setting that is a list; empty where it is missing, so that a rule
# which needs it finds nothing allowed.
list(name) := value if {
	value := rule_data(name)
	is_array(value)
} else := []

# when is the time the policy is taken as of, in nanoseconds.
when := data.config.policy.when_ns

# instant is a time in nanoseconds; undefined for what is no RFC 3339 time.
instant(text) := ns if {
	is_string(text)
	regex.match(`^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})$`, text)
	ns := time.parse_rfc3339_ns(text)
}
