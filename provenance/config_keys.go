package provenance

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// KeyDoc describes one key of chains-config.
type KeyDoc struct {
	Key     string
	Values  string // words or kind of value that it takes
	Default string // empty: none
	Meaning string
	Own     bool // ours; Tekton Chains does not know it
}

// Keys describes every key that ParseConfig accepts, upstream's first.
func Keys() []KeyDoc {
	c := defaults()
	settings := c.settings()
	out := make([]KeyDoc, len(settings))
	for i, s := range settings {
		out[i] = KeyDoc{Key: s.key, Values: s.values, Default: s.get(), Meaning: s.meaning, Own: strings.HasPrefix(s.key, ownPrefix)}
	}
	return out
}

// Setting is a key with the value in force.
type Setting struct {
	KeyDoc
	// Value is as a ConfigMap would have it, but for credentials: those read
	// "(set)".
	Value string
}

// Describe lists every key with the value that c has for it, in the order of
// Keys. Credentials are not shown.
func (c Config) Describe() []Setting {
	docs := Keys()
	settings := c.settings()
	out := make([]Setting, len(docs))
	for i, s := range settings {
		out[i] = Setting{KeyDoc: docs[i], Value: s.get()}
		if s.secret && out[i].Value != "" {
			out[i].Value = "(set)"
		}
	}
	return out
}

// ownPrefix is what keys of ours begin with.
const ownPrefix = "assay."

// setting is one key of chains-config and what a value does.
type setting struct {
	key string
	value
	meaning string
	secret  bool
}

// value reads and writes one field.
type value struct {
	values string
	set    func(text string) error
	get    func() string
}

// settings is every key there is, reading and writing c.
func (c *Config) settings() []setting {
	statements := []Format{InToto, SLSAv1, SLSAv2alpha3, SLSAv2alpha4}
	signers := []string{"x509", "kms", "none"}
	keys := []string{"x509", "kms", "pkcs11"}
	own := []string{StorageFolder, StorageBlob, StoragePubSub}
	// kafka is accepted because upstream accepts it, though upstream knows the
	// back end under another name and so never reaches it.
	withKafka := []string{"tekton", "oci", "gcs", "docdb", "grafeas", "kafka", "archivista"}
	withoutKafka := []string{"tekton", "oci", "gcs", "docdb", "grafeas", "archivista"}
	return []setting{
		{key: "artifacts.taskrun.format", value: word(&c.TaskRuns.Format, statements...), meaning: "statement about TaskRuns"},
		{key: "artifacts.taskrun.storage", value: storage(&c.TaskRuns.Storage, withKafka, own), meaning: "where it goes; empty switches TaskRuns off"},
		{key: "artifacts.taskrun.signer", value: word(&c.TaskRuns.Signer, signers...), meaning: "what signs it; none switches TaskRuns off"},
		{key: "artifacts.pipelinerun.format", value: word(&c.PipelineRuns.Format, statements...), meaning: "statement about PipelineRuns"},
		{key: "artifacts.pipelinerun.storage", value: storage(&c.PipelineRuns.Storage, withoutKafka, own), meaning: "where it goes; empty switches PipelineRuns off"},
		{key: "artifacts.pipelinerun.signer", value: word(&c.PipelineRuns.Signer, signers...), meaning: "what signs it; none switches PipelineRuns off"},
		{key: "artifacts.pipelinerun.enable-deep-inspection", value: boolean(&c.DeepInspection), meaning: "read the hints of a PipelineRun's TaskRuns too"},
		{key: "artifacts.oci.format", value: word(&c.OCI.Format, Simplesigning), meaning: "what is signed about an image"},
		{key: "artifacts.oci.storage", value: storage(&c.OCI.Storage, withKafka, own), meaning: "where images' signatures go; empty switches them off"},
		{key: "artifacts.oci.signer", value: word(&c.OCI.Signer, signers...), meaning: "what signs images; none switches it off"},

		{key: "storage.gcs.bucket", value: text(&c.Storage.GCSBucket), meaning: "bucket of storage gcs, which needs it"},
		{key: "storage.oci.repository", value: text(&c.Storage.OCIRepository), meaning: "one repository for the evidence of all images; empty: beside each image"},
		{key: "storage.oci.repository.insecure", value: boolean(&c.Storage.OCIInsecure), meaning: "HTTP, and TLS without verification"},
		{key: "storage.oci.encoding-format", value: word(&c.Storage.OCIEncoding, "dsse", "sigstore-bundle"), meaning: "cosign's tags, or Sigstore bundles as referrers"},
		{key: "storage.docdb.url", value: text(&c.Storage.DocDBURL), meaning: "collection of storage docdb, which needs it"},
		{key: "storage.docdb.mongo-server-url", value: text(&c.Storage.MongoServerURL), secret: true, meaning: "MongoDB server; holds a credential, better in a file"},
		{key: "storage.docdb.mongo-server-url-dir", value: text(&c.Storage.MongoServerURLDir), meaning: "folder with a file MONGO_SERVER_URL; wins over the former"},
		{key: "storage.docdb.mongo-server-url-path", value: text(&c.Storage.MongoServerURLPath), meaning: "file with the MongoDB server; wins over both"},
		{key: "storage.grafeas.projectid", value: text(&c.Storage.GrafeasProject), meaning: "project of storage grafeas, which needs it"},
		{key: "storage.grafeas.noteid", value: text(&c.Storage.GrafeasNote), meaning: "note; empty: tekton-<namespace>"},
		{key: "storage.grafeas.notehint", value: text(&c.Storage.GrafeasNoteHint), meaning: "text of the note"},
		{key: "storage.pubsub.provider", value: word(&c.Storage.PubSubProvider, "inmemory", "kafka"), meaning: "broker of storage kafka, which needs it"},
		{key: "storage.pubsub.topic", value: text(&c.Storage.PubSubTopic), meaning: "topic of storage kafka, which needs it"},
		{key: "storage.pubsub.kafka.bootstrap.servers", value: text(&c.Storage.KafkaServers), meaning: "brokers of provider kafka, which needs them"},
		{key: "storage.archivista.url", value: text(&c.Storage.ArchivistaURL), meaning: "server of storage archivista, which needs it"},

		{key: "transparency.enabled", value: c.transparency(), meaning: "upload to a log; manual: runs annotated chains.tekton.dev/transparency-upload: \"true\" only"},
		{key: "transparency.url", value: text(&c.Transparency.URL), meaning: "Rekor log"},

		{key: "signers.kms.kmsref", value: text(&c.KMS.Ref), meaning: "key of signer kms, which needs it: gcpkms://, awskms://, azurekms://, hashivault://"},
		{key: "signers.kms.auth.address", value: text(&c.KMS.Address), meaning: "address of the service"},
		{key: "signers.kms.auth.token", value: text(&c.KMS.Token), secret: true, meaning: "token; a credential, better in a file"},
		{key: "signers.kms.auth.token-path", value: text(&c.KMS.TokenPath), meaning: "file with the token; wins over the former"},
		{key: "signers.kms.auth.oidc.path", value: text(&c.KMS.OIDCPath), meaning: "path of Vault's JWT login"},
		{key: "signers.kms.auth.oidc.role", value: text(&c.KMS.OIDCRole), meaning: "role of that login"},
		{key: "signers.kms.auth.oidc.token-path", value: text(&c.KMS.OIDCTokenPath), meaning: "file with the JWT; empty: the pod's service account token"},
		{key: "signers.kms.auth.spire.sock", value: text(&c.KMS.SpireSock), meaning: "SPIRE agent that gives the JWT instead"},
		{key: "signers.kms.auth.spire.audience", value: text(&c.KMS.SpireAudience), meaning: "audience of SPIRE's JWT"},
		{key: "signers.x509.fulcio.enabled", value: boolean(&c.X509.Fulcio), meaning: "keyless: a fresh key and a certificate for it"},
		{key: "signers.x509.fulcio.address", value: text(&c.X509.FulcioAddress), meaning: "certificate authority"},
		{key: "signers.x509.fulcio.issuer", value: text(&c.X509.FulcioIssuer), meaning: "issuer of identity tokens"},
		{key: "signers.x509.fulcio.provider", value: text(&c.X509.FulcioProvider), meaning: "source of the identity token: google, spiffe, github, filesystem …; empty: try all"},
		{key: "signers.x509.identity.token.file", value: text(&c.X509.IdentityTokenFile), meaning: "file with the identity token"},
		{key: "signers.x509.tuf.mirror.url", value: text(&c.X509.TUFMirror), meaning: "where Sigstore's trust root comes from"},

		{key: "builder.id", value: builderID(&c.BuilderID), meaning: "who the statements say built it"},
		{key: "builddefinition.buildtype", value: word(&c.BuildType, BuildTypeSLSA, BuildTypeTekton), meaning: "of SLSA v1.0 statements; slsa-tekton adds labels, annotations and whole TaskRuns"},
		{key: "filter.managed-by", value: list(&c.ManagedBy), meaning: "further values of spec.managedBy whose runs are watched"},

		{key: "assay.artifacts.taskrun.storage", value: ownStorage(&c.TaskRuns.Storage, own), meaning: "further places for statements about TaskRuns"},
		{key: "assay.artifacts.pipelinerun.storage", value: ownStorage(&c.PipelineRuns.Storage, own), meaning: "further places for statements about PipelineRuns"},
		{key: "assay.artifacts.oci.storage", value: ownStorage(&c.OCI.Storage, own), meaning: "further places for images' signatures"},
		{key: "assay.artifacts.taskrun.signers", value: ownSigners(&c.TaskRuns.Signers, keys), meaning: "what signs TaskRuns' statements, one signature each; instead of artifacts.taskrun.signer"},
		{key: "assay.artifacts.pipelinerun.signers", value: ownSigners(&c.PipelineRuns.Signers, keys), meaning: "what signs PipelineRuns' statements; instead of artifacts.pipelinerun.signer"},
		{key: "assay.artifacts.oci.signers", value: ownSigners(&c.OCI.Signers, keys), meaning: "what signs images; instead of artifacts.oci.signer"},
		{key: "assay.children.missing", value: word(&c.Own.MissingChildren, "state", "refuse"), meaning: "PipelineRuns of which children are gone: state what there is and name them, or refuse"},
		{key: "assay.taskruns.mark", value: boolean(&c.Own.MarkTaskRuns), meaning: "finalizer and annotation on TaskRuns although their statements are off"},
		{key: "assay.peer", value: word(&c.Own.Peer, "stand-back", "take-over"), meaning: "while Tekton Chains runs beside us"},
		{key: "assay.start.since", value: duration(&c.Own.Since, 0, maxSince), meaning: "leave runs alone that ended longer than this before the start; 0s: none"},
		{key: "assay.retry.max-backoff", value: duration(&c.Own.MaxBackoff, time.Second, maxBackoff), meaning: "longest pause between two attempts at a run"},
		{key: "assay.storage.folder.path", value: text(&c.Own.FolderPath), meaning: "folder of storage folder, which needs it"},
		{key: "assay.storage.blob.url", value: address(&c.Own.BlobURL), meaning: "bucket of storage blob, which needs it: s3://, azblob://, gs://, file://"},
		{key: "assay.storage.pubsub.url", value: address(&c.Own.PubSubURL), meaning: "topic of storage pubsub, which needs it: kafka://, nats://, gcppubsub:// …"},
		{key: "assay.signers.pkcs11.uri", value: pkcs11(&c.Own.PKCS11URI), meaning: "key of signer pkcs11, which needs it (RFC 7512)"},
		{key: "assay.signers.pkcs11.pin-path", value: text(&c.Own.PKCS11PINFile), meaning: "file with the token's PIN"},
		{key: "assay.transparency.rekor-version", value: word(&c.Own.RekorVersion, "auto", "1", "2"), meaning: "API that transparency.url speaks"},
		{key: "assay.transparency.log.url", value: address(&c.Own.LogURL), meaning: "log of assay log serve"},
		{key: "assay.transparency.log.key", value: text(&c.Own.LogKey), meaning: "that log's verifier key"},
		{key: "assay.transparency.log.witnesses", value: list(&c.Own.LogWitnesses), meaning: "verifier keys of its witnesses"},
		{key: "assay.transparency.log.token-path", value: text(&c.Own.LogTokenFile), meaning: "file with the secret that lets us add entries"},
		{key: "assay.transparency.rekor-key-path", value: text(&c.Own.RekorKeyFile), meaning: "file with the public key of the log at transparency.url"},
		{key: "assay.transparency.rekor-read-url", value: address(&c.Own.RekorReadURL), meaning: "where a v2 log's tiles are read, if not below transparency.url"},
		{key: "assay.storage.grafeas.endpoint", value: text(&c.Own.GrafeasEndpoint), meaning: "Grafeas server other than Google's: grpcs://host:port"},
		{key: "assay.storage.archivista.token-path", value: text(&c.Own.ArchivistaTokenFile), meaning: "file with a token for a proxy before Archivista"},
	}
}

// Bounds of durations: what lies beyond is a slip of the pen.
const (
	maxSince   = 10 * 365 * 24 * time.Hour
	maxBackoff = 24 * time.Hour
)

func (c *Config) transparency() value {
	v := value{values: "true, false, manual", get: func() string {
		if c.Transparency.Manual {
			return "manual"
		}
		return strconv.FormatBool(c.Transparency.Enabled)
	}}
	v.set = func(text string) error {
		var mode string
		if err := word(&mode, "true", "false", "manual").set(text); err != nil {
			return err
		}
		c.Transparency.Enabled, c.Transparency.Manual = mode != "false", mode == "manual"
		return nil
	}
	return v
}

func text(to *string) value {
	return value{
		values: "text",
		set:    func(text string) error { *to = text; return nil },
		get:    func() string { return *to },
	}
}

func builderID(to *string) value {
	v := text(to)
	v.set = func(text string) error {
		if text == "" {
			return errors.New("is empty; it must name the builder, or be left out for the default")
		}
		*to = text
		return nil
	}
	return v
}

// address is a URL with a scheme. The error does not repeat it, since URLs may
// carry passwords.
func address(to *string) value {
	v := text(to)
	v.values = "URL"
	v.set = func(text string) error {
		if u, err := url.Parse(text); err != nil || u.Scheme == "" {
			return errors.New("is no URL with a scheme, as in https://host/path")
		}
		*to = text
		return nil
	}
	return v
}

func pkcs11(to *string) value {
	v := text(to)
	v.values = "pkcs11: URI"
	v.set = func(text string) error {
		if !strings.HasPrefix(text, "pkcs11:") {
			return errors.New("is no PKCS#11 URI; it begins with pkcs11:, as in pkcs11:token=assay;object=signer")
		}
		if strings.Contains(text, "pin-value=") {
			return errors.New("carries a PIN; put the PIN into a file and name it under assay.signers.pkcs11.pin-path")
		}
		*to = text
		return nil
	}
	return v
}

func word[T ~string](to *T, accepted ...T) value {
	return value{
		values: join(accepted),
		get:    func() string { return string(*to) },
		set: func(text string) error {
			if !slices.Contains(accepted, T(text)) {
				return fmt.Errorf("unknown word %q; accepted: %s", text, join(accepted))
			}
			*to = T(text)
			return nil
		},
	}
}

func boolean(to *bool) value {
	return value{
		values: "true, false",
		get:    func() string { return strconv.FormatBool(*to) },
		set: func(text string) error {
			b, err := strconv.ParseBool(text)
			if err != nil {
				return fmt.Errorf("unknown word %q; accepted: true, false, and Go's short forms 1, t, T, TRUE, True, 0, f, F, FALSE, False", text)
			}
			*to = b
			return nil
		},
	}
}

func duration(to *time.Duration, least, most time.Duration) value {
	return value{
		values: "duration from " + least.String() + " to " + most.String(),
		get:    to.String,
		set: func(text string) error {
			d, err := time.ParseDuration(text)
			if err != nil || d < least || d > most {
				return fmt.Errorf("%q is no duration from %s to %s, as in 90s, 10m or 24h", text, least, most)
			}
			*to = d
			return nil
		},
	}
}

// list reads words between commas; "" empties the list. Without accepted words
// any is good.
func list(to *[]string, accepted ...string) value {
	v := value{values: "list", get: func() string { return strings.Join(*to, ",") }}
	if len(accepted) > 0 {
		v.values = "list of " + join(accepted)
	}
	v.set = func(text string) error {
		*to = nil
		if text == "" {
			return nil
		}
		for item := range strings.SplitSeq(text, ",") {
			item = strings.TrimSpace(item)
			if len(accepted) > 0 && !slices.Contains(accepted, item) {
				return fmt.Errorf("unknown word %q; accepted: %s, or nothing to switch it off", item, join(accepted))
			}
			if !slices.Contains(*to, item) {
				*to = append(*to, item)
			}
		}
		return nil
	}
	return v
}

// storage is upstream's list of back ends, which shares its field with ours.
func storage(to *[]string, accepted, own []string) value {
	v := list(to, accepted...)
	v.get = func() string { return without(*to, own) }
	set := v.set
	v.set = func(text string) error {
		err := set(text)
		if item, _, found := strings.Cut(text, ","); err != nil && !found && slices.Contains(own, strings.TrimSpace(item)) {
			return fmt.Errorf("%w; %s is a word of ours, for the same key with the prefix %s", err, strings.TrimSpace(item), ownPrefix)
		}
		return err
	}
	return v
}

// ownStorage appends back ends of ours.
func ownStorage(to *[]string, own []string) value {
	v := list(nil, own...)
	v.get = func() string {
		return strings.Join(slices.DeleteFunc(slices.Clone(*to), func(w string) bool { return !slices.Contains(own, w) }), ",")
	}
	v.set = func(text string) error {
		var words []string
		if err := list(&words, own...).set(text); err != nil {
			return err
		}
		*to = append(slices.Clip(*to), words...)
		return nil
	}
	return v
}

// ownSigners is a list that must not be empty.
func ownSigners(to *[]string, accepted []string) value {
	v := list(to, accepted...)
	set := v.set
	v.set = func(text string) error {
		if text == "" {
			return fmt.Errorf("is empty; accepted: %s, or leave it out", join(accepted))
		}
		return set(text)
	}
	return v
}

func without(words, drop []string) string {
	return strings.Join(slices.DeleteFunc(slices.Clone(words), func(w string) bool { return slices.Contains(drop, w) }), ",")
}

func join[T ~string](words []T) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = string(w)
	}
	return strings.Join(out, ", ")
}
