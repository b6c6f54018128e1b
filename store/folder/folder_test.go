package folder_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/store"
	"assay.dev/assay/store/folder"
	"assay.dev/assay/store/storetest"
)

// The place is a real folder of the machine's file system.
func TestKeeper(t *testing.T) {
	storetest.RunKeeper(t, func(t *testing.T) storetest.Keepers {
		dir := t.TempDir()
		return storetest.Keepers{Open: func(t testing.TB) store.Keeper { return open(t, dir) }, OneImageSignature: true}
	})
}

func open(t testing.TB, dir string) *folder.Keeper {
	t.Helper()
	k, err := folder.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var files = []intoto.Subject{{Name: "file", Digest: map[string]string{"sha1": "da39a3ee5e6b4b0d3255bfef95601890afd80709"}}}

// Upstream's names, and nothing else: no lock, no temporary file.
func TestLayout(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir)
	defer k.Close()
	run := storetest.NewRun("PipelineRun")
	r := storetest.StatementRecord(t, run, "x", files, storetest.NewCertSigner(t))
	if o := k.Keep(t.Context(), []store.Record{r})[0]; o.Err != nil {
		t.Fatal(o.Err)
	}
	sub := "pipelinerun-builds-" + run.Name
	want := []string{sub}
	for _, s := range []string{"cert", "chain", "payload", "signature"} {
		want = append(want, sub+"/pipelinerun-"+run.UID+"."+s)
	}
	if d := cmp.Diff(want, walk(t, dir)); d != "" {
		t.Error(d)
	}
	got, err := os.ReadFile(filepath.Join(dir, want[3]))
	if err != nil || string(got) != string(r.Payload) {
		t.Errorf("payload file: %v, %.80s", err, got)
	}
}

func walk(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, path); rel != "." {
			out = append(out, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// Names come from objects that strangers make.
func TestNames(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "records")
	k := open(t, dir)
	defer k.Close()
	s := storetest.NewRecordSigner(t)
	for name, change := range map[string]func(*store.Record){
		"name leads out":      func(r *store.Record) { r.Run.Name = "../../x" },
		"namespace leads out": func(r *store.Record) { r.Run.Namespace = ".." },
		"key leads out":       func(r *store.Record) { r.Key = "../x" },
		"key is hidden":       func(r *store.Record) { r.Key = ".tmp-x" },
		"key is absolute":     func(r *store.Record) { r.Key = "/x" },
		"zero byte":           func(r *store.Record) { r.Key = "x\x00y" },
		"long":                func(r *store.Record) { r.Key = strings.Repeat("x", 250) },
		"empty namespace":     func(r *store.Record) { r.Run.Namespace = "" },
		"other kind":          func(r *store.Record) { r.Run.Kind = "Pod" },
		"too long together": func(r *store.Record) {
			r.Run.Namespace, r.Run.Name = strings.Repeat("n", 63), strings.Repeat("m", 200)
		},
	} {
		r := storetest.StatementRecord(t, storetest.NewRun("TaskRun"), "x", files, s)
		change(&r)
		if o := k.Keep(t.Context(), []store.Record{r})[0]; o.Err == nil || store.ClassOf(o.Err) != store.Permanent {
			t.Errorf("%s: %+v; want a permanent error", name, o)
		}
		if _, err := k.Find(t.Context(), r.Run, r.Key); err == nil {
			t.Errorf("%s: Find without error", name)
		}
	}
	for _, f := range walk(t, filepath.Dir(dir)) {
		if strings.Contains(f, "x") {
			t.Errorf("%s was written", f)
		}
	}
}

// A link that somebody put in a run's place leads nowhere.
func TestLink(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	k := open(t, dir)
	defer k.Close()
	r := storetest.StatementRecord(t, storetest.NewRun("TaskRun"), "x", files, storetest.NewRecordSigner(t))
	if err := os.Symlink(outside, filepath.Join(dir, "taskrun-builds-"+r.Run.Name)); err != nil {
		t.Fatal(err)
	}
	if o := k.Keep(t.Context(), []store.Record{r})[0]; o.Err == nil || len(walk(t, outside)) > 0 {
		t.Errorf("%+v, outside: %v; want an error and nothing written", o, walk(t, outside))
	}
}

// A file where the run's folder should be is for a person to mend.
func TestConfiguration(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir)
	defer k.Close()
	r := storetest.StatementRecord(t, storetest.NewRun("TaskRun"), "x", files, storetest.NewRecordSigner(t))
	if err := os.WriteFile(filepath.Join(dir, "taskrun-builds-"+r.Run.Name), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if o := k.Keep(t.Context(), []store.Record{r})[0]; store.ClassOf(o.Err) != store.Configuration {
		t.Errorf("%+v; want a configuration error", o)
	}
	for _, bad := range []string{"", filepath.Join(dir, "taskrun-builds-"+r.Run.Name, "below")} {
		if _, err := folder.New(bad); store.ClassOf(err) != store.Configuration {
			t.Errorf("New(%q): %v; want a configuration error", bad, err)
		}
	}
}

// TestCrash leaves every state that a kill between two files can leave, and keeps
// the record again.
func TestCrash(t *testing.T) {
	s := storetest.NewRecordSigner(t)
	for _, missing := range [][]string{{".payload"}, {".signature"}, {".payload", ".signature"}} {
		dir := t.TempDir()
		k := open(t, dir)
		run := storetest.NewRun("TaskRun")
		keep := func() store.Outcome {
			o := k.Keep(t.Context(), []store.Record{storetest.StatementRecord(t, run, "x", files, s)})[0]
			if o.Err != nil {
				t.Fatal(o.Err)
			}
			return o
		}
		keep()
		base := filepath.Join(dir, "taskrun-builds-"+run.Name)
		for _, m := range missing {
			if err := os.Remove(filepath.Join(base, "taskrun-"+run.UID+m)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(base, ".tmp-LEFT"), []byte("half"), 0o644); err != nil {
			t.Fatal(err)
		}
		if kept, err := k.Find(t.Context(), run, "taskrun-"+run.UID); err != nil || len(kept) != 0 {
			t.Errorf("without %v: %d found, %v; want none", missing, len(kept), err)
		}
		if keep().Existing {
			t.Errorf("without %v: existing; want it written again", missing)
		}
		if kept, err := k.Find(t.Context(), run, "taskrun-"+run.UID); err != nil || len(kept) != 1 {
			t.Errorf("without %v, kept again: %d found, %v; want one", missing, len(kept), err)
		}
		if _, err := os.Stat(filepath.Join(base, ".tmp-LEFT")); err == nil {
			t.Error("what a crashed writer left is still there")
		}
		k.Close()
	}
}

// TestProcesses has real processes keep different payloads under one name, again
// and again, while this one reads: payload and signature always belong together.
func TestProcesses(t *testing.T) {
	dir := os.Getenv("FOLDER_TEST_DIR")
	run := store.Run{APIVersion: "tekton.dev/v1", Kind: "TaskRun", Namespace: "builds", Name: "shared", UID: "5c1d"}
	if dir != "" {
		k := open(t, dir)
		defer k.Close()
		s := storetest.NewRecordSigner(t)
		for range 30 {
			r := storetest.StatementRecord(t, run, os.Getenv("FOLDER_TEST_SAY"), files, s)
			if o := k.Keep(t.Context(), []store.Record{r})[0]; o.Err != nil {
				t.Fatal(o.Err)
			}
		}
		return
	}
	dir = t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	done := make(chan struct{})
	for _, say := range []string{"one", "two", "three"} {
		cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestProcesses$")
		cmd.Env = append(os.Environ(), "FOLDER_TEST_DIR="+dir, "FOLDER_TEST_SAY="+say)
		wg.Go(func() {
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", say, err, out)
			}
		})
	}
	go func() { wg.Wait(); close(done) }()
	k := open(t, dir)
	defer k.Close()
	for reads := 0; ; reads++ {
		kept, err := k.Find(t.Context(), run, "taskrun-5c1d")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range kept {
			if e, err := parse(f.Signature); err != nil || string(e) != string(f.Payload) {
				t.Fatalf("after %d reads: payload and signature of different writers (%v)", reads, err)
			}
		}
		select {
		case <-done:
			if len(kept) != 1 && reads > 0 {
				if kept, err = k.Find(t.Context(), run, "taskrun-5c1d"); err != nil || len(kept) != 1 {
					t.Errorf("%d found at the end, %v; want one", len(kept), err)
				}
			}
			return
		default:
		}
	}
}

func parse(envelope []byte) ([]byte, error) {
	e, err := dsse.Parse(envelope)
	if err != nil {
		return nil, err
	}
	return e.Payload, nil
}
