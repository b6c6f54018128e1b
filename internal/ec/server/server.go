// Package server answers judgements over HTTP, as `ec validate input --server` does.
//
//	POST /v1/validate/…   body ─▶ Judge ─▶ 200, report, X-Conforma-Result: pass|fail
//	GET  /live            200 as long as the process answers
//	GET  /ready           200 when there is a policy to judge by, else 503
//
// A judgement that came to an end is a 200, whatever it says. Everything else is an
// error of the form {"error": "…", "status": 400}: 400 for a body that is no input,
// 413 for one that is too large, 500 where the judgement itself failed. Why it failed
// is in the log, not in the answer: who may ask is not always who may know.
//
// What is judged, and how, is a Judge's business: the package knows no policies. It
// has no authentication. Whoever serves to more than this machine puts it behind
// something that has, or wraps the Handler.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"runtime/debug"
	"time"
)

// The bounds that Conforma's server has.
const (
	MaxBody = 80 << 20
	MaxTime = 90 * time.Second
)

// Request is what is to be judged.
type Request struct {
	// MediaType is the body's as the client says, without parameters; "" if it does
	// not say.
	MediaType string
	Body      []byte
}

// Verdict is an answer: a JSON report, and whether it is a pass. The zero Verdict is
// none.
type Verdict struct {
	Report []byte
	Pass   bool
	// Result is what the header says. Default: pass or fail.
	Result string
}

// A Judge judges. It fails with an *Error for what the client should hear; of any
// other error it hears only that there was one. It is called by many goroutines.
type Judge func(context.Context, Request) (Verdict, error)

// Error is an answer that is no judgement.
type Error struct {
	Message string `json:"error"`
	Status  int    `json:"status"`
}

func (e *Error) Error() string { return e.Message }

// Options bound and watch a Handler.
type Options struct {
	// MaxBody and MaxTime are for one request. Default: the constants.
	MaxBody int64
	MaxTime time.Duration
	// Header carries the result. Default: X-Conforma-Result.
	Header string
	// Ready says whether judgements can be asked for. Required: without, never.
	Ready func() bool
	// Log gets a line for each request and for each failure. Default: none.
	Log *slog.Logger
}

// Handler serves judges by their paths, such as /v1/validate/input, and the probes.
func Handler(judges map[string]Judge, o Options) http.Handler {
	if o.MaxBody <= 0 {
		o.MaxBody = MaxBody
	}
	if o.MaxTime <= 0 {
		o.MaxTime = MaxTime
	}
	if o.Header == "" {
		o.Header = "X-Conforma-Result"
	}
	if o.Ready == nil {
		o.Ready = func() bool { return false }
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	status := func(w http.ResponseWriter, code int, word string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"status":%q}`, word)
	}
	mux.HandleFunc("GET /live", func(w http.ResponseWriter, _ *http.Request) { status(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if o.Ready() {
			status(w, http.StatusOK, "ready")
		} else {
			status(w, http.StatusServiceUnavailable, "not ready")
		}
	})
	for path, judge := range judges {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) { o.answer(w, r, judge) })
	}
	return o.watch(mux)
}

func (o *Options) answer(w http.ResponseWriter, r *http.Request, judge Judge) {
	v, err := o.judge(r, judge)
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		var known *Error
		if !errors.As(err, &known) {
			o.Log.Error("the judgement failed", "path", r.URL.Path, "error", err.Error())
			known = &Error{"evaluation failed", http.StatusInternalServerError}
			if errors.Is(err, context.DeadlineExceeded) {
				known.Message = "evaluation timed out"
			}
		}
		w.WriteHeader(known.Status)
		_ = json.NewEncoder(w).Encode(known)
		return
	}
	result := "fail"
	if v.Pass {
		result = "pass"
	}
	if v.Result != "" {
		result = v.Result
	}
	w.Header().Set(o.Header, result)
	_, _ = w.Write(v.Report)
}

func (o *Options) judge(r *http.Request, judge Judge) (Verdict, error) {
	if r.ContentLength > o.MaxBody {
		return Verdict{}, o.tooLarge()
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, o.MaxBody+1))
	switch {
	case err != nil:
		o.Log.Warn("the request's body cannot be read", "error", err.Error())
		return Verdict{}, &Error{"failed to read request body", http.StatusBadRequest}
	case len(body) == 0:
		return Verdict{}, &Error{"request body is empty", http.StatusBadRequest}
	case int64(len(body)) > o.MaxBody:
		return Verdict{}, o.tooLarge()
	}
	mediaType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	ctx, cancel := context.WithTimeout(r.Context(), o.MaxTime)
	defer cancel()
	v, err := judge(ctx, Request{MediaType: mediaType, Body: body})
	if err == nil && v.Report == nil {
		err = errors.New("there is no report")
	}
	if err != nil && ctx.Err() != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	return v, err
}

func (o *Options) tooLarge() error {
	limit := fmt.Sprintf("%dMB", o.MaxBody>>20)
	if o.MaxBody < 1<<20 {
		limit = fmt.Sprintf("%d byte", o.MaxBody)
	}
	return &Error{fmt.Sprintf("request body exceeds %s limit", limit), http.StatusRequestEntityTooLarge}
}

// watch logs requests, and answers for handlers that panic.
func (o *Options) watch(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin, s := time.Now(), &statusWriter{ResponseWriter: w, status: http.StatusOK}
		defer func() {
			if p := recover(); p != nil {
				o.Log.Error("the handler panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				if !s.wrote {
					s.Header().Set("Content-Type", "application/json")
					s.WriteHeader(http.StatusInternalServerError)
					_ = json.NewEncoder(s).Encode(&Error{"internal server error", http.StatusInternalServerError})
				}
			}
			o.Log.Info("Request completed", "method", r.Method, "path", r.URL.Path, "remote", r.RemoteAddr,
				"status", s.status, "latency", time.Since(begin).String(), "size", r.ContentLength)
		}()
		next.ServeHTTP(s, r)
	})
}

type statusWriter struct {
	http.ResponseWriter
	status int
	wrote  bool
}

func (s *statusWriter) WriteHeader(code int) {
	s.status, s.wrote = code, true
	s.ResponseWriter.WriteHeader(code)
}

func (s *statusWriter) Write(b []byte) (int, error) {
	s.wrote = true
	return s.ResponseWriter.Write(b)
}

// Serve serves h on l until ctx ends, and then lets what is being judged come to its
// end, for grace at most. It closes l. It fails where l does, or where grace is over.
func Serve(ctx context.Context, l net.Listener, h http.Handler, grace time.Duration) error {
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second,
		WriteTimeout: MaxTime + 30*time.Second, IdleTimeout: time.Minute,
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serving on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err := s.Shutdown(last); err != nil {
		return fmt.Errorf("stopping the server: %w", errors.Join(err, s.Close()))
	}
	return nil
}
