package repotest_test

import (
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/spf13/pflag"

	"assay.dev/assay/internal/cli"
)

// page is a Markdown file: its prose, and its fenced blocks.
type page struct {
	name   string
	prose  string // inline code and fenced blocks left out
	blocks []block
	slugs  map[string]bool // of its headings
}

type block struct {
	info string
	line int // of its first line of text
	text []string
}

var inlineCode = regexp.MustCompile("`[^`]*`")

func pages(t *testing.T) []*page {
	t.Helper()
	r, err := files()
	if err != nil {
		t.Fatal(err)
	}
	var out []*page
	for _, name := range r.names {
		if path.Ext(name) != ".md" || strings.Contains(name, "testdata/") {
			continue
		}
		content, err := os.ReadFile(filepath.Join(r.root, name))
		if err != nil {
			t.Fatal(err)
		}
		p := &page{name: name, slugs: map[string]bool{}}
		var in *block
		for i, line := range strings.Split(string(content), "\n") {
			fence := strings.TrimSpace(line)
			switch {
			case in != nil && fence == "```":
				p.blocks = append(p.blocks, *in)
				in = nil
			case in != nil:
				in.text = append(in.text, line)
			case strings.HasPrefix(fence, "```"):
				in = &block{info: strings.TrimPrefix(fence, "```"), line: i + 2}
			default:
				if strings.HasPrefix(line, "#") {
					p.slugs[slug(strings.TrimLeft(line, "# "))] = true
				}
				p.prose += inlineCode.ReplaceAllString(line, "") + "\n"
			}
		}
		if in != nil {
			t.Errorf("%s:%d: a fenced block that never ends", name, in.line-1)
		}
		out = append(out, p)
	}
	return out
}

// slug is the anchor that forges give a heading.
func slug(heading string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(strings.TrimSpace(heading)) {
		switch {
		case unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_':
			b.WriteRune(r)
		case r == ' ':
			b.WriteByte('-')
		}
	}
	return b.String()
}

var link = regexp.MustCompile(`\]\(([^)\s]+)(?:\s+"[^"]*")?\)`)

// TestLinks: every relative link leads to a file of the repository, and to a
// heading where it names one.
func TestLinks(t *testing.T) {
	r, err := files()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*page{}
	for _, p := range pages(t) {
		all[p.name] = p
	}
	for _, p := range all {
		for _, m := range link.FindAllStringSubmatch(p.prose, -1) {
			target := m[1]
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			file, anchor, _ := strings.Cut(target, "#")
			to := p.name
			if file != "" {
				to = path.Join(path.Dir(p.name), file)
				if _, err := os.Stat(filepath.Join(r.root, to)); err != nil || strings.HasPrefix(to, "..") {
					t.Errorf("%s: the link %s leads nowhere: mend it or write the page", p.name, target)
					continue
				}
			}
			if linked := all[to]; anchor != "" && linked != nil && !linked.slugs[anchor] {
				t.Errorf("%s: the link %s leads to no heading of %s", p.name, target, to)
			}
		}
	}
}

// ours begins a command of ours in a document.
var ours = regexp.MustCompile(`^(?:\$ )?(?:sudo )?(?:[A-Z_]+=\S+ )*(?:\./)?(?:bin/)?assay( .*)?$`)

// separator ends one command of a line.
var separator = regexp.MustCompile(`\s*(?:\|\||&&|[|;&<>]|\d>|#\s).*$`)

// TestDocumentedCommands: the commands and flags of ours that documents show
// exist. It runs nothing.
func TestDocumentedCommands(t *testing.T) {
	n := 0
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.info != "console" && b.info != "sh" && b.info != "" {
				continue
			}
			for i := 0; i < len(b.text); i++ {
				at, line := b.line+i, strings.TrimSpace(b.text[i])
				for strings.HasSuffix(line, `\`) && i+1 < len(b.text) {
					i++
					line = strings.TrimSuffix(line, `\`) + " " + strings.TrimSpace(b.text[i])
				}
				m := ours.FindStringSubmatch(line)
				if m == nil || b.info == "console" && !strings.HasPrefix(line, "$ ") {
					continue
				}
				n++
				checkCommand(t, p.name, at, strings.Fields(separator.ReplaceAllString(m[1], "")))
			}
		}
	}
	if n < 10 {
		t.Errorf("only %d commands found in the documents: the test looks for the wrong thing", n)
	}
}

func checkCommand(t *testing.T, page string, line int, args []string) {
	t.Helper()
	root := cli.Root()
	root.SetOut(io.Discard)
	root.InitDefaultHelpFlag()
	root.InitDefaultVersionFlag()
	root.InitDefaultHelpCmd()
	cmd, rest, err := root.Find(args)
	if err != nil || len(args) > 0 && cmd == root && !strings.HasPrefix(args[0], "-") {
		t.Errorf("%s:%d: `assay %s`: no such command", page, line, strings.Join(args, " "))
		return
	}
	if cmd.DisableFlagParsing {
		return // another program reads them
	}
	cmd.InitDefaultHelpFlag()
	for _, a := range rest {
		if a == "--" {
			break
		}
		name, long := strings.CutPrefix(a, "--")
		name, _, _ = strings.Cut(name, "=")
		var f *pflag.Flag
		switch {
		case long:
			if f = cmd.Flags().Lookup(name); f == nil {
				f = cmd.InheritedFlags().Lookup(name)
			}
		case len(a) > 1 && a[0] == '-':
			if f = cmd.Flags().ShorthandLookup(a[1:2]); f == nil {
				f = cmd.InheritedFlags().ShorthandLookup(a[1:2])
			}
		default:
			continue
		}
		if f == nil {
			t.Errorf("%s:%d: `assay %s`: %s has no flag %s", page, line, strings.Join(args, " "), cmd.CommandPath(), a)
		}
	}
}
