package pkcs11

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/store"
)

func TestParseURI(t *testing.T) {
	got, err := ParseURI("pkcs11:token=My%20Token;object=chains;id=%01%ff;type=private;serial=1?pin-source=file:/run/pin&module-path=/usr/lib/x.so")
	want := URI{Token: "My Token", Object: "chains", ID: "\x01\xff", Serial: "1", PINSource: "/run/pin", ModulePath: "/usr/lib/x.so"}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	for s, says := range map[string]string{
		"":                               "want pkcs11:",
		"hashivault://k":                 "want pkcs11:",
		"pkcs11:":                        "names no key",
		"pkcs11:token=a":                 "names no key",
		"pkcs11:object=a;object=b":       "twice",
		"pkcs11:object=a;colour=b":       `"colour" is not supported`,
		"pkcs11:object":                  "no attribute",
		"pkcs11:object=%zz":              "reading attribute",
		"pkcs11:object=a;type=cert":      "cannot sign",
		"pkcs11:object=a?pin-value=1234": "put it in a file",
		"pkcs11:object=a?pin-source=pin": "absolute path",
		"pkcs11:object=" + strings.Repeat("a", maxURI): "at most",
	} {
		if _, err := ParseURI(s); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.40q: %v, want %q", s, err, says)
		}
	}
}

func FuzzParseURI(f *testing.F) {
	f.Add("pkcs11:token=a;object=b?pin-source=/x&module-name=softhsm2")
	f.Add("pkcs11:id=%00")
	f.Fuzz(func(t *testing.T, s string) {
		if u, err := ParseURI(s); err == nil && u.Object == "" && u.ID == "" {
			t.Errorf("%q names no key and passes", s)
		}
	})
}

// TestModule: code is loaded only if whoever started the signer said so.
func TestModule(t *testing.T) {
	const soft, other = "/usr/lib/softhsm/libsofthsm2.so", "/opt/other.so"
	for _, tc := range []struct {
		u       URI
		allowed []string
		want    string
	}{
		{URI{}, []string{soft}, soft},
		{URI{}, []string{soft, soft}, soft},
		{URI{}, nil, ""},
		{URI{}, []string{soft, other}, ""},
		{URI{ModulePath: other}, []string{soft, other}, other},
		{URI{ModulePath: "/tmp/evil.so"}, []string{soft}, ""},
		{URI{ModulePath: "/tmp/evil.so"}, nil, ""},
		{URI{ModuleName: "softhsm2"}, []string{soft, other}, soft},
		{URI{ModuleName: "libsofthsm2"}, []string{soft}, soft},
		{URI{ModuleName: "soft"}, []string{soft}, ""},
		{URI{}, []string{"libsofthsm2.so"}, ""},
	} {
		got, err := tc.u.module(tc.allowed)
		if got != tc.want || (err == nil) != (tc.want != "") || err != nil && store.ClassOf(err) != store.Configuration {
			t.Errorf("%+v of %v: %q, %v", tc.u, tc.allowed, got, err)
		}
	}
}
