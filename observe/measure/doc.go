// Package measure is how the executor learns what a task was given and what it
// left behind, and how the one becomes the other without a gap.
//
//	task A ──▶ folder ──Pack──▶ blob ──Unpack──▶ folder ──▶ task B
//	                    │                │
//	                  tree.Sum    =   tree.Sum
//
// Pack reads every file once: the same bytes go into the tree digest and into
// the archive, so what the next task gets is a copy of what was measured, not
// of what the folder held a moment later. Unpack checks the digest of the whole
// blob before it extracts the first byte of it, and gives back the digest of
// what it wrote. Both work beneath a held descriptor and never follow a link.
//
// ReadBounded reads a single file a task left. FindCommit asks a git server, over
// a connection of its own, whether one of its refs is a commit.
// HermeticConclusion draws the one conclusion there is to draw from all this.
//
// Nothing here believes a task. What cannot be measured is an error that names
// the entry, and no half result stands beside an error.
package measure
