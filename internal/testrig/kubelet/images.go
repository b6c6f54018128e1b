package kubelet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/image"
)

const busybox = "/bin/busybox"

// applets are the commands of the shell image.
var applets = strings.Fields("sh ash cat ls echo printf id pwd env sleep dd touch mkdir rm rmdir cp mv ps grep egrep sed awk wc chown chmod stat hostname ln readlink kill true false find head tail cut tr sort uniq seq test [ date base64 sha256sum md5sum tar gzip gunzip wget nc xargs basename dirname expr mktemp tee which")

// pack makes the images that pods need and pushes them to the test registry:
// Shell, and above it Tekton with the entrypoint and, as small scripts, the other
// programs that Tekton puts into pods.
func (k *Kubelet) pack(ctx context.Context) error {
	root := filepath.Join(k.dir, "shell")
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o755); err != nil {
		return err
	}
	for _, d := range []string{"tmp", "etc", "root"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	for _, a := range applets {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", a)); err != nil {
			return err
		}
	}
	shell := image.PackOptions{
		Folders: []image.Folder{{Host: root, Path: "/"}},
		Files: []image.File{
			{Path: "/bin/busybox", Host: busybox, Executable: true},
			{Path: "/etc/passwd", Content: []byte("root:x:0:0:root:/root:/bin/sh\nnonroot:x:65532:65532::/tmp:/bin/sh\n")},
			{Path: "/etc/group", Content: []byte("root:x:0:\nnonroot:x:65532:\n")},
		},
		Cmd: []string{"/bin/sh"}, Env: []string{"PATH=/bin"}, TempDir: k.dir,
	}
	var err error
	if k.Shell, err = k.push(ctx, "shell", shell); err != nil {
		return err
	}
	tekton := shell
	tekton.Files = append(tekton.Files,
		image.File{Path: "/ko-app/entrypoint", Host: os.Getenv("ASSAY_TEKTON_ENTRYPOINT"), Executable: true},
		// What a nop does is to be gone, and workingdirinit makes folders.
		image.File{Path: "/ko-app/nop", Content: []byte("#!/bin/sh\nexit 0\n"), Executable: true},
		image.File{Path: "/ko-app/workingdirinit", Content: []byte("#!/bin/sh\nexec mkdir -p \"$@\"\n"), Executable: true},
	)
	tekton.Entrypoint = []string{"/ko-app/entrypoint"}
	k.Tekton, err = k.push(ctx, "tekton", tekton)
	return err
}

func (k *Kubelet) push(ctx context.Context, repo string, o image.PackOptions) (ref string, err error) {
	img, err := image.Pack(ctx, o)
	if err != nil {
		return "", fmt.Errorf("packing %s: %w", repo, err)
	}
	defer img.Close()
	digest, err := k.images.Remote().PushImage(ctx, k.Registry+"/"+repo+":latest", img)
	if err != nil {
		return "", fmt.Errorf("pushing %s: %w", repo, err)
	}
	return k.Registry + "/" + repo + "@" + digest, nil
}

// Push packs files (absolute name → content) as an image and pushes it to a
// repository of the test registry. It returns the repository, as a step would
// name it in IMAGE_URL, and the digest. It fails the test where it cannot.
func (k *Kubelet) Push(t testing.TB, repo string, files map[string]string) (url, digest string) {
	t.Helper()
	o := image.PackOptions{TempDir: k.dir}
	for path, content := range files {
		o.Files = append(o.Files, image.File{Path: path, Content: []byte(content)})
	}
	ref, err := k.push(t.Context(), repo, o)
	if err != nil {
		t.Fatalf("kubelet: %v", err)
	}
	url, digest, _ = strings.Cut(ref, "@")
	return url, digest
}

// pull makes an image ready.
func (k *Kubelet) pull(ctx context.Context, ref string) (*image.Image, error) {
	return k.images.Ensure(ctx, ref, image.Platform{})
}
