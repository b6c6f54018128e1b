// Package cloud has the drivers of package docdb for MongoDB, DynamoDB and
// Firestore. It is a package of its own because it links their vendors'
// libraries; only programs import it.
//
// Credentials of DynamoDB and Firestore come from where the vendors' own tools
// take them; MongoDB's are in the URL of its server.
package cloud

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	smithy "github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"go.mongodb.org/mongo-driver/mongo"
	"go.mongodb.org/mongo-driver/x/mongo/driver"
	"gocloud.dev/docstore"
	awsdynamodb "gocloud.dev/docstore/awsdynamodb/v2"
	"gocloud.dev/docstore/gcpfirestore"
	"gocloud.dev/docstore/mongodocstore"
	"gocloud.dev/gcp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"assay.dev/assay/store"
	"assay.dev/assay/store/docdb"
)

// Drivers are all of them.
func Drivers() []docdb.Driver {
	return []docdb.Driver{
		{
			Scheme: mongodocstore.Scheme, KeyParam: "id_field", Server: true, Open: openMongo, Fault: mongoFault,
			Limit: 16 << 20, LimitSays: "MongoDB has 16 MB at most",
		},
		{
			Scheme: awsdynamodb.Scheme, KeyParam: "partition_key", Open: openDynamoDB, Fault: dynamoDBFault,
			Limit: 400 << 10, LimitSays: "DynamoDB has 400 KB at most",
		},
		{
			Scheme: gcpfirestore.Scheme, KeyParam: "name_field", Open: openFirestore, Fault: firestoreFault,
			Limit: 1 << 20, LimitSays: "Firestore has 1 MiB at most",
		},
	}
}

func openMongo(ctx context.Context, u *url.URL, server string) (*docstore.Collection, func() error, error) {
	// The client connects in the background and outlives the call.
	client, err := mongodocstore.Dial(context.WithoutCancel(ctx), server)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the URL of the MongoDB server: %s", redact(err.Error(), server))
	}
	coll, err := (&mongodocstore.URLOpener{Client: client}).OpenCollectionURL(ctx, u)
	if err != nil {
		_ = client.Disconnect(context.WithoutCancel(ctx)) // it has not been used
		return nil, nil, err
	}
	return coll, func() error {
		return errors.Join(coll.Close(), client.Disconnect(context.Background()))
	}, nil
}

// redact takes a URL and its credential out of a message.
func redact(message, server string) string {
	message = strings.ReplaceAll(message, server, "…")
	if _, rest, ok := strings.Cut(server, "://"); ok {
		if i := strings.LastIndex(rest, "@"); i > 0 {
			for part := range strings.SplitSeq(rest[:i], ":") {
				if part != "" {
					message = strings.ReplaceAll(message, part, "…")
				}
			}
		}
	}
	return message
}

func openDynamoDB(ctx context.Context, u *url.URL, _ string) (*docstore.Collection, func() error, error) {
	// What was created must be seen by the next read.
	strict := *u
	q := strict.Query()
	q.Set("consistent_read", "true")
	strict.RawQuery = q.Encode()
	coll, err := new(awsdynamodb.URLOpener).OpenCollectionURL(ctx, &strict)
	if err != nil {
		return nil, nil, err
	}
	return coll, coll.Close, nil
}

func openFirestore(ctx context.Context, u *url.URL, _ string) (*docstore.Collection, func() error, error) {
	// The client outlives the call.
	lasting := context.WithoutCancel(ctx)
	var source gcp.TokenSource
	if os.Getenv("FIRESTORE_EMULATOR_HOST") == "" {
		creds, err := gcp.DefaultCredentials(lasting)
		if err != nil {
			return nil, nil, fmt.Errorf("looking for Google credentials (set GOOGLE_APPLICATION_CREDENTIALS, or use workload identity): %w", err)
		}
		source = creds.TokenSource
	}
	client, _, err := gcpfirestore.Dial(lasting, source)
	if err != nil {
		return nil, nil, err
	}
	coll, err := (&gcpfirestore.URLOpener{Client: client}).OpenCollectionURL(ctx, u)
	if err != nil {
		return nil, nil, errors.Join(err, client.Close())
	}
	return coll, func() error { return errors.Join(coll.Close(), client.Close()) }, nil
}

// MongoDB's numbers of errors.
const (
	mongoUnauthorized         = 13
	mongoAuthenticationFailed = 18
	mongoInvalidNamespace     = 73
	mongoObjectTooLarge       = 10334
	mongoAtlas                = 8000
)

func mongoFault(err error) *store.Fault {
	f := &store.Fault{Err: err}
	if errors.Is(err, driver.ErrDocumentTooLarge) {
		f.Class = store.Permanent
		return f
	}
	if s, ok := errors.AsType[mongo.ServerError](err); ok {
		switch {
		case s.HasErrorCode(mongoUnauthorized), s.HasErrorCode(mongoAuthenticationFailed), s.HasErrorCode(mongoAtlas),
			s.HasErrorCode(mongoInvalidNamespace):
			f.Class = store.Configuration
			return f
		case s.HasErrorCode(mongoObjectTooLarge):
			f.Class = store.Permanent
			return f
		}
	}
	// Failing to log in is reported while a server is looked for, as text.
	if said := err.Error(); strings.Contains(said, "AuthenticationFailed") || strings.Contains(said, "auth error") {
		f.Class = store.Configuration
		return f
	}
	return nil
}

func dynamoDBFault(err error) *store.Fault {
	f := &store.Fault{Err: err}
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		switch api.ErrorCode() {
		case "AccessDeniedException", "UnrecognizedClientException", "ExpiredTokenException", "InvalidSignatureException",
			"IncompleteSignature", "MissingAuthenticationToken", "MissingAuthenticationTokenException", "ResourceNotFoundException", "OptInRequired":
			f.Class = store.Configuration
			return f
		case "ValidationException", "ItemCollectionSizeLimitExceededException", "SerializationException":
			f.Class = store.Permanent
			return f
		case "ThrottlingException", "ProvisionedThroughputExceededException", "RequestLimitExceeded", "TransactionConflictException",
			"InternalServerError", "ServiceUnavailable":
			return f
		}
	}
	if r, ok := errors.AsType[*smithyhttp.ResponseError](err); ok {
		switch status := r.HTTPStatusCode(); {
		case status == 413:
			f.Class = store.Permanent
		case status == 429, status == 408, status >= 500:
		default:
			f.Class = store.Configuration
		}
		return f
	}
	if said := err.Error(); strings.Contains(said, "get credentials") || strings.Contains(said, "refresh cached credentials") {
		f.Class = store.Configuration
		return f
	}
	return nil
}

func firestoreFault(err error) *store.Fault {
	s, ok := status.FromError(err)
	if !ok {
		if g, found := errors.AsType[interface {
			error
			GRPCStatus() *status.Status
		}](err); found {
			s = g.GRPCStatus()
		} else {
			return nil
		}
	}
	f := &store.Fault{Err: err}
	switch s.Code() {
	case codes.PermissionDenied, codes.Unauthenticated, codes.NotFound:
		f.Class = store.Configuration
	case codes.InvalidArgument, codes.OutOfRange, codes.Unimplemented:
		f.Class = store.Permanent
	case codes.FailedPrecondition:
		f.Class = store.Configuration // the database is of another mode, or off
	}
	for _, d := range s.Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok {
			f.RetryAfter = r.GetRetryDelay().AsDuration()
		}
	}
	return f
}
