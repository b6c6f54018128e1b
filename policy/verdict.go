package policy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/policy/spec"
)

// Outcome is what a verdict comes to. Its zero value is no outcome.
type Outcome string

const (
	Pass Outcome = "pass"
	Fail Outcome = "fail"
	// Unchecked means that something the rules asked has no known answer: a registry
	// did not answer, or may not be asked. What the rules said without it is in the
	// verdict, and none of it makes a pass.
	Unchecked Outcome = "unchecked"
)

// Verdict is what a policy concluded about one image. Evaluate returns one only
// if every rule ran to its end.
type Verdict struct {
	Result        Outcome    `json:"result"`
	Image         string     `json:"image"` // repo@sha256:…
	Component     string     `json:"component,omitempty"`
	Policy        Identified `json:"policy"`
	EffectiveTime time.Time  `json:"effectiveTime"`
	// Run is the run whose evidence the results below speak of, empty when the
	// image came with none. When several runs made the image it is the first
	// that passes, or else the one with the fewest violations.
	Run        string       `json:"run,omitempty"`
	Runs       []RunVerdict `json:"runs,omitempty"`
	Violations []Result     `json:"violations"`
	Warnings   []Result     `json:"warnings"`
	Successes  []Result     `json:"successes"`
	Notes      []Result     `json:"notes,omitempty"`
	Questions  []Answer     `json:"questions"`
	// Failures are the calls of ec.* functions whose answer is not known, with the
	// cause. With any the Result is Unchecked.
	Failures []builtin.Failure `json:"failures,omitempty"`
	// NotFound are those that a registry answered: there is no such thing. Rules
	// have taken that into account.
	NotFound []builtin.Failure `json:"notFound,omitempty"`
	// Hosts are the registries beside the image's own that rules asked, or would
	// have asked had they been allowed to.
	Hosts []string `json:"hosts,omitempty"`
	// BackDated says that EffectiveTime lies before the judgement (Context.AllowPast),
	// which switches off newer rules.
	BackDated bool `json:"backDated,omitempty"`
	// Digests are the manifests that were judged: the image and what belongs to
	// it. The releaser copies these and nothing else.
	Digests []string `json:"digests"`
	// Destination is where the image may go; empty when none was asked for.
	Destination string `json:"destination,omitempty"`
	// Expiry is when the verdict has to be asked for again: after its validity,
	// or at the first change that the policy already announces.
	Expiry time.Time `json:"expiry"`
}

// Identified says which policy it was.
type Identified struct {
	Name string `json:"name,omitempty"`
	// Digest covers rules, data and configuration; see Policy.Digest.
	Digest string `json:"digest"`
}

// RunVerdict is how the policy judged one of the runs that made the image.
type RunVerdict struct {
	ID     string   `json:"id"`
	Result Outcome  `json:"result"`
	Codes  []string `json:"violations,omitempty"` // codes of its violations
}

// Answer is what the rules that carry a question came to.
type Answer struct {
	Question Question `json:"question"`
	// Answer is yes when all of them passed, no when one did not, unknown when
	// none was evaluated or one could not tell.
	Answer   string   `json:"answer"`
	Messages []string `json:"messages,omitempty"`
	Codes    []string `json:"codes,omitempty"`
}

// Answers.
const (
	Yes     = "yes"
	No      = "no"
	Unknown = "unknown"
)

// Result is what one rule said, or that it passed. As JSON it has Conforma's
// form, {"msg", "metadata"}.
type Result struct {
	Code        string
	Msg         string
	Terms       []string
	Title       string
	Description string
	Solution    string
	Severity    string
	EffectiveOn string
	Collections []string
	DependsOn   []string
	Question    Question
	// Since is the day that the rule is in force from, as its annotations or the
	// result say; empty: always. EffectiveOn is dropped once it is old news.
	Since string
	// Details are the keys of the rule's own that have no meaning here, such as
	// task and digests.
	Details map[string]any

	termList bool // the rule gave a list, so the report has one
}

// metadata is the result's metadata as Conforma reports it; ours is the
// question, and the details stay as the rule gave them.
func (r Result) metadata() map[string]any {
	m := map[string]any{}
	maps.Copy(m, r.Details)
	set := func(k, v string) {
		if v != "" {
			m[k] = v
		}
	}
	set("code", r.Code)
	set("title", r.Title)
	set("description", r.Description)
	set("solution", r.Solution)
	set("severity", r.Severity)
	set("effective_on", r.EffectiveOn)
	set("question", string(r.Question))
	set("since", r.Since)
	if len(r.Collections) > 0 {
		m["collections"] = r.Collections
	}
	if len(r.DependsOn) > 0 {
		m["depends_on"] = r.DependsOn
	}
	if r.termList || len(r.Terms) > 1 {
		m["term"] = r.Terms
	} else if len(r.Terms) == 1 {
		m["term"] = r.Terms[0]
	}
	return m
}

type resultJSON struct {
	Msg      string         `json:"msg"`
	Metadata map[string]any `json:"metadata,omitempty"`
}

// MarshalJSON writes Conforma's form.
func (r Result) MarshalJSON() ([]byte, error) {
	return json.Marshal(resultJSON{Msg: r.Msg, Metadata: r.metadata()})
}

// UnmarshalJSON reads what MarshalJSON wrote. It fails on a metadata key whose
// value has the wrong type.
func (r *Result) UnmarshalJSON(raw []byte) error {
	var j resultJSON
	if err := json.Unmarshal(raw, &j); err != nil {
		return fmt.Errorf("parsing result: %w", err)
	}
	parsed, err := newResult(j.Msg, j.Metadata)
	if err != nil {
		return fmt.Errorf("parsing result: %w", err)
	}
	m := parsed.Details
	if parsed.Title, err = text(m, "title"); err != nil {
		return fmt.Errorf("parsing result: %w", err)
	}
	if parsed.Description, err = text(m, "description"); err != nil {
		return fmt.Errorf("parsing result: %w", err)
	}
	if parsed.Solution, err = text(m, "solution"); err != nil {
		return fmt.Errorf("parsing result: %w", err)
	}
	if parsed.Since, err = text(m, "since"); err != nil {
		return fmt.Errorf("parsing result: %w", err)
	}
	q, err := text(m, "question")
	if err != nil {
		return fmt.Errorf("parsing result: %w", err)
	}
	parsed.Question = Question(q)
	if parsed.DependsOn, err = texts(m, "depends_on"); err != nil {
		return fmt.Errorf("parsing result: %w", err)
	}
	for _, k := range []string{"title", "description", "solution", "question", "depends_on", "since"} {
		delete(m, k)
	}
	if len(m) == 0 {
		parsed.Details = nil
	}
	*r = parsed
	return nil
}

// newResult reads a rule's result: a message and the keys beside it. Keys with
// a meaning must have their type; a code that is a number would escape every
// filter.
func newResult(msg string, keys map[string]any) (Result, error) {
	r := Result{Msg: msg, Details: map[string]any{}}
	maps.Copy(r.Details, keys)
	delete(r.Details, "msg")
	var err error
	for key, to := range map[string]*string{"code": &r.Code, "severity": &r.Severity, "effective_on": &r.EffectiveOn} {
		if *to, err = text(keys, key); err != nil {
			return Result{}, err
		}
		delete(r.Details, key)
	}
	if r.Terms, err = texts(keys, "term"); err != nil {
		return Result{}, err
	}
	_, r.termList = keys["term"].([]any)
	delete(r.Details, "term")
	if r.Collections, err = texts(keys, "collections"); err != nil {
		return Result{}, err
	}
	delete(r.Details, "collections")
	if r.EffectiveOn != "" {
		if _, err := spec.ParseTime(r.EffectiveOn); err != nil {
			return Result{}, fmt.Errorf("effective_on: %w", err)
		}
	}
	return r, nil
}

func sortResults(rs []Result) {
	term := func(r Result) string {
		if len(r.Terms) == 0 {
			return ""
		}
		return r.Terms[0]
	}
	slices.SortStableFunc(rs, func(a, b Result) int {
		return cmp.Or(cmp.Compare(a.Code, b.Code), cmp.Compare(term(a), term(b)), cmp.Compare(a.Msg, b.Msg))
	})
}
