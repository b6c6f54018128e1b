// Package pullcache asks registries for each thing once.
//
//	verification ─┐
//	built-ins    ─┼─▶ Cache (an http.RoundTripper) ──▶ registry
//	access check ─┘
//
// A gate reads the same manifests and blobs many times over: to see whether an
// image is there, to find its digest, its configuration, its signatures, and
// again whenever a rule asks for them. Everybody who reads puts the same Cache
// below their client, and a manifest, a blob, a list of referrers or a tag goes
// over the wire once. Requests under way at the same time for the same thing
// are one request.
//
// A HEAD of a manifest is answered by the GET that would follow it anyhow. What
// is asked for by digest is checked against it before anybody sees it, so that a
// registry that lies is an error and is remembered by nobody.
//
// A Cache lives as long as one run of the gate: a tag that was read once stays
// what it was, which is what a verdict needs, and what a server that runs for
// months must not have. Answers that say that there is no such thing are kept as
// well; failures (no connection, 429, 5xx) are tried again as Options say and
// then reported, and the next who asks tries anew.
//
// Credentials are not its business: clients authorise above it. All who share a
// Cache therefore have to be the same user.
package pullcache
