package peer

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Bao is an OpenBao server in development mode, unsealed, with the root token "root".
type Bao struct {
	// Address is its http URL.
	Address string
	t       testing.TB
}

// OpenBao starts one for the time of the test.
func OpenBao(t testing.TB) *Bao {
	t.Helper()
	binary := Need(t, "ASSAY_OPENBAO")
	_, _, address := Address(t)
	Start(t, address, []string{"HOME=" + t.TempDir()}, binary, "server", "-dev", "-dev-no-store-token", "-dev-root-token-id=root", "-dev-listen-address="+address)
	b := &Bao{Address: "http://" + address, t: t}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		resp, err := http.Get(b.Address + "/v1/sys/health")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return b
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("OpenBao does not start: %v", err)
		}
	}
}

// Do asks the server as root and returns its answer. The test ends where that is an
// error.
func (b *Bao) Do(method, path, body string) []byte {
	b.t.Helper()
	req, err := http.NewRequest(method, b.Address+"/v1/"+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set("X-Vault-Token", "root")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		b.t.Fatalf("%s %s: %s %s %v", method, path, resp.Status, answer, err)
	}
	return answer
}
