// Command runsc is gVisor's runtime, built from its module for the tests of the
// sandbox contract.
package main

import "gvisor.dev/gvisor/runsc/cli/maincli"

func main() { maincli.Main() }
