package annotations_test

import (
	"context"
	"encoding/base64"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"pgregory.net/rapid"

	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/store"
	"assay.dev/assay/store/annotations"
	"assay.dev/assay/store/storetest"
)

// objects stands in for the API server: what is annotated is checked by
// Kubernetes' own validation, which is the part of the server that refuses.
type objects struct {
	mu  sync.Mutex
	all map[string]map[string]string // guarded by mu; by uid
}

func (o *objects) get(_ context.Context, run store.Run) (map[string]string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return maps.Clone(o.all[run.UID]), nil
}

func (o *objects) apply(t testing.TB, run store.Run, a map[string]string) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.all == nil {
		o.all = map[string]map[string]string{}
	}
	if o.all[run.UID] == nil {
		o.all[run.UID] = map[string]string{}
	}
	maps.Copy(o.all[run.UID], a)
	if errs := validation.ValidateAnnotations(o.all[run.UID], field.NewPath("metadata", "annotations")); len(errs) > 0 {
		t.Errorf("Kubernetes refuses the annotations: %v", errs.ToAggregate())
	}
}

func TestKeeper(t *testing.T) {
	storetest.RunKeeper(t, func(*testing.T) storetest.Keepers {
		o := &objects{}
		return storetest.Keepers{
			Open:              func(testing.TB) store.Keeper { return annotations.New(o.get) },
			Apply:             o.apply,
			OneImageSignature: true,
			TooLarge:          90_000,
		}
	})
}

// What Chains writes, name by name.
func TestForm(t *testing.T) {
	s := storetest.NewCertSigner(t)
	r := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), "registry.example/a@sha256:"+strings.Repeat("0f", 32), s)
	out := annotations.New((&objects{}).get).Keep(t.Context(), []store.Record{r})
	b64 := base64.StdEncoding.EncodeToString
	want := map[string]string{
		"chains.tekton.dev/payload-0f0f0f0f0f0f":   b64(r.Payload),
		"chains.tekton.dev/signature-0f0f0f0f0f0f": b64(r.Signatures[0].Sig),
		"chains.tekton.dev/cert-0f0f0f0f0f0f":      b64(s.Cert),
		"chains.tekton.dev/chain-0f0f0f0f0f0f":     b64(s.Chain),
	}
	if d := cmp.Diff(want, out[0].Annotations); d != "" || out[0].Err != nil {
		t.Errorf("%v %s", out[0].Err, d)
	}
}

// Without certificates their annotations are there and empty, as upstream has it.
func TestFormBareKey(t *testing.T) {
	r := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), "registry.example/a@sha256:"+strings.Repeat("0f", 32), storetest.NewRecordSigner(t))
	a := annotations.New((&objects{}).get).Keep(t.Context(), []store.Record{r})[0].Annotations
	for _, name := range []string{"cert", "chain"} {
		if v, ok := a["chains.tekton.dev/"+name+"-0f0f0f0f0f0f"]; !ok || v != "" {
			t.Errorf("%s: %q, %t; want it there and empty", name, v, ok)
		}
	}
}

// What others have put on the object counts.
func TestLimitCountsOthers(t *testing.T) {
	s := storetest.NewRecordSigner(t)
	run := storetest.NewRun("PipelineRun")
	r := storetest.StatementRecord(t, run, strings.Repeat("x", 40_000), []intoto.Subject{{Name: "a", Digest: map[string]string{"sha1": "0"}}}, s)
	for _, tc := range []struct {
		others int
		fits   bool
	}{{0, true}, {100_000, true}, {140_000, false}, {annotations.Limit, false}} {
		o := &objects{all: map[string]map[string]string{run.UID: {"team/notes": strings.Repeat("y", tc.others)}}}
		out := annotations.New(o.get).Keep(t.Context(), []store.Record{r})[0]
		if (out.Err == nil) != tc.fits {
			t.Errorf("beside %d bytes: %v; want it to fit: %t", tc.others, out.Err, tc.fits)
		}
		if out.Err != nil && !strings.Contains(out.Err.Error(), "artifacts.pipelinerun.storage") {
			t.Errorf("the message names no remedy: %v", out.Err)
		}
	}
}

func TestObjectGone(t *testing.T) {
	gone := errors.New("not found")
	k := annotations.New(func(context.Context, store.Run) (map[string]string, error) {
		return nil, store.As(store.Permanent, gone)
	})
	r := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), "registry.example/a@sha256:"+strings.Repeat("0f", 32), storetest.NewRecordSigner(t))
	if o := k.Keep(t.Context(), []store.Record{r})[0]; !errors.Is(o.Err, gone) || store.ClassOf(o.Err) != store.Permanent {
		t.Errorf("Keep: %+v; want the getter's error", o)
	}
	if _, err := k.Find(t.Context(), r.Run, r.Key); !errors.Is(err, gone) {
		t.Errorf("Find: %v; want the getter's error", err)
	}
}

// Whatever sizes records have, what is kept together is what Kubernetes takes.
func TestLimitProperty(t *testing.T) {
	s := storetest.NewRecordSigner(t)
	rapid.Check(t, func(rt *rapid.T) {
		o := &objects{}
		run := storetest.NewRun("PipelineRun")
		var records []store.Record
		for i, n := range rapid.SliceOfN(rapid.IntRange(0, 70_000), 1, 5).Draw(rt, "sizes") {
			r := storetest.StatementRecord(t, run, strings.Repeat("x", n), []intoto.Subject{{Name: "a", Digest: map[string]string{"sha1": "0"}}}, s)
			r.Key = "taskrun-" + string(rune('a'+i))
			records = append(records, r)
		}
		for i, out := range annotations.New(o.get).Keep(t.Context(), records) {
			if out.Err == nil {
				o.apply(t, run, out.Annotations)
			} else if store.ClassOf(out.Err) != store.Permanent {
				rt.Errorf("record %d: %v", i, out.Err)
			}
		}
	})
}

func TestRead(t *testing.T) {
	good := map[string]string{
		"chains.tekton.dev/payload-k": "eA==", "chains.tekton.dev/signature-k": "eQ==",
		"chains.tekton.dev/cert-k": "", "chains.tekton.dev/signed": "true", "other/payload-k": "%",
	}
	got, err := annotations.Read(good)
	if d := cmp.Diff(map[string]store.Kept{"k": {Where: "annotation chains.tekton.dev/payload-k", Payload: []byte("x"), Signature: []byte("y")}}, got); d != "" || err != nil {
		t.Errorf("%v %s", err, d)
	}
	for name, bad := range map[string]map[string]string{
		"no base64":    {"chains.tekton.dev/payload-k": "%", "chains.tekton.dev/signature-k": "eQ=="},
		"no signature": {"chains.tekton.dev/payload-k": "eA=="},
		"no payload":   {"chains.tekton.dev/signature-k": "eA=="},
		"bad cert":     {"chains.tekton.dev/payload-k": "eA==", "chains.tekton.dev/signature-k": "eQ==", "chains.tekton.dev/cert-k": "e"},
	} {
		both := maps.Clone(bad)
		both["chains.tekton.dev/payload-good"], both["chains.tekton.dev/signature-good"] = "eA==", "eA=="
		got, err := annotations.Read(both)
		if err == nil || !slices.Equal(slices.Sorted(maps.Keys(got)), []string{"good"}) {
			t.Errorf("%s: %v, %v; want an error, and the good one beside it", name, got, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add("eA==", "eQ==", "", "")
	f.Add("%", "", "e", "eA=")
	f.Fuzz(func(t *testing.T, payload, signature, cert, chain string) {
		if len(payload)+len(signature)+len(cert)+len(chain) > 1<<16 {
			return
		}
		got, err := annotations.Read(map[string]string{
			"chains.tekton.dev/payload-k": payload, "chains.tekton.dev/signature-k": signature,
			"chains.tekton.dev/cert-k": cert, "chains.tekton.dev/chain-k": chain,
		})
		if (err == nil) != (len(got) == 1) {
			t.Fatalf("%v, %v", got, err)
		}
		if err == nil && base64.StdEncoding.EncodeToString(got["k"].Payload) != payload {
			t.Fatalf("payload %q read as %q", payload, got["k"].Payload)
		}
	})
}
