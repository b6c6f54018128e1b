// Package registry is the embedded registry: olareg, an OCI 1.1 registry over
// folders, behind a door of our own that knows who may write what.
//
// Anyone may read. One process holds the folder and all writes go through it:
//
//	peer on the Unix socket     may write
//	observer                    staging/*   (evidence)
//	releaser                    released/*
//	operator                    catalog/*
//	whoever shows a token       staging/<run>, until the token is revoked
//
// A peer is known by the uid that the kernel reports for its connection. An
// executor has no role: it mints a token for one task attempt of the run that
// the observer has open for it (RunSource), hands it to the task or uses it for
// the task's export, and revokes it before the task's results are read. Revoke
// returns when no request with the token is under way any more. The repository
// of a run is empty when its first token is minted, so what is in it afterwards
// came by one of its tokens or from the observer; and what came by a token is
// in the memory of uploads, on disk before the client hears of success.
//
// Nothing is deleted and nothing is mounted from another repository.
//
// The folder can be read without the process, also while it runs: see
// OpenReadOnly. Index and blobs appear by rename, blobs before what names them.
package registry
