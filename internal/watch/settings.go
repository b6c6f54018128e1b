package watch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"assay.dev/assay/internal/watch/kubeapi"
	"assay.dev/assay/internal/watch/scan"
	"assay.dev/assay/provenance"
)

// configMap is the name of the settings, Chains' own.
const configMap = "chains-config"

// settingsFollower reads ConfigMap chains-config whenever it changes. Settings
// that cannot be read are shown and change nothing: the last good ones stay in
// force, and where there never were any, nothing is signed.
type settingsFollower struct {
	o    *Observer
	ctx  context.Context
	out  chan provenance.Config
	last []byte // data as seen last
	seen bool   // in this round
}

func (o *Observer) followSettings(ctx context.Context, out chan provenance.Config) {
	_ = o.api.Follow(ctx, kubeapi.Selection{
		Resource: kubeapi.ConfigMaps, Namespace: o.cfg.SystemNamespace, Field: "metadata.name=" + configMap,
	}, &settingsFollower{o: o, ctx: ctx, out: out})
}

// Begin implements kubeapi.Handler.
func (f *settingsFollower) Begin() { f.seen = false }

// Synced implements kubeapi.Handler.
func (f *settingsFollower) Synced() {
	if !f.seen {
		f.absent()
	}
}

// Gone implements kubeapi.Handler.
func (f *settingsFollower) Gone([]byte) {
	f.last = nil
	f.absent()
}

func (f *settingsFollower) absent() {
	f.o.settingsRefused(f.ctx, fmt.Errorf("ConfigMap %s is not in namespace %s; create it (empty means Chains' defaults)", configMap, f.o.cfg.SystemNamespace))
}

// Trouble implements kubeapi.Handler.
func (f *settingsFollower) Trouble(err error) {
	switch {
	case err == nil:
		f.o.health.clear("reading settings")
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		f.o.health.set("reading settings", "no right to watch ConfigMap "+configMap+": "+err.Error(), false)
		f.o.log.Error("reading settings", "error", err)
	default:
		f.o.log.Warn("reading settings", "error", err)
	}
}

// Object implements kubeapi.Handler.
func (f *settingsFollower) Object(object []byte) {
	f.seen = true
	data, raw, err := readData(object)
	if err == nil && f.last != nil && bytes.Equal(raw, f.last) {
		return // only metadata, such as our own annotation
	}
	f.last = raw
	var cfg provenance.Config
	if err == nil {
		cfg, err = provenance.ParseConfig(data)
	}
	if err != nil {
		f.o.settingsRefused(f.ctx, err)
		return
	}
	// Only the newest settings count.
	select {
	case <-f.out:
	default:
	}
	select {
	case f.out <- cfg:
	case <-f.ctx.Done():
	}
}

// readData reads a ConfigMap's data, and its text for comparing.
func readData(object []byte) (map[string]string, []byte, error) {
	data := map[string]string{}
	raw := []byte("{}")
	c := scan.New(object)
	err := c.Object(func(key []byte) error {
		switch string(key) {
		case "data":
			text, err := c.Raw()
			if err != nil {
				return err
			}
			raw = bytes.Clone(text)
			return json.Unmarshal(text, &data)
		case "binaryData":
			text, err := c.Raw()
			if err == nil && !bytes.Equal(text, []byte("{}")) && !bytes.Equal(text, []byte("null")) {
				err = errors.New("binaryData is no place for settings; use data")
			}
			return err
		}
		return c.Skip()
	})
	if err != nil {
		return nil, raw, fmt.Errorf("reading ConfigMap %s: %w", configMap, err)
	}
	return data, raw, nil
}

// settingsRefused shows that the settings as they are now are not in force.
func (o *Observer) settingsRefused(ctx context.Context, err error) {
	o.mu.Lock()
	have := o.session != nil
	o.mu.Unlock()
	what := "refused, and nothing is signed until they are mended: "
	if have {
		what = "refused; the last good ones stay in force: "
	}
	o.log.Error("settings "+what+err.Error(), "have", have)
	o.metrics.settings.WithLabelValues("chains-config").Set(0)
	o.health.set("settings", what+err.Error(), have)
	if o.cfg.Settings != nil {
		return
	}
	o.events.warn(o.configMapObject(), reasonSettings, what+err.Error())
	o.annotateSettings(ctx, string(textOf(what+err.Error())))
}

// settingsAccepted takes back what settingsRefused showed.
func (o *Observer) settingsAccepted(ctx context.Context) {
	o.metrics.settings.WithLabelValues("chains-config").Set(1)
	o.health.clear("settings")
	o.log.Info("settings are in force")
	if o.cfg.Settings == nil {
		o.annotateSettings(ctx, "")
	}
}

func (o *Observer) configMapObject() object {
	return object{APIVersion: "v1", Kind: "ConfigMap", Namespace: o.cfg.SystemNamespace, Name: configMap}
}

// annotateSettings says on the ConfigMap what is wrong with it, or that nothing
// is. Not being allowed to is no trouble: the same is in events, metrics, the log
// and /readyz.
func (o *Observer) annotateSettings(ctx context.Context, message string) {
	o.chore(func(context.Context) {
		have := ""
		err := o.api.Get(ctx, kubeapi.ConfigMaps, o.cfg.SystemNamespace, configMap, func(body []byte) error {
			a, err := readAnnotations(body)
			have = a[annotationConfigError]
			return err
		})
		if err != nil || have == message {
			return
		}
		value := any(message)
		if message == "" {
			value = nil
		}
		body, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{annotationConfigError: value}}})
		if err != nil {
			return
		}
		if err := o.api.Patch(ctx, kubeapi.ConfigMaps, o.cfg.SystemNamespace, configMap, kubeapi.MergePatch, body, nil); err != nil && !apierrors.IsForbidden(err) && ctx.Err() == nil {
			o.log.Warn("annotating the ConfigMap", "error", err)
		}
	})
}
