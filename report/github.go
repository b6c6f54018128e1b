package report

import (
	"fmt"
	"io"
	"strings"
	"time"

	"assay.dev/assay/policy"
)

type githubHandler struct{ stream }

// GitHub writes workflow commands, which GitHub Actions shows as annotations: an
// error for each violation and for what could not be checked, a warning for each
// warning and for what an operator switched off.
func GitHub(w io.Writer) Handler { return &githubHandler{newStream(w)} }

// Verdict implements Handler.
func (h *githubHandler) Verdict(e Entry) error {
	first, err := h.next(&e)
	if err != nil {
		return err
	}
	if first {
		for _, s := range h.run.Skipped {
			if err := h.say("warning", "assay gate", "Not checked, as asked: "+s); err != nil {
				return err
			}
		}
	}
	for _, c := range e.causes() {
		if err := h.say("error", "could not check "+e.ref(), c); err != nil {
			return err
		}
	}
	if v := e.Verdict; v != nil {
		if v.BackDated {
			if err := h.say("warning", e.ref(), "Judged as of "+v.EffectiveTime.Format(time.RFC3339)+", which is in the past: rules that came into force later are not"); err != nil {
				return err
			}
		}
		for _, r := range v.Violations {
			if err := h.result("error", &e, r); err != nil {
				return err
			}
		}
		for _, r := range v.Warnings {
			if err := h.result("warning", &e, r); err != nil {
				return err
			}
		}
		if len(v.Violations) == 0 && e.state() == stateRefused {
			if err := h.say("error", e.ref(), "The image was refused"); err != nil {
				return err
			}
		}
	}
	for _, r := range e.Rejected {
		if err := h.say("notice", "evidence set aside on "+e.ref(), r.Format+" "+r.Digest+": "+r.Reason); err != nil {
			return err
		}
	}
	for _, a := range e.Aside {
		if err := h.say("notice", "not judged in "+e.ref(), a.Digest+": "+a.Reason); err != nil {
			return err
		}
	}
	return h.err
}

func (h *githubHandler) result(level string, e *Entry, r policy.Result) error {
	title := heading(r)
	if title == "" {
		title = "policy"
	}
	msg := []string{clean(r.Msg), "image: " + clean(e.ref())}
	for _, d := range details(e.Verdict, r, level == "error") {
		msg = append(msg, clean(d.label)+": "+clean(d.value))
	}
	return h.say(level, title, strings.Join(msg, "\n"))
}

// say writes one command. A line break in a message would begin a command of the
// message's own.
func (h *githubHandler) say(level, title, msg string) error {
	escape := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	property := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
	var parts []string
	for l := range strings.Lines(msg) {
		parts = append(parts, clean(strings.TrimSuffix(l, "\n")))
	}
	return h.write(fmt.Sprintf("::%s title=%s::%s\n", level, property.Replace(clean(title)), escape.Replace(strings.Join(parts, "\n"))))
}

// Close implements Handler.
func (h *githubHandler) Close() error {
	if !h.begun {
		return h.say("error", "assay gate", "No image was checked")
	}
	level := "notice"
	if !h.n.success() {
		level = "error"
	}
	return h.say(level, "assay gate", h.n.String())
}
