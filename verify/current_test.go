package verify_test

import (
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"assay.dev/assay/verify"
)

// TestCurrent: without anybody who says when, a certificate counts while it is valid.
func TestCurrent(t *testing.T) {
	s := newSigstore(t)
	artifact := []byte("hello")
	current := must1[*verify.Instance](t)(verify.NewInstance("test", s.root(), verify.Thresholds{Current: true}))
	options := func() verify.Options {
		o := s.options()
		o.Instances = []*verify.Instance{current}
		return o
	}
	unlogged := func(b map[string]any) { delete(b["verificationMaterial"].(map[string]any), "tlogEntries") }
	valid := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Hour) }
	e, err := verify.Files(file(t, artifact), pieces(t, s.bundle(signing{subject: artifact, leaf: valid, edit: unlogged})), options())
	if err != nil {
		t.Fatal(err)
	}
	if st := e.Statements()[0]; len(st.Times) != 0 || len(st.Log) != 0 {
		t.Errorf("nobody said anything of when: %+v %+v", st.Times, st.Log)
	}
	for name, tt := range map[string]struct {
		leaf func(*x509.Certificate)
		at   time.Time
	}{
		"expired now":         {nil, time.Now()},
		"expired at instant":  {valid, time.Now().Add(2 * time.Hour)},
		"not yet at instant":  {valid, s.started.Add(-time.Hour)},
		"valid then, not now": {nil, s.started.Add(time.Minute)},
	} {
		o := options()
		o.At = tt.at
		_, err := verify.Files(file(t, artifact), pieces(t, s.bundle(signing{subject: artifact, leaf: tt.leaf, edit: unlogged})), o)
		var none *verify.NoEvidenceError
		if !errors.As(err, &none) || none.Rejected[0].Signed {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, bad := range []verify.Thresholds{{Current: true, Timestamps: 1}, {Current: true, SignedTimestamps: 1}} {
		if _, err := verify.NewInstance("test", s.root(), bad); err == nil || !strings.Contains(err.Error(), "Current") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// TestSigned: whether a piece was refused for its signer or for what he says.
func TestSigned(t *testing.T) {
	s := newSigstore(t)
	artifact := []byte("hello")
	for name, tt := range map[string]struct {
		o    signing
		want bool
	}{
		"another artifact":  {signing{subject: artifact, statement: provenanceOf([]byte("other"))}, true},
		"no statement":      {signing{subject: artifact, statement: "x"}, false}, // the library reads it before it verifies
		"payload type":      {signing{subject: artifact, payloadType: "text/plain"}, false},
		"another signer":    {signing{subject: artifact, statement: "x", san: "https://github.com/evil/app"}, false},
		"another authority": {signing{subject: artifact, statement: "x", ca: newSigstore(t)}, false},
	} {
		_, err := verify.Files(file(t, artifact), pieces(t, s.bundle(tt.o)), s.options())
		var none *verify.NoEvidenceError
		if !errors.As(err, &none) || len(none.Rejected) != 1 || none.Rejected[0].Signed != tt.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}
