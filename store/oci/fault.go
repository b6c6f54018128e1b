package oci

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"assay.dev/assay/store"
)

// classify says what kind of trouble an error of a registry is, so that nobody
// tries again for ever what cannot succeed, nor gives up what can.
func classify(err error) error {
	var f *store.Fault
	if err == nil || errors.As(err, &f) {
		return err
	}
	return &store.Fault{Class: classOf(err), Err: err, RetryAfter: retryAfter(err)}
}

// join is the error of two that happened to one record. It has the class of the one
// that can still be helped: what is permanent for one image must not keep another
// from being tried again.
func join(a, b error) error {
	if a == nil || b == nil {
		return cmp.Or(a, b)
	}
	f := &store.Fault{Class: min(store.ClassOf(a), store.ClassOf(b)), Err: errors.Join(a, b)}
	for _, err := range []error{a, b} {
		var g *store.Fault
		if errors.As(err, &g) {
			f.RetryAfter = max(f.RetryAfter, g.RetryAfter)
		}
	}
	return f
}

func classOf(err error) store.Class {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return store.Transient
	}
	if errors.Is(err, errTooLarge) {
		return store.Permanent
	}
	var (
		se          *StatusError
		te          *transport.Error
		dns         *net.DNSError
		authority   x509.UnknownAuthorityError
		hostname    x509.HostnameError
		certificate x509.CertificateInvalidError
		notTLS      tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &se) && se.Status == http.StatusNotFound && se.Method != http.MethodGet && !blobUnknown(err):
		return store.Configuration // no such repository, and pushing does not make it
	case errors.As(err, &se):
		return classOfStatus(se.Status, se.Code)
	case errors.As(err, &te):
		code := ""
		if len(te.Errors) > 0 {
			code = string(te.Errors[0].Code)
		}
		return classOfStatus(te.StatusCode, code)
	case errors.As(err, &dns) && dns.IsNotFound,
		errors.As(err, &authority), errors.As(err, &hostname), errors.As(err, &certificate), errors.As(err, &notTLS):
		return store.Configuration
	}
	return store.Transient
}

// classOfStatus: the specification's codes say more than the status, where the
// registry gives them. What nobody can tell may go better next time.
func classOfStatus(status int, code string) store.Class {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired,
		http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return store.Configuration
	case http.StatusRequestEntityTooLarge, http.StatusRequestHeaderFieldsTooLarge, http.StatusUnsupportedMediaType:
		return store.Permanent
	}
	if status >= 500 || status == http.StatusTooManyRequests {
		return store.Transient
	}
	switch code {
	case "UNAUTHORIZED", "DENIED", "NAME_UNKNOWN", "UNSUPPORTED":
		return store.Configuration
	case "MANIFEST_INVALID", "NAME_INVALID", "TAG_INVALID", "SIZE_INVALID":
		return store.Permanent
	}
	return store.Transient
}
