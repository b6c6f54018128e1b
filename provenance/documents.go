package provenance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"sigs.k8s.io/yaml"
)

// Documents takes a file apart into the objects it holds, each as JSON: YAML
// documents between lines of three dashes, JSON values one behind the other or in
// a list, and what kubectl prints for several objects (kind List, TaskRunList …).
// Anchors hold within their document, line ends may be of either kind. A file
// without any object gives none.
//
// It fails for what is neither JSON nor YAML, a name given twice in one YAML map,
// and values that are no objects.
func Documents(data []byte) ([][]byte, error) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) // byte order mark
	var out [][]byte
	for i, doc := range split(data) {
		objects, err := objectsOf(doc)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", i+1, err)
		}
		out = append(out, objects...)
	}
	return out, nil
}

// split cuts a YAML stream where a line begins or ends a document and drops
// documents of blanks and comments. JSON passes whole: no line within it begins
// with dashes.
func split(data []byte) [][]byte {
	var out [][]byte
	start := 0
	keep := func(end int) {
		if doc := data[start:end]; hasContent(doc) {
			out = append(out, doc)
		}
	}
	for at := 0; at < len(data); {
		end := len(data)
		if n := bytes.IndexByte(data[at:], '\n'); n >= 0 {
			end = at + n + 1
		}
		if line := data[at:end]; marker(bytes.TrimSuffix(line, []byte("\n"))) {
			keep(at)
			start = end
			if line[0] == '-' {
				start = at + len("---") // the document may begin on this line
			}
		}
		at = end
	}
	keep(len(data))
	return out
}

// objectsOf reads one document.
func objectsOf(doc []byte) ([][]byte, error) {
	var out [][]byte
	trimmed := bytes.TrimSpace(doc)
	if kind, err := kindOf(trimmed); err == nil && trimmed[0] == '{' && !strings.HasSuffix(kind, "List") {
		return append(out, trimmed), nil // one object in JSON, the commonest case
	}
	if trimmed[0] != '{' && trimmed[0] != '[' {
		value, err := yaml.YAMLToJSONStrict(doc)
		if err != nil {
			return nil, fmt.Errorf("parsing YAML: %w", err)
		}
		return appendObjects(out, value, true)
	}
	dec := json.NewDecoder(bytes.NewReader(doc))
	for {
		var value json.RawMessage
		switch err := dec.Decode(&value); {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return nil, fmt.Errorf("parsing JSON: %w", err)
		}
		var err error
		if out, err = appendObjects(out, value, true); err != nil {
			return nil, err
		}
	}
}

// appendObjects adds an object, or those of a list if lists may be here.
func appendObjects(out [][]byte, value []byte, lists bool) ([][]byte, error) {
	value = bytes.TrimSpace(value)
	if len(value) == 0 || value[0] != '{' && value[0] != '[' || value[0] == '[' && !lists {
		return nil, fmt.Errorf("%.60s is no object: want a TaskRun or PipelineRun, or a list of them", value)
	}
	var list struct {
		APIVersion string
		Kind       string
		Items      []json.RawMessage
	}
	if value[0] == '[' {
		if err := json.Unmarshal(value, &list.Items); err != nil {
			return nil, fmt.Errorf("parsing list: %w", err)
		}
	} else {
		var err error
		if list.Kind, err = kindOf(value); err != nil {
			return nil, err
		}
		if !strings.HasSuffix(list.Kind, "List") {
			return append(out, value), nil
		}
		if !lists {
			return nil, fmt.Errorf("a %.100s within a list: want TaskRuns or PipelineRuns there", list.Kind)
		}
		if err := checkDuplicates(value); err != nil {
			return nil, fmt.Errorf("parsing %.100s: %w", list.Kind, err)
		}
		if err := json.Unmarshal(value, &list); err != nil {
			return nil, fmt.Errorf("parsing %.100s: %w", list.Kind, err)
		}
	}
	for i, item := range list.Items {
		item, err := typed(item, list.APIVersion, strings.TrimSuffix(list.Kind, "List"))
		if err == nil {
			out, err = appendObjects(out, item, false)
		}
		if err != nil {
			return nil, fmt.Errorf("item %d: %w", i, err)
		}
	}
	return out, nil
}

// kindOf reads an object's kind, and that it is JSON and one value.
func kindOf(value []byte) (string, error) {
	var head struct {
		Kind string `json:"kind"`
	}
	if err := json.Unmarshal(value, &head); err != nil {
		return "", fmt.Errorf("parsing kind: %w", err)
	}
	return head.Kind, nil
}

// typed gives an item of a TaskRunList the version and kind that an API server
// leaves out there, since the list says them for all.
func typed(item []byte, apiVersion, kind string) ([]byte, error) {
	if kind == "" || len(item) == 0 || item[0] != '{' {
		return item, nil
	}
	var head struct {
		APIVersion *string `json:"apiVersion"`
		Kind       *string `json:"kind"`
	}
	if err := json.Unmarshal(item, &head); err != nil {
		return nil, fmt.Errorf("parsing apiVersion and kind: %w", err)
	}
	if head.APIVersion != nil || head.Kind != nil {
		return item, nil
	}
	out := append(make([]byte, 0, len(item)+len(apiVersion)+len(kind)+32), `{"apiVersion":`...)
	out = append(appendString(out, apiVersion), `,"kind":`...)
	out = appendString(out, kind)
	if rest := bytes.TrimLeft(item[1:], " \t\r\n"); len(rest) > 0 && rest[0] != '}' {
		out = append(out, ',')
	}
	return append(out, item[1:]...), nil
}

// marker says whether line begins or ends a document; YAML lets no scalar
// contain such a line.
func marker(line []byte) bool {
	line = bytes.TrimRight(line, "\r")
	for _, m := range []string{"---", "..."} {
		if rest, ok := bytes.CutPrefix(line, []byte(m)); ok && (len(rest) == 0 || rest[0] == ' ' || rest[0] == '\t') {
			return true
		}
	}
	return false
}

// hasContent says whether doc has a line that is more than blank or comment.
func hasContent(doc []byte) bool {
	for line := range bytes.Lines(doc) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && line[0] != '%' {
			return true
		}
	}
	return false
}
