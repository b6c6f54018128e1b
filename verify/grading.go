package verify

import (
	"slices"

	"assay.dev/assay/attest/predicate"
)

// Everything that verified is graded by Independent: a statement by what it says, and
// what says nothing of builders, an image signature or an SBOM, by the provenance of
// the same signer.

// independence grades a verified statement.
func (c *checker) independence(st Statement, builder string) Independence {
	f := c.binding(st.Identity)
	f.Builder = builder
	if p, ok := st.Typed.(predicate.Provenance); ok {
		f.Source = p.Source()
	}
	return Independent(f)
}

// independenceOfSignature grades a verified image signature by the statements that
// were graded before: where the same signer made several, by the best.
func (c *checker) independenceOfSignature(s Signature) Independence {
	f := c.binding(s.Identity)
	for i, st := range c.statements {
		if !isProvenance(st.PredicateType) || !st.Same(s.Identity) {
			continue
		}
		with := c.binding(st.Identity)
		if f.Builder == "" || with.Observer && fitsBuilder(with.Builders, c.builders[i]) {
			f.Builder = c.builders[i]
			if p, ok := st.Typed.(predicate.Provenance); ok {
				f.Source = p.Source()
			}
		}
	}
	// What a signature does not say itself can bind an observer, but contradict nobody.
	if !f.Observer {
		f.Builder = ""
	}
	return Independent(f)
}

// binding is what the trust says of a signer.
func (c *checker) binding(id Identity) SignerFacts {
	if id.Certificate == nil {
		k := c.key(id.Key)
		return SignerFacts{Observer: k.Observer, Builders: k.Builders}
	}
	f := SignerFacts{Certificate: id.Certificate}
	if i := slices.IndexFunc(c.identities, func(s signer) bool { return s.Name == id.TrustedAs }); i >= 0 {
		f.Exact = c.identities[i].SAN != ""
		f.Observer, f.Builders = c.identities[i].Observer, c.identities[i].Builders
	}
	return f
}
