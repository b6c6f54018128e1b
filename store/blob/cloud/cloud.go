// Package cloud has the drivers of package blob for the three large clouds and
// what speaks their protocols: s3, gs and azblob. It is a package of its own
// because it links their vendors' libraries; only programs import it.
//
// Credentials come from where each vendor's own tools take them: AWS_…, shared
// profiles, web identity and instance roles for s3; GOOGLE_APPLICATION_CREDENTIALS
// and workload identity for gs; AZURE_STORAGE_ACCOUNT with _KEY or _SAS_TOKEN,
// AZURE_STORAGE_CONNECTION_STRING and managed identities for azblob. They are
// looked for when the bucket is opened, and rotate as the libraries do it.
package cloud

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/storage"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	smithy "github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	gcblob "gocloud.dev/blob"
	"gocloud.dev/blob/azureblob"
	"gocloud.dev/blob/gcsblob"
	"gocloud.dev/blob/s3blob"
	"gocloud.dev/gcp"
	"golang.org/x/oauth2"
	"google.golang.org/api/googleapi"

	"assay.dev/assay/store"
	"assay.dev/assay/store/blob"
)

// Drivers are all of them.
func Drivers() []blob.Driver {
	return []blob.Driver{
		{Scheme: s3blob.Scheme, Open: openS3, Fault: s3Fault},
		{Scheme: gcsblob.Scheme, Open: openGCS, Fault: gcsFault, Upload: gcsUpload},
		{Scheme: azureblob.Scheme, Open: openAzure, Fault: azureFault, Upload: azureUpload},
	}
}

func openS3(ctx context.Context, u *url.URL) (*gcblob.Bucket, error) {
	return new(s3blob.URLOpener).OpenBucketURL(ctx, u)
}

// openGCS differs from gcsblob's own in two ways: missing credentials are an
// error, not a line on stdout, and a call gives up after some tries. The library
// would go on until the context ends, and nobody would learn why.
func openGCS(ctx context.Context, u *url.URL) (*gcblob.Bucket, error) {
	client := gcp.NewAnonymousHTTPClient(gcp.DefaultTransport())
	if os.Getenv("STORAGE_EMULATOR_HOST") == "" && u.Query().Get("anonymous") == "" {
		// The client outlives the call that opens it.
		creds, err := gcp.DefaultCredentials(context.WithoutCancel(ctx))
		if err != nil {
			return nil, fmt.Errorf("looking for Google credentials (set GOOGLE_APPLICATION_CREDENTIALS, or use workload identity): %w", err)
		}
		if client, err = gcp.NewHTTPClient(gcp.DefaultTransport(), creds.TokenSource); err != nil {
			return nil, err
		}
	}
	b, err := (&gcsblob.URLOpener{Client: client}).OpenBucketURL(ctx, u)
	if err != nil {
		return nil, err
	}
	var library *storage.Client
	if b.As(&library) {
		library.SetRetry(storage.WithMaxAttempts(4))
	}
	return b, nil
}

// gcsUpload makes room for the object and not for 16 MB, and has the library give
// up after a while: it retries uploads by time, not by number.
func gcsUpload(o *gcblob.WriterOptions, size int) {
	o.BufferSize = size + 1
	o.BeforeWrite = func(as func(any) bool) error {
		var w *storage.Writer
		if as(&w) {
			w.ChunkRetryDeadline = 8 * time.Second
		}
		return nil
	}
}

// azureUpload has the object fit one block: only then the service compares the
// digest with what it got.
func azureUpload(o *gcblob.WriterOptions, size int) { o.BufferSize = size + 1 }

func openAzure(ctx context.Context, u *url.URL) (*gcblob.Bucket, error) {
	o := azureblob.URLOpener{
		MakeClient:        azureblob.NewDefaultClient,
		ServiceURLOptions: *azureblob.NewDefaultServiceURLOptions(),
	}
	return o.OpenBucketURL(ctx, u)
}

func s3Fault(err error) *store.Fault {
	f := new(store.Fault)
	known := false
	if r, ok := errors.AsType[*smithyhttp.ResponseError](err); ok && r.Response != nil {
		f, known = httpFault(r.HTTPStatusCode(), r.Response.Header), true
	}
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		switch api.ErrorCode() {
		case "RequestTimeout", "SlowDown", "RequestTimeTooSkewed", "OperationAborted", "ConditionalRequestConflict":
			f.Class, f.Err, known = store.Transient, err, true
		case "ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "NoSuchBucket",
			"AuthorizationHeaderMalformed", "PermanentRedirect", "AllAccessDisabled", "InvalidBucketName":
			f.Class, f.Err, known = store.Configuration, err, true
		case "BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch":
			f.Class, f.Err, known = store.Transient, err, true // damaged on the way
		}
	}
	if said := err.Error(); !known && (strings.Contains(said, "get credentials") || strings.Contains(said, "refresh cached credentials")) {
		f.Class, f.Err, known = store.Configuration, err, true
	}
	if !known {
		return nil
	}
	return f
}

func gcsFault(err error) *store.Fault {
	if g, ok := errors.AsType[*googleapi.Error](err); ok {
		return httpFault(g.Code, g.Header)
	}
	// Getting a token failed; the class of a 403 is right, its meaning is not.
	if o, ok := errors.AsType[*oauth2.RetrieveError](err); ok && o.Response != nil {
		f := httpFault(o.Response.StatusCode, o.Response.Header)
		f.Err = o
		return f
	}
	return nil
}

func azureFault(err error) *store.Fault {
	if r, ok := errors.AsType[*azcore.ResponseError](err); ok {
		var header http.Header
		if r.RawResponse != nil {
			header = r.RawResponse.Header
		}
		f := httpFault(r.StatusCode, header)
		if r.ErrorCode == "ContainerBeingDeleted" || r.ErrorCode == "Md5Mismatch" {
			f.Class = store.Transient
		}
		return f
	}
	if a, ok := errors.AsType[*azidentity.AuthenticationFailedError](err); ok {
		return &store.Fault{Class: store.Configuration, Err: a}
	}
	if strings.Contains(err.Error(), "failed to acquire a token") {
		return &store.Fault{Class: store.Configuration, Err: err}
	}
	return nil
}

// httpFault is what a status says. 400 is the request's fault, which no record's
// content can cause but which settings can: a wrong region, an old version of the
// protocol.
func httpFault(status int, header http.Header) *store.Fault {
	f := &store.Fault{Err: errors.New(http.StatusText(status))}
	switch {
	case status == http.StatusForbidden:
		f.Class, f.Err = store.Configuration, blob.ErrDenied
	case status == http.StatusRequestEntityTooLarge:
		f.Class = store.Permanent
	case status == http.StatusRequestTimeout, status == http.StatusConflict, status == http.StatusPreconditionFailed,
		status == http.StatusTooEarly, status == http.StatusTooManyRequests, status >= 500 && status != http.StatusNotImplemented:
		f.Class = store.Transient
	default:
		f.Class = store.Configuration
	}
	if after := header.Get("Retry-After"); after != "" {
		if s, err := strconv.Atoi(after); err == nil && s > 0 {
			f.RetryAfter = min(time.Duration(s)*time.Second, time.Hour)
		} else if at, err := http.ParseTime(after); err == nil {
			f.RetryAfter = max(0, min(time.Until(at), time.Hour))
		}
	}
	return f
}
