package image_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/image"
)

func serve(t *testing.T, s *image.Store) *image.Client {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "images")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- image.Serve(ctx, l, s) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return &image.Client{Socket: sock}
}

func TestServe(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	ref := r.push(t, "app", makeImage(t, archive(t, file("a", "1"))))
	bad := r.push(t, "bad", makeImage(t, archive(t, file("../a", "1"))))
	s, _ := openStore(t, r, t.TempDir(), nil)
	c := serve(t, s)
	img, err := c.Ensure(ctx, ref, amd64)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(must(s.Ensure(ctx, ref, amd64)), img); diff != "" {
		t.Error(diff)
	}
	if _, err := c.Recheck(ctx, ref, amd64); err != nil {
		t.Error(err)
	}
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		for status, part := range map[int]string{401: "/private/", 500: "/trouble/"} {
			if strings.Contains(req.URL.Path, part) {
				w.WriteHeader(status)
				return true
			}
		}
		return false
	})
	for ref, want := range map[string]error{
		r.host + "/none:1":    image.ErrNotFound,
		r.host + "/private/x": image.ErrUnauthorized,
		r.host + "/trouble/x": image.ErrUnreachable,
		bad:                   image.ErrBadImage,
		"No Reference":        image.ErrBadReference,
	} {
		_, local := s.Ensure(ctx, ref, amd64)
		_, err := c.Ensure(ctx, ref, amd64)
		if !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", ref, err, want)
		}
		for _, other := range []error{image.ErrNotFound, image.ErrUnauthorized, image.ErrUnreachable, image.ErrBadImage, image.ErrBadReference, image.ErrLocal} {
			if other != want && errors.Is(err, other) {
				t.Errorf("%s: the error is also %v", ref, other)
			}
		}
		if err == nil || local == nil || err.Error() != local.Error() {
			t.Errorf("%s: the message changed on the way:\n%v\n%v", ref, local, err)
		}
	}
}

func TestServeCallsOff(t *testing.T) {
	r := newRig(t)
	ref := r.push(t, "app", makeImage(t, archive(t, file("a", "1"))))
	s, _ := openStore(t, r, t.TempDir(), nil)
	c := serve(t, s)
	ctx, cancel := context.WithCancel(context.Background())
	off := make(chan struct{})
	r.setHook(func(_ http.ResponseWriter, req *http.Request) bool {
		if strings.Contains(req.URL.Path, "/blobs/") {
			cancel()
			<-req.Context().Done() // the store gives up because its client did
			close(off)
			return true
		}
		return false
	})
	if _, err := c.Ensure(ctx, ref, amd64); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	<-off
}

func TestServeRefuses(t *testing.T) {
	r := newRig(t)
	s, _ := openStore(t, r, t.TempDir(), nil)
	c := serve(t, s)
	for name, request := range map[string]string{
		"not JSON":      "hello\n",
		"unknown field": `{"ref":"x","more":1}` + "\n",
		"too long":      `{"ref":"` + strings.Repeat("x", 100<<10) + `"}` + "\n",
	} {
		conn, err := net.Dial("unix", c.Socket)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		_, _ = fmt.Fprint(conn, request)
		b := make([]byte, 1000)
		n, _ := conn.Read(b)
		conn.Close()
		if !strings.Contains(string(b[:n]), "reading request") {
			t.Errorf("%s: answered %q", name, b[:n])
		}
	}
}

func TestClientWithoutServer(t *testing.T) {
	c := &image.Client{Socket: filepath.Join(t.TempDir(), "none")}
	_, err := c.Ensure(context.Background(), "x", amd64)
	if !errors.Is(err, image.ErrLocal) || !strings.Contains(err.Error(), "is the image store running") {
		t.Errorf("got %v", err)
	}
}
