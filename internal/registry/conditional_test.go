package registry

import "testing"

func TestListed(t *testing.T) {
	const d = "sha256:aa"
	for _, c := range []struct {
		header, digest string
		want           bool
	}{
		{`"sha256:aa"`, d, true},
		{"sha256:aa", d, true},
		{`W/"sha256:aa"`, d, true},
		{`"sha256:bb", "sha256:aa"`, d, true},
		{"*", d, true},
		{"*", "", false},
		{`"sha256:bb"`, d, false},
		{`"sha256:aa"`, "", false},
	} {
		if got := listed(c.header, c.digest); got != c.want {
			t.Errorf("listed(%s, %q) = %t", c.header, c.digest, got)
		}
	}
}
