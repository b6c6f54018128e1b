package measure

// FindRef is the parser behind FindCommit, for the fuzzer.
var FindRef = findRef
