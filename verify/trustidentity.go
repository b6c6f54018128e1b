package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"assay.dev/assay/attest/strictjson"
)

// trustMembers reads the members of an object of a trust file: texts and flags by
// name, and lists of texts. What is not named is refused.
func trustMembers(raw json.RawMessage, texts map[string]*string, flags map[string]*bool, others ...string) (map[string]json.RawMessage, error) {
	m, err := strictjson.Object(raw)
	if err != nil {
		return nil, err
	}
	known := slices.Clone(others)
	for k := range texts {
		known = append(known, k)
	}
	for k := range flags {
		known = append(known, k)
	}
	slices.Sort(known)
	if err := strictjson.Only(m, known...); err != nil {
		return nil, err
	}
	for k, to := range texts {
		if m[k] == nil {
			continue
		}
		if *to, err = strictjson.String(m[k]); err != nil {
			return nil, fmt.Errorf("reading %s: %w", k, err)
		}
		if *to == "" {
			return nil, fmt.Errorf("reading %s: empty; leave it out", k)
		}
	}
	for k, to := range flags {
		switch string(m[k]) {
		case "", "false":
		case "true":
			*to = true
		default:
			return nil, fmt.Errorf("reading %s: want true or false, not %.20s", k, m[k])
		}
	}
	return m, nil
}

// role reads what a key or an identity is trusted to be, and for which builders.
func role(m map[string]json.RawMessage) (observer bool, builders []string, err error) {
	if m["role"] != nil {
		role, err := strictjson.String(m["role"])
		if err != nil {
			return false, nil, fmt.Errorf("reading role: %w", err)
		}
		if role != RoleObserver {
			return false, nil, fmt.Errorf("role %q is not known; known is %q, or no role", role, RoleObserver)
		}
		observer = true
	}
	if m["builders"] == nil {
		return observer, nil, nil
	}
	list, err := strictjson.Array(m["builders"])
	if err != nil {
		return false, nil, fmt.Errorf("reading builders: %w", err)
	}
	for i, b := range list {
		s, err := strictjson.String(b)
		if err != nil {
			return false, nil, fmt.Errorf("reading builder %d: %w", i, err)
		}
		builders = append(builders, s)
	}
	return observer, builders, nil
}

// trustIdentity reads one of a trust file's identities, and refuses what Image would.
func trustIdentity(raw json.RawMessage) (CertificateIdentity, error) {
	var id CertificateIdentity
	m, err := trustMembers(raw, map[string]*string{
		"name": &id.Name, "san": &id.SAN, "sanRegexp": &id.SANRegexp, "issuer": &id.Issuer, "issuerRegexp": &id.IssuerRegexp,
		"sourceRepository": &id.SourceRepository, "sourceOwner": &id.SourceOwner,
		"sourceRef": &id.SourceRef, "sourceDigest": &id.SourceDigest, "trigger": &id.Trigger,
	}, map[string]*bool{"hostedOnly": &id.HostedOnly}, "role", "builders")
	if err != nil {
		return id, err
	}
	if id.Name == "" {
		return id, errors.New("it has no name")
	}
	if (id.SAN == "") == (id.SANRegexp == "") {
		return id, errors.New("want one of san and sanRegexp")
	}
	if (id.Issuer == "") == (id.IssuerRegexp == "") {
		return id, errors.New("want one of issuer and issuerRegexp")
	}
	if id.Observer, id.Builders, err = role(m); err != nil {
		return id, err
	}
	_, err = id.compile()
	return id, err
}

// trustInstance reads one of a trust file's Sigstore instances.
func trustInstance(raw json.RawMessage, read func(string) ([]byte, error)) (*Instance, error) {
	var name, file string
	m, err := trustMembers(raw, map[string]*string{"name": &name, "trustedRoot": &file}, nil, "thresholds")
	if err != nil {
		return nil, err
	}
	shipped := map[string]func() (*Instance, error){InstancePublicGood: PublicGood, InstanceGitHub: GitHub}[name]
	switch {
	case name == "":
		return nil, errors.New("it has no name")
	case shipped != nil && file != "":
		return nil, fmt.Errorf("%q is the instance whose root is shipped: leave trustedRoot out, or call it otherwise", name)
	case shipped == nil && file == "":
		return nil, fmt.Errorf("it has no trustedRoot, and only %q and %q go without", InstancePublicGood, InstanceGitHub)
	}
	var data []byte
	var need Thresholds
	if shipped != nil {
		in, err := shipped()
		if err != nil || m["thresholds"] == nil {
			return in, err
		}
		data, need = in.json, in.need
	} else {
		if read == nil {
			return nil, fmt.Errorf("trustedRoot %q: this trust cannot refer to files", file)
		}
		if data, err = read(file); err != nil {
			return nil, fmt.Errorf("reading trustedRoot %q: %w", file, err)
		}
		if need, err = DefaultThresholds(data); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	if m["thresholds"] != nil {
		if err := trustThresholds(m["thresholds"], &need); err != nil {
			return nil, fmt.Errorf("reading thresholds: %w", err)
		}
	}
	return NewInstance(name, data, need)
}

// trustThresholds changes the thresholds that are said.
func trustThresholds(raw json.RawMessage, t *Thresholds) error {
	m, err := strictjson.Object(raw)
	if err != nil {
		return err
	}
	fields := map[string]*int{"scts": &t.SCTs, "logEntries": &t.LogEntries, "signedTimestamps": &t.SignedTimestamps, "timestamps": &t.Timestamps}
	if err := strictjson.Only(m, "scts", "logEntries", "signedTimestamps", "timestamps"); err != nil {
		return err
	}
	for k, to := range fields {
		if m[k] == nil {
			continue
		}
		if err := json.Unmarshal(m[k], to); err != nil || string(m[k]) == "null" {
			return fmt.Errorf("reading %s: want a number, not %.20s", k, m[k])
		}
	}
	return nil
}

// parseIdentities reads the members of a trust file that are about certificates.
func (t *Trust) parseIdentities(m map[string]json.RawMessage, names map[string]bool, read func(string) ([]byte, error)) error {
	list, err := optionalArray(m["identities"])
	if err != nil {
		return fmt.Errorf("reading identities: %w", err)
	}
	for i, raw := range list {
		id, err := trustIdentity(raw)
		if err == nil && names[id.Name] {
			err = fmt.Errorf("a second key or identity named %q", id.Name)
		}
		if err != nil {
			return fmt.Errorf("reading identity %d: %w", i, err)
		}
		names[id.Name] = true
		t.Identities = append(t.Identities, id)
	}
	if list, err = optionalArray(m["instances"]); err != nil {
		return fmt.Errorf("reading instances: %w", err)
	}
	for i, raw := range list {
		in, err := trustInstance(raw, read)
		if err == nil && slices.ContainsFunc(t.Instances, func(other *Instance) bool { return other.name == in.name }) {
			err = fmt.Errorf("a second one named %q", in.name)
		}
		if err != nil {
			return fmt.Errorf("reading instance %d: %w", i, err)
		}
		t.Instances = append(t.Instances, in)
	}
	return nil
}
