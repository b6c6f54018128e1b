package policy

import (
	"fmt"
	"time"
)

// Dates in the data that say since or until when something is trusted or required.
// Conforma's rules leave out a record whose date they cannot read, in silence: an
// expiry that is none would leave a task trusted for ever or never.
var (
	// recordDates are lists of records, or lists by name, under these keys.
	recordDates = map[string][]string{
		"trusted_tasks":           {"effective_on", "expires_on"},
		"trusted_task_rules":      {"effective_on"},
		"required-tasks":          {"effective_on"},
		"required_tasks":          {"effective_on"},
		"pipeline-required-tasks": {"effective_on"},
		"pipeline_required_tasks": {"effective_on"},
		"task-bundles":            {"effective_on", "expires_on"},
		"task_bundles":            {"effective_on", "expires_on"},
	}
	// holders are the other places where such keys may stand.
	holders = []string{"rule_data__configuration__", "rule_data_custom", "rule_data"}
)

// checkDates fails on a date in trusted-task and required-task data that is no RFC
// 3339 time, which is the one form that rules read.
func checkDates(tree map[string]any) error {
	if err := checkDatesIn(tree, "data"); err != nil {
		return err
	}
	for _, h := range holders {
		if m, ok := tree[h].(map[string]any); ok {
			if err := checkDatesIn(m, "data."+h); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkDatesIn(tree map[string]any, at string) error {
	for _, key := range sortedKeys(recordDates) {
		v, ok := tree[key]
		if !ok {
			continue
		}
		if err := recordsHaveDates(v, at+"."+key, recordDates[key], 0); err != nil {
			return err
		}
	}
	return nil
}

// recordsHaveDates looks through lists and objects down to records: the groups of
// trusted_task_rules are two levels deep.
func recordsHaveDates(v any, at string, names []string, depth int) error {
	if depth > 4 {
		return nil
	}
	switch v := v.(type) {
	case []any:
		for i, x := range v {
			if err := recordsHaveDates(x, fmt.Sprintf("%s[%d]", at, i), names, depth+1); err != nil {
				return err
			}
		}
	case map[string]any:
		if m, ok := v["effective_on_by_task"].(map[string]any); ok {
			for _, task := range sortedKeys(m) {
				if err := recordsHaveDates(map[string]any{names[0]: m[task]}, at+".effective_on_by_task["+fmt.Sprintf("%q", task)+"]", names, depth+1); err != nil {
					return err
				}
			}
		}
		for _, k := range names {
			d, ok := v[k]
			if !ok || d == nil {
				continue
			}
			s, isString := d.(string)
			if _, err := time.Parse(time.RFC3339, s); !isString || err != nil {
				return fmt.Errorf("reading %s.%s: %v is no RFC 3339 time, such as 2026-06-01T00:00:00Z", at, k, d)
			}
		}
		for _, k := range sortedKeys(v) {
			if err := recordsHaveDates(v[k], at+"["+fmt.Sprintf("%q", k)+"]", names, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}
