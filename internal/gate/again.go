package gate

import (
	"context"
	"time"
)

// Again is a gate like this one that has asked nobody anything yet: what a server makes
// for each request, so that a tag is what it is now. It judges as of now and verifies as
// of at; what rules ask of registries goes through its own cache. Accept, Issue, Tap and
// Progress are not taken over. It fails where Functions does.
func (g *Gate) Again(now, at time.Time) (*Gate, error) {
	out := &Gate{
		Keys: g.Keys, Instances: g.Instances, Identities: g.Identities, At: at, Log: g.Log,
		WithoutSignature: g.WithoutSignature, WithoutProvenance: g.WithoutProvenance,
		Policy: g.Policy, Transport: g.Transport, Embedded: g.Embedded, Retry: g.Retry,
		Context: g.Context, AttestationTime: g.AttestationTime, Workers: g.Workers,
	}
	out.Context.Now = now
	var err error
	out.Context.Builtins, err = out.Functions()
	return out, err
}

// Resolve says which image a reference stands for, as repo@sha256:…. It fails where there
// is none, and where the registry does not answer.
func (g *Gate) Resolve(ctx context.Context, ref string) (string, error) {
	m, err := g.resolve(ctx, ref)
	if err != nil {
		return "", err
	}
	return m.ref(), nil
}
