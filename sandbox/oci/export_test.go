package oci

import (
	"encoding/json"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"

	"assay.dev/assay/sandbox"
)

// BareConfig prepares a step without running it, for running the runtime alone.
func BareConfig(sp sandbox.Space, step sandbox.StepSpec) (*specs.Spec, func() error, error) {
	s := sp.(*space)
	s.steps++
	b := &bundle{s: s, step: step, id: "bare"}
	if err := b.prepare(); err != nil {
		return nil, b.remove, err
	}
	j, err := os.ReadFile(b.dir("config.json"))
	if err != nil {
		return nil, b.remove, err
	}
	var spec specs.Spec
	return &spec, b.remove, json.Unmarshal(j, &spec)
}
