package store_test

import (
	"testing"

	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/store"
	"assay.dev/assay/store/storetest"
)

const image = "registry.example/team/app@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func kept(t testing.TB, r store.Record) store.Kept {
	t.Helper()
	sig, err := r.SignatureBytes()
	if err != nil {
		t.Fatal(err)
	}
	return store.Kept{Payload: r.Payload, Signature: sig, Cert: r.Signatures[0].Cert, Chain: r.Signatures[0].Chain}
}

func TestSame(t *testing.T) {
	run := storetest.NewRun("TaskRun")
	key, keyless, stranger := storetest.NewRecordSigner(t), storetest.NewCertSigner(t), storetest.NewCertSigner(t)
	for name, record := range map[string]func(say string, s ...*storetest.RecordSigner) store.Record{
		"statement": func(say string, s ...*storetest.RecordSigner) store.Record {
			return storetest.StatementRecord(t, run, say, []intoto.Subject{storetest.ImageSubject(image)}, s...)
		},
		"image": func(say string, s ...*storetest.RecordSigner) store.Record {
			return storetest.ImageRecord(t, run, "registry.example/"+say+image[len("registry.example/team/app"):], s...)
		},
	} {
		for _, tc := range []struct {
			what        string
			ours, found store.Record
			want        bool
		}{
			{"same key, another signature", record("x", key), record("x", key), true},
			{"one of several keys", record("x", keyless, key), record("x", key), true},
			{"same identity, another certificate", record("x", keyless), record("x", keyless.Again(t)), true},
			{"another key", record("x", key), record("x", storetest.NewRecordSigner(t)), false},
			{"same name from another authority", record("x", keyless), record("x", stranger), false},
			{"another payload", record("x", key), record("y", key), false},
			{"a certificate where we have a key", record("x", key), record("x", keyless), false},
		} {
			if got := tc.ours.Same(kept(t, tc.found)); got != tc.want {
				t.Errorf("%s, %s: %t; want %t", name, tc.what, got, tc.want)
			}
		}
		ours := record("x", keyless)
		f := kept(t, ours)
		f.Signature = append([]byte{}, f.Signature...)
		f.Signature[len(f.Signature)/2] ^= 1
		if ours.Same(f) {
			t.Errorf("%s: a broken signature is the same", name)
		}
		f = kept(t, record("x", stranger))
		f.Cert = kept(t, ours).Cert
		if ours.Same(f) {
			t.Errorf("%s: our certificate beside a stranger's signature is the same", name)
		}
	}
}

func TestCheckSecondSignature(t *testing.T) {
	run, s := storetest.NewRun("TaskRun"), storetest.NewRecordSigner(t)
	r := storetest.ImageRecord(t, run, image, s)
	r.Signatures[0].Statement = r.Signatures[0].Sig
	if err := r.Check(); err == nil {
		t.Error("an image's signature in place of its statement's: no error")
	}
	st := storetest.StatementRecord(t, run, "x", []intoto.Subject{storetest.ImageSubject(image)}, s)
	st.Signatures[0].Statement = st.Signatures[0].Sig
	if err := st.Check(); err == nil {
		t.Error("a statement with an image's second signature: no error")
	}
}

// What was found is a stranger's. Keys are new in each process, and so are seeds.
func FuzzSame(f *testing.F) {
	run := storetest.NewRun("TaskRun")
	st := storetest.StatementRecord(f, run, "x", []intoto.Subject{storetest.ImageSubject(image)}, storetest.NewCertSigner(f))
	im := storetest.ImageRecord(f, run, image, storetest.NewCertSigner(f))
	for _, r := range []store.Record{st, im} {
		k := kept(f, r)
		f.Add(k.Signature, k.Cert)
	}
	f.Fuzz(func(t *testing.T, sig, cert []byte) {
		if len(sig)+len(cert) > 1<<16 {
			return
		}
		for _, r := range []store.Record{st, im} {
			k := store.Kept{Payload: r.Payload, Signature: sig, Cert: cert}
			if r.Same(k) && string(cert) == "" && r.Image != "" {
				// By our own key, then: nobody else can have made it.
				if r.Signatures[0].Key.Verify(r.Payload, sig) != nil {
					t.Fatal("same without a signature of ours")
				}
			}
		}
	})
}
