package cloud_test

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	pb "cloud.google.com/go/firestore/apiv1/firestorepb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/store"
	"assay.dev/assay/store/docdb"
	"assay.dev/assay/store/storetest"
)

// firestore answers what creating and getting documents needs, with the service's
// limits: 1 MiB a document, no array in an array, 20 levels.
type firestore struct {
	pb.UnimplementedFirestoreServer
	fault atomic.Uint32 // a code that everything is answered with

	mu   sync.Mutex
	docs map[string]*pb.Document
}

func (f *firestore) Commit(_ context.Context, r *pb.CommitRequest) (*pb.CommitResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := timestamppb.Now()
	out := &pb.CommitResponse{CommitTime: now}
	for _, w := range r.Writes {
		d := w.GetUpdate()
		if d == nil {
			return nil, status.Error(codes.Unimplemented, "updates only")
		}
		if _, there := f.docs[d.Name]; there && w.CurrentDocument != nil && !w.CurrentDocument.GetExists() {
			return nil, status.Errorf(codes.AlreadyExists, "Document already exists: %s", d.Name)
		}
		if proto.Size(d) > 1<<20 {
			return nil, status.Errorf(codes.InvalidArgument, "Document '%s' cannot be written because its size exceeds the maximum allowed size of 1,048,576 bytes.", d.Name)
		}
		for _, v := range d.Fields {
			if err := check(v, false, 1); err != nil {
				return nil, err
			}
		}
		d.CreateTime, d.UpdateTime = now, now
		f.docs[d.Name] = d
		out.WriteResults = append(out.WriteResults, &pb.WriteResult{UpdateTime: now})
	}
	return out, nil
}

func check(v *pb.Value, inArray bool, depth int) error {
	if depth > 20 {
		return status.Error(codes.InvalidArgument, "Property exceeds the maximum nesting of 20.")
	}
	for _, e := range v.GetArrayValue().GetValues() {
		if inArray {
			return status.Error(codes.InvalidArgument, "Cannot convert an array value in an array value.")
		}
		if err := check(e, true, depth+1); err != nil {
			return err
		}
	}
	for _, e := range v.GetMapValue().GetFields() {
		if err := check(e, false, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (f *firestore) BatchGetDocuments(r *pb.BatchGetDocumentsRequest, s pb.Firestore_BatchGetDocumentsServer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range r.Documents {
		resp := &pb.BatchGetDocumentsResponse{ReadTime: timestamppb.Now(), Result: &pb.BatchGetDocumentsResponse_Missing{Missing: name}}
		if d, ok := f.docs[name]; ok {
			d = proto.CloneOf(d)
			if r.Mask != nil {
				for field := range d.Fields {
					if !strings.Contains(strings.Join(r.Mask.FieldPaths, " "), field) {
						delete(d.Fields, field)
					}
				}
			}
			resp.Result = &pb.BatchGetDocumentsResponse_Found{Found: d}
		}
		if err := s.Send(resp); err != nil {
			return err
		}
	}
	return nil
}

func (f *firestore) answer() error {
	if code := codes.Code(f.fault.Load()); code != codes.OK {
		return status.Error(code, http.StatusText(http.StatusServiceUnavailable))
	}
	return nil
}

func (f *firestore) toggle(code codes.Code) func(on bool) {
	return func(on bool) {
		if !on {
			code := codes.OK
			f.fault.Store(uint32(code))
			return
		}
		f.fault.Store(uint32(code))
	}
}

func startFirestore(t *testing.T) *firestore {
	f := &firestore{docs: map[string]*pb.Document{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := f.answer(); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := f.answer(); err != nil {
				return err
			}
			return next(srv, ss)
		}),
	)
	pb.RegisterFirestoreServer(s, f)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	t.Setenv("FIRESTORE_EMULATOR_HOST", l.Addr().String())
	return f
}

func TestFirestore(t *testing.T) {
	f := startFirestore(t)
	at := func() string {
		return "firestore://projects/p/databases/(default)/documents/" + collection() + "?name_field=Name"
	}
	storetest.RunKeeper(t, func(t *testing.T) storetest.Keepers {
		raw := at()
		k := storetest.Keepers{
			OneImageSignature: true,
			Open:              func(t testing.TB) store.Keeper { return open(t, raw, docdb.MongoServer{}) },
			Deny:              f.toggle(codes.PermissionDenied),
			TooLarge:          600 << 10,
		}
		if slow() {
			k.Down = f.toggle(codes.Unavailable) // the library retries until the time is up
		}
		return k
	})
	t.Run("large", func(t *testing.T) { large(t, open(t, at(), docdb.MongoServer{}), 330<<10, "1 MiB") })
	t.Run("no login", func(t *testing.T) {
		on := f.toggle(codes.Unauthenticated)
		on(true)
		defer on(false)
		if o := keepOne(t, open(t, at(), docdb.MongoServer{}), "x"); store.ClassOf(o.Err) != store.Configuration {
			t.Errorf("%+v; want a configuration error", o)
		}
	})
	// What the database does not take as a structure is kept without it.
	t.Run("an array in an array", func(t *testing.T) {
		k := open(t, at(), docdb.MongoServer{})
		defer k.Close()
		r := storetest.StatementRecord(t, storetest.NewRun("TaskRun"), "x", []intoto.Subject{{Name: "x", Digest: map[string]string{"sha256": strings.Repeat("0", 64)}}}, storetest.NewRecordSigner(t))
		r = nested(t, r)
		o := k.Keep(t.Context(), []store.Record{r})[0]
		if o.Err != nil || !strings.Contains(o.Where[0], "without Object") {
			t.Errorf("%+v; want it kept without Object", o)
		}
		kept, err := k.Find(t.Context(), r.Run, r.Key)
		if err != nil || len(kept) != 1 || string(kept[0].Payload) != string(r.Payload) {
			t.Errorf("found %v, %v", kept, err)
		}
	})
}
