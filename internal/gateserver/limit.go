package gateserver

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	ecserver "assay.dev/assay/internal/ec/server"
)

// slots are how many requests are under way at a time.
type slots chan struct{}

// refuse answers an error in the form that all endpoints have.
func refuse(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(&ecserver.Error{Message: message, Status: status})
}

// limited answers 429 where no slot is free. It takes one before the body is read, so
// that bodies are bounded in number too.
func (s *Server) limited(pool string, free slots, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case free <- struct{}{}:
			defer func() { <-free }()
			next.ServeHTTP(w, r)
		default:
			s.m.busy.WithLabelValues(pool).Inc()
			w.Header().Set("Retry-After", "1")
			refuse(w, http.StatusTooManyRequests, fmt.Sprintf("%d requests are being judged, which is all that may be; try again", cap(free)))
		}
	})
}

// within ends a request a moment before the API server stops waiting, as it says in the
// query, so that what it gets is an answer.
func within(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d, err := time.ParseDuration(r.URL.Query().Get("timeout")); err == nil && d > 0 && d < time.Hour {
			ctx, cancel := context.WithTimeout(r.Context(), d-min(d/10, 500*time.Millisecond))
			defer cancel()
			r = r.WithContext(ctx)
		}
		next.ServeHTTP(w, r)
	})
}

// measured counts requests and their time.
func (s *Server) measured(endpoint string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin, c := time.Now(), &counted{ResponseWriter: w, status: http.StatusOK}
		defer func() {
			s.m.requests.WithLabelValues(endpoint, fmt.Sprint(c.status)).Inc()
			s.m.seconds.WithLabelValues(endpoint).Observe(time.Since(begin).Seconds())
		}()
		next.ServeHTTP(c, r)
	})
}

type counted struct {
	http.ResponseWriter
	status int
}

func (c *counted) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}
