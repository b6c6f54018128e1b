// Package spec is the policy configuration that Conforma calls EnterpriseContractPolicy:
// which rules and data to take from where, which of them count, and whose signatures.
// Both evaluators (packages policy and policy/conforma) read it here.
//
// What Assay adds stands under the one key "assay", off by default; see Additions.
package spec

import "encoding/json"

// Spec is a policy configuration. As JSON it is what reports and rules see.
type Spec struct {
	Name          string         `json:"name,omitempty"`
	Description   string         `json:"description,omitempty"`
	Sources       []Source       `json:"sources,omitempty"`
	Configuration *Configuration `json:"configuration,omitempty"`
	RekorURL      string         `json:"rekorUrl,omitempty"`
	PublicKey     string         `json:"publicKey,omitempty"`
	Identity      *Identity      `json:"identity,omitempty"`
	// Assay is what Conforma does not know; in `assay ec` it is an unknown member.
	Assay *Additions `json:"assay,omitempty"`
}

// Source is a group of rules and data that are evaluated together and apart from
// other groups; the results of all groups are added up.
type Source struct {
	Name           string          `json:"name,omitempty"`
	Policy         []string        `json:"policy,omitempty"`
	Data           []string        `json:"data,omitempty"`
	RuleData       json.RawMessage `json:"ruleData,omitempty"`
	Config         *Config         `json:"config,omitempty"`
	VolatileConfig *VolatileConfig `json:"volatileConfig,omitempty"`
}

// Config says which rules of a source count.
type Config struct {
	Exclude []string `json:"exclude,omitempty"`
	Include []string `json:"include,omitempty"`
}

// Configuration is the old place of Config, for all sources.
type Configuration struct {
	Exclude     []string `json:"exclude,omitempty"`
	Include     []string `json:"include,omitempty"`
	Collections []string `json:"collections,omitempty"`
}

// VolatileConfig is a Config whose items hold for a time or for some images.
type VolatileConfig struct {
	Exclude []VolatileItem `json:"exclude,omitempty"`
	Include []VolatileItem `json:"include,omitempty"`
}

// VolatileItem is one of its items. Both bounds are inclusive.
type VolatileItem struct {
	Value          string   `json:"value"`
	EffectiveOn    string   `json:"effectiveOn,omitempty"`
	EffectiveUntil string   `json:"effectiveUntil,omitempty"`
	ImageRef       string   `json:"imageRef,omitempty"` // the old name of ImageDigest
	ImageURL       string   `json:"imageUrl,omitempty"`
	ImageDigest    string   `json:"imageDigest,omitempty"`
	ComponentNames []string `json:"componentNames,omitempty"`
	Reference      string   `json:"reference,omitempty"`
}

// Identity is who has to have signed with a certificate.
type Identity struct {
	Subject       string `json:"subject,omitempty"`
	SubjectRegExp string `json:"subjectRegExp,omitempty"`
	Issuer        string `json:"issuer,omitempty"`
	IssuerRegExp  string `json:"issuerRegExp,omitempty"`
}

// Additions are Assay's own part of a configuration.
type Additions struct {
	// Extends names policies (as --policy does) whose sources come before these, in
	// order; what is set here wins over what they set.
	Extends []string `json:"extends,omitempty"`
	// Signers says who has to have signed what; it takes the place of publicKey and
	// identity. Each list is alternatives; an empty one means those of Image.
	Signers *Signers `json:"signers,omitempty"`
	// Registries are hosts (host or host:port) that rules may ask beside those of
	// the images under judgement.
	Registries []string `json:"registries,omitempty"`
	// Checksums are the digests (Tree.Digest) that sources must have, by address. With
	// any, a source that is not listed is refused.
	Checksums map[string]string `json:"checksums,omitempty"`
	// BuiltinErrors are functions of OPA's (json.unmarshal) whose errors make a rule
	// undefined, as in Conforma, and a note in the verdict. The error of any other ends
	// the evaluation.
	BuiltinErrors []string `json:"builtinErrors,omitempty"`
	// SourceSigners are those one of whom must have signed each OCI source.
	SourceSigners []Signer `json:"sourceSigners,omitempty"`
}

// Signers are who has to have signed the image, its provenance and its SBOM.
type Signers struct {
	Image      []Signer `json:"image,omitempty"`
	Provenance []Signer `json:"provenance,omitempty"`
	SBOM       []Signer `json:"sbom,omitempty"`
}

// Signer is a key or an identity, not both.
type Signer struct {
	PublicKey string    `json:"publicKey,omitempty"`
	Identity  *Identity `json:"identity,omitempty"`
}
