package provenance

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// BuildType names how SLSA v1.0 statements describe a build.
type BuildType string

const (
	// BuildTypeSLSA describes what any SLSA verifier understands.
	BuildTypeSLSA BuildType = "https://tekton.dev/chains/v2/slsa"
	// BuildTypeTekton adds labels, annotations and every TaskRun in full.
	BuildTypeTekton BuildType = "https://tekton.dev/chains/v2/slsa-tekton"
)

// Config is what Chains' ConfigMap chains-config sets. Statements use
// BuilderID, BuildType and DeepInspection; the rest is for those who sign,
// store and watch, so that one file configures them all. Its zero value is
// refused: get one from ParseConfig.
type Config struct {
	BuilderID string
	BuildType BuildType
	// DeepInspection makes statements of PipelineRuns read the hints of their
	// TaskRuns too.
	DeepInspection bool

	TaskRuns     ArtifactConfig
	PipelineRuns ArtifactConfig
	OCI          ArtifactConfig

	Storage      StorageConfig
	Transparency TransparencyConfig
	X509         X509Config
	KMS          KMSConfig

	// ManagedBy lists further values of spec.managedBy whose runs are ours to
	// watch; unset, empty and tekton.dev/pipeline always are.
	ManagedBy []string

	// Own are the settings that Chains does not have.
	Own OwnConfig
}

// ArtifactConfig is what happens to one kind of artifact.
type ArtifactConfig struct {
	Format Format
	// Storage names the back ends: upstream's words, then those of
	// assay.artifacts.*.storage (folder, blob, pubsub). Nil: switched off.
	Storage []string
	Signer  string // x509, kms or none
	// Signers are the kinds of keys that sign, one signature each: Signer alone,
	// or what assay.artifacts.*.signers lists (x509, kms, pkcs11).
	Signers []string
}

// Back ends of ours, in the words of assay.artifacts.*.storage.
const (
	StorageFolder = "folder"
	StorageBlob   = "blob"
	StoragePubSub = "pubsub"
)

// OwnConfig are settings of ours; in chains-config they have the prefix "assay.".
type OwnConfig struct {
	// MissingChildren says what happens to a PipelineRun some of whose children
	// cannot be had: "state" what there is and name the missing, or "refuse".
	// assay.children.missing, default state.
	MissingChildren string
	// MarkTaskRuns puts finalizer and annotation on TaskRuns although statements
	// about TaskRuns are off. assay.taskruns.mark, default false.
	MarkTaskRuns bool
	// Peer says what happens while Tekton Chains runs beside us: "stand-back"
	// until it is gone, or "take-over". assay.peer, default stand-back.
	Peer string
	// Since leaves alone runs that had ended longer ago than this when the
	// observer started; 0: none. assay.start.since, a Go duration.
	Since time.Duration
	// MaxBackoff bounds the pause between two attempts at a run.
	// assay.retry.max-backoff, default 10m.
	MaxBackoff time.Duration

	FolderPath string // assay.storage.folder.path
	BlobURL    string // assay.storage.blob.url: s3://, azblob://, gs://, file://
	PubSubURL  string // assay.storage.pubsub.url: kafka://, nats://, gcppubsub://, …

	PKCS11URI     string // assay.signers.pkcs11.uri, RFC 7512
	PKCS11PINFile string // assay.signers.pkcs11.pin-path

	// RekorVersion is the API that transparency.url speaks: auto, 1 or 2.
	// assay.transparency.rekor-version, default auto.
	RekorVersion string
	LogURL       string // assay.transparency.log.url: a log of `assay log serve`
	LogKey       string // assay.transparency.log.key: its verifier key (note format)
	// LogWitnesses are verifier keys of witnesses, one of which must have cosigned
	// what the log proves. assay.transparency.log.witnesses.
	LogWitnesses []string
	LogTokenFile string // assay.transparency.log.token-path: lets us add entries
	// RekorKeyFile holds the public key of the log at transparency.url, as PEM;
	// without it a v1 log's key is the one it first shows.
	// assay.transparency.rekor-key-path.
	RekorKeyFile string
	// RekorReadURL is where a v2 log's tiles are read, if not below transparency.url.
	// assay.transparency.rekor-read-url.
	RekorReadURL string
	// GrafeasEndpoint is a server other than Google's: grpcs://host:port.
	// assay.storage.grafeas.endpoint.
	GrafeasEndpoint string
	// ArchivistaTokenFile holds a token for a proxy before Archivista.
	// assay.storage.archivista.token-path.
	ArchivistaTokenFile string
}

// Enabled says whether the artifact is signed and stored at all. As upstream
// has it, signer none switches it off altogether.
func (a ArtifactConfig) Enabled() bool { return len(a.Storage) > 0 && a.Signer != "none" }

// StorageConfig says where evidence goes.
type StorageConfig struct {
	GCSBucket          string
	OCIRepository      string // empty: beside the image
	OCIInsecure        bool
	OCIEncoding        string // dsse or sigstore-bundle
	DocDBURL           string
	MongoServerURL     string // carries a credential
	MongoServerURLDir  string
	MongoServerURLPath string
	GrafeasProject     string
	GrafeasNote        string
	GrafeasNoteHint    string
	PubSubProvider     string // inmemory or kafka
	PubSubTopic        string
	KafkaServers       string
	ArchivistaURL      string
}

// TransparencyConfig says whether signatures go to a Rekor log.
type TransparencyConfig struct {
	Enabled bool
	// Manual: only runs annotated chains.tekton.dev/transparency-upload: "true".
	Manual bool
	URL    string
}

// X509Config is about keys in files and keyless signing.
type X509Config struct {
	Fulcio            bool
	FulcioAddress     string
	FulcioIssuer      string
	FulcioProvider    string // empty: try all
	IdentityTokenFile string
	TUFMirror         string
}

// KMSConfig is about keys in a key management service.
type KMSConfig struct {
	Ref           string
	Address       string
	Token         string // a credential
	TokenPath     string
	OIDCPath      string
	OIDCRole      string
	OIDCTokenPath string
	SpireSock     string
	SpireAudience string
}

// Format is the format set for in's kind.
func (c Config) Format(in Input) Format {
	if in.PipelineRun != nil {
		return c.PipelineRuns.Format
	}
	return c.TaskRuns.Format
}

func (c Config) check() error {
	if c.BuilderID == "" {
		return errors.New("configuration has no builder.id; make one with ParseConfig")
	}
	if c.BuildType != BuildTypeSLSA && c.BuildType != BuildTypeTekton {
		return fmt.Errorf("unknown builddefinition.buildtype %q; accepted: %s, %s", c.BuildType, BuildTypeSLSA, BuildTypeTekton)
	}
	return nil
}

// ParseConfig reads the data of chains-config. Keys that are not there have
// upstream's defaults, so nil is a valid configuration. Keys lists them all.
//
// Unlike upstream it refuses keys it does not know, words a key does not take
// and a configuration that names a back end or a kind of key without saying
// where that is; the error names what is accepted or missing, and every such
// fault is reported, not the first only. Knative's reserved key _example is
// skipped.
func ParseConfig(data map[string]string) (Config, error) {
	c := defaults()
	settings := c.settings()
	var faults []error
	known := make(map[string]bool, len(settings))
	for _, s := range settings {
		known[s.key] = true
		if value, ok := data[s.key]; ok {
			if err := s.set(value); err != nil {
				faults = append(faults, fmt.Errorf("key %s: %w", s.key, err))
			}
		}
	}
	var unknown []string
	for key := range data {
		if !known[key] && key != "_example" {
			unknown = append(unknown, key)
		}
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		keys := make([]string, 0, len(settings))
		for _, s := range settings {
			keys = append(keys, s.key)
		}
		faults = append(faults, fmt.Errorf("unknown keys %q; accepted: %s", unknown, strings.Join(keys, ", ")))
	}
	if len(faults) == 0 {
		faults = c.complete()
	}
	if len(faults) > 0 {
		return Config{}, fmt.Errorf("parsing chains-config: %w", errors.Join(faults...))
	}
	return c, nil
}

// defaults are the settings in force where no key is set.
func defaults() Config {
	return Config{
		BuilderID:    "https://tekton.dev/chains/v2",
		BuildType:    BuildTypeSLSA,
		TaskRuns:     ArtifactConfig{Format: InToto, Storage: []string{"tekton"}, Signer: "x509"},
		PipelineRuns: ArtifactConfig{Format: InToto, Storage: []string{"tekton"}, Signer: "x509"},
		OCI:          ArtifactConfig{Format: Simplesigning, Storage: []string{"oci"}, Signer: "x509"},
		Transparency: TransparencyConfig{URL: "https://rekor.sigstore.dev"},
		Storage: StorageConfig{
			OCIEncoding:     "dsse",
			GrafeasNoteHint: "This attestation note was generated by Tekton Chains",
		},
		X509: X509Config{
			FulcioAddress: "https://fulcio.sigstore.dev",
			FulcioIssuer:  "https://oauth2.sigstore.dev/auth",
			TUFMirror:     "https://tuf-repo-cdn.sigstore.dev",
		},
		Own: OwnConfig{MissingChildren: "state", Peer: "stand-back", MaxBackoff: 10 * time.Minute, RekorVersion: "auto"},
	}
}

// complete fills in what follows from several keys, and returns what is missing
// for what was asked.
func (c *Config) complete() []error {
	var faults []error
	artifacts := []struct {
		name string
		cfg  *ArtifactConfig
	}{{"taskrun", &c.TaskRuns}, {"pipelinerun", &c.PipelineRuns}, {"oci", &c.OCI}}
	for _, a := range artifacts {
		switch {
		case a.cfg.Signer == "none" && a.cfg.Signers != nil:
			faults = append(faults, fmt.Errorf("key artifacts.%s.signer: none switches the artifact off, but assay.artifacts.%s.signers names keys; drop one of the two",
				a.name, a.name))
		case a.cfg.Signer != "none" && a.cfg.Signers == nil:
			a.cfg.Signers = []string{a.cfg.Signer}
		}
	}

	// needs says which artifact's key asks for word, if any that is enabled does.
	needs := func(word string, of func(*ArtifactConfig) []string) string {
		for _, a := range artifacts {
			if a.cfg.Enabled() && slices.Contains(of(a.cfg), word) {
				return "artifacts." + a.name
			}
		}
		return ""
	}
	for _, r := range []struct{ storage, value, key string }{
		{"gcs", c.Storage.GCSBucket, "storage.gcs.bucket"},
		{"docdb", c.Storage.DocDBURL, "storage.docdb.url"},
		{"grafeas", c.Storage.GrafeasProject, "storage.grafeas.projectid"},
		{"archivista", c.Storage.ArchivistaURL, "storage.archivista.url"},
		{"kafka", c.Storage.PubSubProvider, "storage.pubsub.provider"},
		{"kafka", c.Storage.PubSubTopic, "storage.pubsub.topic"},
		{StorageFolder, c.Own.FolderPath, "assay.storage.folder.path"},
		{StorageBlob, c.Own.BlobURL, "assay.storage.blob.url"},
		{StoragePubSub, c.Own.PubSubURL, "assay.storage.pubsub.url"},
	} {
		if by := needs(r.storage, func(a *ArtifactConfig) []string { return a.Storage }); by != "" && r.value == "" {
			faults = append(faults, fmt.Errorf("key %s is missing: storage %s, which %s uses, needs it", r.key, r.storage, by))
		}
	}
	if by := needs("kafka", func(a *ArtifactConfig) []string { return a.Storage }); by != "" && c.Storage.PubSubProvider == "kafka" && c.Storage.KafkaServers == "" {
		faults = append(faults, fmt.Errorf("key storage.pubsub.kafka.bootstrap.servers is missing: storage kafka, which %s uses, needs it", by))
	}
	for _, r := range []struct{ signer, value, key string }{
		{"kms", c.KMS.Ref, "signers.kms.kmsref"},
		{"pkcs11", c.Own.PKCS11URI, "assay.signers.pkcs11.uri"},
	} {
		if by := needs(r.signer, func(a *ArtifactConfig) []string { return a.Signers }); by != "" && r.value == "" {
			faults = append(faults, fmt.Errorf("key %s is missing: signer %s, which %s uses, needs it", r.key, r.signer, by))
		}
	}
	if c.X509.Fulcio && c.X509.FulcioAddress == "" {
		faults = append(faults, errors.New("key signers.x509.fulcio.address is empty: signers.x509.fulcio.enabled needs it"))
	}
	if c.Transparency.Enabled && c.Transparency.URL == "" && c.Own.LogURL == "" {
		faults = append(faults, errors.New("key transparency.url is empty: transparency.enabled needs it, or a log under assay.transparency.log.url"))
	}
	if (c.Own.LogURL == "") != (c.Own.LogKey == "") {
		faults = append(faults, errors.New("keys assay.transparency.log.url and assay.transparency.log.key go together: without the key nobody could check what the log says"))
	}
	return faults
}
