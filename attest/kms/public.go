package kms

import (
	"context"

	"assay.dev/assay/attest/dsse"
)

// Public is the public half of the key, as the service says; errors carry their
// class.
func (d *Driver) Public(ctx context.Context) (dsse.PublicKey, error) {
	public, err := d.publicKey(ctx)
	if err != nil {
		return dsse.PublicKey{}, classify(err)
	}
	return public, nil
}
