// Package image moves OCI images between registries, this machine's cache and
// folders: it pulls, unpacks, caches, packs and pushes. It runs nothing and
// signs nothing.
//
// # Parts
//
//	Remote    one registry request at a time: manifests, blobs, referrers, tags
//	Store     the cache: blobs by digest, layers unpacked once for each diffID
//	Serve     the Store as a process of its own on a Unix socket; Client asks it
//	Pack      folders of this machine → a reproducible image
//	Layout    an OCI layout that a stranger wrote, read without following links
//	User      "build:wheel" → uid and gid, from an image's own /etc/passwd
//
// # What a name is worth
//
// Every byte that enters comes from somebody else. A blob counts only once its
// SHA-256 equals the name it was asked by, when it arrives and again whenever
// it is read from the cache; a layer's uncompressed archive must hash to the
// diffID that the image's configuration states; a reference by digest must
// lead to exactly that manifest, whether a mirror or the registry answered. A
// reference by tag means what the first answering mirror says it means: to
// list a mirror for a host is to trust it with that host's tags.
//
// A cache entry that is truncated or altered is dropped and fetched again, and
// Options.Log says so. Unpacked layers carry the digest of their tree; who
// runs an image calls VerifyLayer before the first use in each run. This is
// also why nothing here is flushed to disk: what a power failure damaged does
// not pass as whole.
//
// # Layers on disk
//
// A layer becomes a folder that overlayfs takes as a lower layer in a user
// namespace (mount option userxattr). Deleted files become character devices
// 0:0, which any user namespace may create since Linux 5.8; opaque folders get
// the attribute user.overlay.opaque=y. Owners are shifted by Options.IDShift.
//
// Names are looked up below the layer's own root, one folder at a time and
// never through a symbolic link. An absolute name in an archive means the
// image's root, as every runtime reads it; "..", a parent that is a link or a
// file, and a hard link to anything that this layer did not bring are refused
// and leave nothing. Not taken over, and counted in the log: devices other
// than the above, fifos, extended attributes (file capabilities mean nothing
// under no-new-privileges, and user.overlay.* would let an image write its own
// markers), and the set-user-id bits unless Options.KeepSetuid is set, which a
// step cannot use either but another user of this machine could, on a file in
// a cache that others may enter.
//
// # Concurrency
//
// Several processes and goroutines may use one folder: an entry is made under
// a file lock, in a temporary folder, and renamed into place when it is whole.
// A process that dies leaves a temporary folder that the next Open removes.
//
// # Errors
//
// An *Error says what was done to which reference and what to do about it. Its
// kind is one of ErrNotFound, ErrUnauthorized, ErrUnreachable, ErrBadImage and
// ErrBadReference for errors.Is, on both sides of the socket.
package image
