package grafeas_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	expr "github.com/grafeas/grafeas/cel"
	"github.com/grafeas/grafeas/go/filtering/common"
	"github.com/grafeas/grafeas/go/filtering/operators"
	"github.com/grafeas/grafeas/go/filtering/parser"
	"github.com/grafeas/grafeas/go/iam"
	"github.com/grafeas/grafeas/go/name"
	api "github.com/grafeas/grafeas/go/v1/api"
	pb "github.com/grafeas/grafeas/proto/v1/grafeas_go_proto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// server is Grafeas' own implementation of its API, v1, with validation
// enforced, over storage in memory.
type server struct {
	endpoint string
	storage  *storage
	auth     *auth
	// fault, if not nil, may answer a call instead of the server.
	fault atomic.Pointer[func(method string) error]
	calls sync.Map // method → *atomic.Int64
}

func start(t testing.TB, opts ...grpc.ServerOption) *server {
	t.Helper()
	s := &server{storage: &storage{notes: map[string]*pb.Note{}}, auth: &auth{}}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.endpoint = "grpc://" + listener.Addr().String()
	srv := grpc.NewServer(append(opts, grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		method := info.FullMethod[len("/grafeas.v1.Grafeas/"):]
		n, _ := s.calls.LoadOrStore(method, &atomic.Int64{})
		n.(*atomic.Int64).Add(1)
		if f := s.fault.Load(); f != nil {
			if err := (*f)(method); err != nil {
				return nil, err
			}
		}
		return next(ctx, req)
	}))...)
	pb.RegisterGrafeasServer(srv, &api.API{Storage: s.storage, Auth: s.auth, EnforceValidation: true})
	go func() { _ = srv.Serve(listener) }()
	t.Cleanup(srv.Stop)
	return s
}

func (s *server) inject(f func(method string) error) {
	if f == nil {
		s.fault.Store(nil)
		return
	}
	s.fault.Store(&f)
}

func (s *server) count(method string) int64 {
	if n, ok := s.calls.Load(method); ok {
		return n.(*atomic.Int64).Load()
	}
	return 0
}

// auth denies what it is told to.
type auth struct {
	deny atomic.Pointer[iam.Permission]
}

func (a *auth) CheckAccessAndProject(_ context.Context, _, _ string, p iam.Permission) error {
	if d := a.deny.Load(); d != nil && (*d == "*" || *d == p) {
		return status.Errorf(codes.PermissionDenied, "permission %s denied", p)
	}
	return nil
}
func (*auth) EndUserID(context.Context) (string, error) { return "tester", nil }
func (*auth) PurgePolicy(context.Context, string, string, iam.Resource) error {
	return nil
}

// storage is what the API stands on. The methods that our client never causes
// are left to the nil interface.
type storage struct {
	api.Storage
	mu          sync.Mutex
	notes       map[string]*pb.Note
	occurrences []*pb.Occurrence
}

func (s *storage) CreateNote(_ context.Context, pID, nID, _ string, n *pb.Note) (*pb.Note, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	full := name.FormatNote(pID, nID)
	if s.notes[full] != nil {
		return nil, status.Errorf(codes.AlreadyExists, "note %q exists", full)
	}
	n = proto.Clone(n).(*pb.Note)
	n.Name, n.CreateTime = full, timestamppb.Now()
	s.notes[full] = n
	return proto.Clone(n).(*pb.Note), nil
}

func (s *storage) CreateOccurrence(_ context.Context, pID, _ string, o *pb.Occurrence) (*pb.Occurrence, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.notes[o.NoteName] == nil {
		return nil, status.Errorf(codes.NotFound, "note %q not found", o.NoteName)
	}
	o = proto.Clone(o).(*pb.Occurrence)
	o.Name, o.CreateTime = name.FormatOccurrence(pID, fmt.Sprint("occ-", len(s.occurrences))), timestamppb.Now()
	s.occurrences = append(s.occurrences, o)
	return proto.Clone(o).(*pb.Occurrence), nil
}

func (s *storage) ListNoteOccurrences(_ context.Context, pID, nID, filter, token string, size int32) ([]*pb.Occurrence, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	full := name.FormatNote(pID, nID)
	if s.notes[full] == nil {
		return nil, "", status.Errorf(codes.NotFound, "note %q not found", full)
	}
	uris, err := wanted(filter)
	if err != nil {
		return nil, "", err
	}
	from := 0
	if token != "" {
		if from, err = strconv.Atoi(token); err != nil {
			return nil, "", status.Errorf(codes.InvalidArgument, "page token %q", token)
		}
	}
	var out []*pb.Occurrence
	for i, o := range s.occurrences {
		if i < from || o.NoteName != full || (uris != nil && !slices.Contains(uris, o.ResourceUri)) {
			continue
		}
		if len(out) == int(size) {
			return out, strconv.Itoa(i), nil
		}
		out = append(out, proto.Clone(o).(*pb.Occurrence))
	}
	return out, "", nil
}

// GetOccurrence, UpdateOccurrence and so on are not called.
func (s *storage) UpdateNote(context.Context, string, string, *pb.Note, *fieldmaskpb.FieldMask) (*pb.Note, error) {
	return nil, status.Error(codes.Unimplemented, "UpdateNote")
}

// all is a copy of what is stored.
func (s *storage) all() (notes map[string]*pb.Note, occurrences []*pb.Occurrence) {
	s.mu.Lock()
	defer s.mu.Unlock()
	notes = map[string]*pb.Note{}
	for k, v := range s.notes {
		notes[k] = proto.Clone(v).(*pb.Note)
	}
	for _, o := range s.occurrences {
		occurrences = append(occurrences, proto.Clone(o).(*pb.Occurrence))
	}
	return notes, occurrences
}

func (s *storage) removeNotes() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.notes)
}

// wanted evaluates resourceUrl="…" OR … by Grafeas' own parser of filters; nil
// for no filter.
func wanted(filter string) ([]string, error) {
	if filter == "" {
		return nil, nil
	}
	parsed, errs := parser.Parse(common.NewStringSource(filter, "filter"))
	if errs != nil {
		return nil, status.Errorf(codes.InvalidArgument, "filter %q: %s", filter, errs.String())
	}
	return uris(parsed.GetExpr())
}

func uris(e *expr.Expr) ([]string, error) {
	call := e.GetCallExpr()
	switch call.GetFunction() {
	case operators.LogicalOr:
		var out []string
		for _, arg := range call.GetArgs() {
			some, err := uris(arg)
			if err != nil {
				return nil, err
			}
			out = append(out, some...)
		}
		return out, nil
	case operators.Equals:
		if call.GetArgs()[0].GetIdentExpr().GetName() == "resourceUrl" {
			return []string{call.GetArgs()[1].GetConstExpr().GetStringValue()}, nil
		}
	case operators.Sequence, operators.LogicalAnd:
		if len(call.GetArgs()) == 1 {
			return uris(call.GetArgs()[0])
		}
	}
	return nil, status.Errorf(codes.InvalidArgument, "this server's filters are resourceUrl=… OR …, not %v", e)
}
