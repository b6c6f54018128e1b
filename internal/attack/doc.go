// Package attack holds the attack suite: runs whose steps, executors and
// planners try to get, reach, forge or leave behind what they must not. Every
// test runs the real binaries as root and asserts two things: the attempt
// failed, and the ledger and the statements say of the run what is true.
//
//	steps_test.go      what a step can see, reach and use up
//	network_test.go    what a hermetic task can open
//	registry_test.go   tokens and repositories
//	results_test.go    results and outputs, during and after their task
//	liars_test.go      claims about images, commits and hermeticity
//	executor_test.go   an executor that was taken over
//	log_test.go        the keys of log, witness and observer
//	honest_test.go     what must not be refused
//	kill_test.go       processes killed in the middle of a run
//
// docs/threat-model.md lists each attack with the name of its test, and what is
// not stopped. Statuses that the facts deny are internal/observer's tests.
package attack
