package docdb_test

import (
	"context"
	"encoding/base64"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gocloud.dev/docstore"

	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/store"
	"assay.dev/assay/store/docdb"
	"assay.dev/assay/store/storetest"
)

const memURL = "mem://records/Name"

func open(t testing.TB, raw string, o docdb.Options) store.Keeper {
	t.Helper()
	k, err := docdb.New(raw, o)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestMemory(t *testing.T) {
	storetest.RunKeeper(t, func(t *testing.T) storetest.Keepers {
		o := docdb.Options{Drivers: []docdb.Driver{docdb.Memory()}}
		return storetest.Keepers{
			OneImageSignature: true,
			Open:              func(t testing.TB) store.Keeper { return open(t, memURL, o) },
		}
	})
}

// signedDocument is declared field by field as Chains' own is: docstore refuses
// documents with fields that a reader does not know.
type signedDocument struct {
	Signed    []byte
	Signature string
	Cert      string
	Chain     string
	Object    any
	Name      string
}

func mem(t testing.TB) (docdb.Options, *docstore.Collection) {
	t.Helper()
	d := docdb.Memory()
	u, err := url.Parse(memURL)
	if err != nil {
		t.Fatal(err)
	}
	coll, _, err := d.Open(t.Context(), u, "")
	if err != nil {
		t.Fatal(err)
	}
	return docdb.Options{Drivers: []docdb.Driver{d}}, coll
}

func TestDocument(t *testing.T) {
	o, coll := mem(t)
	s := storetest.NewCertSigner(t)
	run := store.Run{APIVersion: "tekton.dev/v1", Kind: "TaskRun", Namespace: "builds", Name: "clone", UID: "u1"}
	image := "registry.example/app@" + storetest.Digest([]byte("i"))
	statement := storetest.StatementRecord(t, run, "document", []intoto.Subject{storetest.ImageSubject(image)}, s)
	signed := storetest.ImageRecord(t, run, image, s)
	k := open(t, memURL, o)
	for i, o := range k.Keep(t.Context(), []store.Record{statement, signed}) {
		if o.Err != nil {
			t.Fatalf("record %d: %v", i, o.Err)
		}
	}
	for name, r := range map[string]store.Record{"taskrun-u1": statement, signed.Key: signed, signed.Key + "-u1": signed} {
		got := signedDocument{Name: name}
		if err := coll.Get(t.Context(), &got); err != nil {
			t.Fatal(err)
		}
		object, ok := got.Object.(map[string]any)
		if !ok || len(object) == 0 {
			t.Errorf("%s: Object is %v", name, got.Object)
		}
		sig, err := r.SignatureBytes()
		if err != nil {
			t.Fatal(err)
		}
		want := signedDocument{Signed: r.Payload, Signature: base64.StdEncoding.EncodeToString(sig), Cert: string(s.Cert), Chain: string(s.Chain), Object: got.Object, Name: name}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// Several runs and repositories with one image: upstream keeps the last.
func TestSameImage(t *testing.T) {
	o, coll := mem(t)
	k := open(t, memURL, o)
	s, digest := storetest.NewRecordSigner(t), storetest.Digest([]byte("i"))
	one, two := storetest.NewRun("TaskRun"), storetest.NewRun("TaskRun")
	records := []store.Record{
		storetest.ImageRecord(t, one, "registry.example/a@"+digest, s),
		storetest.ImageRecord(t, one, "registry.example/b@"+digest, s),
		storetest.ImageRecord(t, two, "registry.example/a@"+digest, s),
	}
	for _, existing := range []bool{false, true} {
		for i, o := range k.Keep(t.Context(), records) {
			if o.Err != nil || o.Existing != existing {
				t.Errorf("record %d: %+v; want existing %t", i, o, existing)
			}
		}
	}
	for run, want := range map[store.Run]int{one: 2, two: 1} {
		kept, err := k.Find(t.Context(), run, records[0].Key)
		if err != nil || len(kept) != want {
			t.Errorf("%s: %d kept, %v; want %d", run, len(kept), err, want)
		}
	}
	if err := coll.Get(t.Context(), &signedDocument{Name: records[0].Key}); err != nil {
		t.Errorf("nothing where Chains' readers look: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	o := docdb.Options{Drivers: []docdb.Driver{docdb.Memory(), {Scheme: "mongo", KeyParam: "id_field", Server: true}}}
	for _, c := range []struct{ url, say string }{
		{"", "storage.docdb.url"},
		{"couch://x/y", "mem://, mongo://"},
		{"mongo://db/coll", "id_field=Name"},
		{"mongo://db/coll?id_field=id", "id_field=Name"},
		{"mongo://db/coll?id_field=name", "MONGO_SERVER_URL"},
		{"mem://user:secret@x/Name", "credential"},
		{"mem://us er:secret@%zz", "parsing"},
	} {
		_, err := docdb.New(c.url, o)
		if err == nil || !strings.Contains(err.Error(), c.say) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v; want an error saying %q", c.url, err, c.say)
		}
	}
}

// servers is a driver whose databases are in memory, one for each server, and that
// knows which of them are open.
type servers struct {
	mu    sync.Mutex
	open  map[string]int
	colls map[string]docdb.Driver
}

func (s *servers) driver() docdb.Driver {
	return docdb.Driver{Scheme: "mongo", KeyParam: "id_field", Server: true, Open: func(ctx context.Context, _ *url.URL, server string) (*docstore.Collection, func() error, error) {
		if server == "nonsense" {
			return nil, nil, errors.New("no URL")
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		d, ok := s.colls[server]
		if !ok {
			d = docdb.Memory()
			s.colls[server] = d
		}
		s.open[server]++
		coll, _, err := d.Open(ctx, &url.URL{Scheme: "mem", Host: "records", Path: "/Name"}, "")
		return coll, func() error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.open[server]--
			return nil
		}, err
	}}
}

func (s *servers) opened() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]int{}
	for server, n := range s.open {
		if n != 0 {
			out[server] = n
		}
	}
	return out
}

func TestMongoServer(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "url")
	other := filepath.Join(dir, "dir")
	write := func(path, say string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(say), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(other, "MONGO_SERVER_URL"), "from-dir\n")
	write(path, "from-path\n")
	all := docdb.MongoServer{Path: path, Dir: other, URL: "from-setting", Env: "from-env"}
	for _, c := range []struct {
		server docdb.MongoServer
		want   string
	}{
		{all, "from-path"},
		{docdb.MongoServer{Dir: all.Dir, URL: all.URL, Env: all.Env}, "from-dir"},
		{docdb.MongoServer{URL: all.URL, Env: all.Env}, "from-setting"},
		{docdb.MongoServer{Env: all.Env}, "from-env"},
	} {
		s := &servers{open: map[string]int{}, colls: map[string]docdb.Driver{}}
		k := open(t, "mongo://db/coll?id_field=Name", docdb.Options{Drivers: []docdb.Driver{s.driver()}, Mongo: c.server})
		if _, err := k.Find(t.Context(), storetest.NewRun("TaskRun"), "x"); err != nil {
			t.Errorf("%+v: %v", c.server, err)
		}
		if diff := cmp.Diff(map[string]int{c.want: 1}, s.opened()); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", c.server, diff)
		}
		if err := k.Close(); err != nil || len(s.opened()) != 0 {
			t.Errorf("closing: %v, %v open", err, s.opened())
		}
	}
}

// A rotated Secret: records go where the file says when they are kept, none is
// lost, and nothing stays open.
func TestMongoServerChanges(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "MONGO_SERVER_URL")
	write := func(say string) {
		t.Helper()
		// As the kubelet does: a link to another folder, renamed over the old one.
		next := filepath.Join(dir, "next")
		if err := errors.Join(os.WriteFile(next, []byte(say), 0o600), os.Rename(next, path)); err != nil {
			t.Fatal(err)
		}
	}
	s := &servers{open: map[string]int{}, colls: map[string]docdb.Driver{}}
	k := open(t, "mongo://db/coll?id_field=Name", docdb.Options{Drivers: []docdb.Driver{s.driver()}, Mongo: docdb.MongoServer{Dir: dir}})
	signer := storetest.NewRecordSigner(t)
	record := func() store.Record {
		return storetest.StatementRecord(t, storetest.NewRun("TaskRun"), "x", []intoto.Subject{{Name: "x", Digest: map[string]string{"sha256": strings.Repeat("0", 64)}}}, signer)
	}
	keep := func(want string) {
		t.Helper()
		r := record()
		o := k.Keep(t.Context(), []store.Record{r})[0]
		if want == "" {
			if o.Err == nil || store.ClassOf(o.Err) != store.Configuration {
				t.Errorf("%+v; want a configuration error", o)
			}
			return
		}
		if o.Err != nil {
			t.Fatal(o.Err)
		}
		coll, _, err := s.colls[want].Open(t.Context(), &url.URL{Scheme: "mem", Host: "records", Path: "/Name"}, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := coll.Get(t.Context(), &signedDocument{Name: r.Key}); err != nil {
			t.Errorf("not at server %s: %v", want, err)
		}
		if diff := cmp.Diff(map[string]int{want: 1}, s.opened()); diff != "" {
			t.Errorf("open (-want +got):\n%s", diff)
		}
	}
	keep("") // not mounted yet
	write("one\n")
	keep("one")
	write("two")
	keep("two")
	write("\n")
	keep("")
	write("nonsense")
	keep("")
	write("two")
	keep("two")

	// Writers go on while the file changes under them.
	var wg sync.WaitGroup
	records := make([][]store.Record, 4)
	for i := range records {
		for range 50 {
			records[i] = append(records[i], record())
		}
		wg.Go(func() {
			for j, o := range k.Keep(t.Context(), records[i]) {
				if o.Err != nil {
					t.Errorf("writer %d, record %d: %v", i, j, o.Err)
				}
			}
		})
	}
	for i := range 50 {
		write([]string{"one", "two"}[i%2])
	}
	wg.Wait()
	for _, list := range records {
		for _, r := range list {
			found := 0
			for _, server := range []string{"one", "two"} {
				coll, _, err := s.colls[server].Open(t.Context(), &url.URL{Scheme: "mem", Host: "records", Path: "/Name"}, "")
				if err != nil {
					t.Fatal(err)
				}
				if coll.Get(t.Context(), &signedDocument{Name: r.Key}) == nil {
					found++
				}
			}
			if found != 1 {
				t.Errorf("%s is at %d servers", r.Key, found)
			}
		}
	}
	if err := k.Close(); err != nil || len(s.opened()) != 0 {
		t.Errorf("closing: %v, %v open", err, s.opened())
	}
}

// Whoever can write to the collection cannot make us believe that a record is there.
func TestPlanted(t *testing.T) {
	o, coll := mem(t)
	k := open(t, memURL, o)
	r := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), "registry.example/a@"+storetest.Digest([]byte("i")), storetest.NewRecordSigner(t))
	for _, signature := range []string{"%", base64.StdEncoding.EncodeToString([]byte("nonsense"))} {
		planted := signedDocument{Signed: r.Payload, Signature: signature, Name: r.Key + "-" + r.Run.UID}
		if err := coll.Put(t.Context(), &planted); err != nil {
			t.Fatal(err)
		}
		out := k.Keep(t.Context(), []store.Record{r})[0]
		if want := []string{"mem://records/Name " + r.Key + "-" + r.Run.UID + "-2"}; out.Err != nil || !cmp.Equal(want, out.Where) {
			t.Errorf("%+v; want it in %s", out, want)
		}
		if kept, err := k.Find(t.Context(), r.Run, r.Key); err != nil || len(kept) == 0 {
			t.Errorf("%d kept, %v", len(kept), err)
		}
	}
}
