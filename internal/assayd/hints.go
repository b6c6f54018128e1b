package assayd

import (
	"fmt"

	"assay.dev/assay/hint"
	"assay.dev/assay/provenance"
)

// problems implements watch.Config.Hints: what is malformed about a run's type
// hints, a line each.
func problems(in provenance.Input) []string {
	trs := in.Children
	if in.TaskRun != nil {
		trs = append(trs[:len(trs):len(trs)], in.TaskRun)
	}
	var out []string
	for _, p := range hint.Problems(in.PipelineRun, trs...) {
		if p.Effect != hint.Ignored { // that is no alarm
			out = append(out, fmt.Sprint(p))
		}
	}
	return out
}
