package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"assay.dev/assay/store"
)

// oneLayerConfig is the config of every tag that begins with one layer. It counts
// the layer, as tools expect that compare the numbers, and leaves its digest open
// (that of no bytes), so that one blob serves all. Whoever appends adds to it.
const oneLayerConfig = `{"architecture":"","created":"0001-01-01T00:00:00Z","history":[{"created":"0001-01-01T00:00:00Z"}],` +
	`"os":"","rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]},"config":{}}`

// errLost says that a registry took a manifest and does not have it.
var errLost = errors.New("the registry accepted the manifest and does not have it")

// tag brings a job's layers into its tag and returns once it has seen them there,
// or the registry has promised that nobody can have taken them away.
func (k *Keeper) tag(ctx context.Context, c *client, ups *uploads, j *job) error {
	tag := tagFor(j.digest(), j.suffix)
	j.where = c.repo.Name() + ":" + tag
	unlock, err := k.locks.lock(ctx, j.where)
	if err != nil {
		return err
	}
	defer unlock()
	w := &tagWriter{client: c, host: c.access.host, keeper: k, uploads: ups, tag: tag, layers: j.layers}
	if err := w.write(ctx); err != nil {
		return fmt.Errorf("adding to %s: %w", j.where, err)
	}
	return nil
}

// tagWriter is one writing of one tag.
type tagWriter struct {
	*client
	host    *host
	keeper  *Keeper
	uploads *uploads
	tag     string
	layers  []*layer

	compared map[string]bool // foreign layers that are none of ours
	digest   string          // of the manifest that we wrote last
}

func (w *tagWriter) write(ctx context.Context) error {
	w.compared = map[string]bool{}
	// Layers before anything else: then reading and writing are close together.
	if err := w.upload(ctx); err != nil {
		return err
	}
	var (
		cond     condition
		refused  bool   // the last conditional write was
		previous string // digest of the tag then
		repaired bool
		lost     int
		blind    = w.host.conditions.Load() == yes
	)
	if len(w.layers) == 0 {
		return nil // each has its error
	}
	for round := range w.keeper.opts.Rounds {
		if err := pause(ctx, round); err != nil {
			return err
		}
		t := &tagManifest{mediaType: mediaTypeManifest}
		began := time.Now()
		if !blind {
			var err error
			if t, err = w.readTag(ctx); err != nil {
				return err
			}
		}
		if refused && !blind && previous == t.digest {
			// Refused, though nobody changed it: this registry means something
			// else by conditions.
			cond.none = true
			w.host.conditions.Store(no)
		} else if refused && !blind {
			w.host.conditions.CompareAndSwap(unknown, yes)
		}
		missing, err := w.missing(ctx, t)
		if err != nil {
			return err
		}
		if len(missing) == 0 {
			return nil
		}
		cond.digest, previous = t.digest, t.digest
		err = w.put(ctx, t, missing, cond)
		blind = false
		if refused = errors.Is(err, errChanged); refused {
			continue
		}
		if blobUnknown(err) && !repaired {
			// Somebody has swept up blobs that we counted on.
			repaired = true
			w.forget()
			if err := w.upload(ctx); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		for _, l := range missing {
			l.written = true
		}
		w.host.took(time.Since(began))
		if err := w.keeper.settle(ctx, w.host); err != nil {
			return err
		}
		switch there, err := w.check(ctx); {
		case errors.Is(err, errLost) && lost < maxLost:
			lost++
		case err != nil:
			return err
		case there:
			return nil
		}
	}
	return store.ErrConflict
}

// maxLost is how often a manifest that got lost is written again.
const maxLost = 2

// upload sends layers' contents, each once per repository and Keep. A layer that the
// registry will never take costs only itself.
func (w *tagWriter) upload(ctx context.Context) error {
	w.layers = slices.Clone(w.layers)
	for i := 0; i < len(w.layers); i++ {
		l := w.layers[i]
		err := w.uploads.once(w.repo.Name(), l.Digest, func() error { return w.putBlobAs(ctx, l.Digest, l.content) })
		if err == nil {
			continue
		}
		if l.err = classify(err); store.ClassOf(l.err) != store.Permanent {
			return err
		}
		w.layers = slices.Delete(w.layers, i, i+1)
		i--
	}
	return nil
}

func (w *tagWriter) forget() {
	config := digestOf([]byte(oneLayerConfig))
	w.host.note(w.repo.RepositoryStr(), config, false)
	digests := []string{config}
	for _, l := range w.layers {
		digests = append(digests, l.Digest)
	}
	w.uploads.forget(w.repo.Name(), digests...)
}

// shared uploads a small blob that never changes, once in the keeper's life for
// each repository.
func (c *client) shared(ctx context.Context, ups *uploads, content string) error {
	b := []byte(content)
	digest, h := digestOf(b), c.access.host
	if h.has(c.repo.RepositoryStr(), digest) {
		return nil
	}
	return ups.once(c.repo.Name(), digest, func() error {
		err := c.putBlobAs(ctx, digest, b)
		if err == nil {
			h.note(c.repo.RepositoryStr(), digest, true)
		}
		return err
	})
}

func (w *tagWriter) readTag(ctx context.Context) (*tagManifest, error) {
	b, _, err := w.getManifest(ctx, w.tag, maxManifest)
	if errors.Is(err, store.ErrNotFound) {
		return &tagManifest{mediaType: mediaTypeManifest}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading tag: %w", err)
	}
	t, err := parseTagManifest(b)
	if err != nil {
		return nil, store.As(store.Configuration, fmt.Errorf("reading tag: it is not as cosign writes it, move it away: %w", err))
	}
	return t, nil
}

// missing are the layers that the tag does not hold.
func (w *tagWriter) missing(ctx context.Context, t *tagManifest) ([]*layer, error) {
	var out []*layer
	for _, l := range w.layers {
		in, err := l.in(ctx, w.client, t, w.compared)
		if err != nil {
			return nil, err
		}
		if !in {
			out = append(out, l)
		} else if !l.written {
			l.existing = true
		}
	}
	return out, nil
}

// put writes the tag with the missing layers.
func (w *tagWriter) put(ctx context.Context, t *tagManifest, missing []*layer, cond condition) error {
	for _, l := range missing {
		if err := t.add(l.descriptor); err != nil {
			return err
		}
	}
	var (
		config, manifest []byte
		err              error
	)
	if t.members == nil && len(t.layers) == 1 {
		if err := w.shared(ctx, w.uploads, oneLayerConfig); err != nil {
			return err
		}
		manifest, err = marshal(tagJSON{2, t.mediaType, blobDescriptor(mediaTypeConfig, []byte(oneLayerConfig), nil), t.raw})
	} else if config, manifest, err = t.bytes(); err == nil {
		err = w.putBlob(ctx, config)
	}
	if err != nil {
		return err
	}
	w.digest = digestOf(manifest)
	_, err = w.putManifest(ctx, w.tag, t.mediaType, manifest, cond)
	if err == nil && w.host.conditions.Load() == unknown && w.host.kept.Load() && w.host.conditions.CompareAndSwap(unknown, asked) {
		w.host.conditions.Store(w.ask(ctx, t.mediaType, manifest))
	}
	return err
}

// ask finds out whether the registry honours conditional writes, by writing what
// is there, under its digest, on condition that it is not. Nothing can come of it.
func (w *tagWriter) ask(ctx context.Context, mediaType string, manifest []byte) knowledge {
	_, err := w.putManifest(ctx, w.digest, mediaType, manifest, condition{})
	switch {
	case errors.Is(err, errChanged):
		return yes
	case err == nil:
		return no
	}
	return unknown
}

// settle waits until every keeper that read a tag before we wrote it has written it
// too.
func (k *Keeper) settle(ctx context.Context, h *host) error {
	if h.conditions.Load() == yes {
		return nil
	}
	d := k.opts.Settle
	if d <= 0 {
		d = min(max(4*time.Duration(h.window.Load()), 50*time.Millisecond), 2*time.Second)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// took notes how long reading and writing took: the longest of late.
func (h *host) took(d time.Duration) {
	old := h.window.Load()
	h.window.Store(max(int64(d), old-old/16))
}

// check says whether the tag holds what we wrote, or something that holds it. It is
// errLost where there is nothing at all.
func (w *tagWriter) check(ctx context.Context) (bool, error) {
	res, err := w.do(ctx, request{
		method: http.MethodHead, url: w.url("manifests", w.tag), header: http.Header{"Accept": {acceptManifests}},
		accept: []int{http.StatusOK, http.StatusNotFound},
	})
	if err != nil {
		return false, fmt.Errorf("looking again at tag: %w", err)
	}
	if res.status == http.StatusNotFound {
		return false, errLost
	}
	if d := res.header.Get("Docker-Content-Digest"); d == w.digest {
		return true, nil
	}
	t, err := w.readTag(ctx)
	if err != nil {
		return false, err
	}
	if t.digest == w.digest {
		return true, nil
	}
	missing, err := w.missing(ctx, t)
	return len(missing) == 0, err
}

// blobUnknown says that a manifest was refused because of a blob that is not there.
func blobUnknown(err error) bool {
	var se *StatusError
	if !errors.As(err, &se) {
		return false
	}
	return se.Method == http.MethodPut && (se.Code == "MANIFEST_BLOB_UNKNOWN" || se.Code == "BLOB_UNKNOWN" ||
		se.Status == http.StatusNotFound && se.Code == "")
}

// tagJSON is a tag's manifest when it is new.
type tagJSON struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Config        descriptor        `json:"config"`
	Layers        []json.RawMessage `json:"layers"`
}
