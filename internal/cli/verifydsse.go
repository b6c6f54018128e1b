package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/internal/keyref"
)

// verifyDSSECommand verifies an envelope and nothing that it says.
func (a *app) verifyDSSECommand() *cobra.Command {
	var keys []string
	threshold := 1
	c := &cobra.Command{
		Use:   "verify-dsse --key FILE… --threshold N ENVELOPE",
		Short: "Verify the signatures of a DSSE envelope, whatever its payload is",
		Long: `Verifies that at least as many of the keys as the threshold says signed the
envelope. Keys are counted, not signatures and not names: one key under two names is
one key. A key id is a hint and decides nothing. What the payload says is not read;
use assay verify for attestations about an artifact.

Exit codes: 0 verified, 1 could not be checked, 2 usage, 3 not verified.`,
		Example: "  assay verify-dsse --key a.pub --key b.pub --threshold 2 envelope.json",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.outputIs("text", "json"); err != nil {
				return err
			}
			// Further files behind one --key, as the synopsis reads.
			keys = append(keys, args[:len(args)-1]...)
			if len(keys) == 0 {
				return usagef("no key given: use --key FILE")
			}
			if threshold < 1 {
				return usagef("--threshold %d: want 1 or more", threshold)
			}
			var ring []dsse.PublicKey
			names := map[string]string{}
			for _, ref := range keys {
				k, err := dsseKey(cmd.Context(), ref)
				if err != nil {
					return err
				}
				ring = append(ring, k)
				if names[k.Fingerprint()] == "" {
					names[k.Fingerprint()] = ref
				}
			}
			data, err := readEvidence(args[len(args)-1])
			if err != nil {
				return err
			}
			env, err := dsse.Parse(data)
			if err != nil {
				return &exit{exitRefused, err}
			}
			good, err := env.Verify(threshold, ring...)
			if errors.Is(err, dsse.ErrNotVerified) {
				return &exit{exitRefused, err}
			}
			if err != nil {
				return err
			}
			return a.printAccepted(env, good, names)
		},
	}
	c.Flags().StringArrayVarP(&keys, "key", "k", nil, "public key, a file with PEM or in-toto's JSON, or one of the addresses that assay verify --key knows (repeatable)")
	c.Flags().IntVar(&threshold, "threshold", 1, "how many of the keys must have signed")
	return c
}

// dsseKey is a key as assay verify reads it, or in-toto's JSON in a file.
func dsseKey(ctx context.Context, ref string) (dsse.PublicKey, error) {
	if keyref.IsFile(ref) {
		data, err := readSmall(ref)
		if err != nil {
			return dsse.PublicKey{}, fmt.Errorf("reading key: %w", err)
		}
		if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
			k, err := dsse.ParseInTotoKey(data)
			if err != nil {
				return k, fmt.Errorf("%s: %w", ref, err)
			}
			return k, nil
		}
	}
	ring, err := loadPublicKeys(ctx, ref)
	if err != nil {
		return dsse.PublicKey{}, err
	}
	return ring[0].Public, nil
}

func (a *app) printAccepted(env *dsse.Envelope, good []dsse.Accepted, names map[string]string) error {
	type signature struct {
		Key   string `json:"key"`
		File  string `json:"file"`
		KeyID string `json:"keyid"`
	}
	out := struct {
		PayloadType string      `json:"payloadType"`
		PayloadSize int         `json:"payloadSize"`
		Signatures  []signature `json:"signatures"`
	}{env.PayloadType, len(env.Payload), nil}
	for _, g := range good {
		out.Signatures = append(out.Signatures, signature{g.Key.Fingerprint(), names[g.Key.Fingerprint()], g.KeyID})
	}
	if a.output == "json" {
		return a.json(out)
	}
	fmt.Fprintf(a.out, "verified  %s, %d bytes\n", out.PayloadType, out.PayloadSize)
	for _, s := range out.Signatures {
		fmt.Fprintf(a.out, "  signature  by %s\n", s.File)
	}
	return nil
}
