// Package fetch is the source.Fetcher for every kind of address: files and folders,
// git repositories, OCI artifacts, and files over https.
//
//	address ─▶ what is it today? ─▶ in the cache? ── yes ──────────────▶ check it ─▶ *source.Tree
//	           (commit, digest)          └── no ─▶ get it, within bounds ─▶ keep it ──┘
//
// Addresses are read as Conforma's ec reads them (go-gather), so that a policy
// configuration need not change. Where that is too trusting, this package refuses:
// plain http, also as the goal of a redirect; archives and titles of layers that lead
// outside their folder; links that do; more bytes or files than Options allow.
//
// # Cache
//
// What was fetched lies in the user's cache folder ($XDG_CACHE_HOME/assay/policy), by
// what it is: a commit and a folder in it, a manifest's digest, a file's digest. A name
// that can move (a branch, a tag, a file over https) is asked for in each run; what
// cannot (a commit, a digest) is not. An entry is written aside and moved into place,
// and holds the digest of each of its files, which is checked whenever it is used, so
// that processes at once, or one that was killed, leave nothing that is half there.
//
// # Lock
//
// A Lock says for each address what it was when somebody looked: the pinned address and
// the digest of its rules and data. A Fetcher with a lock reads what the lock says, and
// refuses what is not in it or has another digest. What was vendored (Vendor) is a folder
// with such a lock and all its contents: reading it (OpenVendored) takes no network.
//
// # Credentials
//
// Registries: docker's configuration, by a keychain. Repositories and files over https:
// ~/.netrc or $NETRC, for the host that the address names and no other. Repositories
// over ssh (git::ssh://…): the ssh agent, and ~/.ssh/known_hosts. An address may have a
// password in it; it goes to the server and nowhere else, not into what an address is
// pinned to, nor into errors.
package fetch
