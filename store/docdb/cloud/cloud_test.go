// The servers: for MongoDB FerretDB, which speaks its protocol over SQLite; for
// DynamoDB dynalite, an emulator; for Firestore its protocol, as firestore_test.go
// answers it (Google's emulator is a Java program that no package has).
package cloud_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/internal/testrig/peer"
	"assay.dev/assay/store"
	"assay.dev/assay/store/docdb"
	"assay.dev/assay/store/docdb/cloud"
	"assay.dev/assay/store/storetest"
)

func open(t testing.TB, raw string, mongo docdb.MongoServer) store.Keeper {
	t.Helper()
	k, err := docdb.New(raw, docdb.Options{Drivers: cloud.Drivers(), Mongo: mongo, Timeout: 15 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func collection() string { return "records" + strings.ToLower(rand.Text()[:12]) }

func TestMongo(t *testing.T) {
	program := peer.Need(t, "ASSAY_FERRETDB")
	_, _, address := peer.Address(t)
	peer.Start(t, address, nil, program, "-listen", address, "-dir", t.TempDir())
	gate := peer.TCP(t, address)
	server := docdb.MongoServer{URL: "mongodb://" + gate.Address + "/?retryWrites=false"}
	storetest.RunKeeper(t, func(t *testing.T) storetest.Keepers {
		raw := "mongo://chains/" + collection() + "?id_field=Name"
		return storetest.Keepers{
			OneImageSignature: true,
			Open:              func(t testing.TB) store.Keeper { return open(t, raw, server) },
			Down:              gate.Cut,
			TooLarge:          17 << 20,
		}
	})
	t.Run("large", func(t *testing.T) {
		large(t, open(t, "mongo://chains/"+collection()+"?id_field=Name", server), 5<<20, "16 MB")
	})
	t.Run("no URL", func(t *testing.T) {
		for _, url := range []string{"postgres://user:geheim@h", "mongodb://user:geheim@h:port", "mongodb://us/er:geheim@h"} {
			o := keepOne(t, open(t, "mongo://chains/x?id_field=Name", docdb.MongoServer{Env: url}), "x")
			if o.Err == nil || store.ClassOf(o.Err) != store.Configuration || strings.Contains(o.Err.Error(), "geheim") {
				t.Errorf("%s: %+v; want a configuration error that tells no secret", url, o)
			}
		}
	})
}

func TestDynamoDB(t *testing.T) {
	command := peer.Node(t, "ASSAY_DYNALITE")
	host, port, address := peer.Address(t)
	peer.Start(t, address, nil, append(command, "--host", host, "--port", port, "--createTableMs", "0")...)
	gate := peer.HTTP(t, address)
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	conf, err := config.LoadDefaultConfig(t.Context(), config.WithRegion("us-east-1"), config.WithBaseEndpoint("http://"+address))
	if err != nil {
		t.Fatal(err)
	}
	client := dynamodb.NewFromConfig(conf)
	at := func(table string) string {
		return fmt.Sprintf("dynamodb://%s?partition_key=Name&region=us-east-1&endpoint=%s", table, url.QueryEscape("http://"+gate.Address))
	}
	table := func(t *testing.T) string {
		name := collection()
		_, err := client.CreateTable(t.Context(), &dynamodb.CreateTableInput{
			TableName:            &name,
			AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String("Name"), AttributeType: types.ScalarAttributeTypeS}},
			KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String("Name"), KeyType: types.KeyTypeHash}},
			BillingMode:          types.BillingModePayPerRequest,
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := dynamodb.NewTableExistsWaiter(client, func(o *dynamodb.TableExistsWaiterOptions) {
			o.MinDelay, o.MaxDelay = 20*time.Millisecond, time.Second
		}).Wait(t.Context(), &dynamodb.DescribeTableInput{TableName: &name}, time.Minute); err != nil {
			t.Fatal(err)
		}
		return name
	}
	storetest.RunKeeper(t, func(t *testing.T) storetest.Keepers {
		raw := at(table(t))
		return storetest.Keepers{
			OneImageSignature: true,
			Open:              func(t testing.TB) store.Keeper { return open(t, raw, docdb.MongoServer{}) },
			Down:              gate.Switch(http.StatusServiceUnavailable),
			Deny:              gate.Switch(http.StatusForbidden),
			TooLarge:          300 << 10,
		}
	})
	t.Run("large", func(t *testing.T) {
		large(t, open(t, at(table(t)), docdb.MongoServer{}), 120<<10, "400 KB")
	})
	t.Run("no such table", func(t *testing.T) {
		if o := keepOne(t, open(t, at("absent"), docdb.MongoServer{}), "x"); o.Err == nil || store.ClassOf(o.Err) != store.Configuration {
			t.Errorf("%+v; want a configuration error", o)
		}
	})
}

func keepOne(t *testing.T, k store.Keeper, say string) store.Outcome {
	t.Helper()
	_, o := keepStatement(t, k, say)
	return o
}

func keepStatement(t *testing.T, k store.Keeper, say string) (store.Record, store.Outcome) {
	t.Helper()
	defer k.Close()
	r := storetest.StatementRecord(t, storetest.NewRun("PipelineRun"), say,
		[]intoto.Subject{{Name: "x", Digest: map[string]string{"sha256": strings.Repeat("0", 64)}}}, storetest.NewRecordSigner(t))
	o := k.Keep(context.WithoutCancel(t.Context()), []store.Record{r})[0]
	return r, o
}

// large keeps a statement that fits without Object only.
func large(t *testing.T, k store.Keeper, size int, limit string) {
	t.Helper()
	_, o := keepStatement(t, k, strings.Repeat("x", size))
	if o.Err != nil || !strings.Contains(o.Where[0], "without Object") || !strings.Contains(o.Where[0], limit) {
		t.Errorf("%d bytes: %.300v; want it kept without Object, for the limit of %s", size, fmt.Sprint(o), limit)
	}
}
