package kms

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/aws/smithy-go"
	vault "github.com/hashicorp/vault/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"assay.dev/assay/store"
)

// classify gives an error of a service its class: what the service refuses will be
// refused again until somebody changes settings or rights, whatever else goes wrong
// may go away.
func classify(err error) error {
	var fault *store.Fault
	if err == nil {
		return nil
	}
	if errors.As(err, &fault) {
		return store.As(fault.Class, err)
	}
	return store.As(classOf(err), err)
}

func classOf(err error) store.Class {
	var (
		api       smithy.APIError
		coded     interface{ HTTPStatusCode() int }
		bao       *vault.ResponseError
		az        *azcore.ResponseError
		azAuth    *azidentity.AuthenticationFailedError
		dns       *net.DNSError
		authority x509.UnknownAuthorityError
		cert      *tls.CertificateVerificationError
	)
	switch {
	case errors.As(err, &bao):
		return ofStatus(bao.StatusCode)
	case errors.As(err, &api) && throttled(api.ErrorCode()):
		return store.Transient
	case errors.As(err, &coded):
		return ofStatus(coded.HTTPStatusCode())
	case errors.As(err, &azAuth) && azAuth.RawResponse != nil:
		return ofStatus(azAuth.RawResponse.StatusCode)
	case errors.As(err, &az):
		return ofStatus(az.StatusCode)
	case errors.As(err, &dns):
		if dns.IsNotFound {
			return store.Configuration
		}
	case errors.As(err, &authority), errors.As(err, &cert):
		return store.Configuration
	}
	if s, ok := status.FromError(err); ok {
		switch s.Code() {
		case codes.PermissionDenied, codes.Unauthenticated, codes.NotFound, codes.InvalidArgument, codes.FailedPrecondition, codes.Unimplemented:
			return store.Configuration
		}
	}
	// What SDKs say in words only, before anything was asked of anybody.
	for _, words := range []string{
		"could not find default credentials", "failed to refresh cached credentials", "no EC2 IMDS role found",
		"DefaultAzureCredential: failed", "EnvironmentCredential", "invalid awskms format", "kms specification should be", "could not read data from transit key path",
	} {
		if strings.Contains(err.Error(), words) {
			return store.Configuration
		}
	}
	return store.Transient
}

// throttled says whether AWS asks for patience under a status of 400.
func throttled(code string) bool {
	switch code {
	case "ThrottlingException", "Throttling", "LimitExceededException", "RequestLimitExceeded", "KMSInternalException", "DependencyTimeoutException":
		return true
	}
	return false
}

func ofStatus(code int) store.Class {
	switch {
	case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code == http.StatusPreconditionFailed:
		return store.Transient
	case code >= 400 && code < 500:
		return store.Configuration
	}
	return store.Transient
}

// print tells whether a file changed.
type print struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

// look is a file's print, following links, as a Secret's volume swaps them.
func look(path string) print {
	info, err := os.Stat(path)
	if err != nil {
		return print{}
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return print{size: info.Size()}
	}
	return print{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
}
