package assayd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"assay.dev/assay/provenance"
	"assay.dev/assay/store"
	"assay.dev/assay/store/annotations"
	"assay.dev/assay/store/archivista"
	"assay.dev/assay/store/blob"
	"assay.dev/assay/store/blob/cloud"
	"assay.dev/assay/store/docdb"
	doccloud "assay.dev/assay/store/docdb/cloud"
	"assay.dev/assay/store/folder"
	"assay.dev/assay/store/grafeas"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/pubsub"
)

// backends makes the storage back ends that settings name.
type backends struct {
	accounts *accounts
	getter   annotations.Getter
	images   oci.KeeperOptions // Images alone
	memory   *pubsub.Memory
	// documents is the document store in memory, one for the whole process.
	documents docdb.Driver
}

// keepers implements watch.Keepers: one keeper for each word among the storage
// lists of enabled artifacts. On any error none is left open.
func (b *backends) keepers(cfg provenance.Config) (_ map[string]store.Keeper, err error) {
	out := map[string]store.Keeper{}
	defer func() {
		if err != nil {
			for _, k := range out {
				err = errors.Join(err, k.Close())
			}
		}
	}()
	for _, a := range []provenance.ArtifactConfig{cfg.TaskRuns, cfg.PipelineRuns, cfg.OCI} {
		if !a.Enabled() {
			continue
		}
		for _, word := range a.Storage {
			if out[word] != nil {
				continue
			}
			k, err := b.keeper(word, cfg)
			if err != nil {
				return out, fmt.Errorf("opening storage %s: %w", word, err)
			}
			out[word] = k
		}
	}
	return out, nil
}

func (b *backends) keeper(word string, cfg provenance.Config) (store.Keeper, error) {
	s := cfg.Storage
	switch word {
	case "tekton":
		return annotations.New(b.getter), nil
	case "oci":
		o := b.images
		o.Repository, o.Insecure, o.Encoding = s.OCIRepository, s.OCIInsecure, s.OCIEncoding
		o.Keychain = b.accounts.Keychain
		return oci.NewKeeper(o)
	case "gcs":
		return blob.New("gcs", "gs://"+s.GCSBucket, blob.Options{Drivers: cloud.Drivers()})
	case "blob":
		return blob.New("blob", cfg.Own.BlobURL, blob.Options{Drivers: cloud.Drivers()})
	case "folder":
		return folder.New(cfg.Own.FolderPath)
	case "docdb":
		return docdb.New(s.DocDBURL, docdb.Options{
			Drivers: append(doccloud.Drivers(), b.documents),
			Mongo: docdb.MongoServer{
				Path: s.MongoServerURLPath, Dir: s.MongoServerURLDir, URL: s.MongoServerURL, Env: os.Getenv("MONGO_SERVER_URL"),
			},
		})
	case "grafeas":
		return grafeas.Open(grafeas.Options{Project: s.GrafeasProject, Note: s.GrafeasNote, NoteHint: s.GrafeasNoteHint, KMSRef: cfg.KMS.Ref, Endpoint: cfg.Own.GrafeasEndpoint})
	case "kafka":
		url, err := pubsub.ChainsURL(s.PubSubProvider, s.PubSubTopic, s.KafkaServers)
		if err != nil {
			return nil, err
		}
		return pubsub.Open(pubsub.Options{URL: url, Name: word, Memory: b.memory})
	case "pubsub":
		return pubsub.Open(pubsub.Options{URL: cfg.Own.PubSubURL, Name: word, Memory: b.memory})
	case "archivista":
		return archivista.Open(archivista.Options{URL: s.ArchivistaURL, TokenFile: cfg.Own.ArchivistaTokenFile})
	}
	return nil, fmt.Errorf("unknown word %q", word)
}

// pinFile is where a Rekor log's key is kept between starts; none without a
// folder of ours.
func pinFile(state, name string) string {
	if state == "" {
		return ""
	}
	return filepath.Join(state, name)
}
