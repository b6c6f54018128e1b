// Package tree computes the digest of a folder: assay-tree/v1, one SHA-256 that
// stands for every entry below it – name, type, permission bits, link target,
// content – and for nothing else. SPEC.md is the definition; this package is
// one implementation of it, testdata/vectors.json is what another one runs to
// check itself.
//
// There are two ways in, and both end in the same bytes:
//
//	Digest, DigestDir   folder on disk ──walk──▶ Sum
//	Builder             entries, one by one ───▶ Sum
//
// Digest walks beneath a held descriptor. Each name is opened relative to its
// parent's descriptor and without following links, so nothing that a task left
// behind can lead the walk out of the folder; what is not a regular file or a
// folder is never opened. It is bounded in entries, bytes, depth and path
// length, and uses all cores: folders form a tree of hashes, so files can be
// read in any order and the result is still the same.
//
// The git tree id can be computed in the same walk. It is there for one
// question only, whether a folder equals a commit's tree, and is no substitute
// for the digest: SHA-1, no empty folders, two kinds of permission.
//
// The digest does not cover owners, times, extended attributes and which names
// are hard links of each other. SPEC.md says why.
package tree
