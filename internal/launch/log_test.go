package launch

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/internal/home"
)

// A trust file gets the home's log once; what its owner wrote stays.
func TestTrustLog(t *testing.T) {
	l := home.Log{Key: "a/log+00+x", Witnesses: []string{"a/witness+00+x", "b+00+x"}, Quorum: 2}
	const added = `"logs": [{"name": "a/log", "key": "a/log+00+x"}], "quorum": 2,
		"witnesses": [{"name": "a/witness", "key": "a/witness+00+x"}, {"name": "b", "key": "b+00+x"}]`
	for name, tc := range map[string]struct {
		file, want string
		trusted    bool
	}{
		"keys":           {`{"keys": [{"name": "k"}]}`, `{"keys": [{"name": "k"}], ` + added + `}`, true},
		"demanding":      {`{"keys": [], "requireLog": true}`, `{"keys": [], "requireLog": true, ` + added + `}`, true},
		"another log":    {`{"keys": [], "logs": []}`, `{"keys": [], "logs": []}`, false},
		"only witnesses": {`{"witnesses": []}`, `{"witnesses": []}`, false},
		"none yet":       {``, ``, true},
	} {
		t.Run(name, func(t *testing.T) {
			h := &home.Home{Dir: t.TempDir()}
			if tc.file != "" {
				if err := os.WriteFile(h.Path("trust.json"), []byte(tc.file), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			trusted, err := trustLog(h, l)
			if err != nil || trusted != tc.trusted {
				t.Fatalf("trusted %t, %v; want %t", trusted, err, tc.trusted)
			}
			got, err := os.ReadFile(h.Path("trust.json"))
			if tc.want == "" {
				if err == nil {
					t.Errorf("a trust file was made: %s", got)
				}
				return
			}
			var a, b any
			if err := json.Unmarshal(got, &a); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal([]byte(tc.want), &b); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(b, a); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
	t.Run("garbage", func(t *testing.T) {
		h := &home.Home{Dir: t.TempDir()}
		if err := os.WriteFile(filepath.Join(h.Dir, "trust.json"), []byte("{"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := trustLog(h, l); err == nil {
			t.Error("no error")
		}
	})
}
