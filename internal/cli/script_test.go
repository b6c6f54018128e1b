package cli_test

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"assay.dev/assay/internal/testrig"
)

var update = flag.Bool("update", false, "write what commands print into the scripts")

// TestScripts runs each testdata/script/*.txtar with the real binaries in a home
// of its own.
//
// Conditions: [root]. Commands: `image NAME` keeps in $NAME the first attested
// image that the last standard output names. $KEY is the home's public key.
func TestScripts(t *testing.T) {
	bin := testrig.Binaries(t)
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		UpdateScripts:       *update,
		Setup: func(env *testscript.Env) error {
			// Not below the script's folder: other users must be able to pass through.
			dir, err := os.MkdirTemp("", "assay-script-")
			if err != nil {
				return err
			}
			if err := os.Chmod(dir, 0o755); err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(dir) })
			env.Setenv("ASSAY_HOME", filepath.Join(dir, "home"))
			env.Setenv("HOME", dir)
			env.Setenv("ROOT", testrig.Root())
			env.Setenv("KEY", filepath.Join(dir, "home", "public", "executed.pub"))
			env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			return nil
		},
		Condition: func(cond string) (bool, error) {
			return cond == "root" && os.Geteuid() == 0, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"image": func(ts *testscript.TestScript, neg bool, args []string) {
				m := regexp.MustCompile(`attested (\S+@sha256:[a-f0-9]{64})`).FindStringSubmatch(ts.ReadFile("stdout"))
				if neg || len(args) != 1 || m == nil {
					ts.Fatalf("image NAME: the last command attested nothing")
				}
				ts.Setenv(args[0], m[1])
			},
		},
	})
}
