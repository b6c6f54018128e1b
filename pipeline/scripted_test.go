package pipeline_test

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	clocktesting "k8s.io/utils/clock/testing"

	"assay.dev/assay/plan"
)

// scripted is the other side of the protocol. It runs nothing: a step's script
// says, a line each, what came of the step.
//
//	result NAME=VALUE       the step wrote a result of the task
//	step-result NAME=VALUE  … or of its own
//	exit N                  it exited with N
//	exit-first N            … with 1, on the first N attempts
//	end REASON              it ended for this reason, with code 1
//	task REASON MESSAGE     the task ended for this reason, before the step did
//	hang                    it runs until it is cancelled
//
// Everything else is ignored. A step takes a second of the fake clock.
type scripted struct {
	clock   *clocktesting.FakeClock
	events  chan plan.Event
	started []plan.Task
	hanging map[string]plan.Task
	cancels []plan.Cancel
	finish  *plan.Finish
	onHang  func(*scripted)
}

func newScripted() *scripted {
	return &scripted{
		clock:   clocktesting.NewFakeClock(time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)),
		events:  make(chan plan.Event, 10000),
		hanging: map[string]plan.Task{},
	}
}

func (s *scripted) Events() <-chan plan.Event { return s.events }

func (s *scripted) Send(c plan.Command) error {
	switch {
	case c.Run != nil:
		s.events <- plan.Event{Ready: &plan.Ready{Run: c.Run.ID, KeySeparation: "user"}}
	case c.Start != nil:
		s.started = append(s.started, *c.Start)
		s.run(*c.Start)
	case c.Cancel != nil:
		s.cancels = append(s.cancels, *c.Cancel)
		if t, ok := s.hanging[c.Cancel.Task]; ok {
			delete(s.hanging, t.Name)
			s.clock.Step(time.Second)
			s.events <- plan.Event{Done: &plan.Done{Task: t.Name, Attempt: t.Attempt, Finished: s.clock.Now(), Reason: c.Cancel.Reason}}
		}
	case c.Finish != nil:
		s.finish = c.Finish
		s.events <- plan.Event{Closed: &plan.Closed{Head: "sha256:head"}}
		close(s.events)
	}
	return nil
}

var stepReference = regexp.MustCompile(`\$\(steps\.([^.]+)\.results\.([^)]+)\)`)

func (s *scripted) run(t plan.Task) {
	began := s.clock.Now()
	done := plan.Done{Task: t.Name, Attempt: t.Attempt, Started: began}
	stepResults := map[string]string{}
	for _, step := range t.Steps {
		script := stepReference.ReplaceAllStringFunc(step.Script, func(ref string) string {
			m := stepReference.FindStringSubmatch(ref)
			return stepResults[m[1]+"."+m[2]]
		})
		state := plan.StepState{
			Task: t.Name, Attempt: t.Attempt, Name: step.Name, Started: s.clock.Now(),
			Image: step.Image + "@sha256:" + strings.Repeat("5", 64), Reason: "Completed",
		}
		s.clock.Step(time.Second)
		state.Finished = s.clock.Now()
		for _, line := range strings.Split(script, "\n") {
			word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
			name, value, _ := strings.Cut(rest, "=")
			switch word {
			case "result":
				done.Results = append(done.Results, plan.Result{Name: name, Value: value})
			case "step-result":
				stepResults[step.Name+"."+name] = value
				state.Results = append(state.Results, plan.Result{Name: name, Value: value})
			case "exit":
				state.ExitCode, _ = strconv.Atoi(rest)
			case "exit-first":
				if n, _ := strconv.Atoi(rest); t.Attempt < n {
					state.ExitCode = 1
				}
			case "end":
				state.ExitCode, state.Reason = 1, rest
			case "task":
				done.Reason, done.Message, _ = strings.Cut(rest, " ")
				if done.Reason != "Failed" {
					if done.Reason != "TaskRunImagePullFailed" {
						state.Finished = time.Time{}
						s.events <- plan.Event{Step: &state}
					}
					done.Finished = s.clock.Now()
					s.events <- plan.Event{Done: &done}
					return
				}
			case "hang":
				state.Finished = time.Time{}
				s.events <- plan.Event{Step: &state}
				s.hanging[t.Name] = t
				if s.onHang != nil {
					s.onHang(s)
				}
				return
			}
		}
		if state.ExitCode != 0 && state.Reason == "Completed" {
			state.Reason = "Error"
		}
		s.events <- plan.Event{Log: &plan.Log{Task: t.Name, Step: step.Name, Data: []byte(fmt.Sprintln("ran", step.Name))}}
		s.events <- plan.Event{Step: &state}
		if state.ExitCode != 0 && !step.Continue {
			done.Reason = "Failed"
			break
		}
	}
	done.Finished = s.clock.Now()
	s.events <- plan.Event{Done: &done}
}
