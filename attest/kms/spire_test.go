package kms

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// workloadAPI is the Workload API of SPIFFE as an agent serves it.
type workloadAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	token func(audience string) string
}

func (w *workloadAPI) FetchJWTSVID(ctx context.Context, r *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	// The specification makes clients say that they are none by accident.
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("workload.spiffe.io"); len(v) != 1 || v[0] != "true" || len(r.Audience) != 1 {
		return nil, status.Error(codes.InvalidArgument, "security header missing, or no audience")
	}
	return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{
		SpiffeId: "spiffe://cluster.test/signer", Svid: w.token(r.Audience[0]),
	}}}, nil
}

// startWorkloadAPI serves the Workload API's own gRPC definition on a socket and
// returns its path.
func startWorkloadAPI(t *testing.T, token func(string) string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "spire")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(s, &workloadAPI{token: token})
	go s.Serve(l) //nolint:errcheck // ends with Stop
	t.Cleanup(s.Stop)
	return path
}
