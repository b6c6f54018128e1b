package tlog

import "testing"

// FuzzFound: whatever a log answers is entries that were read, or an error.
func FuzzFound(f *testing.F) {
	f.Add([]byte(`[]`))
	f.Add([]byte(`[{"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa":{"body":"e30=","integratedTime":1,"logID":"00","logIndex":1}}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := parseFound(data)
		if err != nil && entries != nil || len(entries) > maxFound {
			t.Errorf("%d entries, %v", len(entries), err)
		}
		for _, e := range entries {
			if _, err := parseRekorBody(e.GetCanonicalizedBody()); err != nil {
				t.Errorf("an entry that cannot be read: %v", err)
			}
		}
	})
}
