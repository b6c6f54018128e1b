package main

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"
)

// extraSteps is by how many steps the longer of two runs is longer; what they
// cost, divided by their number, is what a step costs.
const extraSteps = 20

// steps compares what one more step costs a run with a start of the bare
// runtime, and says what a run costs beside its steps.
func steps(ctx context.Context, b *bench) error {
	one, err := b.write("steps-1.yaml", taskRun(1))
	if err != nil {
		return err
	}
	many, err := b.write("steps-many.yaml", taskRun(1+extraSteps))
	if err != nil {
		return err
	}
	bare, err := b.bare(ctx)
	if err != nil {
		return err
	}
	all, err := b.series(ctx,
		b.runs(one), b.runs(many), bare.loop(extraSteps),
	)
	if err != nil {
		return err
	}
	var wall, cpu []float64
	for i := range all[0] {
		wall = append(wall, (all[1][i].wall-all[0][i].wall)/extraSteps)
		cpu = append(cpu, (all[1][i].cpu-all[0][i].cpu)/extraSteps)
	}
	runc := medians(all[2])
	b.compare("one more empty step, wall", seconds, median(wall), "runc run, in a loop", runc.wall/extraSteps, "< 1.5")
	b.compare("one more empty step, CPU", seconds, median(cpu), "runc run, in a loop", runc.cpu/extraSteps, "")
	first := medians(all[0])
	b.compare("a TaskRun of one empty step, wall", seconds, first.wall, "runc run", runc.wall/extraSteps, "")
	b.compare("a TaskRun of one empty step, CPU", seconds, first.cpu, "runc run", runc.cpu/extraSteps, "")
	b.record("a TaskRun of one empty step, largest process", bytesUnit, first.peak, "")
	return nil
}

// pipelineTasks is the length of the pipeline.
const pipelineTasks = 20

// pipeline measures a pipeline of empty tasks, one after the other and as many
// at once as there are processors.
func pipeline(ctx context.Context, b *bench) error {
	file, err := b.write("pipeline.yaml", pipelineRun(pipelineTasks))
	if err != nil {
		return err
	}
	bare, err := b.bare(ctx)
	if err != nil {
		return err
	}
	m, err := b.alternate(ctx, b.runs(file, "--parallel", "1"), b.runs(file), bare.loop(pipelineTasks))
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%d empty tasks", pipelineTasks)
	against := fmt.Sprintf("%d × runc run", pipelineTasks)
	b.compare(what+" one by one, wall", seconds, m[0].wall, against, m[2].wall, "")
	b.compare(what+" as parallel as processors, wall", seconds, m[1].wall, against, m[2].wall, "")
	b.compare(what+" as parallel as processors, CPU", seconds, m[1].cpu, against, m[2].cpu, "")
	b.record("per task, one by one, wall", seconds, m[0].wall/pipelineTasks, "")
	b.record("per task, as parallel as processors, wall", seconds, m[1].wall/pipelineTasks, "")
	return nil
}

// runs is `assay run` of a file.
func (b *bench) runs(file string, flags ...string) side {
	return func(ctx context.Context, _ int) (sample, error) {
		_, s, err := b.command(ctx, b.assay, append([]string{"run", "--quiet", "-f", file}, flags...)...)
		return s, err
	}
}

// loop starts the runtime n times.
func (r *bareRuntime) loop(n int) side {
	return func(ctx context.Context, round int) (sample, error) {
		before, began := childrenCPU(), time.Now()
		for i := range n {
			if err := r.run(ctx, fmt.Sprintf("%d-%d", round, i)); err != nil {
				return sample{}, err
			}
		}
		return sample{wall: time.Since(began).Seconds(), cpu: childrenCPU() - before}, nil
	}
}

func childrenCPU() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

func taskRun(n int) string {
	return `apiVersion: tekton.dev/v1
kind: TaskRun
metadata:
  generateName: bench-
  annotations:
    assay.dev/network: none
spec:
  taskSpec:
` + emptySteps("    ", n)
}

func pipelineRun(n int) string {
	var s strings.Builder
	s.WriteString(`apiVersion: tekton.dev/v1
kind: PipelineRun
metadata:
  generateName: bench-
spec:
  pipelineSpec:
    tasks:
`)
	for i := range n {
		fmt.Fprintf(&s, "    - name: task-%d\n      taskSpec:\n        metadata:\n          annotations:\n            assay.dev/network: none\n%s", i, emptySteps("        ", 1))
	}
	return s.String()
}

func emptySteps(indent string, n int) string {
	var s strings.Builder
	s.WriteString(indent + "steps:\n")
	for i := range n {
		fmt.Fprintf(&s, "%[1]s- name: step-%[2]d\n%[1]s  image: assay.dev/image/task\n%[1]s  command: [/bin/true]\n", indent, i)
	}
	return s.String()
}
