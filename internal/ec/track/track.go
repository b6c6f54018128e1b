// Package track keeps the list of Tekton tasks that are trusted, as `ec track
// bundle` does: for each task the references that may be used, the newest first, and
// until when the older ones may.
//
//	list, references to add ─▶ resolve ─▶ drop repetitions and what is over ─▶ list
//
// A list is YAML:
//
//	trusted_tasks:
//	  oci://registry/repository:tag:
//	    - ref: sha256:…
//	    - expires_on: "2026-08-01T00:00:00Z"
//	      ref: sha256:…
//	  git+https://host/repository//path/task.yaml:
//	    - ref: <commit>
//
// It lives in a file or in a registry, as one layer of an artifact that policies
// take as data. Bundles without a Task are left out.
package track

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	yamlv3 "go.yaml.in/yaml/v3"

	"assay.dev/assay/policy/spec"
)

// record is one reference of a task.
type record struct {
	Ref       string     `json:"ref"`
	ExpiresOn *time.Time `json:"expires_on,omitempty"`
}

// list is trusted_tasks: by task, the newest first.
type list map[string][]record

const ociPrefix = "oci://"

// Options say what becomes of a list.
type Options struct {
	// Add are bundles (registry/repository[:tag][@digest]) and files in git
	// (git+https://host/repository//path@revision).
	Add []string
	// Prune drops references that are over.
	Prune bool
	// Freshen asks what the tags, and the default branches, of the tasks in the list
	// are now.
	Freshen bool
	// InEffectDays is how long a reference may be used after there is a newer one.
	InEffectDays int
	// Now is the time. Required.
	Now time.Time
	// Warn is told what is not kept. Required.
	Warn func(format string, args ...any)
}

// Update is the list with what Options add, as YAML. It fails, without a list, on
// input that is none, on references that do not say enough, and on registries and
// repositories that do not answer.
func (r *Registry) Update(ctx context.Context, input []byte, o Options) ([]byte, error) {
	if o.Now.IsZero() || o.Warn == nil {
		return nil, errors.New("updating the list: neither the time nor who is to be warned is known")
	}
	l, err := parse(input, o.Warn)
	if err != nil {
		return nil, fmt.Errorf("reading the list: %w", err)
	}
	var images, gits []string
	for _, s := range o.Add {
		if strings.HasPrefix(s, "git+") {
			gits = append(gits, s)
		} else {
			images = append(images, s)
		}
	}
	if o.Freshen {
		for _, task := range slices.Sorted(maps.Keys(l)) {
			if image, ok := strings.CutPrefix(task, ociPrefix); ok {
				images = append(images, image)
			} else if strings.HasPrefix(task, "git+") {
				gits = append(gits, task)
			}
		}
	}
	if err := r.addBundles(ctx, l, images); err != nil {
		return nil, err
	}
	if err := addFiles(ctx, l, gits, o.Freshen); err != nil {
		return nil, err
	}
	today := o.Now.UTC().Round(24 * time.Hour)
	for task, records := range l {
		records = oldest(records)
		if o.Prune {
			records = slices.DeleteFunc(records, func(r record) bool { return r.ExpiresOn != nil && !o.Now.Before(*r.ExpiresOn) })
		}
		for i := range records {
			switch until := today.Add(time.Duration(o.InEffectDays) * 24 * time.Hour); {
			case i == 0:
				records[i].ExpiresOn = nil
			case records[i].ExpiresOn == nil:
				records[i].ExpiresOn = &until
			}
		}
		l[task] = records
	}
	return l.yaml()
}

// oldest keeps of neighbours with one reference the oldest: it was not replaced by
// the others, and what it says of its end stays.
func oldest(records []record) []record {
	var out []record
	for i, r := range records {
		if i == len(records)-1 || records[i+1].Ref != r.Ref {
			out = append(out, r)
		}
	}
	return out
}

// add puts a reference in front.
func (l list) add(task, ref string) { l[task] = slices.Insert(l[task], 0, record{Ref: ref}) }

// parse reads a list. Nothing is the empty list.
func parse(input []byte, warn func(string, ...any)) (list, error) {
	doc, err := spec.OneDocument(input)
	if err != nil {
		return nil, err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(doc, &all); err != nil {
		return nil, err
	}
	var tasks map[string][]map[string]json.RawMessage
	for key, raw := range all {
		if key != "trusted_tasks" {
			warn("the list's %s is not kept: only trusted_tasks is", key)
			continue
		}
		if err := json.Unmarshal(raw, &tasks); err != nil {
			return nil, fmt.Errorf("trusted_tasks: %w", err)
		}
	}
	l := list{}
	for task, records := range tasks {
		l[task] = nil
		for i, raw := range records {
			var r record
			for key, v := range raw {
				var err error
				switch key {
				case "ref":
					err = json.Unmarshal(v, &r.Ref)
				case "expires_on":
					err = json.Unmarshal(v, &r.ExpiresOn)
				default:
					warn("%s of %s in the list is not kept: only ref and expires_on are", key, task)
				}
				if err != nil {
					return nil, fmt.Errorf("trusted_tasks, %s, item %d, %s: %w", task, i+1, key, err)
				}
			}
			if r.Ref == "" {
				return nil, fmt.Errorf("trusted_tasks, %s, item %d: it has no ref", task, i+1)
			}
			l[task] = append(l[task], r)
		}
	}
	return l, nil
}

// yaml writes a list with sorted keys.
func (l list) yaml() ([]byte, error) {
	scalar := func(s string, style yamlv3.Style) *yamlv3.Node {
		return &yamlv3.Node{Kind: yamlv3.ScalarNode, Tag: "!!str", Value: s, Style: style}
	}
	tasks := &yamlv3.Node{Kind: yamlv3.MappingNode}
	for _, task := range slices.Sorted(maps.Keys(l)) {
		records := &yamlv3.Node{Kind: yamlv3.SequenceNode}
		for _, r := range l[task] {
			m := &yamlv3.Node{Kind: yamlv3.MappingNode}
			if r.ExpiresOn != nil {
				m.Content = append(m.Content, scalar("expires_on", 0), scalar(r.ExpiresOn.Format(time.RFC3339Nano), yamlv3.DoubleQuotedStyle))
			}
			m.Content = append(m.Content, scalar("ref", 0), scalar(r.Ref, 0))
			records.Content = append(records.Content, m)
		}
		tasks.Content = append(tasks.Content, scalar(task, 0), records)
	}
	top := &yamlv3.Node{Kind: yamlv3.MappingNode}
	if len(l) > 0 {
		top.Content = append(top.Content, scalar("trusted_tasks", 0), tasks)
	}
	var b bytes.Buffer
	b.WriteString("---\n")
	e := yamlv3.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(top); err != nil {
		return nil, fmt.Errorf("writing the list: %w", err)
	}
	if err := e.Close(); err != nil {
		return nil, fmt.Errorf("writing the list: %w", err)
	}
	return b.Bytes(), nil
}
