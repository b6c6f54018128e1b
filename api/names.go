// Package api fixes the names that Assay signs, stores and reads: predicate
// types, builder ids, annotation keys and media types. A name that has been
// signed once is for ever, so each is written here and nowhere else.
package api

// Predicate types of our own statements.
const (
	// PredicateObservation is what the executor measured during one run; see
	// docs/observation.md.
	PredicateObservation = "https://assay.dev/observation/v0.1"
	// PredicateVerdict is what the gate concluded about one image.
	PredicateVerdict = "https://assay.dev/verdict/v0.1"
)

// Predicate and statement types of others.
const (
	StatementV01      = "https://in-toto.io/Statement/v0.1"
	StatementV1       = "https://in-toto.io/Statement/v1"
	PredicateSLSAv02  = "https://slsa.dev/provenance/v0.2"
	PredicateSLSAv1   = "https://slsa.dev/provenance/v1"
	PredicateSPDX     = "https://spdx.dev/Document"
	PayloadTypeInToto = "application/vnd.in-toto+json"
)

// Annotations on a Tekton Task by which it hands its inputs and outputs to the
// executor instead of fetching and pushing in its steps. docs/concepts.md
// specifies the values.
const (
	// AnnotationInputs lists artifacts to unpack before the first step, one
	// `PARAM=/absolute/folder` a line. The parameter's value has the trusted
	// artifact form oci:<repo>@sha256:<blob>; an empty value unpacks nothing.
	AnnotationInputs = "assay.dev/inputs"
	// AnnotationOutputs lists what to export after the last process of the
	// task is dead, one a line:
	//
	//	artifact NAME=/folder      folder → blob; result NAME = oci:<repo>@sha256:<blob>
	//	source NAME=/folder        the same, and the executor measures its git tree id
	//	commit NAME=/file          the raw git commit object of the source output; result NAME = its id
	//	image NAME=/folder         OCI layout → image; results NAME_URL, NAME_DIGEST, NAME_REF
	AnnotationOutputs = "assay.dev/outputs"
	// AnnotationNetwork is the network a task asks for: none, registry (only
	// the embedded registry) or open. Default: open.
	AnnotationNetwork = "assay.dev/network"
)

// Labels and annotations that Assay puts on runs.
const (
	LabelRun        = "assay.dev/run"
	AnnotationRunID = "assay.dev/run-id"
)

// DefaultRegistry is the name by which references call the embedded registry.
// Inside Assay it is a name, not an address: our commands reach the registry
// through its socket or its folder. `assay registry serve` listens there.
const DefaultRegistry = "localhost:5055"

// Repositories of the embedded registry.
const (
	// StagingPrefix + run id is the one repository a run may write.
	StagingPrefix = "staging/"
	// ReleasedPrefix is written by the releaser only.
	ReleasedPrefix = "released/"
	// CatalogPrefix holds task bundles and task images; written by the operator.
	CatalogPrefix = "catalog/"
)

// Origin says how a statement came about, and so with which key and builder id.
type Origin string

const (
	Executed Origin = "executed" // our executor ran it and the facts agree
	Watched  Origin = "watched"  // a Tekton ran it, we watched the objects
	Stated   Origin = "stated"   // somebody handed us files
)

// BuilderID is the builder.id of what we state of our own accord: it names the
// origin, how the keys are kept apart and the instance, below the version of
// the page that states the guarantees (docs/slsa.md). Watched runs carry the id
// that chains-config sets instead.
func BuilderID(origin Origin, separation KeySeparation, instance string) string {
	if origin == Stated {
		return "https://assay.dev/builder/v1/stated/" + instance
	}
	return "https://assay.dev/builder/v1/" + string(origin) + "/" + string(separation) + "/" + instance
}

// KeySeparation says what keeps the executor from the observer's key.
type KeySeparation string

const (
	// SeparationUser: the observer has its own user, the executor a user
	// namespace that does not map it.
	SeparationUser KeySeparation = "user"
	// SeparationNone: one uid is all there is; a step that escapes its sandbox
	// can read the key.
	SeparationNone KeySeparation = "none"
)

// Media types of what the executor exports.
const (
	MediaTypeArtifact = "application/vnd.assay.artifact.v1.tar+zstd"
	MediaTypeBundle   = "application/vnd.dev.sigstore.bundle.v0.3+json"
	MediaTypeDSSE     = "application/vnd.dsse.envelope.v1+json"
	MediaTypeSPDX     = "text/spdx+json"
)
