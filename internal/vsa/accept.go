package vsa

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"assay.dev/assay/policy/vsa"
	"assay.dev/assay/verify"
)

// Acceptor finds summaries that stand in for an evaluation. Keys or Identities are
// those of verifiers whose summaries are believed: they are asked for nothing else,
// and keys that are trusted for provenance are not asked here.
type Acceptor struct {
	Keys       []verify.Key
	Instances  []*verify.Instance
	Identities []verify.CertificateIdentity
	Log        verify.LogTrust
	// Transport is the one to an image's registry, authorised to read there.
	Transport func(ctx context.Context, ref string) (http.RoundTripper, error)
	// Insecure allows plain http to registries that are not on this machine.
	Insecure bool
	Bounds   verify.Bounds
}

// Accept looks for a summary of the image, named by tag or digest. It returns
// *vsa.NotTaken where there is none that answers exactly what is wanted: the image is
// then to be evaluated. Any other error says that it could not be found out, and is
// no reason to believe anything either.
func (a *Acceptor) Accept(ctx context.Context, ref string, w vsa.Want) (*vsa.Accepted, error) {
	if len(a.Keys) == 0 && len(a.Identities) == 0 {
		return nil, errors.New("looking for verification summaries: nobody is named whose are believed")
	}
	if a.Transport == nil {
		return nil, errors.New("looking for verification summaries: no way to the registry")
	}
	rt, err := a.Transport(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("looking for verification summaries: %w", err)
	}
	keys := make([]verify.Key, len(a.Keys))
	for i, k := range a.Keys {
		// Whatever else the key is trusted for does not count here.
		k.Predicates, k.Observer, k.Builders = []string{vsa.PredicateType}, false, nil
		keys[i] = k
	}
	e, err := verify.Image(ctx, ref, verify.Options{
		Keys: keys, Instances: a.Instances, Identities: a.Identities, At: w.Now, Log: a.Log,
		Predicates: []string{vsa.PredicateType}, WithoutSignature: true, WithoutProvenance: true,
		Transport: rt, Insecure: a.Insecure, Bounds: a.Bounds,
	})
	var none *verify.NoEvidenceError
	if errors.As(err, &none) {
		return nil, &vsa.NotTaken{Image: none.Ref, Refusals: []vsa.Refusal{{Code: vsa.CodeNone, Reason: reason(none)}}}
	}
	if err != nil {
		return nil, fmt.Errorf("looking for verification summaries: %w", err)
	}
	return vsa.Find(e, w)
}

// reason tells what was there instead.
func reason(n *verify.NoEvidenceError) string {
	const none = "there is none by a verifier that is trusted"
	switch {
	case n.Found == 0:
		return none
	case n.Found == 1:
		return none + " (one piece of evidence by others)"
	}
	return fmt.Sprintf("%s (%d pieces of evidence by others)", none, n.Found)
}

func readBounded(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > most {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, most)
	}
	return raw, nil
}
