package vsa_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/attest"
	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	internal "assay.dev/assay/internal/vsa"
	"assay.dev/assay/policy"
	"assay.dev/assay/policy/vsa"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
	"assay.dev/assay/verify"
)

const (
	policyDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	otherDigest  = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	trustDigest  = "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"
)

// image is one that was built, signed and judged.
type image struct {
	rt       http.RoundTripper
	subject  store.Subject
	evidence *verify.Evidence
	verdict  *policy.Verdict
}

func newImage(t *testing.T, rt http.RoundTripper, path, say string) *image {
	t.Helper()
	return newImageAt(t, rt, host, path, say)
}

func newImageAt(t *testing.T, rt http.RoundTripper, host, path, say string) *image {
	t.Helper()
	builder := storetest.NewKey(t)
	i := &image{rt: rt, subject: storetest.PushImage(t, rt, host, path, say)}
	repo, err := name.NewRepository(i.subject.Repo, name.Insecure)
	fatal(t, err)
	_, err = oci.New(repo, rt, oci.Options{}).Put(t.Context(), i.subject, storetest.Signature(t, builder, i.subject), storetest.Provenance(t, builder, i.subject, say))
	fatal(t, err)
	i.evidence, err = verify.Image(t.Context(), i.subject.Ref(), verify.Options{Keys: []verify.Key{{Name: "builder", Public: builder.Public()}}, Transport: rt})
	fatal(t, err)
	now := time.Now().UTC()
	i.verdict = &policy.Verdict{
		Result: policy.Pass, Image: i.subject.Ref(), Component: "app", Policy: policy.Identified{Digest: policyDigest},
		EffectiveTime: now, Digests: []string{i.subject.Digest}, Expiry: now.Add(24 * time.Hour),
	}
	return i
}

func issuer(t *testing.T, rt http.RoundTripper, k *attest.Key, form internal.Form) *internal.Issuer {
	return &internal.Issuer{Signer: startSigner(t, k), Made: vsa.Made{Trust: trustDigest}, Form: form, Transport: writes(rt)}
}

func acceptor(rt http.RoundTripper, keys ...*attest.Key) *internal.Acceptor {
	a := &internal.Acceptor{Transport: reads(rt)}
	for _, k := range keys {
		a.Keys = append(a.Keys, verify.Key{Name: "gate.pub", Public: k.Public()})
	}
	return a
}

func want() vsa.Want {
	return vsa.Want{Policy: policyDigest, Trust: trustDigest, Circumstances: vsa.Circumstances{Component: "app"}, Now: time.Now(), MaxAge: time.Hour}
}

// TestIssueAndAccept: what is issued in each form is found, under any tag of the image,
// and answers its own question.
func TestIssueAndAccept(t *testing.T) {
	for _, form := range []internal.Form{internal.Both, internal.Referrer, internal.Tag} {
		t.Run(string(form), func(t *testing.T) {
			rt, gate := registry(t), storetest.NewKey(t)
			img := newImage(t, rt, "team/app", "one")
			i := issuer(t, rt, gate, form)
			i.Folder = filepath.Join(t.TempDir(), "out")
			out, err := i.Issue(t.Context(), img.evidence, img.verdict, vsa.Circumstances{})
			fatal(t, err)
			if (out.Referrer != "") != (form != internal.Tag) || (out.Tag != "") != (form != internal.Referrer) || out.File == "" {
				t.Errorf("%+v", out)
			}
			env, err := internal.Envelope(out.File)
			fatal(t, err)
			if _, err := env.Verify(1, storetest.Public(t, gate)); err != nil {
				t.Error(err)
			}
			tag := img.subject.Repo + ":2"
			putTag(t, rt, img, "2")
			for _, ref := range []string{img.subject.Ref(), tag} {
				a, err := acceptor(rt, gate).Accept(t.Context(), ref, want())
				fatal(t, err)
				if a.Image != img.subject.Ref() || a.Payload != out.Payload || a.Verifier != vsa.DefaultVerifier || !slices.Equal(a.Levels, []string{vsa.Unevaluated}) {
					t.Errorf("%s: %+v", ref, a)
				}
			}
			if again, err := i.Issue(t.Context(), img.evidence, img.verdict, vsa.Circumstances{}); err != nil || again.Image != out.Image {
				t.Errorf("again: %+v, %v", again, err)
			}
		})
	}
}

// putTag gives the image another tag.
func putTag(t *testing.T, rt http.RoundTripper, i *image, tag string) {
	t.Helper()
	repo, err := name.NewRepository(i.subject.Repo, name.Insecure)
	fatal(t, err)
	_, manifest, err := oci.New(repo, rt, oci.Options{}).Resolve(t.Context(), i.subject.Digest)
	fatal(t, err)
	path := strings.TrimPrefix(i.subject.Repo, host+"/")
	put(t, rt, "http://"+host+"/v2/"+path+"/manifests/"+tag, i.subject.MediaType, manifest)
}

func put(t *testing.T, rt http.RoundTripper, url, mediaType string, body []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url, strings.NewReader(string(body)))
	fatal(t, err)
	req.Header.Set("Content-Type", mediaType)
	res, err := rt.RoundTrip(req)
	fatal(t, err)
	res.Body.Close()
	if res.StatusCode != http.StatusCreated {
		t.Fatalf("PUT %s: %s", url, res.Status)
	}
}

// attach hangs an envelope on an image as whoever can write to the repository could:
// as a layer of .att and as a bundle.
func attach(t *testing.T, i *image, env *dsse.Envelope, key dsse.PublicKey) {
	t.Helper()
	repo, err := name.NewRepository(i.subject.Repo, name.Insecure)
	fatal(t, err)
	s := oci.New(repo, i.rt, oci.Options{})
	raw, err := env.MarshalJSON()
	fatal(t, err)
	_, err = s.AttachLayers(t.Context(), i.subject, ".att", oci.Layer{
		MediaType: "application/vnd.dsse.envelope.v1+json", Content: raw,
		Annotations: map[string]string{"dev.cosignproject.cosign/signature": "", "predicateType": vsa.PredicateType},
	})
	fatal(t, err)
	if b, err := bundle.New(env, key); err == nil {
		doc, err := b.MarshalJSON()
		fatal(t, err)
		_, err = s.AttachReferrer(t.Context(), i.subject, oci.Referrer{ArtifactType: bundle.MediaType, MediaType: bundle.MediaType, Content: doc})
		fatal(t, err)
	}
}

// TestAttacks: whoever can write to the repository, and holds whatever summaries exist,
// gets no image past an evaluation.
func TestAttacks(t *testing.T) {
	gate, thief := storetest.NewKey(t), storetest.NewKey(t)
	signed := func(t *testing.T, k *attest.Key, statement []byte) (*dsse.Envelope, dsse.PublicKey) {
		env, err := attest.Statement(t.Context(), k, statement)
		fatal(t, err)
		return env, storetest.Public(t, k)
	}
	of := func(t *testing.T, i *image, change func(*policy.Verdict, *vsa.Made)) []byte {
		v, m := *i.verdict, vsa.Made{Trust: trustDigest, Time: time.Now()}
		if change != nil {
			change(&v, &m)
		}
		raw, err := vsa.Statement(i.evidence, &v, m)
		fatal(t, err)
		return raw
	}
	for name, tt := range map[string]struct {
		attack func(t *testing.T, i *image)
		code   vsa.Code
	}{
		"no summary": {func(*testing.T, *image) {}, vsa.CodeNone},
		"another image's summary, hung on this one": {func(t *testing.T, i *image) {
			env, key := signed(t, gate, of(t, newImage(t, i.rt, "team/app", "another"), nil))
			attach(t, i, env, key)
		}, vsa.CodeNone},
		"the same image's summary from another repository": {func(t *testing.T, i *image) {
			env, key := signed(t, gate, of(t, newImage(t, i.rt, "evil/app", "one"), nil))
			attach(t, i, env, key)
		}, vsa.CodeImage},
		"signed by a key that is not trusted": {func(t *testing.T, i *image) {
			env, key := signed(t, thief, of(t, i, nil))
			attach(t, i, env, key)
		}, vsa.CodeNone},
		"by the thief with the gate's key id": {func(t *testing.T, i *image) {
			env, key := signed(t, thief, of(t, i, nil))
			env.Signatures[0].KeyID = storetest.Public(t, gate).KeyID()
			attach(t, i, env, key)
		}, vsa.CodeNone},
		"a payload changed after signing": {func(t *testing.T, i *image) {
			env, key := signed(t, gate, of(t, i, func(v *policy.Verdict, _ *vsa.Made) { v.Policy.Digest = otherDigest }))
			env.Payload = []byte(strings.ReplaceAll(string(env.Payload), otherDigest[7:], policyDigest[7:]))
			attach(t, i, env, key)
		}, vsa.CodeNone},
		"of another policy": {func(t *testing.T, i *image) {
			env, key := signed(t, gate, of(t, i, func(v *policy.Verdict, _ *vsa.Made) { v.Policy.Digest = otherDigest }))
			attach(t, i, env, key)
		}, vsa.CodePolicy},
		"too old": {func(t *testing.T, i *image) {
			env, key := signed(t, gate, of(t, i, func(v *policy.Verdict, m *vsa.Made) {
				m.Time = time.Now().Add(-2 * time.Hour)
				v.EffectiveTime = m.Time
			}))
			attach(t, i, env, key)
		}, vsa.CodeTooOld},
		"from the future": {func(t *testing.T, i *image) {
			env, key := signed(t, gate, of(t, i, func(v *policy.Verdict, m *vsa.Made) {
				m.Time = time.Now().Add(2 * time.Hour)
				v.EffectiveTime = m.Time
			}))
			attach(t, i, env, key)
		}, vsa.CodeFuture},
		"of another verifier with the same key": {func(t *testing.T, i *image) {
			env, key := signed(t, gate, of(t, i, func(_ *policy.Verdict, m *vsa.Made) { m.Verifier = "https://gate.example.com/test" }))
			attach(t, i, env, key)
		}, vsa.CodeVerifier},
		"one that failed": {func(t *testing.T, i *image) {
			raw := strings.ReplaceAll(string(of(t, i, nil)), `"PASSED"`, `"FAILED"`)
			env, key := signed(t, gate, []byte(raw))
			attach(t, i, env, key)
		}, vsa.CodeResult},
		"of another trust": {func(t *testing.T, i *image) {
			env, key := signed(t, gate, of(t, i, func(_ *policy.Verdict, m *vsa.Made) { m.Trust = otherDigest }))
			attach(t, i, env, key)
		}, vsa.CodeTrust},
		"Conforma's with the gate's key": {func(t *testing.T, i *image) {
			raw, err := vsa.ConformaStatement(i.subject.Repo, i.subject.Digest, map[string]any{"status": "passed"})
			fatal(t, err)
			env, key := signed(t, gate, raw)
			attach(t, i, env, key)
		}, vsa.CodeNone},
	} {
		t.Run(name, func(t *testing.T) {
			rt := registry(t)
			img := newImage(t, rt, "team/app", "one")
			tt.attack(t, img)
			a, err := acceptor(rt, gate).Accept(t.Context(), img.subject.Ref(), want())
			var not *vsa.NotTaken
			if !errors.As(err, &not) {
				t.Fatalf("taken: %+v, %v", a, err)
			}
			if not.Code() != tt.code {
				t.Errorf("%s: %v; want %s", not.Code(), err, tt.code)
			}
		})
	}
}

// TestUnsigned: an envelope without signatures is none, wherever it lies.
func TestUnsigned(t *testing.T) {
	rt, gate := registry(t), storetest.NewKey(t)
	img := newImage(t, rt, "team/app", "one")
	raw, err := vsa.Statement(img.evidence, img.verdict, vsa.Made{Trust: trustDigest, Time: time.Now()})
	fatal(t, err)
	doc, err := json.Marshal(map[string]any{"payload": raw, "payloadType": store.PayloadType, "signatures": []any{}})
	fatal(t, err)
	repo, err := name.NewRepository(img.subject.Repo, name.Insecure)
	fatal(t, err)
	_, err = oci.New(repo, rt, oci.Options{}).AttachReferrer(t.Context(), img.subject, oci.Referrer{ArtifactType: vsa.PredicateType, MediaType: "application/vnd.dsse.envelope.v1+json", Content: doc})
	fatal(t, err)
	var not *vsa.NotTaken
	if a, err := acceptor(rt, gate).Accept(t.Context(), img.subject.Ref(), want()); !errors.As(err, &not) {
		t.Errorf("taken: %+v, %v", a, err)
	}
	file := filepath.Join(t.TempDir(), "vsa.json")
	fatal(t, os.WriteFile(file, doc, 0o600))
	if _, err := internal.Envelope(file); err == nil {
		t.Error("an envelope without signatures was read")
	}
}

// TestAcceptFaults: what cannot be found out is an error and not "none".
func TestAcceptFaults(t *testing.T) {
	gate := storetest.NewKey(t)
	broken := roundTripper(func(*http.Request) (*http.Response, error) { return nil, errors.New("no route") })
	var not *vsa.NotTaken
	if a, err := acceptor(broken, gate).Accept(t.Context(), host+"/team/app@"+otherDigest, want()); err == nil || errors.As(err, &not) {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := acceptor(broken).Accept(t.Context(), host+"/team/app:1", want()); err == nil || !strings.Contains(err.Error(), "nobody is named") {
		t.Errorf("%v", err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestIssueNoPass: nothing is signed of a verdict that did not pass, or kept nowhere.
func TestIssueNoPass(t *testing.T) {
	rt, gate := registry(t), storetest.NewKey(t)
	img := newImage(t, rt, "team/app", "one")
	i := issuer(t, rt, gate, internal.Both)
	v := *img.verdict
	v.Result = policy.Fail
	if out, err := i.Issue(t.Context(), img.evidence, &v, vsa.Circumstances{}); err == nil {
		t.Errorf("%+v", out)
	}
	i.Form = internal.Nowhere
	if out, err := i.Issue(t.Context(), img.evidence, img.verdict, vsa.Circumstances{}); err == nil {
		t.Errorf("%+v", out)
	}
	var not *vsa.NotTaken
	if a, err := acceptor(rt, gate).Accept(t.Context(), img.subject.Ref(), want()); !errors.As(err, &not) {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestSignerRefs: what can be a key and what cannot.
func TestSignerRefs(t *testing.T) {
	k := storetest.NewKey(t)
	plain, good := keyFile(t, k, nil), "secret"
	encrypted, wrong := keyFile(t, k, []byte(good)), "wrong"
	open := keyFile(t, k, nil)
	fatal(t, os.Chmod(open, 0o644))
	statement, err := vsa.ConformaStatement("x", otherDigest, map[string]any{})
	fatal(t, err)
	for name, tt := range map[string]struct {
		ref      string
		password *string
		want     string // of the error; empty: it signs
	}{
		"a plain file":         {plain, nil, ""},
		"an encrypted file":    {encrypted, &good, ""},
		"a wrong password":     {encrypted, &wrong, "wrong password"},
		"a file open to all":   {open, nil, "chmod 600 " + open},
		"no file":              {filepath.Join(t.TempDir(), "none"), nil, "finding the key"},
		"nothing":              {"", nil, "no key is named"},
		"an unknown scheme":    {"vault://x", nil, "keys of this kind are not known"},
		"no Secret's name":     {"k8s://x", nil, "want k8s://NAMESPACE/SECRET"},
		"PEM":                  {"-----BEGIN PRIVATE KEY-----", nil, "does not belong on a command line"},
		"a token's URI":        {"pkcs11:token=x;object=y", nil, "names no library"},
		"a token that is away": {"pkcs11:token=x;object=y?module-path=/none.so", nil, "none.so"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := internal.StartSigner(t.Context(), tt.ref, internal.SignerOptions{Observer: self(t), Password: tt.password})
			if err == nil {
				defer s.Close()
				_, _, err = s.Sign(t.Context(), statement)
			}
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v; want %q", err, tt.want)
			}
		})
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "assay-vsa-*"))
	fatal(t, err)
	for _, dir := range left {
		if info, err := os.Stat(dir); err == nil && time.Since(info.ModTime()) < time.Minute {
			if _, err := os.Stat(filepath.Join(dir, "signer.sock")); err != nil {
				t.Errorf("%s is left behind", dir)
			}
		}
	}
}

// TestSignerSecret: the Secret goes from assayd, a script here, to the signer.
func TestSignerSecret(t *testing.T) {
	k := storetest.NewKey(t)
	raw, err := k.PrivatePEM([]byte("secret"))
	fatal(t, err)
	secret, err := json.Marshal(map[string]any{"kind": "Secret", "data": map[string]any{"cosign.key": raw, "cosign.password": []byte("secret"), "other": raw}})
	fatal(t, err)
	dir := t.TempDir()
	fatal(t, os.WriteFile(filepath.Join(dir, "secret.json"), secret, 0o600))
	assayd := filepath.Join(dir, "assayd")
	fatal(t, os.WriteFile(assayd, []byte("#!/bin/sh\n[ \"$*\" = 'object -- secrets ns/keys' ] || { echo no such thing: \"$*\" >&2; exit 4; }\ncat "+dir+"/secret.json\n"), 0o755))
	statement, err := vsa.ConformaStatement("x", otherDigest, map[string]any{})
	fatal(t, err)
	for ref, want := range map[string]string{
		"k8s://ns/keys": "", "k8s://ns/keys/other": "", "k8s://ns/keys/none": "no field none", "k8s://ns/none": "no such thing",
	} {
		s, err := internal.StartSigner(t.Context(), ref, internal.SignerOptions{Observer: self(t), Assayd: assayd})
		if err == nil {
			_, _, err = s.Sign(t.Context(), statement)
			fatal(t, s.Close())
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", ref, err, want)
		}
	}
}

// TestCosign: cosign verifies our summaries in both forms.
func TestCosign(t *testing.T) {
	cosign := os.Getenv("ASSAY_COSIGN")
	if cosign == "" || os.Getenv("ASSAY_SLOW") == "" {
		t.Skip("needs cosign: eval \"$(tools/peers cosign)\" and set ASSAY_SLOW=1; make test-all does")
	}
	for _, form := range []internal.Form{internal.Referrer, internal.Tag} {
		t.Run(string(form), func(t *testing.T) {
			srv := httptest.NewServer(storetest.Registry(t, true))
			t.Cleanup(srv.Close)
			gate := storetest.NewKey(t)
			img := newImageAt(t, http.DefaultTransport, strings.TrimPrefix(srv.URL, "http://"), "team/app", "one")
			_, err := issuer(t, http.DefaultTransport, gate, form).Issue(t.Context(), img.evidence, img.verdict, vsa.Circumstances{})
			fatal(t, err)
			dir := t.TempDir()
			pub := filepath.Join(dir, "gate.pub")
			fatal(t, os.WriteFile(pub, gate.PublicPEM(), 0o644))
			args := []string{"verify-attestation", "--key", pub, "--type", vsa.PredicateType, "--insecure-ignore-tlog=true", "--allow-insecure-registry"}
			if form == internal.Tag {
				args = append(args, "--new-bundle-format=false")
			}
			c := exec.CommandContext(t.Context(), cosign, append(args, img.subject.Ref())...)
			c.Env = append(os.Environ(), "HOME="+dir, "TUF_ROOT="+dir)
			out, err := c.CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
