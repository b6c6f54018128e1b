package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/attest/tlog"
)

// MaxTrust is the size in bytes of the largest trust file that is read.
const MaxTrust = 1 << 20

// RoleObserver is the one role that a trust file gives to a key or an identity.
const RoleObserver = "observer"

// ParsePublicKey reads a key to trust from PEM (PUBLIC KEY). A private key, a
// certificate or anything else is refused by name.
func ParsePublicKey(pem []byte) (Key, error) {
	k, err := dsse.ParsePublicKey(pem)
	if err != nil {
		return Key{}, err
	}
	return Key{Public: k.Crypto()}, nil
}

// LoadPublicKey is ParsePublicKey for a file; the key gets its name.
func LoadPublicKey(path string) (Key, error) {
	data, err := readBounded(path, dsse.MaxKeyPEM)
	if err != nil {
		return Key{}, fmt.Errorf("reading public key %s: %w", path, err)
	}
	k, err := ParsePublicKey(data)
	if err != nil {
		return Key{}, fmt.Errorf("%s: %w", path, err)
	}
	k.Name = filepath.Base(path)
	return k, nil
}

// Trust is what a trust file says.
type Trust struct {
	Keys []Key
	// Identities may sign with certificates that Instances vouch for. Where the file
	// names no instance it is for the caller to say whom he believes, such as
	// PublicGood and GitHub.
	Identities []CertificateIdentity
	Instances  []*Instance
	Log        LogTrust
}

// LoadTrust reads a trust file: see ParseTrust. Key files in it are relative to
// its folder.
func LoadTrust(path string) (*Trust, error) {
	data, err := readBounded(path, MaxTrust)
	if err != nil {
		return nil, fmt.Errorf("reading trust %s: %w", path, err)
	}
	t, err := ParseTrust(data, func(name string) ([]byte, error) {
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(path), name)
		}
		return readBounded(name, max(dsse.MaxKeyPEM, tlog.MaxTrustedRoot))
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

// ParseTrust reads a trust from JSON:
//
//	{"keys": [
//	  {"name": "factory", "file": "observer.pub", "role": "observer",
//	   "builders": ["https://assay.dev/builder/v1/executed/user/factory-1"]},
//	  {"name": "chains", "pem": "-----BEGIN PUBLIC KEY-----\n…"}
//	 ],
//	 "identities": [
//	  {"name": "release", "san": "https://github.com/o/n/.github/workflows/release.yml@refs/heads/main",
//	   "issuer": "https://token.actions.githubusercontent.com", "sourceRepository": "https://github.com/o/n"},
//	  {"name": "witness", "sanRegexp": "spiffe://factory/observer/.+", "issuer": "https://oidc.factory",
//	   "role": "observer", "builders": ["https://factory/builder/"]}
//	 ],
//	 "instances": [{"name": "ours", "trustedRoot": "trusted_root.json"}, {"name": "public-good"}],
//	 "logs": [
//	  {"name": "our log", "key": "example.com/log+0a1b2c3d+AX…"},
//	  {"name": "Rekor", "file": "rekor.pub"},
//	  {"name": "Sigstore", "trustedRoot": "trusted_root.json"}
//	 ],
//	 "witnesses": [{"name": "neighbour", "key": "example.org/witness+1b2c3d4e+BH…"}],
//	 "quorum": 1,
//	 "requireLog": true}
//
// A key has a name of its own and either pem or file, which read is asked for.
// Role observer needs builders: exact builder.id values, or prefixes that end in
// "/". A key without a role is a key holder's.
//
// An identity has a name and the members of CertificateIdentity: san or sanRegexp, and
// issuer or issuerRegexp; sourceRepository, sourceOwner, sourceRef, sourceDigest,
// trigger and hostedOnly where they matter; role and builders as a key's. Instances are
// the Sigstore instances whose certificates are believed: each has a name and its
// trusted root, and may have thresholds (scts, logEntries, signedTimestamps,
// timestamps) other than DefaultThresholds. The two that are shipped are named by
// "public-good" and "github" alone. Keys or identities there must be.
//
// The rest may be missing. A log has a name and the key of a tile log of ours (key,
// a verifier key), of a Rekor log (pem or file), or a Sigstore trusted root
// (trustedRoot, a file) with those of several. Witnesses have verifier keys; quorum
// is how many of them must have cosigned a checkpoint, one if nothing is said. It
// holds for tile logs always, and for a Rekor log that is "witnessed": true. With
// requireLog evidence counts only if it is in one of the logs.
//
// Unknown members and roles, duplicates, an empty list of keys and everything that
// Image would refuse are errors.
func ParseTrust(data []byte, read func(name string) ([]byte, error)) (*Trust, error) {
	t, err := parseTrust(data, read)
	if err != nil {
		return nil, fmt.Errorf("parsing trust: %w", err)
	}
	return t, nil
}

func parseTrust(data []byte, read func(string) ([]byte, error)) (*Trust, error) {
	if err := strictjson.Check(data, MaxTrust); err != nil {
		return nil, err
	}
	m, err := strictjson.Object(data)
	if err != nil {
		return nil, err
	}
	if err := strictjson.Only(m, append(logMembers(), "keys", "identities", "instances")...); err != nil {
		return nil, err
	}
	list, err := optionalArray(m["keys"])
	if err != nil {
		return nil, fmt.Errorf("reading keys: %w", err)
	}
	t := &Trust{}
	names := map[string]bool{}
	for i, raw := range list {
		k, err := trustKey(raw, read)
		if err != nil {
			return nil, fmt.Errorf("reading key %d: %w", i, err)
		}
		if names[k.Name] {
			return nil, fmt.Errorf("reading key %d: a second key named %q", i, k.Name)
		}
		names[k.Name] = true
		t.Keys = append(t.Keys, k)
	}
	if err := t.parseIdentities(m, names, read); err != nil {
		return nil, err
	}
	if len(t.Keys)+len(t.Identities) == 0 {
		return nil, errors.New("reading keys: there are no keys and no identities in it, so nobody is trusted")
	}
	if len(t.Instances) > 0 && len(t.Identities) == 0 {
		return nil, errors.New("reading instances: their certificates count for identities, and there are none")
	}
	if _, err := (Options{Keys: t.Keys, Identities: t.Identities}).keyring(); err != nil {
		return nil, err
	}
	if t.Log, err = parseLogTrust(m, read); err != nil {
		return nil, err
	}
	return t, nil
}

func trustKey(raw json.RawMessage, read func(string) ([]byte, error)) (Key, error) {
	m, err := strictjson.Object(raw)
	if err != nil {
		return Key{}, err
	}
	if err := strictjson.Only(m, "name", "pem", "file", "role", "builders"); err != nil {
		return Key{}, err
	}
	name, err := strictjson.String(m["name"])
	if err != nil {
		return Key{}, fmt.Errorf("reading name: %w", err)
	}
	if name == "" {
		return Key{}, errors.New("reading name: empty")
	}
	if (m["pem"] == nil) == (m["file"] == nil) {
		return Key{}, errors.New("want one of pem and file")
	}
	var pem []byte
	if m["pem"] != nil {
		s, err := strictjson.String(m["pem"])
		if err != nil {
			return Key{}, fmt.Errorf("reading pem: %w", err)
		}
		pem = []byte(s)
	} else {
		file, err := strictjson.String(m["file"])
		if err != nil {
			return Key{}, fmt.Errorf("reading file: %w", err)
		}
		if read == nil {
			return Key{}, fmt.Errorf("file %q: this trust cannot refer to files; use pem", file)
		}
		if pem, err = read(file); err != nil {
			return Key{}, fmt.Errorf("reading file %q: %w", file, err)
		}
	}
	k, err := ParsePublicKey(pem)
	if err != nil {
		return Key{}, err
	}
	k.Name = name
	k.Observer, k.Builders, err = role(m)
	return k, err
}

// readBounded reads a small file whole.
func readBounded(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("larger than %d bytes", max)
	}
	return data, nil
}
