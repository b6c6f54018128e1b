package observer

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"unicode"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/api"
	"assay.dev/assay/attest"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/hint"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/provenance"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
)

// statedUsage is printed for --help and after wrong flags.
const statedUsage = `Usage: assay attest -f RUN [--children FILE…] [--format FORMAT] [--config FILE]
                    [--sign] [--store]

Prints the in-toto statement that Tekton Chains would make of a TaskRun or
PipelineRun in a file. What is in a file can be anything, so this is a stated
run: with --sign it gets a key and a builder.id of its own, never those of a run
that was executed here. What the statement is silent about, and hints that are
malformed, are named on standard error.

  -f FILE           one TaskRun or PipelineRun, JSON or YAML, v1 or v1beta1, as
                    kubectl get prints it; - reads standard input
  --children FILE   TaskRuns of the PipelineRun, by name; several files, each of
                    several documents or a list, as kubectl get prints it
  --format FORMAT   in-toto, slsa/v1, slsa/v2alpha3, slsa/v2alpha4 or
                    simplesigning; default: as --config says
  --config FILE     chains-config: its data, or the ConfigMap itself
  --sign            print the signed envelope instead
  --store           sign, log where config.json names a log, and store beside each
                    subject that is an image

Exit codes: 0 printed, 1 it cannot be stated, 2 wrong usage.
`

// maxInput bounds one file, in bytes.
const maxInput = 64 << 20

// strings is a repeatable flag.
type repeated []string

func (r *repeated) String() string     { return strings.Join(*r, ",") }
func (r *repeated) Set(s string) error { *r = append(*r, s); return nil }

// MainAttest is `assay attest`. It returns the exit code; nothing is printed on
// out unless it is whole.
func MainAttest(ctx context.Context, args []string, out, errw io.Writer) int {
	fs := flag.NewFlagSet("attest", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	var children repeated
	file := fs.String("f", "", "")
	fs.StringVar(file, "file", "", "")
	fs.Var(&children, "children", "")
	format := fs.String("format", "", "")
	config := fs.String("config", "", "")
	sign := fs.Bool("sign", false, "")
	doStore := fs.Bool("store", false, "")
	output := fs.String("output", "json", "")
	fs.StringVar(output, "o", "json", "")
	usage := func(err error) int {
		fmt.Fprintf(errw, "assay: %v\n%s", err, statedUsage)
		return 2
	}
	// --children takes several files, so what stands between flags belongs to it.
	for rest := args; ; {
		switch err := fs.Parse(rest); {
		case errors.Is(err, flag.ErrHelp):
			fmt.Fprint(out, statedUsage)
			return 0
		case err != nil:
			return usage(err)
		}
		if fs.NArg() == 0 {
			break
		}
		if len(children) == 0 {
			return usage(fmt.Errorf("unexpected argument %q: files of TaskRuns follow --children", fs.Arg(0)))
		}
		children = append(children, fs.Arg(0))
		rest = fs.Args()[1:]
	}
	switch {
	case *file == "":
		return usage(errors.New("no run given: use -f FILE"))
	case *output != "json" && *output != "text":
		return usage(fmt.Errorf("--output %q: attest prints json", *output))
	case *format != "" && !slices.Contains([]provenance.Format{
		provenance.InToto, provenance.SLSAv1, provenance.SLSAv2alpha3, provenance.SLSAv2alpha4, provenance.Simplesigning,
	}, provenance.Format(*format)):
		return usage(fmt.Errorf("--format %q: unknown format; accepted: in-toto, slsa/v1, slsa/v2alpha3, slsa/v2alpha4, simplesigning", *format))
	}
	s := stated{format: *format, sign: *sign || *doStore, store: *doStore, warn: errw}
	b, err := s.run(ctx, *file, children, *config)
	if err != nil {
		fmt.Fprintf(errw, "assay: %v\n", err)
		return 1
	}
	if _, err := out.Write(append(b, '\n')); err != nil {
		fmt.Fprintf(errw, "assay: %v\n", err)
		return 1
	}
	return 0
}

// stated is one call of `assay attest`.
type stated struct {
	format      string
	sign, store bool
	warn        io.Writer
}

func (s *stated) run(ctx context.Context, file string, childFiles []string, configFile string) ([]byte, error) {
	data, err := readSettings(configFile)
	if err != nil {
		return nil, err
	}
	var h *home.Home
	var hc home.Config
	if s.sign {
		if h, hc, err = statedHome(); err != nil {
			return nil, err
		}
		// A stated run never speaks under another builder's id.
		data["builder.id"] = api.BuilderID(api.Stated, api.SeparationNone, hc.Instance)
	}
	cfg, err := provenance.ParseConfig(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", configName(configFile), err)
	}
	in, err := s.input(file, childFiles)
	if err != nil {
		return nil, err
	}
	payload, err := s.form(in, cfg)
	if err != nil || !s.sign {
		return payload, err
	}
	signer, err := EnsureKey(h, api.Stated)
	if err != nil {
		return nil, err
	}
	env, err := attest.Statement(ctx, signer, payload)
	if err != nil {
		return nil, err
	}
	if s.store {
		if err := s.put(ctx, h, hc, signer, env, payload); err != nil {
			return nil, err
		}
	}
	return json.Marshal(env)
}

// input reads the run and its children and warns of what they lack.
func (s *stated) input(file string, childFiles []string) (provenance.Input, error) {
	object, err := readBounded(file)
	if err != nil {
		return provenance.Input{}, err
	}
	var children [][]byte
	for _, f := range childFiles {
		b, err := readBounded(f)
		if err != nil {
			return provenance.Input{}, err
		}
		docs, err := provenance.Documents(b)
		if err != nil {
			return provenance.Input{}, fmt.Errorf("%s: %w", f, err)
		}
		children = append(children, docs...)
	}
	in, err := provenance.Load(object, children...)
	if err != nil {
		return provenance.Input{}, fmt.Errorf("%s: %w", file, err)
	}
	for _, m := range in.Missing {
		s.warning("child %s was not given; the statement is silent about it", m)
	}
	if what := unfinished(in); what != "" {
		s.warning("%s", what)
	}
	var problems []hint.Problem
	if in.TaskRun != nil {
		problems = hint.Problems(nil, in.TaskRun)
	} else {
		problems = hint.Problems(in.PipelineRun, in.Children...)
	}
	for i, p := range problems {
		if i == maxWarnings {
			s.warning("%d further problems with hints", len(problems)-i)
			break
		}
		s.warning("%s", p)
	}
	return in, nil
}

// maxWarnings about hints is what one still reads.
const maxWarnings = 50

// warning prints one line. What it says comes from strangers' files, which must
// not speak to the terminal.
func (s *stated) warning(format string, args ...any) {
	line := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, fmt.Sprintf(format, args...))
	fmt.Fprintf(s.warn, "assay: warning: %s\n", line)
}

// form writes the statement or, for simplesigning, the list of images.
func (s *stated) form(in provenance.Input, cfg provenance.Config) (payload []byte, err error) {
	// Upstream's formatter is known to panic on some runs. Ours is not; but what
	// it is given here nobody has admitted to a cluster.
	defer func() {
		if p := recover(); p != nil {
			payload, err = nil, fmt.Errorf("stating provenance: the run is not as Tekton writes it: %v", p)
		}
	}()
	format := provenance.Format(s.format)
	if format == "" {
		format = cfg.Format(in)
	}
	if format != provenance.Simplesigning {
		return provenance.Statement(in, cfg, format, provenance.Options{})
	}
	if s.sign {
		return nil, errors.New("--sign with --format simplesigning: images are signed along with the statement; use another format")
	}
	images, err := provenance.SimpleSigning(in, provenance.Options{})
	if err != nil {
		return nil, err
	}
	return json.Marshal(images)
}

// statedHome prepares the key's place.
func statedHome() (*home.Home, home.Config, error) {
	h, err := home.Find()
	if err != nil {
		return nil, home.Config{}, err
	}
	hc, err := h.Config()
	if err != nil {
		return nil, hc, err
	}
	return h, hc, h.Make()
}

// put stores a stated envelope beside the images that it names.
func (s *stated) put(ctx context.Context, h *home.Home, hc home.Config, signer attest.Signer, env *dsse.Envelope, payload []byte) error {
	subjects, err := subjectsOf(payload)
	if err != nil {
		return err
	}
	if len(subjects) == 0 {
		return errors.New("the run names no image: there is nothing to store the statement beside")
	}
	key, err := dsse.NewPublicKey(signer.Public())
	if err != nil {
		return err
	}
	for _, sub := range subjects {
		if strings.HasPrefix(sub.Name, hc.Registry+"/") {
			return fmt.Errorf("%s is in the embedded registry, where only executed runs are attested", sub.Name)
		}
	}
	log, err := openLog(h, hc.Log)
	if err != nil {
		return err
	}
	piece := &store.Evidence{Envelope: env, Key: key}
	if err := logAll(ctx, log, []evidence{{pieces: []*store.Evidence{piece}}}); err != nil {
		return err
	}
	for _, sub := range subjects {
		d := "sha256:" + sub.Digest["sha256"]
		repo, err := name.NewRepository(sub.Name)
		if err != nil {
			return err
		}
		rt, err := oci.Authorize(ctx, repo, http.DefaultTransport, authn.DefaultKeychain, true)
		if err != nil {
			return err
		}
		st := oci.New(repo, rt, oci.Options{})
		artifact, _, err := st.Resolve(ctx, d)
		if err != nil {
			return err
		}
		if _, err := st.Put(ctx, artifact, *piece); err != nil {
			return fmt.Errorf("storing the statement beside %s: %w", sub.Name, err)
		}
	}
	return nil
}

func configName(f string) string {
	if f == "" {
		return "chains-config"
	}
	return f
}

// readSettings reads chains-config; no file means no setting.
func readSettings(file string) (map[string]string, error) {
	if file == "" {
		return map[string]string{}, nil
	}
	b, err := readBounded(file)
	if err != nil {
		return nil, err
	}
	data, err := provenance.ReadConfig(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return data, nil
}

// readBounded reads a file; - is standard input.
func readBounded(file string) ([]byte, error) {
	f := os.Stdin
	if file != "-" {
		var err error
		if f, err = os.Open(file); err != nil {
			return nil, fmt.Errorf("opening the file: %w", err)
		}
		defer f.Close()
	}
	b, err := io.ReadAll(io.LimitReader(f, maxInput+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	if len(b) > maxInput {
		return nil, fmt.Errorf("%s has more than %d bytes", file, maxInput)
	}
	return b, nil
}

func unfinished(in provenance.Input) string {
	switch {
	case in.TaskRun != nil && !in.TaskRun.IsDone():
		return "the TaskRun is not finished"
	case in.TaskRun != nil && !in.TaskRun.IsSuccessful():
		return "the TaskRun did not succeed"
	case in.PipelineRun != nil && !in.PipelineRun.IsDone():
		return "the PipelineRun is not finished"
	case in.PipelineRun != nil && in.PipelineRun.GetStatusCondition().GetCondition("Succeeded").IsFalse():
		return "the PipelineRun did not succeed"
	}
	return ""
}
