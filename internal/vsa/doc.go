// Package vsa is the wiring of verification summaries (package policy/vsa): it has them
// signed by the sibling program with the keys, keeps them where they are looked for, and
// finds them again.
//
//	verdict ─▶ policy/vsa.Statement ─▶ Signer ─socket─▶ assay-observer signer
//	                                     │ envelope
//	                                     ├─▶ registry: bundle as referrer, tag .att
//	                                     ├─▶ folder
//	                                     └─▶ Rekor (Conforma's form)
//
//	image ─▶ Acceptor ─▶ verify (keys of summaries alone) ─▶ policy/vsa.Find ─▶ taken, or why not
//
// No key comes near this process: files are opened, Secrets unpacked and key services
// asked by assay-observer signer, which lives as long as a Signer and signs in-toto
// statements and nothing else. Secrets of a cluster go from assayd to it through a
// pipe that this process does not read.
package vsa
