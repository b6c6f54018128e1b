package signer

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestUnpackSecret(t *testing.T) {
	secret := func(data map[string]string) string {
		m := map[string][]byte{}
		for k, v := range data {
			m[k] = []byte(v)
		}
		raw, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Secret", "data": m})
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	for name, tt := range map[string]struct {
		in, field string
		files     map[string]string
		err       string
	}{
		"cosign's":       {secret(map[string]string{"cosign.key": "K", "cosign.password": "P", "cosign.pub": "U"}), "", map[string]string{"cosign.key": "K", "cosign.password": "P"}, ""},
		"x509":           {secret(map[string]string{"x509.pem": "X", "cosign.password": "P"}), "", map[string]string{"x509.pem": "X"}, ""},
		"a field":        {secret(map[string]string{"a.key": "A"}), "a.key", map[string]string{"cosign.key": "A"}, ""},
		"an empty field": {secret(map[string]string{"a.key": ""}), "b.key", nil, "no field b.key"},
		"no key":         {secret(map[string]string{"../../x": "A"}), "", nil, "neither x509.pem nor cosign.key"},
		"another kind":   {`{"kind":"ConfigMap","data":{"cosign.key":"SECRET"}}`, "", nil, "this is none"},
		"no JSON":        {`SECRET`, "", nil, "this is none"},
		"too large":      {secret(map[string]string{"cosign.key": strings.Repeat("k", 70<<10)}), "", nil, "larger than"},
		"endless":        {strings.Repeat(" ", 4<<20), "", nil, "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "keys")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			err := unpackSecret(strings.NewReader(tt.in), dir, tt.field)
			if (err == nil) != (tt.err == "") || err != nil && (!strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "SECRET")) {
				t.Fatalf("%v; want %q", err, tt.err)
			}
			var got map[string]string
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
				if err != nil {
					t.Fatal(err)
				}
				if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
				}
				if got == nil {
					got = map[string]string{}
				}
				got[e.Name()] = string(raw)
			}
			if diff := cmp.Diff(got, tt.files); diff != "" {
				t.Errorf("files (-got +want):\n%s", diff)
			}
		})
	}
	open := t.TempDir()
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unpackSecret(strings.NewReader(secret(map[string]string{"cosign.key": "K"})), open, ""); err == nil {
		t.Error("a folder that is open to others took a key")
	}
}
