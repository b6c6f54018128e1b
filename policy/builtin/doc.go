// Package builtin gives Rego what Conforma's rules call beside OPA's own
// functions: ec.oci.* reads registries, ec.purl.* reads package URLs,
// ec.sigstore.* verifies signatures.
//
// Names, type signatures and results are Conforma's, so its rules and their
// tests compile and run unmodified. So are failures: a function that cannot
// answer is undefined, and the rule goes on. What differs is that nobody has to
// guess why: each failure is told to the Recorder of the evaluation with its
// cause, once, so that "there is no such image" and "the registry did not
// answer" reach the verdict as what they are.
//
//	s, err := builtin.New(builtin.Options{Transport: cache, …})
//	compiler.WithCapabilities(s.Capabilities())         // compile
//	rego.New(append(opts, s.Rego()...)...)              // evaluate
//	s.Register()                                        // or once for all of OPA
//
// # What they reach
//
// Registries, through the one Transport of Options, and nothing else: no file,
// no environment, no other address. References must name a registry of their
// own right (Options.Allow may refuse it, and Recorder tells who was asked).
// Everything is bounded: size of a manifest, of a blob, of a file within one,
// how many references one call may name, how long a call may take, how many
// calls one evaluation may make.
//
// # Asked once
//
// A Set remembers what manifests, descriptors and indexes it has made into Rego
// values for all evaluations that share it, as a Verifier does signatures; these are
// small and the same task bundles are looked at for every image. Blobs and files
// it does not keep: they are large and of one image. Put a pullcache below it,
// and no byte is fetched twice either way. Failures are kept as well, for as long
// as the Set lives: one run of the gate.
package builtin
