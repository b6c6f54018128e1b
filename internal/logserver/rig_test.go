package logserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/store"
)

// signer is a key to sign statements with, as an observer or a thief has it.
type signer struct {
	private *ecdsa.PrivateKey
	public  dsse.PublicKey
}

func newSigner(t testing.TB) signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p, err := dsse.NewPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return signer{k, p}
}

// record signs a statement about an artifact called name.
func (s signer) record(t testing.TB, name string) store.Record {
	t.Helper()
	payload := fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":%q,"digest":{"sha256":"%x"}}],"predicateType":"https://slsa.dev/provenance/v1","predicate":{"runDetails":{"builder":{"id":"https://example.com/builder"}}}}`, name, sha256.Sum256([]byte(name)))
	st, err := intoto.Parse(payload)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(dsse.PAE(store.PayloadType, payload))
	sig, err := ecdsa.SignASN1(rand.Reader, s.private, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return store.Record{
		Run: store.Run{Kind: "TaskRun", Name: name, UID: "1"}, Key: "taskrun-1", Format: "slsa/v2alpha4",
		Payload: payload, Statement: st,
		Signatures: []store.Signature{{KeyID: s.public.KeyID(), Sig: sig, Key: s.public}},
	}
}

// rig is a log with a witness, each a server of its own.
type rig struct {
	dir     string
	skey    string
	key     tlog.LogKey
	log     *Server
	url     string
	token   string
	witness *Witness
}

func newRig(t *testing.T, withWitness bool) *rig {
	t.Helper()
	r := &rig{dir: filepath.Join(t.TempDir(), "log"), token: filepath.Join(t.TempDir(), "token")}
	var err error
	if r.skey, r.key, _, err = tlog.GenerateKey("example.com/log"); err != nil {
		t.Fatal(err)
	}
	if err := makeToken(r.token); err != nil {
		t.Fatal(err)
	}
	o := Options{Dir: r.dir, Key: r.skey}
	if withWitness {
		r.witness = newTestWitness(t, "example.org/witness", t.TempDir(), r.key)
		srv := httptest.NewServer(r.witness.Handler())
		t.Cleanup(srv.Close)
		o.Witnesses = []WitnessAt{{srv.URL, r.witness.Key()}}
	}
	r.log, r.url = serveLog(t, o, Admission{TokenFile: r.token})
	return r
}

func newTestWitness(t *testing.T, name, state string, logs ...tlog.LogKey) *Witness {
	t.Helper()
	skey, _, _, err := tlog.GenerateKey(name)
	if err != nil {
		t.Fatal(err)
	}
	c, err := tlog.NewCosigner(skey, nil)
	if err != nil {
		t.Fatal(err)
	}
	w, err := NewWitness(WitnessOptions{Key: c, Logs: logs, State: state})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func serveLog(t *testing.T, o Options, a Admission) (*Server, string) {
	t.Helper()
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s.Handler(a))
	t.Cleanup(func() {
		srv.Close()
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s, srv.URL
}

func (r *rig) client(t *testing.T) *tlog.Tile {
	t.Helper()
	o := tlog.TileOptions{URL: r.url, LogKey: r.key.String(), TokenFile: r.token}
	if r.witness != nil {
		o.Witnesses = []string{r.witness.Key().String()}
	}
	c, err := tlog.NewTile(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (r *rig) trust() tlog.Trust {
	t := tlog.Trust{Logs: []tlog.LogKey{r.key}}
	if r.witness != nil {
		t.Witnesses = []tlog.WitnessKey{r.witness.Key()}
	}
	return t
}

func upload(t *testing.T, l tlog.Log, r store.Record) store.LogEntry {
	t.Helper()
	e, err := l.Upload(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if len(e) != 1 || len(e[0].Proof) == 0 {
		t.Fatalf("entries %v; want one with a proof", e)
	}
	return e[0]
}
