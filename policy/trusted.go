package policy

// Asked is somebody whom a policy itself asks to have signed: a key, or an identity.
type Asked struct {
	// PEM is a public key.
	PEM string
	// Subject or SubjectRegExp, and Issuer or IssuerRegExp, are an identity's. An
	// expression is found anywhere, as cosign has it, unless it is anchored.
	Subject, SubjectRegExp string
	Issuer, IssuerRegExp   string
	// For is what: image, provenance, sbom, with commas between; empty: all.
	For string
}

// Signers are those whom the policy itself asks for, each once; none where it leaves
// that to the verifier. Evidence by any other does not count in Evaluate. What is
// handed to Evaluate has to be verified by them, which is the caller's to arrange.
func (p *Policy) Signers() []Asked {
	if p.signers == nil {
		return nil
	}
	var out []Asked
	index := map[string]int{}
	for _, l := range []struct {
		what string
		list []who
	}{{"image", p.signers.image}, {"provenance", p.signers.provenance}, {"sbom", p.signers.sbom}} {
		for i := range l.list {
			w := &l.list[i]
			n, ok := index[w.String()]
			if !ok {
				a := Asked{PEM: w.pem, Subject: w.subject, Issuer: w.issuer, For: l.what}
				if w.subjectPattern != nil {
					a.SubjectRegExp = w.subjectPattern.String()
				}
				if w.issuerMatch != nil {
					a.IssuerRegExp = w.issuerMatch.String()
				}
				index[w.String()] = len(out)
				out = append(out, a)
				continue
			}
			out[n].For += "," + l.what
		}
	}
	for i := range out {
		if out[i].For == "image,provenance,sbom" {
			out[i].For = ""
		}
	}
	return out
}
