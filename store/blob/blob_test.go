package blob_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	gcblob "gocloud.dev/blob"
	"gocloud.dev/blob/memblob"

	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/store"
	"assay.dev/assay/store/blob"
	"assay.dev/assay/store/storetest"
)

func folderURL(dir string) string { return (&url.URL{Scheme: "file", Path: dir}).String() }

func open(t testing.TB, word, raw string, o blob.Options) store.Keeper {
	t.Helper()
	k, err := blob.New(word, raw, o)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// memory is a bucket in memory and a driver for it, under the scheme of another.
func memory(t testing.TB, scheme string) (*gcblob.Bucket, blob.Options) {
	shared := memblob.OpenBucket(nil)
	t.Cleanup(func() { shared.Close() })
	return shared, blob.Options{Drivers: []blob.Driver{{Scheme: scheme, Open: func(context.Context, *url.URL) (*gcblob.Bucket, error) {
		return shared, nil
	}}}}
}

func TestFolder(t *testing.T) {
	storetest.RunKeeper(t, func(t *testing.T) storetest.Keepers {
		dir := t.TempDir()
		return storetest.Keepers{
			OneImageSignature: true,
			Open:              func(t testing.TB) store.Keeper { return open(t, "blob", folderURL(dir), blob.Options{}) },
			Deny: func(on bool) {
				away := dir + ".away"
				if on {
					err := os.Rename(dir, away)
					if err == nil {
						err = os.WriteFile(dir, nil, 0o600)
					}
					if err != nil {
						t.Fatal(err)
					}
					return
				}
				if err := errors.Join(os.Remove(dir), os.Rename(away, dir)); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}

// The names and contents that Chains has, for both words.
func TestLayout(t *testing.T) {
	run := store.Run{APIVersion: "tekton.dev/v1", Kind: "TaskRun", Namespace: "builds", Name: "clone-1", UID: "u1"}
	bare, named := storetest.NewRecordSigner(t), storetest.NewCertSigner(t)
	image := storetest.ImageSubject("registry.example/app@" + storetest.Digest([]byte("i")))
	for _, c := range []struct {
		word   string
		signer *storetest.RecordSigner
		want   []string
	}{
		{"gcs", bare, []string{"cert", "chain", "payload", "signature"}},
		{"blob", bare, []string{"payload", "signature"}},
		{"gcs", named, []string{"cert", "chain", "payload", "signature"}},
		{"blob", named, []string{"cert", "chain", "payload", "signature"}},
	} {
		shared, opts := memory(t, "gs")
		r := storetest.StatementRecord(t, run, "layout", []intoto.Subject{image}, c.signer)
		k := open(t, c.word, "gs://bucket", opts)
		o := k.Keep(t.Context(), []store.Record{r})[0]
		if o.Err != nil {
			t.Fatal(o.Err)
		}
		if want := []string{"gs://bucket/taskrun-builds-clone-1/taskrun-u1.payload"}; !slices.Equal(o.Where, want) {
			t.Errorf("where: %q; want %q", o.Where, want)
		}
		signature, err := r.SignatureBytes()
		if err != nil {
			t.Fatal(err)
		}
		contents := map[string][]byte{"payload": r.Payload, "signature": signature, "cert": c.signer.Cert, "chain": c.signer.Chain}
		want := map[string]string{}
		for _, suffix := range c.want {
			want["taskrun-builds-clone-1/taskrun-u1."+suffix] = string(contents[suffix])
		}
		if diff := cmp.Diff(want, dump(t, shared)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.word, diff)
		}
	}
}

func dump(t testing.TB, b *gcblob.Bucket) map[string]string {
	t.Helper()
	out := map[string]string{}
	for it := b.List(nil); ; {
		o, err := it.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := b.ReadAll(t.Context(), o.Key)
		if err != nil {
			t.Fatal(err)
		}
		out[o.Key] = string(data)
	}
}

// Two repositories with the same image: upstream's second signature overwrites
// the first.
func TestSameKeyOtherPayload(t *testing.T) {
	_, opts := memory(t, "s3")
	k := open(t, "blob", "s3://bucket", opts)
	s, run := storetest.NewRecordSigner(t), storetest.NewRun("TaskRun")
	digest := storetest.Digest([]byte("one image"))
	a := storetest.ImageRecord(t, run, "registry.example/a@"+digest, s)
	b := storetest.ImageRecord(t, run, "registry.example/b@"+digest, s)
	if a.Key != b.Key {
		t.Fatalf("keys %s and %s", a.Key, b.Key)
	}
	for _, existing := range []bool{false, true} {
		for i, o := range k.Keep(t.Context(), []store.Record{a, b}) {
			if o.Err != nil || o.Existing != existing {
				t.Errorf("record %d: %+v; want existing %t", i, o, existing)
			}
		}
	}
	kept, err := k.Find(t.Context(), run, a.Key)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range kept {
		got = append(got, string(f.Payload))
	}
	want := []string{string(a.Payload), string(b.Payload)}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A writer killed after any of its steps, then its successor, which has signed
// anew: one whole record, whose parts are one signer's.
func TestKilledHalfWay(t *testing.T) {
	run, image := storetest.NewRun("PipelineRun"), "registry.example/app@"+storetest.Digest([]byte("i"))
	bare, named := storetest.NewRecordSigner(t), storetest.NewCertSigner(t)
	statement := func(s *storetest.RecordSigner) store.Record {
		return storetest.StatementRecord(t, run, "killed", []intoto.Subject{storetest.ImageSubject(image)}, s)
	}
	signed := func(s *storetest.RecordSigner) store.Record { return storetest.ImageRecord(t, run, image, s) }
	for _, c := range []struct {
		name         string
		record       func(*storetest.RecordSigner) store.Record
		first, after *storetest.RecordSigner
	}{
		{"statement, one key", statement, bare, bare},
		{"image, one key", signed, bare, bare},
		{"statement, keyless", statement, named, named.Again(t)},
		{"image, keyless", signed, named, named.Again(t)},
		{"statement, keyless and then a key", statement, named, bare},
		{"statement, key and then keyless", statement, bare, named},
		{"image, another key", signed, bare, storetest.NewRecordSigner(t)},
	} {
		for _, word := range []string{"gcs", "blob"} {
			t.Run(c.name+", "+word, func(t *testing.T) {
				t.Parallel()
				whole, opts := memory(t, "gs")
				first, after := c.record(c.first), c.record(c.after)
				if o := open(t, word, "gs://b", opts).Keep(t.Context(), []store.Record{first})[0]; o.Err != nil {
					t.Fatal(o.Err)
				}
				objects := dump(t, whole)
				order := []string{"signature", "cert", "chain", "payload"}
				for steps := range order {
					half, opts := memory(t, "gs")
					opts.Patience = 1
					for name, data := range objects {
						if i := slices.Index(order, strings.TrimPrefix(filepath.Ext(name), ".")); i < steps {
							if err := half.WriteAll(t.Context(), name, []byte(data), nil); err != nil {
								t.Fatal(err)
							}
						}
					}
					k := open(t, word, "gs://b", opts)
					o := k.Keep(t.Context(), []store.Record{after})[0]
					if o.Err != nil || o.Existing {
						t.Fatalf("killed after %d: %+v", steps, o)
					}
					kept, err := k.Find(t.Context(), run, after.Key)
					if err != nil || len(kept) != 1 {
						t.Fatalf("killed after %d: %d kept, %v", steps, len(kept), err)
					}
					if !oneSigners(t, kept[0], first) && !oneSigners(t, kept[0], after) {
						t.Errorf("killed after %d: parts of two writers", steps)
					}
				}
			})
		}
	}
}

func oneSigners(t *testing.T, f store.Kept, r store.Record) bool {
	sig, err := r.SignatureBytes()
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(f.Payload, r.Payload) && bytes.Equal(f.Signature, sig) &&
		bytes.Equal(f.Cert, r.Signatures[0].Cert) && bytes.Equal(f.Chain, r.Signatures[0].Chain)
}

// What Chains wrote is taken for what it is, and a signature that it lost is
// written.
func TestBesideChains(t *testing.T) {
	s, run := storetest.NewRecordSigner(t), storetest.NewRun("TaskRun")
	r := storetest.StatementRecord(t, run, "chains", []intoto.Subject{{Name: "x", Digest: map[string]string{"sha256": strings.Repeat("0", 64)}}}, s)
	base := "taskrun-" + run.Namespace + "-" + run.Name + "/" + r.Key
	sig, err := r.SignatureBytes()
	if err != nil {
		t.Fatal(err)
	}
	for name, lost := range map[string]bool{"whole": false, "signature lost": true} {
		shared, opts := memory(t, "gs")
		objects := map[string][]byte{".payload": r.Payload, ".signature": sig, ".cert": nil, ".chain": nil}
		if lost {
			delete(objects, ".signature")
		}
		for suffix, data := range objects {
			if err := shared.WriteAll(t.Context(), base+suffix, data, nil); err != nil {
				t.Fatal(err)
			}
		}
		again := storetest.StatementRecord(t, run, "chains", []intoto.Subject{{Name: "x", Digest: map[string]string{"sha256": strings.Repeat("0", 64)}}}, s)
		o := open(t, "gcs", "gs://b", opts).Keep(t.Context(), []store.Record{again})[0]
		if o.Err != nil || !o.Existing {
			t.Errorf("%s: %+v; want it existing", name, o)
		}
		if len(dump(t, shared)) != 4 {
			t.Errorf("%s: %v", name, dump(t, shared))
		}
	}
}

func TestNewRefuses(t *testing.T) {
	_, opts := memory(t, "gs")
	for _, c := range []struct{ word, url, say string }{
		{"s3", "s3://x", "accepted: gcs, blob"},
		{"gcs", "gs://", "storage.gcs.bucket"},
		{"gcs", "s3://x", "assay.storage.blob.url"},
		{"blob", "", "assay.storage.blob.url"},
		{"blob", "ftp://x", "file://, gs://"},
		{"blob", "gs://user:secret@x", "credential"},
		{"blob", "gs://us er:secret@%zz", "parsing"},
		{"blob", "file://relative/x", "file:///path"},
		{"blob", "file:///x?base_url=1", "create_dir"},
	} {
		_, err := blob.New(c.word, c.url, opts)
		if err == nil || !strings.Contains(err.Error(), c.say) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s %q: %v; want an error saying %q", c.word, c.url, err, c.say)
		}
	}
}

func TestRecordsWithoutPlace(t *testing.T) {
	dir := t.TempDir()
	k := open(t, "blob", folderURL(dir), blob.Options{})
	s := storetest.NewRecordSigner(t)
	for _, change := range []func(r *store.Record){
		func(r *store.Record) { r.Run.Kind = "CustomRun" },
		func(r *store.Record) { r.Run.Name = "../../etc" },
		func(r *store.Record) { r.Run.Namespace = "a/b" },
		func(r *store.Record) { r.Key = "../x" },
	} {
		r := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), "registry.example/app@"+storetest.Digest([]byte("x")), s)
		change(&r)
		if o := k.Keep(t.Context(), []store.Record{r})[0]; o.Err == nil || store.ClassOf(o.Err) != store.Permanent {
			t.Errorf("%v %s: %+v; want a permanent error", r.Run, r.Key, o)
		}
		if _, err := k.Find(t.Context(), r.Run, r.Key); err == nil {
			t.Errorf("%v %s: found", r.Run, r.Key)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

// Two observers by mistake that sign keyless: whoever's certificate is kept, the
// signature beside it is the same one's.
func TestKeylessAtOnce(t *testing.T) {
	for _, word := range []string{"gcs", "blob"} {
		run, image := storetest.NewRun("PipelineRun"), "registry.example/app@"+storetest.Digest([]byte("i"))
		opts := blob.Options{}
		raw := folderURL(t.TempDir())
		if word == "gcs" {
			_, opts = memory(t, "gs")
			raw = "gs://b"
		}
		identity := storetest.NewCertSigner(t)
		all := make([][]store.Record, 6)
		out := make([][]store.Outcome, len(all))
		var wg sync.WaitGroup
		for i := range all {
			s := identity.Again(t)
			all[i] = []store.Record{
				storetest.StatementRecord(t, run, "raced", []intoto.Subject{storetest.ImageSubject(image)}, s),
				storetest.ImageRecord(t, run, image, s),
			}
			k := open(t, word, raw, opts)
			wg.Go(func() { out[i] = k.Keep(t.Context(), all[i]) })
		}
		wg.Wait()
		for j, r := range all[0] {
			fresh := 0
			for i := range out {
				if out[i][j].Err != nil {
					t.Errorf("%s, writer %d: %v", word, i, out[i][j].Err)
				}
				if !out[i][j].Existing {
					fresh++
				}
			}
			kept, err := open(t, word, raw, opts).Find(t.Context(), run, r.Key)
			if err != nil || len(kept) != 1 || fresh != 1 {
				t.Fatalf("%s: %d kept, %d of %d writers took theirs for the first, %v", word, len(kept), fresh, len(all), err)
			}
			whole := 0
			for i := range all {
				if oneSigners(t, kept[0], all[i][j]) {
					whole++
				}
			}
			if whole != 1 {
				t.Errorf("%s: %s has parts of several writers", word, r.Key)
			}
		}
	}
}

// Whoever can write to the bucket cannot make us believe that a record is there.
func TestPlanted(t *testing.T) {
	run, image := storetest.NewRun("PipelineRun"), "registry.example/app@"+storetest.Digest([]byte("i"))
	stranger, s := storetest.NewRecordSigner(t), storetest.NewRecordSigner(t)
	shared, opts := memory(t, "s3")
	k := open(t, "blob", "s3://b", opts)
	for i, o := range k.Keep(t.Context(), []store.Record{storetest.ImageRecord(t, run, image, stranger)}) {
		if o.Err != nil {
			t.Fatalf("record %d: %v", i, o.Err)
		}
	}
	r := storetest.ImageRecord(t, run, image, s)
	for _, existing := range []bool{false, true} {
		if o := k.Keep(t.Context(), []store.Record{r})[0]; o.Err != nil || o.Existing != existing {
			t.Errorf("%+v; want existing %t", o, existing)
		}
	}
	kept, err := k.Find(t.Context(), run, r.Key)
	if err != nil || len(kept) != 2 || !oneSigners(t, kept[0], r) && !oneSigners(t, kept[1], r) {
		t.Errorf("%d kept, %v; want ours beside the stranger's", len(kept), err)
	}
	for name := range dump(t, shared) {
		if strings.HasSuffix(name, ".signature") {
			if err := shared.WriteAll(t.Context(), name, []byte("nonsense"), nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if o := k.Keep(t.Context(), []store.Record{r})[0]; store.ClassOf(o.Err) != store.Configuration {
		t.Errorf("%+v; want a configuration error", o)
	}
}
