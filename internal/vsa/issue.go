package vsa

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/policy"
	"assay.dev/assay/policy/vsa"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/verify"
)

// Form is a form in which a registry keeps summaries.
type Form string

// The forms.
const (
	Referrer Form = "referrer" // a Sigstore bundle that refers to the image (OCI 1.1)
	Tag      Form = "tag"      // a layer of cosign's tag sha256-<hex>.att
	Both     Form = "both"
	Nowhere  Form = "none"
)

// ParseForm reads a form. It fails for any other word.
func ParseForm(s string) (Form, error) {
	switch f := Form(s); f {
	case Referrer, Tag, Both, Nowhere:
		return f, nil
	}
	return "", fmt.Errorf("%q is no form of keeping verification summaries; want %s, %s, %s or %s", s, Referrer, Tag, Both, Nowhere)
}

// Issuer makes, signs and keeps summaries. All fields but Folder, Log and Now are
// needed; Now is time.Now where it is nil.
type Issuer struct {
	Signer *Signer
	// Made says who verified; its Time, Levels and Circumstances are filled in.
	Made     vsa.Made
	Bindings []vsa.Binding
	// Form says how the registry keeps them; Nowhere: it does not.
	Form Form
	// Folder takes each as a file; empty: none.
	Folder string
	// Log is a transparency log that takes each before it is kept; nil: none.
	Log tlog.Log
	// Transport is the one to the image's registry, authorised to write there.
	Transport func(ctx context.Context, repo name.Repository) (http.RoundTripper, error)
	Now       func() time.Time
}

// Issued is a summary that was made.
type Issued struct {
	Image   string `json:"image"`
	Payload string `json:"payload"` // digest
	// Referrer is the digest of the referrer, Tag the tag that lists it, File the file;
	// each empty where it is not kept there.
	Referrer string `json:"referrer,omitempty"`
	Tag      string `json:"tag,omitempty"`
	File     string `json:"file,omitempty"`
}

// Issue makes, signs and keeps the summary of a verdict that passed on this evidence, in
// these circumstances. When it returns an error the summary counts as not made, though some of it may be kept.
func (i *Issuer) Issue(ctx context.Context, e *verify.Evidence, v *policy.Verdict, c vsa.Circumstances) (*Issued, error) {
	if i.Signer == nil {
		return nil, errors.New("making a verification summary: no signer")
	}
	if i.Form == Nowhere && i.Folder == "" {
		return nil, errors.New("making a verification summary: it would be kept nowhere")
	}
	m := i.Made
	m.Time, m.Circumstances, m.Levels = time.Now(), c, vsa.Levels(e, i.Bindings)
	if i.Now != nil {
		m.Time = i.Now()
	}
	statement, err := vsa.Statement(e, v, m)
	if err != nil {
		return nil, err
	}
	env, key, err := i.Signer.Sign(ctx, statement)
	if err != nil {
		return nil, err
	}
	out := &Issued{Image: e.Ref(), Payload: payloadDigest(env)}
	ev := store.Evidence{Envelope: env, Key: key}
	if i.Log != nil {
		if ev.Log, err = i.log(ctx, e.Ref(), ev); err != nil {
			return nil, fmt.Errorf("logging the verification summary of %s: %w", e.Ref(), err)
		}
	}
	if i.Form != Nowhere {
		if err := i.push(ctx, e, ev, out); err != nil {
			return nil, fmt.Errorf("keeping the verification summary of %s: %w", e.Ref(), err)
		}
	}
	if i.Folder != "" {
		raw, err := env.MarshalJSON()
		if err != nil {
			return nil, err
		}
		hex := strings.TrimPrefix(e.Digest(), "sha256:")
		if out.File, err = Write(i.Folder, "vsa-"+hex+"-"+strings.TrimPrefix(out.Payload, "sha256:")[:12]+".intoto.json", raw); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (i *Issuer) log(ctx context.Context, image string, e store.Evidence) ([]store.LogEntry, error) {
	statement, err := e.Check(store.Subject{Repo: "vsa", Digest: image[strings.LastIndex(image, "@")+1:], MediaType: "x", Size: 1})
	if err != nil {
		return nil, err
	}
	return i.Log.Upload(ctx, store.Record{
		Key: "vsa", Format: "in-toto", Payload: e.Envelope.Payload, Statement: statement,
		Signatures: []store.Signature{{KeyID: e.Envelope.Signatures[0].KeyID, Sig: e.Envelope.Signatures[0].Sig, Key: e.Key}},
	})
}

func (i *Issuer) push(ctx context.Context, e *verify.Evidence, ev store.Evidence, out *Issued) error {
	ref, err := name.NewDigest(e.Ref())
	if err != nil {
		return err
	}
	if i.Transport == nil {
		return errors.New("no way to the registry")
	}
	rt, err := i.Transport(ctx, ref.Context())
	if err != nil {
		return err
	}
	s := oci.New(ref.Context(), rt, oci.Options{})
	subject, _, err := s.Resolve(ctx, e.Digest())
	if err != nil {
		return err
	}
	switch i.Form {
	case Both:
		stored, err := s.Put(ctx, subject, ev)
		if err != nil {
			return err
		}
		out.Referrer, out.Tag = stored[0].Referrer, stored[0].Tag
		return nil
	case Referrer:
		doc, err := bundleOf(ev)
		if err != nil {
			return err
		}
		a, err := s.AttachReferrer(ctx, subject, oci.Referrer{
			ArtifactType: bundle.MediaType, MediaType: bundle.MediaType, Content: doc,
			Annotations: map[string]string{"dev.sigstore.bundle.content": "dsse-envelope", "dev.sigstore.bundle.predicateType": vsa.PredicateType},
		})
		out.Referrer = a.Digest
		return err
	case Tag:
		raw, err := ev.Envelope.MarshalJSON()
		if err != nil {
			return err
		}
		l := oci.Layer{MediaType: "application/vnd.dsse.envelope.v1+json", Content: raw, Annotations: map[string]string{
			"dev.cosignproject.cosign/signature": "", "predicateType": vsa.PredicateType,
		}}
		if p := tlog.FormatProofs(ev.Log); p != "" {
			l.Annotations[tlog.AnnotationProof] = p
		}
		a, err := s.AttachLayers(ctx, subject, ".att", l)
		if len(a) > 0 {
			out.Tag = a[0].Tag
		}
		return err
	}
	return fmt.Errorf("%q is no form of keeping verification summaries", i.Form)
}

func bundleOf(ev store.Evidence) ([]byte, error) {
	var with bundle.Material
	for _, l := range ev.Log {
		if l.Rekor == nil {
			continue
		}
		raw, err := json.Marshal(l.Rekor)
		if err != nil {
			return nil, err
		}
		with.LogEntries = append(with.LogEntries, raw)
	}
	return bundle.Encode(ev.Envelope, ev.Key, with)
}

// Write writes a document below a folder, which it makes, under a name without a path,
// for this user alone. It replaces what is there, as a whole or not at all, and
// returns the file's path.
func Write(folder, file string, data []byte) (string, error) {
	if file != filepath.Base(file) || file == "." || file == ".." {
		return "", fmt.Errorf("writing a verification summary: %q is no file's name", file)
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", fmt.Errorf("writing a verification summary: %w", err)
	}
	tmp, err := os.CreateTemp(folder, ".vsa-*")
	if err != nil {
		return "", fmt.Errorf("writing a verification summary: %w", err)
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(folder, file))
	}
	if err != nil {
		return "", fmt.Errorf("writing a verification summary: %w", errors.Join(err, os.Remove(tmp.Name())))
	}
	return filepath.Abs(filepath.Join(folder, file))
}

// Envelope reads an envelope from a file, bounded, and verifies nothing.
func Envelope(path string) (*dsse.Envelope, error) {
	raw, err := readBounded(path, dsse.MaxEnvelope)
	if err != nil {
		return nil, fmt.Errorf("reading a verification summary: %w", err)
	}
	env, err := dsse.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("reading a verification summary from %s: %w", path, err)
	}
	return env, nil
}
