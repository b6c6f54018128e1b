package archivista

import (
	"context"

	"assay.dev/assay/store"
)

// Signature is for the tests outside the package, as is what follows.
type Signature = signature

var (
	Decode = decode
	Answer = answer
	Gitoid = gitoid
)

// FindDigest is FindPayload by the payload's SHA-256.
func (k *Keeper) FindDigest(ctx context.Context, digest string) ([]store.Kept, error) {
	return k.find(ctx, "hasPayloadDigestsWith", digest)
}
