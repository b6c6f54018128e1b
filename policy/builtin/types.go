package builtin

import "github.com/open-policy-agent/opa/v1/types"

// Names of the functions.
const (
	Blob              = "ec.oci.blob"
	ParsedBlob        = "ec.oci.parsed_blob"
	BlobFiles         = "ec.oci.blob_files"
	Descriptor        = "ec.oci.descriptor"
	ImageManifest     = "ec.oci.image_manifest"
	ImageManifests    = "ec.oci.image_manifests"
	ImageIndex        = "ec.oci.image_index"
	ImageFiles        = "ec.oci.image_files"
	ImageTagRefs      = "ec.oci.image_tag_refs"
	ImageReferrers    = "ec.oci.image_referrers"
	PURLIsValid       = "ec.purl.is_valid"
	PURLParse         = "ec.purl.parse"
	VerifyImage       = "ec.sigstore.verify_image"
	VerifyAttestation = "ec.sigstore.verify_attestation"
)

// The type signatures are part of the contract with policies: the compiler
// refuses a rule that reads a member which is not there.

func object(props ...*types.StaticProperty) *types.Object { return types.NewObject(props, nil) }

func prop(key string, t types.Type) *types.StaticProperty {
	return &types.StaticProperty{Key: key, Value: t}
}

func list(of types.Type) types.Type { return types.NewArray([]types.Type{of}, nil) }

func named(name string, t types.Type, description string) types.Type {
	return types.Named(name, t).Description(description)
}

var (
	annotationsType = types.NewObject(nil, types.NewDynamicProperty(types.S, types.S))

	platformType = object(
		prop("architecture", types.S), prop("os", types.S), prop("os.version", types.S),
		prop("os.features", list(types.S)), prop("variant", types.S), prop("features", list(types.S)),
	)

	descriptorType = object(
		prop("mediaType", types.S), prop("size", types.N), prop("digest", types.S), prop("data", types.S),
		prop("urls", list(types.S)), prop("annotations", annotationsType), prop("platform", platformType),
		prop("artifactType", types.S),
	)

	// memberType is how an index lists a manifest. It says less than the values
	// hold, as Conforma's does.
	memberType = object(
		prop("mediaType", types.S), prop("size", types.N), prop("digest", types.S), prop("data", types.S),
		prop("urls", list(types.S)), prop("annotations", annotationsType), prop("platform", platformType),
	)

	manifestType = object(
		prop("schemaVersion", types.N), prop("mediaType", types.S), prop("config", descriptorType),
		prop("layers", list(descriptorType)), prop("annotations", annotationsType), prop("subject", descriptorType),
	)

	indexType = object(
		prop("schemaVersion", types.N), prop("mediaType", types.S), prop("manifests", list(memberType)),
		prop("annotations", annotationsType),
	)

	referrerType = object(
		prop("mediaType", types.S), prop("size", types.N), prop("digest", types.S), prop("artifactType", types.S),
		prop("ref", types.S), prop("annotations", annotationsType),
	)

	purlType = object(
		prop("type", types.S), prop("namespace", types.S), prop("name", types.S), prop("version", types.S),
		prop("qualifiers", types.NewArray(nil, object(prop("key", types.S), prop("value", types.S)))),
		prop("subpath", types.S),
	)

	optsType = named("opts", types.NewObject(
		// What is not a string has to be given; any other option may be left out.
		[]*types.StaticProperty{prop("ignore_rekor", types.B)},
		types.NewDynamicProperty(types.S, types.S),
	), "how to verify: certificate_identity, certificate_identity_regexp, certificate_oidc_issuer, certificate_oidc_issuer_regexp, public_key, rekor_url, rekor_public_key")

	// Names stand at the top alone: OPA's checker does not look into a named member.
	signatureType = object(
		prop("keyid", types.S), prop("signature", types.S), prop("certificate", types.S), prop("chain", list(types.S)),
		prop("metadata", types.NewObject(nil, types.NewDynamicProperty(types.S, types.S))),
	)

	attestationType = object(prop("statement", types.A), prop("signatures", list(signatureType)))
)

func files(what string) types.Type {
	return named("files", types.NewObject(nil, types.NewDynamicProperty(types.S, types.A)), "what the files hold, by path in the "+what)
}

func ref(of string) types.Type { return named("ref", types.S, of) }

var pathsType = named("paths", list(types.S), "the paths")

// functions are all declarations, by name.
var functions = []struct {
	name        string
	description string
	args        []types.Type
	result      types.Type
	pure        bool
}{
	{Blob, "A blob of a registry.", []types.Type{ref("the blob, by digest")}, named("blob", types.S, "its content"), false},
	{ParsedBlob, "What the JSON in a blob of a registry says.", []types.Type{ref("the blob, by digest")}, named("value", types.A, "the value"), false},
	{BlobFiles, "YAML and JSON files in a blob that is a tar archive.", []types.Type{ref("the blob, by digest"), pathsType}, files("archive"), false},
	{Descriptor, "The descriptor of a manifest.", []types.Type{ref("the image")}, named("object", descriptorType, "the descriptor"), false},
	{ImageManifest, "An image's manifest.", []types.Type{ref("the image")}, named("object", manifestType, "the manifest"), false},
	{ImageManifests, "The manifests of several images, fetched together.", []types.Type{named("refs", types.NewSet(types.S), "the images")}, named("manifests", types.NewObject(nil, types.NewDynamicProperty(types.S, manifestType)), "manifests by image; those that cannot be read are left out"), false},
	{ImageIndex, "An image index.", []types.Type{ref("the index")}, named("object", indexType, "the index"), false},
	{ImageFiles, "YAML and JSON files in folders of an image.", []types.Type{ref("the image, by digest"), pathsType}, files("image"), false},
	{ImageTagRefs, "Tags that cosign hangs beside an image (.sig, .att, .sbom), as far as they exist.", []types.Type{ref("the image")}, named("refs", list(types.S), "the references"), false},
	{ImageReferrers, "Manifests that refer to an image.", []types.Type{ref("the image")}, named("referrers", list(referrerType), "their descriptors"), false},
	// The declared result is a string though the value is a boolean. Policies are
	// checked against it, so it stays as Conforma has it.
	{PURLIsValid, "Whether a package URL is valid.", []types.Type{named("purl", types.S, "the package URL")}, named("result", types.S, "whether it is"), true},
	{PURLParse, "The parts of a package URL.", []types.Type{named("purl", types.S, "the package URL")}, named("object", purlType, "its parts"), true},
	{VerifyImage, "Verifies the signatures of an image.", []types.Type{ref("the image, by digest"), optsType}, named("result", object(
		prop("success", types.B),
		prop("errors", list(types.S)),
		prop("signatures", list(signatureType)),
	), "what verification came to"), false},
	{VerifyAttestation, "Verifies the attestations of an image.", []types.Type{ref("the image, by digest"), optsType}, named("result", object(
		prop("success", types.B),
		prop("errors", list(types.S)),
		prop("attestations", list(attestationType)),
	), "what verification came to"), false},
}
