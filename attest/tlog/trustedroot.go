package tlog

import (
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	trustroot "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"assay.dev/assay/attest/strictjson"
)

// MaxTrustedRoot is the size in bytes of the largest trusted root that is read.
const MaxTrustedRoot = 1 << 20

// ParseTrustedRoot reads the keys of Rekor logs from a Sigstore trusted root (its
// tlogs; trusted_root.json). It fails if there is none, or one that cannot be used.
func ParseTrustedRoot(data []byte) ([]RekorKey, error) {
	keys, err := parseTrustedRoot(data)
	if err != nil {
		return nil, fmt.Errorf("reading trusted root: %w", err)
	}
	return keys, nil
}

func parseTrustedRoot(data []byte) ([]RekorKey, error) {
	if err := strictjson.Check(data, MaxTrustedRoot); err != nil {
		return nil, err
	}
	var root trustroot.TrustedRoot
	if err := protojson.Unmarshal(data, &root); err != nil {
		return nil, err
	}
	if m := root.GetMediaType(); !strings.HasPrefix(m, "application/vnd.dev.sigstore.trustedroot") {
		return nil, fmt.Errorf("media type %.80q is not a trusted root's", m)
	}
	var out []RekorKey
	for i, l := range root.GetTlogs() {
		block := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: l.GetPublicKey().GetRawBytes()})
		k, err := ParseRekorKey(l.GetBaseUrl(), block)
		if err != nil {
			return nil, fmt.Errorf("log %d: %w", i, err)
		}
		if v := l.GetPublicKey().GetValidFor(); v != nil {
			if v.GetStart() != nil {
				k.From = v.GetStart().AsTime()
			}
			if v.GetEnd() != nil {
				k.Until = v.GetEnd().AsTime()
			}
		}
		out = append(out, k)
	}
	if len(out) == 0 {
		return nil, errors.New("it names no log")
	}
	return out, nil
}

// validAt is nil if the key was the log's at a time that the log signed.
func (k RekorKey) validAt(t time.Time) error {
	if !k.From.IsZero() && t.Before(k.From) || !k.Until.IsZero() && t.After(k.Until) {
		return fmt.Errorf("log %q gives %s as time, when this key was not its key", k.Name, t.Format(time.RFC3339))
	}
	return nil
}
