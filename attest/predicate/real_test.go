package predicate_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/internal/testrig/conformance"
)

// statements finds what has the form of in-toto statements in any JSON: bare ones,
// those of DSSE envelopes and those of bundles.
func statements(v any, found func(predicateType string, predicate []byte)) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			statements(e, found)
		}
	case map[string]any:
		if t, ok := v["predicateType"].(string); ok && v["predicate"] != nil {
			raw, err := json.Marshal(v["predicate"])
			if err == nil {
				found(t, raw)
			}
			return
		}
		if p, ok := v["payload"].(string); ok && v["payloadType"] != nil {
			if raw, err := base64.StdEncoding.DecodeString(p); err == nil {
				decode(raw, found)
			}
			return
		}
		for _, e := range v {
			statements(e, found)
		}
	}
}

func decode(raw []byte, found func(string, []byte)) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	for {
		var v any
		if d.Decode(&v) != nil {
			return
		}
		statements(v, found)
	}
}

// TestReal reads every statement of the conformance data: what real producers wrote
// under a type that is known here is of that type.
func TestReal(t *testing.T) {
	root := filepath.Dir(conformance.Dir(t, "intoto"))
	read := map[string]int{}
	refused := map[string]string{ // what was made to be wrong, by path: the reason
		"conforma/image-set/": `parsing time "yesterday"`,
	}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		decode(raw, func(typ string, doc []byte) {
			p, err := predicate.Parse(typ, doc)
			for prefix, reason := range refused {
				if err != nil && strings.HasPrefix(rel, prefix) && strings.Contains(err.Error(), reason) {
					return
				}
			}
			if err != nil {
				t.Errorf("%s: %v", rel, err)
				return
			}
			if _, unknown := p.(*predicate.Unknown); unknown == predicate.Known(typ) || p.Type() != typ {
				t.Errorf("%s: type %s is read as %T of type %s", rel, typ, p, p.Type())
			}
			read[fmt.Sprintf("%T", p)]++
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(read)
	for _, p := range []predicate.Predicate{
		new(predicate.Provenance01), new(predicate.Provenance02), new(predicate.Provenance1), new(predicate.VSA), new(predicate.TestResults),
		new(predicate.SPDX), new(predicate.BOM), new(predicate.Publish), new(predicate.Unknown),
	} {
		if read[fmt.Sprintf("%T", p)] == 0 {
			t.Errorf("there is no %T in the data", p)
		}
	}
}
