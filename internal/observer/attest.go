package observer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"sigs.k8s.io/yaml"

	"assay.dev/assay/api"
	"assay.dev/assay/attest"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/provenance"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
)

// statedUsage is printed for --help and after wrong flags.
const statedUsage = `Usage: assay attest -f RUN [--children FILE]… [--format FORMAT] [--config FILE]
                    [--sign] [--store]

Prints the in-toto statement that Tekton Chains would make of a TaskRun or
PipelineRun in a file. What is in a file can be anything, so this is a stated
run: with --sign it gets a key and a builder.id of its own, never those of a run
that was executed here.

  -f FILE           one TaskRun or PipelineRun, JSON or YAML, v1 or v1beta1
  --children FILE   TaskRuns of the PipelineRun; several documents, repeatable
  --format FORMAT   in-toto, slsa/v1, slsa/v2alpha3, slsa/v2alpha4 or
                    simplesigning; default: as --config says
  --config FILE     chains-config: its data, or the ConfigMap itself
  --sign            print the signed envelope instead
  --store           sign, and store beside each subject that is an image

Exit codes: 0 printed, 1 it cannot be stated, 2 wrong usage.
`

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
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(out, statedUsage)
		return 0
	case err != nil:
		return usage(err)
	case *file == "":
		return usage(errors.New("no run given: use -f FILE"))
	case *output != "json" && *output != "text":
		return usage(fmt.Errorf("--output %q: attest prints json", *output))
	}
	for _, extra := range fs.Args() {
		children = append(children, extra)
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
	data, err := readConfig(configFile)
	if err != nil {
		return nil, err
	}
	h, hc, err := statedHome(s.sign)
	if err != nil {
		return nil, err
	}
	if s.sign {
		// A stated run never speaks under another builder's id.
		data["builder.id"] = api.BuilderID(api.Stated, api.SeparationNone, hc.Instance)
	}
	cfg, err := provenance.ParseConfig(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", configName(configFile), err)
	}
	object, err := readBounded(file)
	if err != nil {
		return nil, err
	}
	var children [][]byte
	for _, f := range childFiles {
		b, err := readBounded(f)
		if err != nil {
			return nil, err
		}
		docs, err := documents(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		children = append(children, docs...)
	}
	in, err := provenance.Load(object, children...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	for _, m := range in.Missing {
		fmt.Fprintf(s.warn, "assay: warning: child %s was not given; the statement is silent about it\n", m)
	}
	if warning := unfinished(in); warning != "" {
		fmt.Fprintf(s.warn, "assay: warning: %s\n", warning)
	}
	format := provenance.Format(s.format)
	if format == "" {
		format = cfg.Format(in)
	}
	if format == provenance.Simplesigning {
		images, err := provenance.SimpleSigning(in, provenance.Options{})
		if err != nil {
			return nil, err
		}
		if images == nil {
			images = []provenance.Image{}
		}
		if s.sign {
			return nil, errors.New("--sign with --format simplesigning: images are signed along with the statement; use another format")
		}
		return json.Marshal(images)
	}
	payload, err := provenance.Statement(in, cfg, format, provenance.Options{})
	if err != nil {
		return nil, err
	}
	if !s.sign {
		return payload, nil
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
		if err := s.put(ctx, hc, signer, env, payload); err != nil {
			return nil, err
		}
	}
	return json.Marshal(env)
}

// statedHome prepares the key's place when something is to be signed.
func statedHome(sign bool) (*home.Home, home.Config, error) {
	h, err := home.Find()
	if err != nil {
		return nil, home.Config{}, err
	}
	hc, err := h.Config()
	if err != nil {
		return nil, hc, err
	}
	if sign {
		err = h.Make()
	}
	return h, hc, err
}

// put stores a stated envelope beside the images that it names.
func (s *stated) put(ctx context.Context, hc home.Config, signer attest.Signer, env *dsse.Envelope, payload []byte) error {
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
		if _, err := st.Put(ctx, artifact, store.Evidence{Envelope: env, Key: key}); err != nil {
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

// readConfig reads chains-config as data or as the ConfigMap.
func readConfig(file string) (map[string]string, error) {
	if file == "" {
		return map[string]string{}, nil
	}
	b, err := readBounded(file)
	if err != nil {
		return nil, err
	}
	var m map[string]any
	if err := yaml.UnmarshalStrict(b, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if kind, ok := m["kind"]; ok {
		if kind != "ConfigMap" {
			return nil, fmt.Errorf("%s: kind %v: want a ConfigMap or its data", file, kind)
		}
		data, ok := m["data"].(map[string]any)
		if !ok && m["data"] != nil {
			return nil, fmt.Errorf("%s: data is no map", file)
		}
		m = data
	}
	out := map[string]string{}
	for k, v := range m {
		s, ok := v.(string)
		if !ok {
			return nil, fmt.Errorf("%s: %s is %v: ConfigMap values are strings, put it in quotes", file, k, v)
		}
		out[k] = s
	}
	return out, nil
}

func readBounded(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("opening the file: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxInput+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	if len(b) > maxInput {
		return nil, fmt.Errorf("%s has more than %d bytes", file, maxInput)
	}
	return b, nil
}

// documents splits a file of several YAML documents, or one JSON list.
func documents(b []byte) ([][]byte, error) {
	if t := bytes.TrimSpace(b); len(t) > 0 && t[0] == '[' {
		var list []json.RawMessage
		if err := json.Unmarshal(t, &list); err != nil {
			return nil, err
		}
		out := make([][]byte, len(list))
		for i, d := range list {
			out[i] = d
		}
		return out, nil
	}
	var out [][]byte
	for _, d := range bytes.Split(append([]byte("\n"), b...), []byte("\n---")) {
		// What follows --- on its line (a comment, or nothing) ends there.
		d = bytes.TrimPrefix(d, []byte("\r"))
		if t := bytes.TrimSpace(d); len(t) > 0 {
			out = append(out, d)
		}
	}
	return out, nil
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
