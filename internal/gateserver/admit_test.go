package gateserver_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"assay.dev/assay/internal/gateserver"
	"assay.dev/assay/store/storetest"
)

// TestAdmit: who may run, who may not and why, and what is not known.
func TestAdmit(t *testing.T) {
	r := newRig(t)
	_, url := r.serve(gateserver.Options{})
	good, bad, bare, odd := r.image("app/good", true), r.image("app/bad", true), r.image("app/bare", false), r.image("app/odd", true)
	gone := r.registry + "/app/good@sha256:" + strings.Repeat("0", 64)
	down := "127.0.0.1:1/x@sha256:" + strings.Repeat("1", 64)
	pod := func(spec string) string { return `{"spec":{` + spec + `}}` }
	container := func(list string, images ...string) string {
		var out []string
		for i, image := range images {
			out = append(out, fmt.Sprintf(`{"name":"c%d","image":%q}`, i, image))
		}
		return `"` + list + `":[` + strings.Join(out, ",") + `]`
	}
	template := func(spec string) string { return `{"spec":{"template":{"spec":{` + spec + `}}}}` }
	for name, tc := range map[string]struct {
		body string
		code int // 0: allowed
		want []string
	}{
		"passes":          {review(good.Ref()), 0, nil},
		"warns":           {review(odd.Ref()), 0, []string{"main.odd: an odd name"}},
		"the policy":      {review(bad.Ref()), 403, []string{bad.Ref() + " (container c0):", "main.name: called bad", "refused by the gate, policy test (sha256:"}},
		"unsigned":        {review(bare.Ref()), 403, []string{"builtin.image.signature_check"}},
		"one of two":      {review(good.Ref(), bad.Ref()), 403, []string{"container c1", "called bad"}},
		"by tag":          {review(good.Repo + ":v1"), 403, []string{"named by a tag", "--allow-tags"}},
		"no image":        {review(""), 403, []string{"no image is named"}},
		"no reference":    {review("::"), 403, []string{"no reference"}},
		"tag and digest":  {review(good.Repo + ":v1@" + good.Digest), 0, nil},
		"gone":            {review(gone), 503, []string{"the gate could not check", "no such artifact"}},
		"not reachable":   {review(down), 503, []string{"could not check"}},
		"both":            {review(bad.Ref(), down), 403, []string{"called bad", "the gate could not check"}},
		"init":            {reviewOf("", "Pod", "CREATE", pod(container("containers", good.Ref())+","+container("initContainers", bad.Ref())), "null"), 403, []string{"init container c0"}},
		"ephemeral":       {reviewOf("", "Pod", "UPDATE", pod(container("containers", good.Ref())+","+container("ephemeralContainers", bad.Ref())), pod(container("containers", good.Ref()))), 403, []string{"ephemeral container c0"}},
		"an image volume": {reviewOf("", "Pod", "CREATE", pod(container("containers", good.Ref())+`,"volumes":[{"name":"e","emptyDir":{}},{"name":"v","image":{"reference":"`+bad.Ref()+`"}}]`), "null"), 403, []string{"image volume v"}},
		"old news":        {reviewOf("", "Pod", "UPDATE", pod(container("containers", bad.Ref())), pod(container("containers", bad.Ref()))), 0, nil},
		"delete":          {reviewOf("", "Pod", "DELETE", "null", pod(container("containers", bad.Ref()))), 0, nil},
		"Deployment":      {reviewOf("apps", "Deployment", "CREATE", template(container("containers", bad.Ref())), "null"), 403, []string{"called bad"}},
		"a good one":      {reviewOf("apps", "Deployment", "CREATE", template(container("containers", good.Ref())), "null"), 0, nil},
		"StatefulSet":     {reviewOf("apps", "StatefulSet", "CREATE", template(container("containers", bad.Ref())), "null"), 403, nil},
		"DaemonSet":       {reviewOf("apps", "DaemonSet", "CREATE", template(container("containers", bad.Ref())), "null"), 403, nil},
		"ReplicaSet":      {reviewOf("apps", "ReplicaSet", "CREATE", template(container("containers", bad.Ref())), "null"), 403, nil},
		"Job":             {reviewOf("batch", "Job", "CREATE", template(container("containers", bad.Ref())), "null"), 403, nil},
		"CronJob":         {reviewOf("batch", "CronJob", "CREATE", `{"spec":{"jobTemplate":`+template(container("containers", bad.Ref()))+`}}`, "null"), 403, []string{"called bad"}},
		"another kind":    {reviewOf("example.com", "Widget", "CREATE", `{}`, "null"), 403, []string{"example.com/Widget", "webhook's rules"}},
		"another group":   {reviewOf("example.com", "Pod", "CREATE", pod(""), "null"), 403, []string{"not known here"}},
		"no spec":         {reviewOf("", "Pod", "CREATE", `{}`, "null"), 403, []string{"has no spec"}},
		"no object":       {reviewOf("", "Pod", "CREATE", `null`, "null"), 403, []string{"no object"}},
		"two of a name":   {strings.Replace(review(good.Ref()), `"image":`, `"image":"x","Image":"y","image":`, 1), 400, []string{"duplicate"}},
		"another case":    {strings.Replace(review(good.Ref()), `"image":`, `"Image":`, 1), 403, []string{"no image is named"}},
		"another version": {strings.Replace(review(good.Ref()), "k8s.io/v1", "k8s.io/v1beta1", 1), 400, []string{"v1beta1"}},
		"no uid":          {strings.Replace(review(good.Ref()), "u-1", "", 1), 400, []string{"uid"}},
		"an operation":    {strings.Replace(review(good.Ref()), "CREATE", "CREATED", 1), 403, []string{"CREATED"}},
		"a number":        {strings.Replace(review("x"), `"x"`, `7`, 1), 403, []string{"image"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := r.ask(http.MethodPost, url+"/v1/admit?timeout=30s", tc.body)
			for _, w := range tc.want {
				if !strings.Contains(strings.ReplaceAll(got.body, `\n`, "\n"), w) {
					t.Errorf("nothing says %q:\n%s", w, got.body)
				}
			}
			switch a := got.admission; {
			case tc.code == 400:
				if got.status != 400 || a != nil {
					t.Errorf("%d %s", got.status, got.body)
				}
			case got.status != 200 || a == nil || a.UID != "u-1":
				t.Errorf("%d %s", got.status, got.body)
			case a.Allowed != (tc.code == 0) || !a.Allowed && (a.Status.Code != tc.code || a.Status.Status != "Failure"):
				t.Errorf("want %d: %s", tc.code, got.body)
			}
		})
	}
}

// TestAdmitTags: with --allow-tags what a tag names now counts, each time anew.
func TestAdmitTags(t *testing.T) {
	r := newRig(t)
	_, url := r.serve(gateserver.Options{AllowTags: true})
	good := r.image("app/good", true)
	got := r.ask(http.MethodPost, url+"/v1/admit", review(good.Repo+":v1"))
	if got.admission == nil || !got.admission.Allowed || len(got.admission.Warnings) != 1 || !strings.Contains(got.admission.Warnings[0], "the node may pull another") {
		t.Errorf("%s", got.body)
	}
	// The tag moves to an image that nobody signed.
	other := storetest.PushImage(t, http.DefaultTransport, r.registry, "app/good", "v2")
	resp := r.ask(http.MethodGet, "http://"+r.registry+"/v2/app/good/manifests/v2", "", "Accept", "application/vnd.oci.image.manifest.v1+json")
	if put := r.ask(http.MethodPut, "http://"+r.registry+"/v2/app/good/manifests/v1", resp.body, "Content-Type", "application/vnd.oci.image.manifest.v1+json"); put.status != 201 {
		t.Fatalf("moving the tag: %d", put.status)
	}
	got = r.ask(http.MethodPost, url+"/v1/admit", review(good.Repo+":v1"))
	if got.admission == nil || got.admission.Allowed || !strings.Contains(got.body, other.Digest) {
		t.Errorf("the tag moved, and: %s", got.body)
	}
}

// TestAdmitKept: a verdict on a digest is made once, for one policy; a dry run is like
// any other.
func TestAdmitKept(t *testing.T) {
	r := newRig(t)
	s, url := r.serve(gateserver.Options{})
	good, bad := r.image("app/good", true), r.image("app/bad", true)
	for range 3 {
		if got := r.ask(http.MethodPost, url+"/v1/admit", review(good.Ref())); !got.admission.Allowed {
			t.Fatal(got.body)
		}
		if got := r.ask(http.MethodPost, url+"/v1/admit", strings.Replace(review(bad.Ref()), `"dryRun":false`, `"dryRun":true`, 1)); got.admission.Allowed {
			t.Fatal(got.body)
		}
	}
	if n := r.judged.Load(); n != 2 {
		t.Errorf("%d judgements of two images", n)
	}
	r.write("policy/rules/main.rego", strings.ReplaceAll(rules, `"bad"`, `"good"`))
	if err := s.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := r.ask(http.MethodPost, url+"/v1/admit", review(good.Ref())); got.admission.Allowed {
		t.Errorf("the old policy's verdict is served: %s", got.body)
	}
	if m := r.ask(http.MethodGet, url+"/metrics", "").body; !strings.Contains(m, `assay_gate_verdicts_total{from="kept"} 4`) || !strings.Contains(m, `assay_gate_admissions_total{result="refused"} 4`) {
		t.Errorf("the metrics: %s", m)
	}
}

// TestMessageBound: a refusal is no longer than can be handed on, whatever rules say.
func TestMessageBound(t *testing.T) {
	r := newRig(t)
	r.write("policy/rules/main.rego", `package main

# METADATA
# title: Loud
# custom:
#   short_name: loud
deny contains result if {
	some i in numbers.range(1, 60)
	result := {"code": "main.loud", "msg": sprintf("%d \u001b[31m\n%s", [i, concat("", ["ä" | some j in numbers.range(1, 100); j > 0])]), "term": sprintf("%d", [i])}
}
`)
	_, url := r.serve(gateserver.Options{})
	var refs []string
	for i := range 20 {
		refs = append(refs, r.image(fmt.Sprintf("app/n%d", i), true).Ref())
	}
	got := r.ask(http.MethodPost, url+"/v1/admit", review(refs...))
	m := got.admission.Status.Message
	if got.admission.Allowed || len(m) > 6<<10 || strings.Contains(m, "\x1b") || !strings.Contains(m, "and 50 more") || strings.ToValidUTF8(m, "") != m {
		t.Errorf("%d bytes:\n%.600s", len(m), m)
	}
}

// FuzzParseReview: a request that is accepted names images that stand in it, and no more.
func FuzzParseReview(f *testing.F) {
	pod := `{"spec":{"containers":[{"name":"a","image":"x"}],"initContainers":null,"volumes":[{"name":"v","image":{"reference":"y"}}]}}`
	f.Add([]byte(review("a", "b")))
	f.Add([]byte(reviewOf("", "Pod", "UPDATE", pod, pod)))
	f.Add([]byte(reviewOf("batch", "CronJob", "CREATE", `{"spec":{"jobTemplate":{"spec":{"template":`+pod+`}}}}`, "null")))
	f.Add([]byte(reviewOf("apps", "Deployment", "DELETE", "null", "7")))
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 64<<10 {
			t.Skip("bounded input")
		}
		req, err := gateserver.ParseReview(raw, 64<<10)
		if req == nil {
			if err == nil {
				t.Fatal("neither a request nor an error")
			}
			return
		}
		if req.UID == "" {
			t.Fatal("a request without uid")
		}
		if err != nil && len(req.Images) > 0 {
			t.Fatal("images of what is refused")
		}
		seen := map[string]bool{}
		for _, n := range req.Images {
			if seen[n.Ref] {
				t.Fatalf("%q twice", n.Ref)
			}
			seen[n.Ref] = true
		}
		if len(seen) > 0 && req.Operation != "CREATE" && req.Operation != "UPDATE" {
			t.Fatalf("images of a %s", req.Operation)
		}
	})
}
