package predicate

import (
	"encoding/json"
	"fmt"
	"time"
)

// VSA is SLSA's verification summary, v0.2 and v1: somebody's verdict about an
// artifact.
type VSA struct {
	predicateType string
	Verifier      struct {
		ID      string            `json:"id"`
		Version map[string]string `json:"version,omitempty"`
	} `json:"verifier"`
	TimeVerified       time.Time              `json:"timeVerified,omitzero"`
	ResourceURI        string                 `json:"resourceUri"`
	Policy             Resource               `json:"policy,omitzero"`
	InputAttestations  []Resource             `json:"inputAttestations,omitempty"`
	VerificationResult string                 `json:"verificationResult"` // PASSED, FAILED
	VerifiedLevels     []string               `json:"verifiedLevels,omitempty"`
	PolicyLevel        string                 `json:"policyLevel,omitempty"` // v0.2's policy_level
	DependencyLevels   map[string]json.Number `json:"dependencyLevels,omitempty"`
	SLSAVersion        string                 `json:"slsaVersion,omitempty"`
}

// Type implements Predicate.
func (v *VSA) Type() string { return v.predicateType }

func (v *VSA) check() error {
	switch {
	case v.Verifier.ID == "":
		return missing("verifier id")
	case v.ResourceURI == "":
		return missing("resourceUri")
	case v.VerificationResult != "PASSED" && v.VerificationResult != "FAILED":
		return fmt.Errorf("at [verificationResult]: %.40q; want PASSED or FAILED", v.VerificationResult)
	case v.predicateType == VSAv1 && v.VerifiedLevels == nil && v.VerificationResult == "PASSED":
		return missing("verifiedLevels")
	}
	for level, n := range v.DependencyLevels {
		if i, err := n.Int64(); err != nil || i < 0 {
			return fmt.Errorf("at [dependencyLevels %.40s]: %.40s is no number of dependencies", level, n)
		}
	}
	return nil
}

// vsa02 is v0.2, which spells its members in another way.
type vsa02 struct {
	Verifier struct {
		ID string `json:"id"`
	} `json:"verifier"`
	TimeVerified       time.Time              `json:"time_verified,omitzero"`
	ResourceURI        string                 `json:"resource_uri"`
	Policy             Resource               `json:"policy,omitzero"`
	InputAttestations  []Resource             `json:"input_attestations,omitempty"`
	VerificationResult string                 `json:"verification_result"`
	PolicyLevel        string                 `json:"policy_level,omitempty"`
	DependencyLevels   map[string]json.Number `json:"dependency_levels,omitempty"`
}

// Type implements Predicate.
func (*vsa02) Type() string { return VSAv02 }

func (v *vsa02) check() error { return v.value().(*VSA).check() }

// value is the one type in which all versions are handed out.
func (v *vsa02) value() Predicate {
	out := &VSA{
		predicateType: VSAv02, TimeVerified: v.TimeVerified, ResourceURI: v.ResourceURI, Policy: v.Policy, InputAttestations: v.InputAttestations,
		VerificationResult: v.VerificationResult, PolicyLevel: v.PolicyLevel, DependencyLevels: v.DependencyLevels,
	}
	out.Verifier.ID = v.Verifier.ID
	if v.PolicyLevel != "" {
		out.VerifiedLevels = []string{v.PolicyLevel}
	}
	return out
}
