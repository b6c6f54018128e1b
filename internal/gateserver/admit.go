package gateserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/google/go-containerregistry/pkg/name"

	ecserver "assay.dev/assay/internal/ec/server"
	"assay.dev/assay/internal/gate"
	"assay.dev/assay/policy"
	"assay.dev/assay/report"
)

// Bounds of what is said to the API server, which hands it on to people and into events.
const (
	maxMessage  = 6 << 10
	maxReason   = 400
	maxReasons  = 10 // of one image
	maxWarnings = 10
	// maxAtOnce is how many images of one object are judged at a time.
	maxAtOnce  = 8
	maxWarning = 250 // the API server cuts those that are longer
	// maxReview is more than the largest object that an API server stores, old and new.
	maxReview = 16 << 20
)

// judgeAdmission is /v1/admit.
func (s *Server) judgeAdmission(ctx context.Context, r ecserver.Request) (ecserver.Verdict, error) {
	req, err := ParseReview(r.Body, maxReview)
	if req == nil {
		return ecserver.Verdict{}, bad(fmt.Errorf("reading the AdmissionReview: %w", err))
	}
	var resp *Response
	if err != nil {
		resp = refusal(http.StatusForbidden, "Forbidden", fmt.Sprintf("refused by the gate: %v", err))
	} else {
		resp = s.admission(ctx, req)
	}
	resp.UID = req.UID
	out := ecserver.Verdict{Pass: resp.Allowed}
	result := "allowed"
	switch {
	case resp.Allowed:
	case resp.Status.Code == http.StatusServiceUnavailable:
		out.Result, result = string(policy.Unchecked), "unchecked"
	default:
		result = "refused"
	}
	s.m.admitted.WithLabelValues(result).Inc()
	s.log.Info("admission", "result", result, "kind", strings.TrimPrefix(req.Kind, "/"), "namespace", req.Namespace, "name", req.Name, "operation", req.Operation, "dryRun", req.DryRun, "images", len(req.Images))
	out.Report, err = json.Marshal(reviewed{APIVersion: reviewVersion, Kind: reviewKind, Response: resp})
	return out, err
}

func refusal(code int, reason, message string) *Response {
	return &Response{Status: &Status{Status: "Failure", Message: cut(message, maxMessage), Reason: reason, Code: code}}
}

// admission judges what a request brings.
func (s *Server) admission(ctx context.Context, req *Request) *Response {
	if len(req.Images) == 0 {
		return &Response{Allowed: true}
	}
	st, err := s.serving()
	if err != nil {
		return refusal(http.StatusServiceUnavailable, "ServiceUnavailable", "the gate could not check the images: "+err.Error())
	}
	if n := len(req.Images); n > s.o.MaxImages {
		return refusal(http.StatusForbidden, "Forbidden", fmt.Sprintf("refused by the gate: %d images, at most %d are judged", n, s.o.MaxImages))
	}
	answers := make([]answer, len(req.Images))
	var wg sync.WaitGroup
	turns := make(chan struct{}, maxAtOnce)
	for i, n := range req.Images {
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			answers[i] = s.answer(ctx, st, n.Ref)
		})
	}
	wg.Wait()
	by := "policy " + st.Policy.Name() + " (" + st.Policy.Digest() + ")"
	var refused, unchecked, warnings []string
	for i, a := range answers {
		s.m.images.WithLabelValues("admit", string(a.outcome)).Inc()
		block := fmt.Sprintf("%s (%s):\n  %s", a.image, req.Images[i].Where, strings.Join(a.reasons, "\n  "))
		switch a.outcome {
		case policy.Pass:
			warnings = append(warnings, a.warn...)
		case policy.Fail:
			refused = append(refused, block)
		default:
			unchecked = append(unchecked, block)
		}
	}
	var parts []string
	if len(refused) > 0 {
		parts = append(parts, "refused by the gate, "+by+"\n"+strings.Join(refused, "\n"))
	}
	if len(unchecked) > 0 {
		parts = append(parts, "the gate could not check\n"+strings.Join(unchecked, "\n"))
	}
	var out *Response
	switch {
	case len(refused) > 0:
		out = refusal(http.StatusForbidden, "Forbidden", strings.Join(parts, "\n"))
	case len(unchecked) > 0:
		out = refusal(http.StatusServiceUnavailable, "ServiceUnavailable", strings.Join(parts, "\n"))
	default:
		out = &Response{Allowed: true}
		for i, w := range warnings {
			if i == maxWarnings {
				out.Warnings[i-1] = fmt.Sprintf("and %d more warnings of the gate", len(warnings)-i+1)
				break
			}
			out.Warnings = append(out.Warnings, cut(w, maxWarning))
		}
	}
	out.AuditAnnotations = map[string]string{"policy": st.Policy.Digest()}
	return out
}

// answer is the verdict on one image.
func (s *Server) answer(ctx context.Context, st *serving, ref string) answer {
	unchecked := func(err error) answer {
		return answer{image: printable(ref), outcome: policy.Unchecked, reasons: []string{reason(err.Error())}}
	}
	refuse := func(why string) answer {
		return answer{image: printable(ref), outcome: policy.Fail, reasons: []string{why}}
	}
	if ref == "" {
		return refuse("no image is named")
	}
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return refuse(reason("it is no reference of an image: " + err.Error()))
	}
	q := question{policy: st.Policy.Digest(), trust: st.Trust}
	tagged := false
	if d, ok := parsed.(name.Digest); ok {
		q.image = d.Context().Name() + "@" + d.DigestStr()
	} else {
		if !s.o.AllowTags {
			return refuse("it is named by a tag, which can come to mean another image before a node pulls it: name it by digest (…@sha256:…). Who accepts that starts the gate with --allow-tags")
		}
		tagged = true
		g, err := st.New(s.now().UTC().Round(time.Second))
		if err != nil {
			return unchecked(err)
		}
		if q.image, err = g.Resolve(ctx, ref); err != nil {
			return unchecked(err)
		}
	}
	a, from, err := s.verdicts.get(ctx, q, func(ctx context.Context) answer { return s.judgeOne(ctx, st, q.image) })
	if err != nil {
		return unchecked(err)
	}
	s.m.cached.WithLabelValues(from).Inc()
	if tagged && a.outcome == policy.Pass {
		a.warn = append([]string{ref + " is named by a tag: what was judged is " + q.image[strings.IndexByte(q.image, '@')+1:] + ", and the node may pull another"}, a.warn...)
	}
	return a
}

// judgeOne judges an image and all that its index lists.
func (s *Server) judgeOne(ctx context.Context, st *serving, ref string) answer {
	now := s.now()
	a := answer{image: ref, outcome: policy.Unchecked}
	g, err := st.New(now.UTC().Round(time.Second))
	var j *gate.Judgement
	if err == nil {
		j, err = g.Judge(ctx, ref)
	}
	if err == nil && len(j.Entries) == 0 {
		err = errors.New("nothing was judged")
	}
	if err != nil {
		s.log.Warn("an image cannot be checked", "image", ref, "error", err.Error())
		a.reasons = []string{reason(err.Error())}
		return a
	}
	a.until = now.Add(s.o.Kept)
	var violations, causes []string
	for i := range j.Entries {
		e := &j.Entries[i]
		of := ""
		if i > 0 {
			_, digest, _ := strings.Cut(e.Image, "@")
			of = digest + ": "
		}
		causes = append(causes, prefixed(of, causesOf(e))...)
		if v := e.Verdict; v != nil {
			for _, r := range v.Violations {
				violations = append(violations, reason(of+r.Code+": "+r.Msg))
			}
			for _, r := range v.Warnings {
				a.warn = append(a.warn, reason(r.Code+": "+r.Msg))
			}
			if v.Expiry.Before(a.until) {
				a.until = v.Expiry
			}
		}
	}
	switch {
	case j.Passed():
		a.outcome = policy.Pass
	case j.Unchecked() && len(violations) == 0:
		a.reasons = some(causes)
	default:
		a.outcome, a.until = policy.Fail, now.Add(min(keptRefusal, s.o.Kept))
		a.reasons = some(append(violations, causes...))
	}
	if len(a.reasons) == 0 && a.outcome != policy.Pass {
		a.reasons = []string{"no reason is given"}
	}
	return a
}

// causesOf says why an entry could not be checked.
func causesOf(e *report.Entry) []string {
	if e.Err != nil {
		return []string{reason("could not be checked: " + e.Err.Error())}
	}
	if !e.Unchecked() || e.Verdict == nil {
		return nil
	}
	var out []string
	for _, f := range e.Verdict.Failures {
		out = append(out, reason("could not be checked: "+strings.TrimSpace(f.Function+" "+f.Ref)+": "+f.Cause))
	}
	if len(out) == 0 {
		out = []string{"could not be checked: rules asked what has no known answer"}
	}
	return out
}

func prefixed(with string, list []string) []string {
	for i := range list {
		list[i] = with + list[i]
	}
	return list
}

// some are as many reasons as a person reads.
func some(list []string) []string {
	if len(list) > maxReasons {
		return append(list[:maxReasons:maxReasons], fmt.Sprintf("and %d more", len(list)-maxReasons))
	}
	return list
}

// reason is a message on one line, without what moves a terminal's cursor.
func reason(s string) string { return cut(printable(s), maxReason) }

func printable(s string) string {
	return strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || !unicode.IsPrint(r) && r != ' ' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))), " ")
}

// cut shortens to so many bytes, between letters.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	const more = " …"
	return strings.ToValidUTF8(s[:most-len(more)], "") + more
}
