package policytool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"assay.dev/assay/policy"
	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/policy/source"
)

// CheckOptions say how a policy is checked. The zero value checks as of now.
type CheckOptions struct {
	// At is the day as of which items have expired. Default: now.
	At time.Time
	// Expiring is how long before its end an item is told of. Default: 30 days.
	Expiring time.Duration
	// Program is this program's version, for messages.
	Program string
	// Name is what findings call a configuration that is no file.
	Name string
}

// CheckReport is what a check found.
type CheckReport struct {
	Policy   string          `json:"policy"`
	Digest   string          `json:"digest,omitempty"` // of one that loads
	Sources  []CheckedSource `json:"sources"`
	Rules    int             `json:"rules"`
	Findings []Finding       `json:"findings"`
}

// CheckedSource is a source as it was read.
type CheckedSource struct {
	Address string `json:"address"`
	Pinned  string `json:"pinned"`
	Digest  string `json:"digest"`
}

// Count is how many findings have a severity.
func (r *CheckReport) Count(s Severity) int {
	n := 0
	for i := range r.Findings {
		if r.Findings[i].Severity == s {
			n++
		}
	}
	return n
}

// WriteText writes the report as a person reads it, notes only if they are wanted.
func (r *CheckReport) WriteText(w io.Writer, notes bool) error {
	for i := range r.Findings {
		if f := &r.Findings[i]; notes || f.Severity != Note {
			if err := f.Write(w); err != nil {
				return err
			}
		}
	}
	hint := ""
	if n := r.Count(Note); n > 0 && !notes {
		hint = " (--notes shows them)"
	}
	_, err := fmt.Fprintf(w, "%s: %d rules in %d sources; %d errors, %d warnings, %d notes%s\n",
		r.Policy, r.Rules, len(r.Sources), r.Count(Error), r.Count(Warning), r.Count(Note), hint)
	return err
}

// Check says what is wrong with a policy, which is named and read as policy.Load does.
// Wrong configurations, rules and data are findings; an error means that something could
// not be read, and nothing is known of the policy.
func Check(ctx context.Context, ref string, opts policy.Options, o CheckOptions) (*CheckReport, error) {
	if o.At.IsZero() {
		o.At = time.Now()
	}
	if o.Expiring == 0 {
		o.Expiring = 30 * 24 * time.Hour
	}
	if o.Name == "" {
		o.Name = "policy"
	}
	r := &CheckReport{Policy: o.Name, Sources: []CheckedSource{}, Findings: []Finding{}}
	files, err := policy.ReadFiles(ctx, ref, opts)
	if err != nil {
		return r.unreadable(ref, err)
	}
	c := &checker{CheckOptions: o, report: r, places: placesIn(files.Configs, o.Name), files: files}
	for _, t := range files.Sources {
		r.Sources = append(r.Sources, CheckedSource{t.Address, t.Pinned, t.Digest})
	}
	for i := range files.Groups {
		g := &files.Groups[i]
		if g.Err != nil {
			return nil, fmt.Errorf("source %d: %w", g.Number, g.Err)
		}
		c.group(g)
	}
	c.old()
	if r.Count(Error) == 0 {
		p, err := policy.Load(ctx, ref, opts)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			c.add(c.places.message(Finding{Severity: Error, Code: "load", Message: err.Error()}))
		default:
			r.Digest = p.Digest()
			c.outweighed(p)
		}
	}
	sortFindings(r.Findings)
	return r, nil
}

// unreadable tells a configuration that is wrong from one that is not there.
func (r *CheckReport) unreadable(ref string, err error) (*CheckReport, error) {
	msg := err.Error()
	wrong := false
	for _, what := range []string{"parsing policy configuration: ", "reading policy configuration: ", "it extends itself", "extends is nested", "more than one configuration"} {
		wrong = wrong || strings.Contains(msg, what)
	}
	if !wrong {
		return nil, err
	}
	f := Finding{Severity: Error, Code: "configuration", Message: msg}
	for _, what := range []string{"parsing policy configuration: ", "reading policy configuration: "} {
		if i := strings.Index(msg, what); i >= 0 {
			f.Message = msg[i+len(what):]
		}
	}
	f.Remedy = "docs/policy.md describes the fields"
	var configs []policy.File
	if path, err := source.Path("", ref); err == nil {
		for _, name := range []string{path, path + "/policy.yaml", path + "/policy.yml", path + "/policy.json"} {
			if raw, err := source.ReadFile(name, 4<<20); err == nil {
				configs = []policy.File{{Path: name, Bytes: raw}}
				break
			}
		}
	}
	if configs == nil && strings.Contains(ref, "\n") {
		configs = []policy.File{{Path: r.Policy, Bytes: []byte(ref)}}
	}
	r.Findings = append(r.Findings, placesIn(configs, r.Policy).message(f))
	return r, nil
}

// checker checks one policy.
type checker struct {
	CheckOptions
	report *CheckReport
	places *places
	files  *policy.Files
	// rules are those of all sources.
	rules []ruleFacts
}

func (c *checker) add(list ...Finding) { c.report.Findings = append(c.report.Findings, list...) }

// group checks one source.
func (c *checker) group(g *policy.SourceFiles) {
	content := map[string][]byte{}
	modules := map[string]*ast.Module{}
	broken := false
	for _, f := range g.Rules {
		content[f.Path] = f.Bytes
		m, err := parseModule(f.Path, f.Bytes)
		var errs ast.Errors
		switch {
		case errors.As(err, &errs):
			c.add(compilerErrors(errs, Error, content, c.Program)...)
		case err != nil:
			c.add(Finding{Severity: Error, Code: "parse", File: f.Path, Message: err.Error()})
		case m == nil:
			err = errors.New("empty")
			c.add(Finding{Severity: Error, Code: "parse", File: f.Path, Message: "the file is empty", Remedy: "remove it"})
		default:
			modules[f.Path] = m
		}
		broken = broken || err != nil
	}
	data := c.data(g)
	rules := c.inspect(g, modules, content)
	c.rules = append(c.rules, rules...)
	c.report.Rules += len(rules)
	if broken {
		return // what is missing would look undefined
	}
	c.items(g, rules)
	compiler := ast.NewCompiler().WithCapabilities(builtin.Capabilities()).SetErrorLimit(maxErrors)
	if compiler.Compile(modules); compiler.Failed() {
		c.add(compilerErrors(compiler.Errors, Error, content, c.Program)...)
		return
	}
	strict := ast.NewCompiler().WithCapabilities(builtin.Capabilities()).WithStrict(true).SetErrorLimit(maxErrors)
	if strict.Compile(modules); strict.Failed() {
		c.add(compilerErrors(strict.Errors, Warning, content, c.Program)...)
	}
	if data != nil {
		c.reads(g, usesOf(compiler), data, content)
	}
}

// data reads a source's data; nil where that is wrong.
func (c *checker) data(g *policy.SourceFiles) map[string]any {
	out := map[string]any{}
	ok := true
	for _, f := range g.Data {
		m, err := policy.ParseData(f)
		if err == nil {
			if err = mergeData(out, m, "data."); err != nil {
				err = fmt.Errorf("%w; a key can have one value only", err)
			}
		}
		if err != nil {
			ok = false
			found := Finding{Severity: Error, Code: "data", File: f.Path, Source: g.Number, Message: err.Error()}
			if l := yamlLine.FindStringSubmatch(err.Error()); l != nil {
				var n int
				if _, err := fmt.Sscan(l[1], &n); err == nil {
					found = found.at(f.Path, f.Bytes, n, 0)
				}
			}
			c.add(found)
		}
	}
	if !ok {
		return nil
	}
	out[ruleDataPlaces[0]] = ruleDataOf(g.Source.RuleData)
	config := map[string]any{"policy": map[string]any{"when_ns": 0}, "default_sigstore_opts": map[string]any{}}
	if own, isMap := out["config"].(map[string]any); isMap {
		maps.Copy(config, own)
	}
	out["config"] = config
	return out
}

// reads tells of data that rules read and nobody gives.
func (c *checker) reads(g *policy.SourceFiles, u *uses, data map[string]any, content map[string][]byte) {
	told := map[string]bool{}
	for _, x := range sortUses(u.data) {
		path := strings.Split(x.Name, "\x00")
		if path[0] == "config" || path[0] == ruleDataPlaces[1] || path[0] == ruleDataPlaces[2] {
			continue // the evaluation's, and where rules look in turn
		}
		name := absent(data, path)
		if name == "" || told[name] {
			continue
		}
		told[name] = true
		c.add(Finding{
			Severity: Warning, Code: "data-absent", Source: g.Number, Message: "no data gives " + name,
			Remedy: "what reads it is undefined, or has a default; add the data to the source's data, or remove the rule",
		}.at(x.File, content[x.File], x.Line, x.column))
	}
	for _, x := range sortUses(u.ruleData) {
		if told["\x00"+x.Name] || hasRuleData(data, x.Name) {
			continue
		}
		told["\x00"+x.Name] = true
		c.add(Finding{
			Severity: Note, Code: "rule-data-absent", Source: g.Number, Message: fmt.Sprintf("the rule data %q is not given, so the rules' own default holds", x.Name),
			Remedy: "to choose, set it in the source's ruleData",
		}.at(x.File, content[x.File], x.Line, x.column))
	}
}

// old checks the configuration of former times, which is for all sources.
func (c *checker) old() {
	old := c.files.Spec.Configuration
	if old == nil {
		return
	}
	c.add(c.places.message(Finding{
		Severity: Warning, Code: "deprecated", Message: "configuration is the old way to include and exclude rules, and counts only for sources without config",
		Remedy: "write include and exclude in each source's config",
	}))
	for list, items := range map[string][]string{"configuration.include": old.Include, "configuration.exclude": old.Exclude} {
		for _, item := range items {
			c.item(0, list, item, item, c.rules)
		}
	}
	for _, name := range old.Collections {
		c.item(0, "configuration.collections", name, "@"+name, c.rules)
	}
}

// outweighed tells of include items that name rules of which exclude items leave none.
func (c *checker) outweighed(p *policy.Policy) {
	named, kept := map[string]bool{}, map[string]bool{}
	key := func(source int, item string) string { return fmt.Sprint(source, " ", item) }
	for _, r := range p.Rules(c.At) {
		for _, item := range r.By {
			named[key(r.Source, item)] = true
			if r.Included {
				kept[key(r.Source, item)] = true
			}
		}
	}
	for i := range c.files.Groups {
		g := &c.files.Groups[i]
		if g.Source.Config == nil {
			continue
		}
		for _, item := range g.Source.Config.Include {
			if k := key(g.Number, item); named[k] && !kept[k] {
				c.add(c.places.item(Finding{
					Severity: Warning, Code: "item-outweighed", Source: g.Number, Message: fmt.Sprintf("the include item %q selects nothing: exclude items outweigh it for every rule it names", item),
					Remedy: "remove it, or the exclude items; `assay policy show` lists which",
				}, g.Number, "config.include", item))
			}
		}
	}
}
