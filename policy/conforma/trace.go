package conforma

import (
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/print"
)

// TraceLine is one step of an evaluation, or one line that a rule prints.
type TraceLine struct {
	// Rule is the innermost rule that is being evaluated, such as data.main.deny; ""
	// outside of rules.
	Rule string
	Text string
	// Printed says that the rule's print() made the line.
	Printed bool
}

// tracer follows one evaluation, which is one goroutine.
type tracer struct {
	to    func(TraceLine)
	depth map[uint64]int
	rule  map[uint64]string
	last  string
}

var (
	_ topdown.QueryTracer = (*tracer)(nil)
	_ print.Hook          = (*tracer)(nil)
)

// tracing are the options of an evaluation that tells its steps.
func tracing(to func(TraceLine)) []rego.EvalOption {
	if to == nil {
		return nil
	}
	t := &tracer{to: to, depth: map[uint64]int{}, rule: map[uint64]string{}}
	return []rego.EvalOption{rego.EvalQueryTracer(t), rego.EvalPrintHook(t)}
}

func (*tracer) Enabled() bool { return true }

func (*tracer) Config() topdown.TraceConfig { return topdown.TraceConfig{PlugLocalVars: true} }

func (t *tracer) TraceEvent(e topdown.Event) {
	rule, isRule := e.Node.(*ast.Rule)
	if _, known := t.rule[e.QueryID]; !known {
		t.rule[e.QueryID], t.depth[e.QueryID] = t.rule[e.ParentID], t.depth[e.ParentID]+1
	}
	if isRule && e.Op == topdown.EnterOp {
		t.rule[e.QueryID], t.depth[e.QueryID] = rule.Ref().GroundPrefix().String(), 0
	}
	t.last = t.rule[e.QueryID]
	node := ""
	switch {
	case isRule:
		node = rule.Ref().GroundPrefix().String()
	case e.Node != nil:
		node = fmt.Sprint(e.Node)
	}
	text := strings.Repeat("| ", min(t.depth[e.QueryID], 32)) + strings.TrimSpace(string(e.Op)+" "+node+" "+e.Message)
	t.to(TraceLine{Rule: t.last, Text: text})
}

// Print never fails.
func (t *tracer) Print(c print.Context, msg string) error {
	t.to(TraceLine{Rule: t.last, Text: fmt.Sprintf("%v: %s", c.Location, msg), Printed: true})
	return nil
}
