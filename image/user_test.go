package image_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"assay.dev/assay/image"
)

func TestUser(t *testing.T) {
	base, top := t.TempDir(), t.TempDir()
	write(t, base, map[string]string{
		"etc/passwd": "root:x:0:0::/root:/bin/sh\nbuild:x:1000:1001::/home/build:/bin/sh\nodd\nbig:x:4000000:1::/:\n\n",
		"etc/group":  "root:x:0:\nwheel:x:10:build\n",
	})
	write(t, top, map[string]string{"etc/other": ""})
	layers := []string{base, top}
	for spec, want := range map[string][2]uint32{
		"": {0, 0}, "0": {0, 0}, "root": {0, 0}, "build": {1000, 1001}, "1000": {1000, 1001}, "4242": {4242, 0},
		"build:wheel": {1000, 10}, "build:7": {1000, 7}, "4242:wheel": {4242, 10}, "65535:65535": {65535, 65535},
	} {
		uid, gid, err := image.User(layers, spec)
		if err != nil || uid != want[0] || gid != want[1] {
			t.Errorf("%q: %d:%d, %v; want %v", spec, uid, gid, err, want)
		}
	}
	for _, spec := range []string{"nobody", "build:nobody", "-1", "65536", "99999999999", ":1", "build:", "a:b:c", "big", "odd", "1000:70000"} {
		if uid, gid, err := image.User(layers, spec); err == nil {
			t.Errorf("%q is %d:%d", spec, uid, gid)
		}
	}
	if _, _, err := image.User([]string{filepath.Join(base, "none")}, "build"); err == nil {
		t.Error("a layer that is not there is accepted")
	}
	if uid, _, err := image.User([]string{top}, "12"); err != nil || uid != 12 {
		t.Errorf("a number needs no file: %d, %v", uid, err)
	}
}

// TestUserFiles is about which file counts, and which is not to be read.
func TestUserFiles(t *testing.T) {
	const passwd = "build:x:5:5::/:\n"
	for name, c := range map[string]struct {
		layers []func(t *testing.T, dir string) // lowest first
		want   bool
	}{
		"upper one counts": {[]func(*testing.T, string){
			func(t *testing.T, d string) { write(t, d, map[string]string{"etc/passwd": "build:x:9:9::/:\n"}) },
			func(t *testing.T, d string) { write(t, d, map[string]string{"etc/passwd": passwd}) },
		}, true},
		"deleted": {[]func(*testing.T, string){
			func(t *testing.T, d string) { write(t, d, map[string]string{"etc/passwd": passwd}) },
			func(t *testing.T, d string) { whiteout(t, d, "etc/passwd") },
		}, false},
		"folder deleted": {[]func(*testing.T, string){
			func(t *testing.T, d string) { write(t, d, map[string]string{"etc/passwd": passwd}) },
			func(t *testing.T, d string) { whiteout(t, d, "etc") },
		}, false},
		"folder deleted and made again": {[]func(*testing.T, string){
			func(t *testing.T, d string) { write(t, d, map[string]string{"etc/passwd": passwd}) },
			func(t *testing.T, d string) { whiteout(t, d, "etc") },
			func(t *testing.T, d string) { write(t, d, map[string]string{"etc/hosts": ""}) },
		}, false},
		"opaque folder": {[]func(*testing.T, string){
			func(t *testing.T, d string) { write(t, d, map[string]string{"etc/passwd": passwd}) },
			func(t *testing.T, d string) {
				write(t, d, map[string]string{"etc/hosts": ""})
				if err := unix.Setxattr(filepath.Join(d, "etc"), "user.overlay.opaque", []byte("y"), 0); err != nil {
					t.Skipf("this file system has no user attributes: %v", err)
				}
			},
		}, false},
		"absolute link inside": {[]func(*testing.T, string){
			func(t *testing.T, d string) { write(t, d, map[string]string{"nix/p": passwd}) },
			func(t *testing.T, d string) { symlink(t, d, "/nix/p", "etc/passwd") },
		}, true},
		"relative link and link to a folder": {[]func(*testing.T, string){
			func(t *testing.T, d string) { write(t, d, map[string]string{"usr/etc/p": passwd}) },
			func(t *testing.T, d string) { symlink(t, d, "usr/etc", "etc") },
			func(t *testing.T, d string) { symlink(t, d, "../../../../usr/./etc/p", "usr/etc/passwd") },
		}, true},
		"link to the host": {[]func(*testing.T, string){
			func(t *testing.T, d string) { symlink(t, d, "../../../../../../../etc/passwd", "etc/passwd") },
		}, false},
		"link in a circle": {[]func(*testing.T, string){
			func(t *testing.T, d string) { symlink(t, d, "passwd", "etc/passwd") },
		}, false},
		"fifo": {[]func(*testing.T, string){
			func(t *testing.T, d string) {
				write(t, d, map[string]string{"etc/x": ""})
				if err := unix.Mkfifo(filepath.Join(d, "etc/passwd"), 0o600); err != nil {
					t.Fatal(err)
				}
			},
		}, false},
		"huge": {[]func(*testing.T, string){
			func(t *testing.T, d string) {
				write(t, d, map[string]string{"etc/passwd": passwd})
				if err := os.Truncate(filepath.Join(d, "etc/passwd"), 1<<30); err != nil {
					t.Fatal(err)
				}
			},
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var layers []string
			for _, f := range c.layers {
				d := t.TempDir()
				f(t, d)
				layers = append(layers, d)
			}
			uid, _, err := image.User(layers, "build")
			if c.want && (err != nil || uid != 5) || !c.want && err == nil {
				t.Errorf("uid %d, %v", uid, err)
			}
		})
	}
}

func whiteout(t *testing.T, dir, name string) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(p, unix.S_IFCHR, 0); err != nil {
		t.Skipf("whiteouts cannot be made here: %v", err)
	}
}

func symlink(t *testing.T, dir, target, name string) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, p); err != nil {
		t.Fatal(err)
	}
}
