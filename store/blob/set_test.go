package blob

import (
	"path"
	"strings"
	"testing"

	"assay.dev/assay/store"
)

// Whatever a run and a key are called, the names stay in one folder of the bucket
// and tell records apart.
func FuzzBaseName(f *testing.F) {
	f.Add("TaskRun", "ns", "name", "taskrun-uid")
	f.Add("PipelineRun", "", "a.b", "0123456789ab")
	f.Add("TaskRun", "..", "../x", "/etc/passwd")
	f.Add("TaskRun", "a", "b", "..")
	f.Fuzz(func(t *testing.T, kind, namespace, name, key string) {
		base, err := baseName(store.Run{Kind: kind, Namespace: namespace, Name: name}, key)
		if err != nil {
			return
		}
		if path.Clean(base) != base || strings.Count(base, "/") != 1 || strings.ContainsAny(base, "\\\x00\n") {
			t.Errorf("%q", base)
		}
		s := set{record: store.Record{Payload: []byte(name)}, base: base}
		if !secondName(base, s.second()) || secondName(base, base) || secondName(base+"x", s.second()) {
			t.Errorf("second name of %q is %q", base, s.second())
		}
	})
}
