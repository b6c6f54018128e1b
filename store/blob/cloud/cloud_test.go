// The servers: for S3 versitygw, which is a real server over a folder; for Google
// Cloud Storage fake-gcs-server and for Azure Azurite, which are emulators.
package cloud_test

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"assay.dev/assay/internal/testrig/peer"
	"assay.dev/assay/store"
	"assay.dev/assay/store/blob"
	"assay.dev/assay/store/blob/cloud"
	"assay.dev/assay/store/storetest"
)

func open(t testing.TB, word, raw string) store.Keeper {
	t.Helper()
	k, err := blob.New(word, raw, blob.Options{Drivers: cloud.Drivers(), Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func bucketName() string { return "records-" + strings.ToLower(rand.Text()[:12]) }

func TestS3(t *testing.T) {
	program := peer.Need(t, "ASSAY_VERSITYGW")
	id, secret := rand.Text(), rand.Text()
	t.Setenv("AWS_ACCESS_KEY_ID", id)
	t.Setenv("AWS_SECRET_ACCESS_KEY", secret)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	root := t.TempDir()
	_, _, address := peer.Address(t)
	peer.Start(t, address, []string{"ROOT_ACCESS_KEY=" + id, "ROOT_SECRET_KEY=" + secret},
		program, "--port", address, "--quiet", "posix", root)
	gate := peer.HTTP(t, address)
	at := func(bucket string) string {
		return fmt.Sprintf("s3://%s?region=us-east-1&use_path_style=true&endpoint=%s", bucket, url.QueryEscape("http://"+gate.Address))
	}
	storetest.RunKeeper(t, func(t *testing.T) storetest.Keepers {
		bucket := bucketName()
		if err := os.Mkdir(filepath.Join(root, bucket), 0o755); err != nil {
			t.Fatal(err)
		}
		return storetest.Keepers{
			OneImageSignature: true,
			Open:              func(t testing.TB) store.Keeper { return open(t, "blob", at(bucket)+"&prefix=chains/") },
			Down:              gate.Switch(http.StatusServiceUnavailable),
			Deny:              gate.Switch(http.StatusForbidden),
		}
	})
	t.Run("no such bucket", func(t *testing.T) { refused(t, "blob", at(bucketName())) })
	t.Run("wrong key", func(t *testing.T) {
		t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
		bucket := bucketName()
		if err := os.Mkdir(filepath.Join(root, bucket), 0o755); err != nil {
			t.Fatal(err)
		}
		refused(t, "blob", at(bucket))
	})
}

func TestGCS(t *testing.T) {
	program := peer.Need(t, "ASSAY_FAKE_GCS_SERVER")
	host, port, address := peer.Address(t)
	gate := peer.HTTP(t, address)
	peer.Start(t, address, nil, program, "-scheme", "http", "-backend", "memory", "-host", host, "-port", port,
		"-public-host", gate.Address, "-log-level", "warn")
	t.Setenv("STORAGE_EMULATOR_HOST", gate.Address)
	storetest.RunKeeper(t, func(t *testing.T) storetest.Keepers {
		bucket := bucketName()
		resp, err := http.Post("http://"+address+"/storage/v1/b?project=p", "application/json", strings.NewReader(`{"name":"`+bucket+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("making a bucket: %s", resp.Status)
		}
		return storetest.Keepers{
			OneImageSignature: true,
			Open:              func(t testing.TB) store.Keeper { return open(t, "gcs", "gs://"+bucket) },
			Down:              gate.Switch(http.StatusServiceUnavailable),
			Deny:              gate.Switch(http.StatusForbidden),
		}
	})
	t.Run("no such bucket", func(t *testing.T) { refused(t, "gcs", "gs://"+bucketName()) })
}

func TestAzure(t *testing.T) {
	command := peer.Node(t, "ASSAY_AZURITE")
	raw := make([]byte, 64)
	_, _ = rand.Read(raw)
	key := base64.StdEncoding.EncodeToString(raw)
	host, port, address := peer.Address(t)
	peer.Start(t, address, []string{"AZURITE_ACCOUNTS=assay:" + key}, append(command, "--blobHost", host, "--blobPort", port,
		"--inMemoryPersistence", "--disableTelemetry", "--silent", "--skipApiVersionCheck")...)
	gate := peer.HTTP(t, address)
	connection := fmt.Sprintf("DefaultEndpointsProtocol=http;AccountName=assay;AccountKey=%s;BlobEndpoint=http://%s/assay;", key, gate.Address)
	for _, v := range []string{"AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"} {
		t.Setenv(v, "")
	}
	t.Setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
	at := func(bucket string) string {
		return "azblob://" + bucket + "?storage_account=assay&protocol=http&domain=" + url.QueryEscape(gate.Address) + "&localemu=true"
	}
	storetest.RunKeeper(t, func(t *testing.T) storetest.Keepers {
		bucket := bucketName()
		c, err := container.NewClientFromConnectionString(connection, bucket, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Create(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		return storetest.Keepers{
			OneImageSignature: true,
			Open:              func(t testing.TB) store.Keeper { return open(t, "blob", at(bucket)) },
			Down:              gate.Switch(http.StatusServiceUnavailable),
			Deny:              gate.Switch(http.StatusForbidden),
		}
	})
	t.Run("no such container", func(t *testing.T) { refused(t, "blob", at(bucketName())) })
}

// refused keeps a record where that is somebody's mistake.
func refused(t *testing.T, word, raw string) {
	t.Helper()
	k := open(t, word, raw)
	defer k.Close()
	r := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), "registry.example/app@"+storetest.Digest([]byte("x")), storetest.NewRecordSigner(t))
	if o := k.Keep(t.Context(), []store.Record{r})[0]; o.Err == nil || store.ClassOf(o.Err) != store.Configuration {
		t.Errorf("%+v (%s); want a configuration error", o, store.ClassOf(o.Err))
	}
}

// Chains drops the error of the last step of an upload. Here the server takes
// every byte and then fails, or says yes and keeps nothing.
func TestLostUpload(t *testing.T) {
	if os.Getenv("ASSAY_SLOW") == "" {
		t.Skip("waits for the library's retries: set ASSAY_SLOW=1; make test-all does")
	}
	for _, status := range []int{http.StatusInternalServerError, http.StatusOK} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet || r.Method == http.MethodHead {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			_, _ = new(bytes.Buffer).ReadFrom(r.Body)
			w.WriteHeader(status)
			if status == http.StatusOK {
				fmt.Fprint(w, `{"kind":"storage#object"}`)
			}
		}))
		t.Setenv("STORAGE_EMULATOR_HOST", s.Listener.Addr().String())
		k := open(t, "gcs", "gs://bucket")
		r := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), "registry.example/app@"+storetest.Digest([]byte("x")), storetest.NewRecordSigner(t))
		o := k.Keep(t.Context(), []store.Record{r})[0]
		if o.Err == nil || store.ClassOf(o.Err) != store.Transient {
			t.Errorf("status %d: %+v; want a transient error", status, o)
		}
		k.Close()
		s.Close()
	}
}

// Credentials that may create objects and not read them, which is all that Chains
// needs, are enough for what nobody has written yet.
func TestCreateOnly(t *testing.T) {
	taken := false
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = new(bytes.Buffer).ReadFrom(r.Body)
		switch {
		case r.Method == http.MethodGet || r.Method == http.MethodHead:
			w.WriteHeader(http.StatusForbidden)
		case taken:
			w.WriteHeader(http.StatusPreconditionFailed)
		default:
			fmt.Fprint(w, `{"kind":"storage#object","bucket":"bucket"}`)
		}
	}))
	defer s.Close()
	t.Setenv("STORAGE_EMULATOR_HOST", s.Listener.Addr().String())
	k := open(t, "gcs", "gs://bucket")
	defer k.Close()
	r := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), "registry.example/app@"+storetest.Digest([]byte("x")), storetest.NewRecordSigner(t))
	if o := k.Keep(t.Context(), []store.Record{r})[0]; o.Err != nil || o.Existing {
		t.Errorf("%+v; want it kept", o)
	}
	taken = true
	if o := k.Keep(t.Context(), []store.Record{r})[0]; store.ClassOf(o.Err) != store.Configuration {
		t.Errorf("%+v; want a configuration error: what is there cannot be seen", o)
	}
}
