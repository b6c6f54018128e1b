package registry

import (
	"encoding/json"
	"fmt"
	"net/http"
)

// refusal is an answer in the form that the distribution specification gives to
// errors. The message tells the remedy.
type refusal struct {
	status  int
	code    string
	message string
}

func (r *refusal) Error() string { return r.message }

func refuse(status int, code, format string, args ...any) *refusal {
	return &refusal{status, code, fmt.Sprintf(format, args...)}
}

type errorBody struct {
	Errors []errorEntry `json:"errors"`
}

type errorEntry struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (r *refusal) write(w http.ResponseWriter) {
	if r.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="assay registry"`)
	}
	if r.status == http.StatusRequestEntityTooLarge || r.status == http.StatusForbidden {
		// The rest of the body is of no use.
		w.Header().Set("Connection", "close")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(r.status)
	b, err := json.Marshal(errorBody{Errors: []errorEntry{{r.code, r.message}}})
	if err == nil {
		_, _ = w.Write(b)
	}
}
