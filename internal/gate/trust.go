package gate

import (
	"encoding/json"
	"fmt"
	"time"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/report"
	"assay.dev/assay/verify"
)

// Trust is whom a gate believes, by value: what the releaser is handed, and what a
// recording keeps.
type Trust struct {
	Keys       []Key                        `json:"keys,omitempty"`
	Identities []verify.CertificateIdentity `json:"identities,omitempty"`
	Instances  []Instance                   `json:"instances,omitempty"`
	At         time.Time                    `json:"at,omitzero"`
	Log        verify.LogTrust              `json:"log"`

	WithoutSignature  bool `json:"withoutSignature,omitempty"`
	WithoutProvenance bool `json:"withoutProvenance,omitempty"`
}

// Key is a trusted key by value.
type Key struct {
	Name       string    `json:"name"`
	PEM        string    `json:"pem"`
	Observer   bool      `json:"observer,omitempty"`
	Builders   []string  `json:"builders,omitempty"`
	From       time.Time `json:"from,omitzero"`
	Until      time.Time `json:"until,omitzero"`
	Predicates []string  `json:"predicates,omitempty"`
}

// Instance is a Sigstore instance by value.
type Instance struct {
	Name string            `json:"name"`
	Need verify.Thresholds `json:"need"`
	// Root is the trusted root as it is written: its bytes, not its meaning.
	Root string `json:"root"`
}

// Trust is whom the gate believes. It fails on a key that is of no kind that can be
// written.
func (g *Gate) Trust() (*Trust, error) {
	t := &Trust{
		Identities: g.Identities, At: g.At, Log: g.Log,
		WithoutSignature: g.WithoutSignature, WithoutProvenance: g.WithoutProvenance,
	}
	for _, k := range g.Keys {
		pub, err := dsse.NewPublicKey(k.Public)
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", k.Name, err)
		}
		t.Keys = append(t.Keys, Key{k.Name, string(pub.PEM()), k.Observer, k.Builders, k.From, k.Until, k.Predicates})
	}
	for _, i := range g.Instances {
		t.Instances = append(t.Instances, Instance{i.Name(), i.Thresholds(), string(i.JSON())})
	}
	return t, nil
}

// Apply makes a gate believe these and nobody else. It fails on what is no key and no
// trusted root.
func (t *Trust) Apply(g *Gate) error {
	var keys []verify.Key
	for _, k := range t.Keys {
		key, err := verify.ParsePublicKey([]byte(k.PEM))
		if err != nil {
			return fmt.Errorf("key %q: %w", k.Name, err)
		}
		key.Name, key.Observer, key.Builders = k.Name, k.Observer, k.Builders
		key.From, key.Until, key.Predicates = k.From, k.Until, k.Predicates
		keys = append(keys, key)
	}
	var instances []*verify.Instance
	for _, i := range t.Instances {
		in, err := verify.NewInstance(i.Name, []byte(i.Root), i.Need)
		if err != nil {
			return err
		}
		instances = append(instances, in)
	}
	g.Keys, g.Instances, g.Identities, g.At, g.Log = keys, instances, t.Identities, t.At, t.Log
	g.WithoutSignature, g.WithoutProvenance = t.WithoutSignature, t.WithoutProvenance
	return nil
}

// Report is what holds for all images of a report.
func (g *Gate) Report() (report.Run, error) {
	r := report.Run{At: g.At, EffectiveTime: g.Context.EffectiveTime}
	if g.Policy != nil {
		r.Policy.Name, r.Policy.Digest = g.Policy.Name(), g.Policy.Digest()
		for _, t := range g.Policy.Sources() {
			r.Sources = append(r.Sources, report.Source{Address: t.Address, Pinned: t.Pinned, Digest: t.Digest})
		}
	}
	switch {
	case g.AttestationTime:
		r.EffectiveTime = time.Time{}
	case r.EffectiveTime.IsZero():
		r.EffectiveTime = g.Context.Now
	}
	for _, k := range g.Keys {
		pub, err := dsse.NewPublicKey(k.Public)
		if err != nil {
			return r, fmt.Errorf("key %q: %w", k.Name, err)
		}
		one := report.Trusted{Kind: "key", Name: k.Name, ID: pub.Fingerprint()}
		if k.Observer {
			one.For = "observer"
		}
		r.Trusted = append(r.Trusted, one)
	}
	for _, i := range g.Identities {
		one := report.Trusted{Kind: "identity", Name: i.Name}
		if b, err := json.Marshal(i); err == nil {
			one.ID = string(b)
		}
		if i.Observer {
			one.For = "observer"
		}
		r.Trusted = append(r.Trusted, one)
	}
	for _, i := range g.Instances {
		r.Trusted = append(r.Trusted, report.Trusted{Kind: "instance", Name: i.Name(), ID: digestOf(i.JSON())})
	}
	for _, n := range g.Log.Names() {
		r.Trusted = append(r.Trusted, report.Trusted{Kind: "log", Name: n})
	}
	for _, w := range g.Log.Witnesses {
		r.Trusted = append(r.Trusted, report.Trusted{Kind: "witness", Name: w.Name})
	}
	if g.WithoutSignature {
		r.Skipped = append(r.Skipped, "that the image has a verified signature")
	}
	if g.WithoutProvenance {
		r.Skipped = append(r.Skipped, "that the image has verified provenance")
	}
	return r, nil
}
