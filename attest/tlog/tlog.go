// Package tlog is about transparency logs: it puts signed records into them and
// checks proofs that something is in one. It knows Rekor v1 and v2, and a tile
// log of our own for machines that have neither.
//
// # Why
//
// A signature says that whoever holds the key signed. It does not say when, or
// that the owner knows of it: a thief with a copy of the key signs at home, and
// nobody ever hears of it. A log that everybody can read turns that around. If
// verifiers accept only what is in the log, the thief has to put his signature
// where the owner looks.
//
//	record ──Upload──▶ log ──▶ entry + proof ──kept beside the evidence──▶ CheckProof, CheckRekor
//	                    │
//	                    └─checkpoint─▶ witness ─cosignature─▶ checkpoint
//
// A log is not believed either. It signs checkpoints (size and root of its Merkle
// tree), a proof shows that an entry is under a checkpoint's root, and a witness
// cosigns a checkpoint only if it continues the one before. Who could make the log
// lie must then make the witness lie too. Without a witness the log's operator can
// show one tree to the verifier and another one to everybody else; an Inclusion
// without names in Witnesses says that this is so.
//
// # What is logged
//
// Package tlog never uploads a payload to a log of ours. A leaf is three facts, see
// Leaf: the payload's type and digest, and each signature with the fingerprint of
// its key. Rekor wants the whole envelope for kind dsse and keeps digests of it. An
// image that is signed in two forms, as a simple signing document and as the
// statement that Sigstore bundles carry, has an entry for each: what a log says of
// one signature it does not say of the other.
//
// # Proofs
//
// A proof from a log of ours is a text in the form of C2SP's tlog-proof, see Proof,
// whose extra line carries the leaf, so that one proof serves every copy of the
// evidence, whichever of the signatures it carries. It travels, in base64, as
// annotation AnnotationProof. Entries of Rekor travel in Sigstore bundles and in
// cosign's annotation AnnotationBundle.
//
// Everything that checks is pure: bytes and trust in, an Inclusion or an error
// out. What strangers send is bounded.
package tlog

import (
	"context"

	"assay.dev/assay/store"
)

// Log takes records.
type Log interface {
	// Upload puts a record's signatures into the log and returns once the log
	// has promised or proved that they are in. Errors carry their class
	// (store.ClassOf).
	Upload(ctx context.Context, r store.Record) ([]store.LogEntry, error)
}

// Annotations of a layer or manifest that carry what a log said.
const (
	// AnnotationProof holds proofs from logs of ours: base64 of Proof, several
	// joined by commas.
	AnnotationProof = "assay.dev/log-proof"
	// AnnotationBundle is cosign's: a Rekor v1 entry with its signed timestamp.
	AnnotationBundle = "dev.sigstore.cosign/bundle"
)
