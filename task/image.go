package task

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"assay.dev/assay/task/goimage"
	"assay.dev/assay/task/remote"
)

func runBuildGoImage(ctx context.Context, env Env, args []string) error {
	f := newFlags(env, "build-go-image")
	res := f.results()
	image := f.need("image", "repository the image will be in")
	source := f.need("source", "folder of the source")
	dir := f.String("context", ".", "folder in the source that has go.mod")
	modules := f.String("modules", "", "folder of the prefetched modules")
	out := f.need("output", "folder for the image layout")
	work := f.need("work", "folder for scratch files")
	goroot := f.need("goroot", "folder of the Go toolchain")
	pkg := f.need("package", "import path or ./folder to build")
	platform := f.need("platform", "such as linux/amd64")
	commit := f.String("commit-sha", "", "commit, for the image's label")
	repo := f.String("source-url", "", "repository, for the image's label")
	expires := f.String("image-expires-after", "", "such as 5d, for the image's label quay.expires-after")
	epoch := f.String("source-date-epoch", "", "time of every file in the image")
	if err := f.parse(args, true); err != nil {
		return err
	}
	target, err := remote.ParseRef(*image)
	if err != nil {
		return &usageError{err.Error()}
	}
	created, err := parseEpoch(*epoch)
	if err != nil {
		return err
	}
	more, err := labels(f.Args())
	if err != nil {
		return err
	}
	if *expires != "" {
		more["quay.expires-after"] = *expires
	}
	if *modules != "" {
		// An artifact parameter that was left empty unpacks nothing.
		if _, err := os.Stat(*modules); errors.Is(err, os.ErrNotExist) {
			*modules = ""
		}
	}
	got, err := goimage.Build(ctx, goimage.Options{
		GoRoot: *goroot, Source: *source, Context: *dir, Modules: *modules, Out: *out, Work: *work,
		Package: *pkg, Platform: *platform, Epoch: created, Revision: *commit, URL: *repo, Labels: more, Log: env.Stdout,
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(env.Stdout, "image %s for %s: program %s, %d modules\n", got.Image.Digest, *platform, got.Name, got.Modules)
	return res.write(result{"SBOM_BLOB_URL", target.Name + "@" + got.SBOMBlob.Digest.String()})
}

// dockerConfig is where registry credentials are, as for docker.
func dockerConfig(getenv func(string) string) (remote.Credentials, error) {
	dir := getenv("DOCKER_CONFIG")
	if dir == "" {
		dir = filepath.Join(getenv("HOME"), ".docker")
	}
	return remote.ReadCredentials(filepath.Join(dir, "config.json"))
}

func runBuildImageIndex(ctx context.Context, env Env, args []string) error {
	f := newFlags(env, "build-image-index")
	res := f.results()
	image := f.need("image", "where the index goes: repository, with a tag or without")
	commit := f.String("commit-sha", "", "commit, for the index's annotation")
	expires := f.String("image-expires-after", "", "such as 5d, for the annotation quay.expires-after")
	epoch := f.String("source-date-epoch", "", "time of the bill of materials")
	if err := f.parse(args, true); err != nil {
		return err
	}
	created, err := parseEpoch(*epoch)
	if err != nil {
		return err
	}
	creds, err := dockerConfig(env.Getenv)
	if err != nil {
		return err
	}
	annotations := map[string]string{}
	if *commit != "" {
		annotations[ocispec.AnnotationRevision] = *commit
	}
	if *expires != "" {
		annotations["quay.expires-after"] = *expires
	}
	got, err := remote.BuildIndex(ctx, remote.IndexOptions{
		Image: *image, Images: tags(f.Args()), Annotations: annotations, Epoch: created,
	}, creds)
	if err != nil {
		return err
	}
	ref, err := remote.ParseRef(got.Name)
	if err != nil {
		return err
	}
	ref.Digest = got.Index.Digest
	fmt.Fprintf(env.Stdout, "index %s\n", ref)
	for _, i := range got.Images {
		fmt.Fprintf(env.Stdout, "  %s\n", i)
	}
	return res.write(
		result{"IMAGE_URL", got.Name},
		result{"IMAGE_DIGEST", got.Index.Digest.String()},
		result{"IMAGES", strings.Join(got.Images, ",")},
		result{"IMAGE_REF", ref.String()},
		result{"SBOM_BLOB_URL", ref.Name + "@" + got.SBOMBlob.Digest.String()},
	)
}

// target opens the repository of an image that two flags name.
func target(env Env, image, dgst string) (*remote.Repository, digest.Digest, error) {
	ref, err := remote.ParseRef(image)
	if err != nil {
		return nil, "", &usageError{err.Error()}
	}
	d := ref.Digest
	if dgst != "" {
		if d, err = digest.Parse(dgst); err != nil {
			return nil, "", &usageError{fmt.Sprintf("digest %q: %v", dgst, err)}
		}
		if ref.Digest != "" && ref.Digest != d {
			return nil, "", &usageError{fmt.Sprintf("image %s and digest %s contradict each other", image, dgst)}
		}
	}
	if d == "" {
		return nil, "", &usageError{"the image's digest must be given"}
	}
	creds, err := dockerConfig(env.Getenv)
	if err != nil {
		return nil, "", err
	}
	repo, err := remote.Open(image, creds)
	return repo, d, err
}

func runApplyTags(ctx context.Context, env Env, args []string) error {
	f := newFlags(env, "apply-tags")
	image := f.need("image", "image that gets the tags")
	dgst := f.need("digest", "its digest")
	if err := f.parse(args, true); err != nil {
		return err
	}
	repo, d, err := target(env, *image, *dgst)
	if err != nil {
		return err
	}
	list := tags(f.Args())
	if len(list) == 0 {
		fmt.Fprintln(env.Stdout, "no tags asked for")
		return nil
	}
	if err := repo.Tag(ctx, d, list); err != nil {
		return err
	}
	for _, t := range list {
		fmt.Fprintf(env.Stdout, "%s:%s is %s\n", repo.Name(), t, d)
	}
	return nil
}

// maxDockerfile bounds a build description.
const maxDockerfile = 4 << 20

func runPushDockerfile(ctx context.Context, env Env, args []string) error {
	f := newFlags(env, "push-dockerfile")
	res := f.results()
	image := f.need("image", "image that was built")
	dgst := f.need("digest", "its digest")
	source := f.need("source", "folder of the source")
	dir := f.String("context", ".", "folder in the source")
	file := f.String("dockerfile", "Dockerfile", "build description in it")
	suffix := f.String("tag-suffix", ".dockerfile", "end of the artifact's tag")
	artifactType := f.String("artifact-type", "application/vnd.konflux.dockerfile", "of the artifact")
	if err := f.parse(args, false); err != nil {
		return err
	}
	data, err := readInside(*source, filepath.Join(*dir, *file))
	if err != nil {
		return fmt.Errorf("reading build description: %w", err)
	}
	if *suffix == ".sig" || *suffix == ".att" || *suffix == ".sbom" || !strings.HasPrefix(*suffix, ".") {
		return &usageError{fmt.Sprintf("--tag-suffix=%q: want a suffix with a dot that no evidence uses", *suffix)}
	}
	repo, d, err := target(env, *image, *dgst)
	if err != nil {
		return err
	}
	tag := d.Algorithm().String() + "-" + d.Encoded() + *suffix
	if err := remote.CheckTag(tag); err != nil {
		return &usageError{err.Error()}
	}
	subject, err := repo.Resolve(ctx, d)
	if err != nil {
		return err
	}
	_, manifest, err := repo.Attach(ctx, subject, *artifactType, *artifactType, data,
		map[string]string{ocispec.AnnotationTitle: filepath.Base(*file)}, tag)
	if err != nil {
		return err
	}
	ref := repo.Name() + "@" + manifest.Digest.String()
	fmt.Fprintf(env.Stdout, "%s is %s\n", *file, ref)
	return res.write(result{"IMAGE_REF", ref})
}

// readInside reads a small file below dir, without being led out of it.
func readInside(dir, name string) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxDockerfile {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", name, maxDockerfile)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxDockerfile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxDockerfile {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", name, maxDockerfile)
	}
	return data, nil
}

func runShowSBOM(ctx context.Context, env Env, args []string) error {
	f := newFlags(env, "show-sbom")
	image := f.need("image", "image")
	dgst := f.String("digest", "", "its digest, unless the image names it")
	if err := f.parse(args, false); err != nil {
		return err
	}
	repo, d, err := target(env, *image, *dgst)
	if err != nil {
		return err
	}
	bills, err := repo.Bills(ctx, d)
	if err != nil {
		return err
	}
	for _, b := range bills {
		fmt.Fprintf(env.Stdout, "%s %s\n", b.Image, b.Platform)
		w := tabwriter.NewWriter(env.Stdout, 2, 8, 2, ' ', 0)
		fmt.Fprintln(w, "  NAME\tVERSION\tPURL")
		for _, p := range b.Document.Packages {
			// A bill is a stranger's words: no control characters to the terminal.
			fmt.Fprintf(w, "  %s\t%s\t%s\n", printable(p.Name), printable(p.Version), printable(p.PURL))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f {
			return '?'
		}
		return r
	}, s)
}
