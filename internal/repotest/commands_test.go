package repotest_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"assay.dev/assay/internal/assayd"
	"assay.dev/assay/internal/cli"
	"assay.dev/assay/internal/ec"
	"assay.dev/assay/internal/logserver"
	"assay.dev/assay/internal/observer"
	"assay.dev/assay/provenance"
)

var update = flag.Bool("update", false, "write docs/commands.md anew")

// TestCommands: docs/commands.md and docs/settings.md are made of the command
// trees and of the table of settings, so that they cannot say anything else.
func TestCommands(t *testing.T) {
	r, err := files()
	if err != nil {
		t.Fatal(err)
	}
	commands, err := reference(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]byte{"commands.md": commands, "settings.md": settings()} {
		file := filepath.Join(r.root, "docs", name)
		if *update {
			if err := os.WriteFile(file, want, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(got), string(want)); diff != "" {
			t.Errorf("docs/%s is stale; run `go test ./internal/repotest -run TestCommands -update` (-file +code):\n%s", name, diff)
		}
	}
}

// settings writes the page about chains-config.
func settings() []byte {
	var b bytes.Buffer
	b.WriteString("# Settings of the observer\n\n")
	b.WriteString("<!-- Made of package provenance: `go test ./internal/repotest -run TestCommands -update` -->\n\n")
	b.WriteString("Keys of the ConfigMap `chains-config`, or of the file given by `assayd observer --config` and\n")
	b.WriteString("`assay attest --config`. All values are strings. An unknown key or word is refused, and so is a back\n")
	b.WriteString("end or key that is used and not located.\n")
	for _, part := range []struct {
		title string
		own   bool
	}{{"Tekton Chains' keys", false}, {"Ours", true}} {
		fmt.Fprintf(&b, "\n## %s\n\n| key | values | default | meaning |\n| --- | --- | --- | --- |\n", part.title)
		for _, k := range provenance.Keys() {
			if k.Own != part.own {
				continue
			}
			def := ""
			if k.Default != "" {
				def = "`" + k.Default + "`"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", k.Key, strings.ReplaceAll(k.Values, "|", "\\|"), def, k.Meaning)
		}
	}
	return b.Bytes()
}

// reference writes the page.
func reference(ctx context.Context) ([]byte, error) {
	var b bytes.Buffer
	root := cli.Root()
	b.WriteString("# Commands\n\n")
	b.WriteString("<!-- Made of the command tree: `go test ./internal/repotest -run TestCommands -update` -->\n\n")
	b.WriteString(prose(root.Long) + "\n\n")
	b.WriteString("Flags of every command:\n\n")
	table(&b, root.PersistentFlags())
	var list func(c *cobra.Command) error
	list = func(c *cobra.Command) error {
		for _, s := range c.Commands() {
			if s.Hidden || s.Name() == "help" {
				continue
			}
			// A command that only holds others runs to refuse what is none of them.
			if s.Runnable() && (!s.HasSubCommands() || s.Example != "") {
				if err := describe(ctx, &b, s); err != nil {
					return err
				}
			}
			if err := list(s); err != nil {
				return err
			}
		}
		return nil
	}
	if err := list(root); err != nil {
		return nil, err
	}
	d := assayd.Command()
	fmt.Fprintf(&b, "# Commands of assayd\n\n%s. A program of its own, since it links Kubernetes' client.\n\n", d.Short)
	if err := list(d); err != nil {
		return nil, err
	}
	e := ec.Root()
	for _, s := range e.Commands() {
		if s.Name() == "opa" {
			e.RemoveCommand(s) // OPA's own command line, which it documents
		}
	}
	fmt.Fprintf(&b, "# Commands of ec\n\n%s. A program of its own, since it brings OPA's commands along (`ec opa`).\n\nFlags of every command:\n\n", e.Short)
	table(&b, e.PersistentFlags())
	if err := list(e); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func describe(ctx context.Context, b *bytes.Buffer, c *cobra.Command) error {
	fmt.Fprintf(b, "## %s\n\n%s.\n\n", c.CommandPath(), strings.TrimSuffix(c.Short, "."))
	if c.DisableFlagParsing {
		// These are read by the observer's program.
		help, err := observerHelp(ctx, strings.Fields(c.CommandPath())[1:])
		if err != nil {
			return err
		}
		fmt.Fprintf(b, "```text\n%s\n```\n\n", strings.TrimSpace(help))
		return nil
	}
	fmt.Fprintf(b, "```text\n%s\n```\n\n", usage(c))
	if c.Long != "" {
		b.WriteString(prose(c.Long) + "\n\n")
	}
	if c.Example != "" {
		fmt.Fprintf(b, "```sh\n%s\n```\n\n", dedent(c.Example))
	}
	table(b, c.LocalNonPersistentFlags())
	return nil
}

func usage(c *cobra.Command) string {
	line := c.CommandPath()
	if _, args, ok := strings.Cut(c.Use, " "); ok {
		line += " " + args
	}
	return line
}

func observerHelp(ctx context.Context, command []string) (string, error) {
	var out, errw bytes.Buffer
	var code int
	switch args := append(command[1:len(command):len(command)], "--help"); command[0] {
	case "attest":
		code = observer.MainAttest(ctx, args, &out, &errw)
	case "key":
		code = observer.MainKey(args, &out, &errw)
	case "doctor":
		code = assayd.Main(ctx, append([]string{"doctor"}, args...), &out, &errw)
	case "ec":
		code = ec.Main(args, &out, &errw)
	case "log":
		code = logserver.Main(ctx, args, &out, &errw)
	default:
		return "", fmt.Errorf("command %v passes its flags on to a program that this test does not know", command)
	}
	if code != 0 {
		return "", fmt.Errorf("%v --help: exit %d: %s", command, code, errw.String())
	}
	return out.String(), nil
}

// table lists flags; nothing if there are none.
func table(b *bytes.Buffer, flags *pflag.FlagSet) {
	rows := ""
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" || f.Name == "version" {
			return
		}
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		def := ""
		switch f.DefValue {
		case "", "[]", "false", "0":
		default:
			def = "`" + f.DefValue + "`"
		}
		rows += fmt.Sprintf("| %s | %s | %s |\n", name, def, strings.ReplaceAll(f.Usage, "|", `\|`))
	})
	if rows != "" {
		fmt.Fprintf(b, "| flag | default | |\n| --- | --- | --- |\n%s\n", rows)
	}
}

// prose keeps indented lines, which are tables and trees, as they are.
func prose(s string) string {
	var out []string
	code := false
	for _, line := range strings.Split(strings.TrimSpace(s), "\n") {
		indented := strings.HasPrefix(line, "  ") || strings.HasPrefix(line, "\t")
		if indented != code && (indented || strings.TrimSpace(line) != "") {
			out = append(out, map[bool]string{true: "```text", false: "```"}[indented])
			code = indented
		}
		out = append(out, line)
	}
	if code {
		out = append(out, "```")
	}
	// $NAME and <x> mean something in Markdown or HTML.
	return strings.ReplaceAll(strings.Join(out, "\n"), "<", "&lt;")
}

func dedent(s string) string {
	lines := strings.Split(strings.Trim(s, "\n"), "\n")
	for i, l := range lines {
		lines[i] = strings.TrimPrefix(l, "  ")
	}
	return strings.Join(lines, "\n")
}
