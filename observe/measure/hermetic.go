package measure

import (
	"fmt"
	"strings"

	"assay.dev/assay/observe"
	"assay.dev/assay/plan"
)

// HermeticConclusion concludes from a task attempt's facts whether it was
// hermetic: what it did can depend on nothing but its inputs by digest, its
// images by digest and the run's specification. It is a pure function, so that
// whoever has the facts can draw the conclusion again.
//
// Enforced needs every one of these; each that is missing is a reason, in words
// that name the fact. What is unknown or left out speaks against.
//
//   - the network was "none", and nothing but loopback was in the namespace
//     before the first step and after the last
//   - no connection was recorded
//   - every input is listed with its blob's and its tree's digest
//   - no volume could be written by others meanwhile, or came from outside the
//     run without a digest
//   - the task held no registry token
//   - there are steps, all of this attempt, each with the digest of its image
//     and of the seccomp profile in force
//
// finished.Hermetic is not looked at.
func HermeticConclusion(started observe.TaskStartedBody, finished observe.TaskFinishedBody, steps []observe.StepFinishedBody) observe.Hermetic {
	var reasons []string
	no := func(format string, args ...any) { reasons = append(reasons, fmt.Sprintf(format, args...)) }

	if started.Task == "" || started.Attempt != finished.Attempt {
		no("the facts are of different task attempts: started %s, finished %s", name(started.Attempt), name(finished.Attempt))
	}
	if started.Network != string(plan.NetworkNone) {
		no("its network was %q, not %q", started.Network, plan.NetworkNone)
	}
	if len(started.Interfaces) > 0 {
		no("before the first step its network namespace had more than loopback: %s", strings.Join(started.Interfaces, ", "))
	}
	if len(finished.Interfaces) > 0 {
		no("after the last step its network namespace had more than loopback: %s", strings.Join(finished.Interfaces, ", "))
	}
	if n := len(finished.Network) + finished.Dropped; n > 0 {
		no("its network record has %d connections", n)
	}
	for _, in := range started.Inputs {
		_, blob, ok := strings.Cut(in.URI, "@")
		if !ok || !digestRE.MatchString(blob) {
			no("its input %q is not named by digest: %q", in.Name, in.URI)
		}
		if !digestRE.MatchString(in.Digest) {
			no("its input %q has no tree digest", in.Name)
		}
	}
	for _, v := range started.Volumes {
		switch {
		case v.Shared && !v.ReadOnly:
			no("its volume %q is writable and shared with others", v.Name)
		case v.Shared:
			no("its volume %q could be written by others while it ran", v.Name)
		case v.Kind == string(plan.VolumeHost):
			no("its volume %q is a folder of the host, an input without a digest", v.Name)
		case v.Kind != string(plan.VolumeEmpty) && v.Kind != string(plan.VolumeFiles):
			no("its volume %q is of the unknown kind %q", v.Name, v.Kind)
		}
	}
	if finished.Token {
		no("it held a registry token")
	}
	if len(steps) == 0 {
		no("there is no fact of a step")
	}
	for _, s := range steps {
		if s.Attempt != started.Attempt {
			no("the fact of step %q is of another task attempt: %s", s.Step, name(s.Attempt))
		}
		if !digestRE.MatchString(s.ImageDigest) {
			no("step %q has no digest of its image", s.Step)
		}
		if !digestRE.MatchString(s.Seccomp) {
			no("step %q ran without a seccomp profile that is named by digest", s.Step)
		}
	}
	return observe.Hermetic{Enforced: len(reasons) == 0, Reasons: reasons}
}

func name(a observe.Attempt) string { return fmt.Sprintf("%q attempt %d", a.Task, a.Attempt) }
