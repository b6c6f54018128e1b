package watch_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"k8s.io/client-go/tools/clientcmd"

	"assay.dev/assay/internal/watch"
	"assay.dev/assay/internal/watch/watchtest"
	"assay.dev/assay/provenance"
)

// Tests of crashes and of cost need an observer that is a process of its own:
// this test binary, started again.

// helper says what the process is to be; as JSON in the variable of its name.
type helper struct {
	Kubeconfig string
	Namespaces []string
	System     string
	Settings   map[string]string // nil: those of the ConfigMap
	Dir        string
	Workers    int
	// KillAt is the phase at which the process kills itself, at the KillNth time.
	KillAt  string
	KillNth int
	Profile string // file for a CPU profile
	Buckets int
	Lease   time.Duration
	Verbose bool
}

const helperEnv = "ASSAY_WATCH_HELPER"

func TestMain(m *testing.M) {
	if text := os.Getenv(helperEnv); text != "" {
		if err := beHelper(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func beHelper(text string) error {
	var h helper
	if err := json.Unmarshal([]byte(text), &h); err != nil {
		return err
	}
	kube, err := clientcmd.BuildConfigFromFlags("", h.Kubeconfig)
	if err != nil {
		return err
	}
	signer, err := watchtest.NewSigner()
	if err != nil {
		return err
	}
	level := slog.LevelWarn
	if h.Verbose {
		level = slog.LevelInfo
	}
	k := &keepers{dir: h.Dir}
	cfg := watch.Config{
		Kube: kube, Namespaces: h.Namespaces, SystemNamespace: h.System, Workers: h.Workers,
		Keepers: k.open, Signer: signer, Registry: prometheus.NewRegistry(),
		ProtectAfter: 2 * time.Second,
		Log:          slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	}
	if h.Buckets > 0 {
		cfg.Election = &watch.Election{Buckets: h.Buckets, Duration: h.Lease}
	}
	if h.Settings != nil {
		parsed, err := provenance.ParseConfig(h.Settings)
		if err != nil {
			return err
		}
		cfg.Settings = &parsed
	}
	if h.KillAt != "" {
		n := make(chan int, 1)
		n <- 0
		cfg.Phase = func(name string) {
			if name != h.KillAt {
				return
			}
			count := <-n + 1
			if count >= h.KillNth {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
			n <- count
		}
	}
	o, err := watch.New(cfg)
	if err != nil {
		return err
	}
	k.observer.Store(o)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr().String())
	go func() { _ = http.Serve(ln, o.Handler()) }()
	if h.Profile != "" {
		f, err := os.Create(h.Profile)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// The parent holds our standard input; when it is gone we go.
	go func() { _, _ = bufio.NewReader(os.Stdin).ReadString('\n'); cancel() }()
	return o.Run(ctx)
}

// process is an observer process.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	addr string
	in   *os.File
}

// startProcess starts an observer process; it ends with the test.
func startProcess(t testing.TB, h helper) *process {
	t.Helper()
	text, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"="+string(text))
	cmd.Stderr = testWriter{t}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = r
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	p := &process{t: t, cmd: cmd, in: w}
	t.Cleanup(p.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("observer process did not start: %v", err)
	}
	p.addr = strings.TrimSpace(line)
	return p
}

func (p *process) kill() {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
	_ = p.in.Close()
}

// stop ends it in good order.
func (p *process) stop() {
	_ = p.in.Close()
	_ = p.cmd.Wait()
}

// metric sums a metric over its labels.
func (p *process) metric(name string) float64 {
	resp, err := http.Get("http://" + p.addr + "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	sum := 0.0
	for _, m := range families[name].GetMetric() {
		sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return sum
}

// cost is CPU time and peak memory so far.
func (p *process) cost() (cpu time.Duration, peak int) {
	return cost(p.t, p.cmd.Process.Pid)
}

func cost(t testing.TB, pid int) (cpu time.Duration, peak int) {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	u, _ := strconv.Atoi(fields[11])
	s, _ := strconv.Atoi(fields[12])
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, _ := strconv.Atoi(strings.Fields(rest)[0])
			peak = kb << 10
		}
	}
	return time.Duration(u+s) * 10 * time.Millisecond, peak
}
